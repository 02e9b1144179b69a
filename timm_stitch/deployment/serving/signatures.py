"""Refuses bodies that are no images by their first bytes, before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO")  # Pillow's names of the common ones
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")  # an MPO begins as a JPEG
_FORM_HEAD = 512  # bytes in which the first header of a form stands


def check_signatures(files: Sequence[bytes]) -> None:
    """Check that each file begins as an image of one of the formats.

    Args:
        files: the files.

    Raises:
        ValueError: if one does not: it names the formats, and for a form the option of curl.

    Examples:
        >>> check_signatures([b"GIF89a"])
    """
    for data in files:
        if data.startswith(_STARTS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
            continue
        expected = f"expected one of {', '.join(FORMATS)}"
        if not data:
            raise ValueError(f"the image is empty: {expected}.")
        if data.startswith(b"--") and b"content-disposition: form-data" in data[:_FORM_HEAD].lower():
            raise ValueError(
                f"this is a multipart form, no image: {expected}. Send the file itself, curl --data-binary @cat.jpg."
            )
        raise ValueError(f"this is no readable image: {expected}.")
