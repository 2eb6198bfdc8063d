"""`python -m deepjax` is `deepjax`."""

import sys

from deepjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
