"""``python -m bezierdistill.cli``: the command, for launchers such as torchrun."""

import sys

from bezierdistill.cli import main

if __name__ == "__main__":
    sys.exit(main())
