"""`python -m oldrestore.train`, for `torchrun -m oldrestore.train`."""

import sys

from oldrestore.train.cli import app

if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"oldrestore: {error}")
