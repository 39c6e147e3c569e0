"""`python -m domainbed <command>`."""

import sys

from domainbed.cli import main

sys.exit(main())
