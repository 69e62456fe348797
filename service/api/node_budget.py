"""The node's ceilings, from the settings and from a watched file.

Kubernetes can change the file without a restart. Its lines are values of `Compute-Budget`; an empty
file sets no ceiling.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import Path

from service.api import watched
from service.api.fields import names_the_header, parse_budget
from service.ask import bad
from service.core import Ask, Budget
from service.errors import BadHeader, SettingsError, UnsatisfiableBudget
from service.model import Model
from service.settings import flag

MAX_BYTES = 4096

_log = logging.getLogger("fathom")


def read(text: str, model: Model) -> Budget:
    """The budget of the file's lines. Raises BadHeader that names the key."""
    budget = parse_budget(text.splitlines())
    with names_the_header():
        model.policies.check(Ask(budget))
        if budget.strict:
            raise bad("strict", "has no meaning for a node: it is for requests")
    return budget


def at_start(text: str, path: str, model: Model) -> Budget:
    """The budget that is in force when the service starts: the file's, or else the setting's.

    text, path: the settings node_budget and node_budget_file. Raises SettingsError for either of
    them that cannot be understood, or a file that is not there; one that becomes so later leaves
    the budget as it was.
    """
    try:
        budget = read(text, model)
    except BadHeader as error:
        raise SettingsError(f"{flag('node_budget')}: {error.detail}") from error
    if not path:
        _warn_if_closed(budget, model)
        return budget
    found = _source(Path(path), model).read()
    if isinstance(found, watched.Unusable):
        raise SettingsError(f"{flag('node_budget_file')} {path}: {found.why}")
    return found  # `watch` will apply it again, and warn


async def watch(path: Path, model: Model, period_s: float = watched.PERIOD_S) -> None:
    """Give the model the file's budget now and after each change, until cancelled.

    The last good budget stays while the file is missing or wrong.
    """

    def apply(budget: Budget) -> None:
        model.node_budget = budget
        _warn_if_closed(budget, model)

    await watched.watch(_source(path, model), apply, period_s)


def _warn_if_closed(budget: Budget, model: Model) -> None:
    """Such a budget is in force all the same: it may be meant, to take no more images."""
    try:
        model.policies.default.affordable(Budget(), budget)
    except UnsatisfiableBudget as error:
        _log.warning("this node refuses every image: %s", error.detail)
        return
    limit_ms = budget.ms
    if limit_ms is None:
        return

    def compare(_warm: Future[None]) -> None:
        plans = model.policies.default.possible(Budget(), budget)
        fastest_ms = min(model.plan_ms(plans).values(), default=0.0)
        if fastest_ms > limit_ms and model.node_budget == budget:
            text = "this node refuses every image: ms=%g, and its fastest plan takes %.3g ms"
            _log.warning(text, limit_ms, fastest_ms)

    model.engine.warm.add_done_callback(compare)  # before, no time is known


def _source(path: Path, model: Model) -> watched.Source[Budget]:
    return watched.Source(path, lambda text: read(text, model), MAX_BYTES)
