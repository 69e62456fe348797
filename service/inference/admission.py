"""Whether one more image can be let in. Pure functions on places: no queue and no clock.

They run at every arrival, on the event loop, over all that wait: thousands of places must cost less
than a millisecond.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from service.inference.place import Place

# The share of the queue, and of the time, that is left to callers with less than an equal share.
FAIR = 0.75


def room(caller: str, others: Iterable[Place], size: int) -> int:
    """How many of `size` places may be taken for a caller to get another one.

    A caller with less than an equal share may use all of them. Who has more gets none while others
    are there, and leaves a part for others who come. others: the places that are taken.
    """
    if not caller:
        return size
    callers = Counter([other.caller for other in others])
    own, present = callers[caller], len(callers | Counter({caller: 1}))
    if own < size / (present + (present == 1)):
        return size
    return 0 if present > 1 else math.ceil(FAIR * size)


def made_late(
    least_ms: float, ends_ms: float, behind: Sequence[Place], now: float
) -> tuple[float, float] | None:
    """When the first place ends that would miss its deadline because of one before it, if all take
    the least time, and the time that it has; in milliseconds from now.

    least_ms: of that one. ends_ms: when it ends. behind: those after it, in order. Whoever would be
    late without it, too, is not late because of it.
    """
    for other in behind:
        ends_ms += other.least_ms
        if other.deadline is not None:
            left_ms = 1000 * (other.deadline - now)
            if ends_ms - least_ms <= left_ms < ends_ms:
                return ends_ms, left_ms
    return None
