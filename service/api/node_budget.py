"""The node's ceilings: from the settings, and from a watched file that Kubernetes can change without a restart.

The file holds lines of the grammar of `Compute-Budget` and nothing else; an empty file sets no ceiling. It is read
once a second, whatever its times and its inode say: a ConfigMap changes by swapping a link to a folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from service.api.budget import parse_budget
from service.core import Budget
from service.errors import BadHeader, SettingsError
from service.settings import flag

PERIOD_S = 1.0
MAX_BYTES = 4096  # more cannot be a budget; the wrong path must not fill the memory
_log = logging.getLogger("fathom.node_budget")


def from_setting(text: str, of: int) -> Budget:
    """The setting `node_budget`. of: the bundle's deepest exit. Raises SettingsError that names the key."""
    try:
        return parse_budget(text.splitlines(), of)
    except BadHeader as error:
        raise SettingsError(f"{flag('node_budget')}: {error.detail}") from error


async def watch(path: Path, of: int, apply: Callable[[Budget], None], period_s: float = PERIOD_S) -> None:
    """Call `apply` with the file's budget now and after each change, until cancelled. of: the bundle's deepest exit.

    A file that is missing or cannot be understood changes nothing: the last good budget stays, and one warning says
    why. Mending the file applies it again. A change counts once two looks agree on it: a file that is being written
    in place is empty for a moment, and an empty one would lift every ceiling.
    """
    last: Budget | str | None = None
    before: Budget | str | None = None
    while True:
        found = await asyncio.to_thread(_read, path, of)
        if found != last and (last is None or found == before):
            if isinstance(found, str):
                _log.warning("%s: %s. The last good node budget stays.", path, found)
            else:
                _log.info("%s: %s", path, found)
                apply(found)
            last = found
        before = found
        await asyncio.sleep(period_s)


def _read(path: Path, of: int) -> Budget | str:
    """The file's budget, or what is wrong with it."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8", errors="replace")
        return parse_budget(text.splitlines(), of)
    except BadHeader as error:
        return error.detail
    except OSError as error:
        return error.strerror or str(error)
