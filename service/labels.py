"""The closed sets of labels of the metrics, and the edges of their histograms."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import FathomError

STAGES = ("decode", "queue", "glance", "front", "encoder", "decoder", "mask")
SHED = ("full", "predicted", "expired", "draining")
# Fine-grained from 10 ms to 2 s, where answers on small machines lie: the default buckets of
# Prometheus would put half of them in one.
REQUEST_SECONDS = (
    *(0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25),
    *(0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
)
STAGE_SECONDS = (0.0005, 0.001, 0.002, 0.003, *REQUEST_SECONDS)
QUALITY = tuple(edge / 20 for edge in range(1, 21))
COMPUTE_GIVEN_UP = tuple(edge / 10 for edge in range(11))
QUALITY_GIVEN_UP = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
MISSED = ("deadline", "max-loss")
CACHED = ("hit", "collapsed", "miss")


def _leaves(kind: type[FathomError]) -> Iterable[type[FathomError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _leaves(subclass)


# Outcome label -> HTTP status. 499: the caller left before the answer, so no status was sent.
# 401 is starlette's HTTPException, which carries WWW-Authenticate.
OUTCOMES = {"ok": 200, "cancelled": 499, "unauthorized": 401} | {
    kind.problem: kind.status for kind in _leaves(FathomError)
}
