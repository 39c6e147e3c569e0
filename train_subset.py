"""Train on a few images per environment, for fast iteration.

python train_subset.py test_run --subset_size 500 --steps 2000 --data_dir DR2/ kl_anneal_end=600
"""

import sys

from domainbed.cli.train import main

if __name__ == "__main__":
    sys.exit(main("train_subset"))
