"""Where an image lies: a file, or a stretch of an archive."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.errors import BadSampleError

IMAGE_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image lies.

    Attributes:
        path: of the file or the archive.
        offset: of the first byte in an archive; −1 for a file.
        size: in bytes in an archive.
    """

    path: str
    offset: int = -1
    size: int = -1

    def read(self, name: str) -> bytes:
        """The bytes of the file.

        Raises:
            BadSampleError: it is missing or unreadable; ``name`` stands for it in the message.
        """
        try:
            with open(self.path, "rb") as file:
                if self.offset < 0:
                    return file.read()
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})"
            raise BadSampleError(name, reason) from None
