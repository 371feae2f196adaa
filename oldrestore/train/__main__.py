"""`python -m oldrestore.train`, for `torchrun -m oldrestore.train`."""

from oldrestore.train.cli import app

if __name__ == "__main__":
    app()
