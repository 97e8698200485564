"""`python -m drupe`: the command line in the environment of that interpreter, where no script is installed."""

from __future__ import annotations

import sys

from drupe.core.cli import main

if __name__ == "__main__":
    sys.exit(main())
