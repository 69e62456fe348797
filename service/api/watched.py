"""Watches a small file that may change while the service runs.

It is read once a second, whatever its times and inode say: Kubernetes changes a mounted ConfigMap
or Secret by swapping a link to a folder.
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
    """Call `apply` with the file's value now and after each change, until cancelled.

    A file that is missing or cannot be understood changes nothing: its last value stays in force,
    and one error line says why. Once the file is right again, its value is applied again. A change
    counts when two reads in a row agree: a file that is written in place is empty for a moment, and
    an empty file can be valid.
    """
    accepted: _T | Unusable | None = None
    previous: _T | Unusable | None = None
    while True:
        value = await asyncio.to_thread(source.read)
        if value != accepted and (accepted is None or value == previous):
            if isinstance(value, Unusable):
                _log.error("%s: %s. Its last value stays in force.", source.path, value.why)
            else:
                _log.info("%s: %s", source.path, value)
                apply(value)
            accepted = value
        previous = value
        await asyncio.sleep(period_s)
