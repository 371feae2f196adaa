"""The bytes of a file, read at any place and never beyond its end."""

import io
import os
from pathlib import Path

from oldrestore.photo_file.errors import MAX_DECODED_BYTES, PhotoError, name_of, reason

PhotoPath = str | os.PathLike[str] | bytes


class Source(io.RawIOBase):
    """A file, or its bytes, as a stream.

    A count that a broken file claims reserves no memory: nothing is read beyond the end.

    Raises:
        PhotoError: it cannot be opened or is empty.
    """

    def __init__(self, photo: PhotoPath) -> None:
        super().__init__()
        self.label = name_of(photo)
        try:
            if isinstance(photo, bytes):
                self._file: io.BufferedIOBase = io.BytesIO(photo)
            else:
                path = Path(photo)
                if path.exists() and not path.is_file():
                    raise PhotoError(f"{self.label}: is not a file")
                self._file = path.open("rb")
            self.size = self._file.seek(0, io.SEEK_END)
            self._file.seek(0)
        except PhotoError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a NUL in a name
            raise PhotoError(f"{self.label}: cannot be read: {reason(error)}") from error
        if not self.size:
            self.close()
            raise PhotoError(f"{self.label}: is empty")

    def read_at(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes from ``offset``; fewer at the end of the file."""
        count = max(0, min(count, self.size - offset))
        if not count:
            return b""
        self._file.seek(offset)
        return self._file.read(count)

    def read_all(self) -> bytes:
        """The whole file.

        Raises:
            PhotoError: it is too large for that.
        """
        if self.size > MAX_DECODED_BYTES:
            limit = f"{MAX_DECODED_BYTES} is the most of a format that is decoded whole"
            raise PhotoError(f"{self.label}: has {self.size} bytes, and {limit}; save it as a TIFF")
        return self.read_at(0, self.size)

    def read(self, count: int = -1) -> bytes:
        place = self.tell()
        return self.read_at(place, self.size - place if count is None or count < 0 else count)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()
