"""The one image of a multipart/form-data body, in memory alone.

Browsers and HTTP libraries give a file a filename; programs that write their forms by hand often
forget it. So an image is also a part without a filename whose type or first bytes are an image's.
An empty filename is none: browsers send it for a file input in which no file was chosen. JSON has
none either: scripts can give a part its type only as a Blob, and browsers call that a file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Mapping
from tempfile import SpooledTemporaryFile

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser, MultipartPart

from service.errors import UndecodableImage, shown

MAX_PARTS = 1000  # each costs time
SEEN = 16  # first bytes of a part that are looked at
NAMED = 8  # parts in a message
# JPEG, PNG, WebP, TIFF of both byte orders; that of HEIC and AVIF stands behind a length
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"II*\0", b"MM\0*")
# It would write a line for every byte that a stranger puts in the wrong place.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


async def image_of(
    headers: Mapping[str, str], stream: AsyncGenerator[bytes, None]
) -> tuple[bytes, str]:
    """The image's bytes and the content type of its part, which may be empty.

    headers: of the request. Raises UndecodableImage for a form without exactly one image, and what
    the stream raises.
    """
    parser = _Parser(
        Headers(headers),
        stream,
        max_files=math.inf,  # what is too many is refused in other words
        max_fields=math.inf,
    )
    try:
        await parser.parse()
        if parser.image is None or not parser.image_is_whole():
            raise UndecodableImage(parser.what_is_missing())
        return await parser.image.read(), parser.image.content_type or ""
    except MultiPartException as error:
        raise UndecodableImage(f"The form cannot be read: {parser.explained(error)}") from error
    finally:
        parser.close()


class _Parser(MultiPartParser):
    """image: of the part that is one. begun: how many parts have. is_in_part: the last did not end.

    Of other parts, only the first bytes are kept.
    """

    # A container's file system may be read-only, and the body's size is limited already.
    spool_max_size = 0
    image: UploadFile | None = None
    is_in_part, begun = False, 0

    def close(self) -> None:
        """Close every file: parse() leaves one open whose part does not end."""
        for file in self._files_to_close_on_error:
            file.close()

    def image_is_whole(self) -> bool:
        """Whether a boundary ended its part: a cut one cannot even be read from its start."""
        return any(value is self.image for _, value in self.items)

    def explained(self, error: MultiPartException) -> str:
        """The error, with what to change in place of `Invalid multipart data`."""
        if error.__cause__ is None:
            return error.message
        if not self.begun:
            return (
                "it must begin with the boundary that Content-Type names, in a line that ends with "
                "CR LF; nothing may stand before it"
            )
        return "the head of a part is malformed, or a boundary does not stand in a line of its own"

    def what_is_missing(self) -> str:
        """For a form without a whole image."""
        if self.is_in_part:
            return "The form ends before its closing boundary: it was cut, or is not all sent"
        names = [shown(name) + ("" if value else " (empty)") for name, value in self.items]
        if not names:
            return "The form has no parts: send the image as one, with a filename"
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return (
            f"No part of the form is an image or has a filename, only {', '.join(names[:NAMED])}"
            f"{more}: send the image as a part with a filename, the file as it is and not as text"
        )

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self.is_in_part = True
        self.begun += 1
        if self.begun > MAX_PARTS:
            raise MultiPartException(f"it has more than {MAX_PARTS} parts")

    def on_headers_finished(self) -> None:
        part = self._current_part
        super().on_headers_finished()
        if part.file is not None and (not part.file.filename or _is_json(part)):
            part.file = None
        if part.file is not None:
            self._take(part)
        elif _type_of(part).startswith("image/"):
            self._promote(part)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None:
            begin, start = start, min(end, start + SEEN - len(part.data))
            part.data += data[begin:start]
            if len(part.data) < SEEN or not _begins_as_image(part.data):
                return
            self._promote(part)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None and _begins_as_image(part.data):
            self._promote(part)
        super().on_part_end()
        self.is_in_part = False

    def _promote(self, part: MultipartPart) -> None:
        """A part without a filename is the image."""
        file = SpooledTemporaryFile[bytes](max_size=self.spool_max_size)
        self._files_to_close_on_error.append(file)
        headers = Headers(raw=part.item_headers)
        part.file = UploadFile(file=file, size=0, filename="", headers=headers)  # type: ignore[arg-type]
        self._take(part)
        self._file_parts_to_write.append((part, bytes(part.data)))

    def _take(self, part: MultipartPart) -> None:
        if self.image is not None:
            name = shown(part.field_name)
            raise MultiPartException(
                f"the part {name} is a second image or file: send one image, and no other file"
            )
        self.image = part.file


def _begins_as_image(data: bytes | bytearray) -> bool:
    return data.startswith(_BEGINNINGS) or data[4:8] == b"ftyp"


def _is_json(part: MultipartPart) -> bool:
    kind = _type_of(part).partition(";")[0].strip()
    return kind == "application/json" or kind.endswith("+json")


def _type_of(part: MultipartPart) -> str:
    fields = dict(part.item_headers)
    return fields.get(b"content-type", b"").decode("latin-1").strip().lower()
