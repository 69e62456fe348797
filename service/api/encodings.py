"""Content encodings of bodies: gzip and deflate (zlib's form, as HTTP means it)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, Sequence

from service.errors import BadInference, UnsupportedMediaType

PIECE = 256 * 1024  # most bytes that are inflated before others have their turn
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Of one gzip body (RFC 1952, 2.2). Tools that pack in parts make them of 64 KiB and more.
MAX_MEMBERS = 1024
_LEVEL = 1  # label maps shrink tenfold by it, in a tenth of the time of zlib's default


def decoded(stream: AsyncGenerator[bytes, None], encoding: str) -> AsyncGenerator[bytes, None]:
    """A body without its content encoding, in pieces of at most PIECE bytes.

    encoding: the value of Content-Encoding; empty: none. Raises UnsupportedMediaType at once, and
    BadInference for damaged data when it is read.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return stream
    if name not in _WINDOWS:
        raise UnsupportedMediaType(
            f"The content encoding is {name[:40]!r}: send {' or '.join(_WINDOWS)}, or none"
        )
    return _inflated(stream, name)


def accepted(lines: Sequence[str]) -> str:
    """The encoding that the lines of Accept-Encoding allow; empty: none of ours."""
    weights: dict[str, str] = {}
    for entry in ",".join(lines).split(","):
        name, _, parameter = entry.partition(";")
        weights[name.strip().lower()] = parameter.replace(" ", "").lower()
    refused = {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return next((name for name in _WINDOWS if weights.get(name, "q=0") not in refused), "")


def encoded(body: bytes, encoding: str) -> bytes:
    """encoding: as `accepted` gives it. It takes a while: call it in a thread."""
    if not encoding:
        return body
    packer = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    return packer.compress(body) + packer.flush()


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
