"""``python -m sparring``, for launchers that start modules: ``python -m torch.distributed.run -m sparring train``."""

import os
import sys

from sparring.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    from sparring import distributed

    distributed.end(code)
