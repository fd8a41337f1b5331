"""`python -m ftlab`."""

import sys

from ftlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
