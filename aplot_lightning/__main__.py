"""python -m aplot_lightning"""

import sys

from aplot_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
