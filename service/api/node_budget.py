"""The node's ceilings, from the settings and from a watched file.

Kubernetes can change the file without a restart. Its lines are values of `Compute-Budget`; an empty
file sets no ceiling.
"""

from __future__ import annotations

from pathlib import Path

from service.api import watched
from service.api.fields import names_the_header, parse_budget
from service.core import Budget
from service.errors import BadHeader, SettingsError
from service.model import Model
from service.settings import flag

MAX_BYTES = 4096


def read(text: str, model: Model) -> Budget:
    """The budget of the file's lines. Raises BadHeader that names the key."""
    budget = parse_budget(text.splitlines())
    with names_the_header():
        model.policy.check(budget)
    return budget


def from_setting(text: str, model: Model) -> Budget:
    """The setting `node_budget`. Raises SettingsError that names the key."""
    try:
        return read(text, model)
    except BadHeader as error:
        raise SettingsError(f"{flag('node_budget')}: {error.detail}") from error


async def watch(path: Path, model: Model, period_s: float = watched.PERIOD_S) -> None:
    """Give the model the file's budget now and after each change, until cancelled.

    The last good budget stays while the file is missing or wrong.
    """

    def apply(budget: Budget) -> None:
        model.node_budget = budget

    source = watched.Source(path, lambda text: read(text, model), MAX_BYTES)
    await watched.watch(source, apply, period_s)
