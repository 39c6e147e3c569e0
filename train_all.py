"""Leave one environment out, for every environment of a data set.

python train_all.py full_training --data_dir DR2/ --steps 10000
"""

import sys

from domainbed.cli.train import main

if __name__ == "__main__":
    sys.exit(main("train_all"))
