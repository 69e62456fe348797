"""Which image formats are read, in one place, and what other bytes are called in error messages."""

from __future__ import annotations

from importlib.util import find_spec

from PIL import features

from service.errors import UndecodableImage, UnsupportedMediaType
from service.pixels.png_format import SIGNATURE

_ALL = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WebP",
    "image/avif": "AVIF",
    "image/tiff": "TIFF",
    "image/heic": "HEIF",
    "image/heif": "HEIF",
}
# Format -> what is missing here to read it. Remote callers read it: it tells nobody to install.
_MISSING = {
    **({} if find_spec("pillow_heif") else {"HEIF": "the extra heif"}),
    **({} if features.check("avif") else {"AVIF": "a Pillow that is built with AVIF"}),
}
# Media type -> format, for all that can be read here. OpenAPI and the 415s are made from it.
FORMATS = {kind: name for kind, name in _ALL.items() if name not in _MISSING}

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    SIGNATURE: "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
# What people send by mistake.
_FOREIGN = {
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"II+\0": "a BigTIFF image",
    b"MM\0+": "a BigTIFF image",
    b"%PDF": "a PDF document",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"RIFF": "a RIFF file (audio or video)",
    b"data:": "a data URL: decode it first",
    b"/9j/": "base64 text: decode it first",
    b"iVBORw": "base64 text: decode it first",
    b"--": "a form: its Content-Type must be multipart/form-data with the boundary",
    b"<": "markup (SVG, XML or HTML)",
    b"{": "JSON",
}


def sniff(data: bytes) -> str:
    """The format of a file by its first bytes: a value of FORMATS.

    Raises UndecodableImage (422) that says what the bytes are instead, as far as that is known, or
    UnsupportedMediaType (415) where an extra is missing.
    """
    name = _by_magic(data)
    if name in _MISSING:
        raise UnsupportedMediaType(
            f"The bytes are {name}, which is not read here: {_MISSING[name]} is missing"
        )
    if name:
        return name
    offered = ", ".join(dict.fromkeys(FORMATS.values()))
    if not data:
        raise UndecodableImage(f"There are no bytes: send an image ({offered})")
    start = data[:16].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = next((text for magic, text in _FOREIGN.items() if start.startswith(magic)), "")
    if not known and data[4:8] == b"ftyp":
        known = "a video"
    known = known or "no image of a type that is read here"
    raise UndecodableImage(f"The bytes are {known}. Read are {offered}")


def unsupported(content_type: str, *others: str) -> UnsupportedMediaType:
    """The error for a media type that is not in FORMATS; it says which extra is missing, if one is.

    others: what a transport takes beside FORMATS.
    """
    name = _ALL.get(content_type, "")
    if name in _MISSING:
        return UnsupportedMediaType(
            f"{content_type} is not read by this service: it lacks {_MISSING[name]}"
        )
    offered = ", ".join((*FORMATS, *others))
    return UnsupportedMediaType(
        f"The content type is {content_type or 'not given'}: send {offered}"
    )


def _by_magic(data: bytes) -> str:
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12]} | {data[at : at + 4] for at in range(16, size - 3, 4)}
        if data[8:12] in _AVIF_BRANDS or (data[8:12] in _HEIF_BRANDS and brands & _AVIF_BRANDS):
            return "AVIF"
        if data[8:12] in _HEIF_BRANDS:
            return "HEIF"
    return ""
