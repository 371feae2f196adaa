"""``python -m oldrestore`` is ``oldrestore``."""

from oldrestore.cli import main

if __name__ == "__main__":
    main()
