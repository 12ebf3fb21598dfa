"""``python -m falseneg`` is the command ``falseneg``."""

import sys

from falseneg.cli import main

if __name__ == "__main__":
    sys.exit(main())
