"""What a request is counted under, whichever way it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import FathomError, NotReady
from service.metrics import Metrics


@contextmanager
def counted(
    metrics: Metrics, gone: type[BaseException], count: Callable[[str], None]
) -> Iterator[None]:
    """Count what happens inside, and what was refused to protect the others.

    gone: raised when the caller has left; who is cancelled for another reason is left over at the
    end of the drain. count: called at the end, with one of OUTCOMES.
    """
    outcome = FathomError.problem
    try:
        yield
        outcome = "ok"
    except FathomError as error:
        outcome = error.problem
        if error.shed:
            metrics.shed(error.shed)
        raise
    except gone:
        outcome = "cancelled"
        raise
    except asyncio.CancelledError:
        outcome = NotReady.problem
        raise
    finally:
        count(outcome)
