"""``python -m sparring``, for launchers that start modules: ``python -m torch.distributed.run -m sparring train``."""

import sys

from sparring.cli import main

if __name__ == "__main__":
    sys.exit(main())
