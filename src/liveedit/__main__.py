"""The command line as a module: `python -m liveedit`, or `torchrun --nproc_per_node N -m liveedit train`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
