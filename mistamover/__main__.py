"""``python -m mistamover``."""

import sys

from mistamover.cli import main

if __name__ == "__main__":
    sys.exit(main())
