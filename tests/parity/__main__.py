"""The command line."""

import sys
from pathlib import Path

from tests.parity import main

if len(sys.argv) != 2:
    sys.exit("usage: python -m tests.parity DIR")
sys.exit(main(Path(sys.argv[1])))
