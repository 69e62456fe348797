"""The node's ceilings: from the settings, and from a watched file that Kubernetes can change
without a restart.

The file holds lines of the grammar of `Compute-Budget` and nothing else; an empty file sets no
ceiling.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.api import watched
from service.api.fields import parse_budget
from service.core import Budget
from service.errors import BadHeader, SettingsError
from service.settings import flag

MAX_BYTES = 4096


def from_setting(text: str, of: int) -> Budget:
    """The setting `node_budget`. of: the bundle's deepest exit. Raises SettingsError that names the
    key."""
    try:
        return parse_budget(text.splitlines(), of)
    except BadHeader as error:
        raise SettingsError(f"{flag('node_budget')}: {error.detail}") from error


async def watch(
    path: Path, of: int, apply: Callable[[Budget], None], period_s: float = watched.PERIOD_S
) -> None:
    """Call `apply` with the file's budget now and after each change, until cancelled. of: the
    bundle's deepest exit.

    The last good budget stays while the file is missing or wrong.
    """
    source = watched.Source(path, lambda text: parse_budget(text.splitlines(), of), MAX_BYTES)
    await watched.watch(source, apply, period_s)
