"""Watches a small file that may change while the service runs.

It is read once a second, whatever its times and inode say: Kubernetes changes a mounted ConfigMap
or Secret by swapping a link to a folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from service.errors import FathomError
from service.threads import in_daemon

PERIOD_S = 1.0
LATE_S = 10.0  # a read that takes longer is logged
_T = TypeVar("_T")
_log = logging.getLogger("fathom.watched")


@dataclass(frozen=True, slots=True)
class Source(Generic[_T]):
    """A file and how to read it.

    parse: turns the text into a value. The value's str() is logged, so it must have no secrets.
        Raises FathomError.
    max_bytes: a larger file is refused, so that a wrong path cannot fill the memory.
    """

    path: Path
    parse: Callable[[str], _T]
    max_bytes: int

    def read(self) -> _T | Unusable:
        """The file's value, or what is wrong with it."""
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return Unusable("it is no regular file")
                data = file.read(self.max_bytes + 1)
            if len(data) > self.max_bytes:
                return Unusable(f"it has more than {self.max_bytes} bytes")
            if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                return Unusable("it is UTF-16: save it as UTF-8")
            return self.parse(data.decode("utf-8-sig", errors="replace"))
        except FathomError as error:
            return Unusable(error.detail)
        except OSError as error:
            return Unusable(error.strerror or str(error))


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe would wait for somebody who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that cannot be read or understood."""

    why: str


async def watch(
    source: Source[_T], apply: Callable[[_T], None], period_s: float = PERIOD_S
) -> None:
    """Call `apply` with the file's value now and after each change, until cancelled.

    A file that is missing or cannot be understood changes nothing: its last value stays in force,
    and one error line says why. Once the file is right again, its value is applied again. A change
    counts when two reads in a row agree: a file that is written in place is empty for a moment, and
    an empty file can be valid. A read that hangs, as on a network that is gone, delays no end of
    the process.
    """
    accepted: _T | Unusable | None = None
    previous: _T | Unusable | None = None
    while True:
        reading = asyncio.ensure_future(in_daemon(source.read))
        read, _ = await asyncio.wait({reading}, timeout=LATE_S)
        if not read:
            _log.error(
                "%s: no answer within %g s. Its last value stays in force.", source.path, LATE_S
            )
        value = await reading
        if value != accepted and (accepted is None or value == previous):
            if isinstance(value, Unusable):
                _log.error("%s: %s. Its last value stays in force.", source.path, value.why)
            else:
                _log.info("%s: %s", source.path, value)
                apply(value)
            accepted = value
        previous = value
        await asyncio.sleep(period_s)
