"""Content encodings of bodies: gzip and deflate (zlib's form, as HTTP means it)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence

from service.api.fields import weight_of
from service.errors import BadInference, UnsupportedMediaType, shown

PIECE = 256 * 1024  # most bytes that are inflated before others have their turn
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_SAME = {"x-gzip": "gzip"}  # RFC 9110, 8.4.1.3
# Of one gzip body (RFC 1952, 2.2). Tools that pack in parts make them of 64 KiB and more.
MAX_MEMBERS = 1024
_LEVEL = 1  # label maps shrink tenfold by it, in a tenth of the time of zlib's default


def decoded(stream: AsyncGenerator[bytes, None], encoding: str) -> AsyncGenerator[bytes, None]:
    """A body without its content encoding, in pieces of at most PIECE bytes.

    encoding: the value of Content-Encoding; empty: none. Raises UnsupportedMediaType at once, and
    BadInference for damaged data when it is read.
    """
    names = codings([encoding])
    if not names:
        return stream
    if len(names) > 1 or names[0] not in _WINDOWS:
        raise UnsupportedMediaType(
            f"The content encoding is {shown(', '.join(names))}: send one of "
            f"{' or '.join(_WINDOWS)}, or none"
        )
    return _inflated(stream, names[0])


def codings(lines: Sequence[str]) -> list[str]:
    """What lines of Content-Encoding name; identity is no coding."""
    names = map(_named, ",".join(lines).split(","))
    return [name for name in names if name not in ("", "identity")]


def accepted(lines: Sequence[str]) -> str:
    """The encoding that the lines of Accept-Encoding prefer, the first of ours among equals; empty:
    none of ours, or none at all. A weight that cannot be understood allows nothing."""
    weights: dict[str, float] = {}
    for entry in ",".join(lines).split(","):
        name, _, parameter = entry.partition(";")
        weights[_named(name)] = _weight(parameter)
    others = weights.get("*", 0.0)
    best = max(_WINDOWS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def encoded(body: bytes, encoding: str) -> bytes:
    """encoding: as `accepted` gives it. It takes a while: call it in a thread."""
    if not encoding:
        return body
    packer = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    return packer.compress(body) + packer.flush()


def _named(name: str) -> str:
    name = name.strip().lower()
    return _SAME.get(name, name)


def _weight(parameter: str) -> float:
    """0..1, of the text behind the semicolon of an entry."""
    name, _, value = parameter.partition("=")
    if not name.strip():
        return 1.0
    return (weight_of(value) or 0.0) if name.strip().lower() == "q" else 0.0


async def _inflated(
    stream: AsyncGenerator[bytes, None], encoding: str
) -> AsyncGenerator[bytes, None]:
    unpacker, members = zlib.decompressobj(_WINDOWS[encoding]), 1
    wrong = BadInference(f"the body is not one whole stream of the encoding {encoding}")
    try:
        async for chunk in stream:
            left, piece = chunk, b""
            # A full piece may leave more to come, even where all of the chunk was taken.
            while left or (len(piece) == PIECE and not unpacker.eof):
                if unpacker.eof:
                    if encoding == "gzip":
                        left = left.lstrip(b"\0")  # tools that write blocks fill the last one up
                    if not left:
                        break
                    if encoding != "gzip" or members == MAX_MEMBERS:
                        raise wrong
                    unpacker, members = zlib.decompressobj(_WINDOWS[encoding]), members + 1
                piece = unpacker.decompress(left, PIECE)
                left = unpacker.unconsumed_tail or unpacker.unused_data
                if piece:
                    yield piece
                await asyncio.sleep(0)
    except (zlib.error, BadInference) as error:
        raise wrong from error
    if not unpacker.eof:
        raise wrong
