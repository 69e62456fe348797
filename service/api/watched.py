"""A small file that changes while the service runs: read once a second, whatever its times and its
inode say.

Kubernetes changes a mounted ConfigMap or Secret by swapping a link to a folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from service.errors import FathomError

PERIOD_S = 1.0
_T = TypeVar("_T")
_log = logging.getLogger("fathom.watched")


@dataclass(frozen=True, slots=True)
class Source(Generic[_T]):
    """What to read. max_bytes: more cannot be such a file; the wrong path must not fill the memory.

    parse: the text -> its meaning, whose str() is logged and so must hold no secret. It raises
    FathomError.
    """

    path: Path
    parse: Callable[[str], _T]
    max_bytes: int

    def read(self) -> _T | Unusable:
        """The file's meaning, or what is wrong with it."""
        try:
            with self.path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
            if len(data) > self.max_bytes:
                return Unusable(f"it has more than {self.max_bytes} bytes")
            return self.parse(data.decode("utf-8", errors="replace"))
        except FathomError as error:
            return Unusable(error.detail)
        except OSError as error:
            return Unusable(error.strerror or str(error))


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that cannot be read or understood."""

    why: str


async def watch(
    source: Source[_T], apply: Callable[[_T], None], period_s: float = PERIOD_S
) -> None:
    """Call `apply` with the file's meaning now and after each change, until cancelled.

    A file that is missing or cannot be understood changes nothing: what it last meant stays, and
    one error line says why. Mending the file applies it again. A change counts once two looks agree
    on it: a file that is being written in place is empty for a moment, and an empty one can mean a
    lot.
    """
    last: _T | Unusable | None = None
    before: _T | Unusable | None = None
    while True:
        found = await asyncio.to_thread(source.read)
        if found != last and (last is None or found == before):
            if isinstance(found, Unusable):
                _log.error("%s: %s. What it last said stays in force.", source.path, found.why)
            else:
                _log.info("%s: %s", source.path, found)
                apply(found)
            last = found
        before = found
        await asyncio.sleep(period_s)
