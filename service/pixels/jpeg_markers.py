"""JPEG files: the picture between its own markers, without what says nothing about its pixels.

libjpeg (T.81) needs the tables, the frame, the scans, and of the application segments JFIF's and
Adobe's, from which it guesses the colours. All others are left out, however damaged they are: EXIF
and the colour profile are read here. What stands behind the picture (videos, further pictures) is
not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.errors import UndecodableImage

# A progressive JPEG of 25 MP can spend milliseconds on a scan of 64 bytes; encoders write about ten
# scans.
MAX_SCANS = 200
MAX_SEGMENTS = 20_000  # files of megabytes can hold millions of empty ones; cameras write tens

_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, _DRI, _COM, *range(_APP0, _APP15 + 1)}  # may precede a scan
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_LS = 0xF7
# Frames that libjpeg does not decode.
_UNREAD = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    0xCB: "lossless and arithmetic-coded",
    _JPEG_LS: "a JPEG-LS",
}
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_ICC = b"ICC_PROFILE\0"
_EXIF = b"Exif\0\0"


@dataclass(slots=True)
class Picture:
    """One JPEG picture, taken apart.

    head: SOI and the segments before the first scan, as libjpeg gets them. body: from the first
    scan's SOS to the picture's EOI, without that. scans: the entropy-coded data of each scan, as
    (start, end) in the body. complete: an EOI ends it, and nothing unknown comes before that. cut:
    the file ends first.
    """

    head: bytes = b"\xff\xd8"
    body: memoryview = field(default_factory=lambda: memoryview(b""))
    scans: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = False
    cut: bool = False
    frame: int = 0
    components: int = 0
    restarts: bool = False
    exif: bytes | None = None
    profile: bytes | None = None

    @property
    def one_pass(self) -> bool:
        """Rows come out while the data go in; else libjpeg waits for the last scan."""
        first_scan = self.body[4] if len(self.body) > 4 else 0
        return self.frame not in _PROGRESSIVE and first_scan == self.components


def take_apart(data: bytes) -> Picture:
    """Walk the markers of the first picture in a file. Raises UndecodableImage."""
    picture, kept, icc = Picture(), [b"\xff\xd8"], list[bytes]()
    position = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, position)
        if match is None or data[match.end() - 1] == _EOI or match.end() + 2 > len(data):
            raise UndecodableImage("The JPEG file ends before its first pixels")
        start, marker = match.start(), data[match.end() - 1]
        position = match.end()
        if marker == _SOS:
            break
        if marker == 0x01 or 0xD0 <= marker <= _SOI:
            continue  # these have no content
        end = position + max(2, int.from_bytes(data[position : position + 2], "big"))
        content = data[position + 2 : end]
        position = end
        if _APP0 <= marker <= _APP15 or marker == _COM:
            if _guides_colours(marker, content):
                kept.append(data[start:end])
            elif marker == _APP1 and content.startswith(_EXIF):
                # A block over 64 KiB continues in the next segment.
                picture.exif = (picture.exif or _EXIF) + content[len(_EXIF) :]
            elif marker == _APP2 and content.startswith(_ICC):
                icc.append(content[len(_ICC) :])
            continue
        if marker in {*_FRAMES, _JPEG_LS} and len(content) > 5:
            picture.frame, picture.components = marker, content[5]
            _check_frame(marker, bits=content[0], channels=content[5])
        picture.restarts |= marker == _DRI
        kept.append(data[start:end])
    else:
        raise UndecodableImage(f"The JPEG has more than {MAX_SEGMENTS} segments")
    picture.head, picture.profile = b"".join(kept), _joined(icc)
    _walk_scans(data, start, picture)
    return picture


def _check_frame(marker: int, bits: int, channels: int) -> None:
    """Refuse by its name what may be sound, but no decoder here reads."""
    kind = _UNREAD.get(marker, "")
    if not kind and bits != 8 and 2 <= bits <= 16:
        kind = f"of {bits} bits"
    elif not kind and channels == 2:
        kind = "of 2 channels"
    if kind:
        raise UndecodableImage(
            f"The JPEG is {kind}, which is not read: save it as gray or RGB of 8 bits, baseline or "
            "progressive"
        )


def _guides_colours(marker: int, content: bytes) -> bool:
    """libjpeg looks at these two only, and only if they are long enough."""
    jfif = marker == _APP0 and content.startswith(b"JFIF\0") and len(content) >= 14
    return jfif or (marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12)


def _joined(segments: Sequence[bytes]) -> bytes | None:
    """The ICC profile of its numbered segments; None unless each is there once."""
    parts = {segment[0]: segment[2:] for segment in segments if len(segment) > 2}
    counts = {segment[1] for segment in segments if len(segment) > 2}
    if len(parts) != len(segments) or counts != {len(parts)}:
        return None
    if sorted(parts) != list(range(1, len(parts) + 1)):
        return None
    return b"".join(parts[number] for number in sorted(parts))


def _walk_scans(data: bytes, first: int, picture: Picture) -> None:
    """Fill in body, scans and complete. first: where the first scan's SOS is."""
    position, end, match = first, first, None
    while position + 4 <= len(data) and data[position + 1] in {_SOS, *_TABLES}:
        end = position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        if end > len(data):
            break
        is_scan = data[position + 1] == _SOS
        match = (_END_OF_SCAN if is_scan else _MARKER).search(data, end)
        position = match.start() if match else len(data)
        if is_scan:
            filled = position
            while filled > end and data[filled - 1] == 0xFF:
                filled -= 1  # any number of these may stand before a marker
            picture.scans.append((end - first, filled - first))
        if len(picture.scans) > MAX_SCANS:
            raise UndecodableImage(f"The JPEG has more than {MAX_SCANS} scans")
    picture.complete = data[position : position + 2] == bytes([0xFF, _EOI])
    picture.cut = not picture.complete and (match is None or end > len(data))
    picture.body = memoryview(data)[first:position]
