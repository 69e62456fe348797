"""Every instrument of the service, in a registry of its own, and the one log line per request.

Base units, labels from closed sets only. `observe` reads a request's trace once, when its answer is decided.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter as Tally
from collections.abc import Iterable

import prometheus_client as prometheus
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.core import Decision, Reason, Trace
from service.errors import FathomError

CONTENT_TYPE = CONTENT_TYPE_LATEST
STAGES = ("decode", "queue", "front", "encoder", "decoder", "mask")
SHED = ("full", "predicted", "expired", "draining")
# Fine where answers lie on small machines, 10 ms to 2 s; the Prometheus defaults would put half of them in one bucket.
REQUEST_SECONDS = (
    *(0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25),
    *(0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
)
STAGE_SECONDS = (0.0005, 0.001, 0.002, 0.003, *REQUEST_SECONDS)
QUALITY = tuple(edge / 20 for edge in range(1, 21))

_log = logging.getLogger("fathom.request")
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each that nobody reads
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without space, quote and equals sign


def _leaves(kind: type[FathomError]) -> Iterable[type[FathomError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _leaves(below)


# outcome label -> HTTP status. 499: the caller left before the answer, so no status was ever sent.
OUTCOMES = {"ok": 200, "cancelled": 499} | {kind.problem: kind.status for kind in _leaves(FathomError)}


class Metrics:
    """layers: K, the encoder's depth; max_batch: most images per batch. Safe to call from several threads."""

    def __init__(self, *, layers: int, max_batch: int) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._requests = prometheus.Counter(
            "fathom_requests_total", "Answered requests.", ["outcome"], registry=registry
        )
        self._request_seconds = prometheus.Histogram(
            "fathom_request_duration_seconds",
            "From the request's first byte to its answer.",
            ["outcome"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._stage_seconds = prometheus.Histogram(
            "fathom_stage_duration_seconds",
            "Time that a request spent in a stage.",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=registry,
        )
        self._depth = prometheus.Histogram(
            "fathom_exit_depth_layers",
            "Encoder layers that ran for an image, by what decided.",
            ["reason"],
            buckets=range(1, layers + 1),
            registry=registry,
        )
        self._quality = prometheus.Histogram(
            "fathom_predicted_quality", "The gate's estimate for the plan that ran.", buckets=QUALITY, registry=registry
        )
        self._batch = prometheus.Histogram(
            "fathom_batch_size",
            "Images that ran together through one encoder.",
            buckets=range(1, max_batch + 1),
            registry=registry,
        )
        self._gflops = prometheus.Counter(
            "fathom_compute_gflops_total", "Compute spent on images, in GFLOPs.", registry=registry
        )
        self._shed = prometheus.Counter(
            "fathom_shed_total", "Requests refused to protect the others.", ["reason"], registry=registry
        )
        self._missed = prometheus.Counter(
            "fathom_deadline_missed_total", "Requests whose deadline passed while they ran.", registry=registry
        )
        self.queue_depth = prometheus.Gauge("fathom_queue_depth", "Images that wait.", registry=registry)
        self.inflight = prometheus.Gauge("fathom_inflight", "Images in the engine.", registry=registry)
        self.node_budget_gflops = prometheus.Gauge(
            "fathom_node_budget_gflops", "The node's ceiling; +Inf is none.", registry=registry
        )
        self._build = prometheus.Gauge(
            "fathom_build_info",
            "Always 1: what runs stands in the labels.",
            ["version", "bundle", "backend"],
            registry=registry,
        )
        # Series that exist from the start make rate() right for the first event, too.
        for reason in SHED:
            self._shed.labels(reason)
        for decided in Reason:
            self._depth.labels(decided.value)
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)

    def observe(self, trace: Trace, outcome: str, seconds: float) -> None:
        """Count one answered request and log its line. outcome: "ok", "cancelled" or the problem type of its error.

        seconds: from the request's start to its answer. Raises ValueError for an outcome that is not in OUTCOMES.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"{outcome!r} is not in the closed set of outcomes")
        self._requests.labels(outcome).inc()
        self._request_seconds.labels(outcome).observe(seconds)
        for stage, spent in trace.stages.items():
            if stage not in STAGES:
                raise ValueError(f"{stage!r} is not in the closed set of stages")
            self._stage_seconds.labels(stage).observe(spent)
        if outcome == "deadline-exceeded":
            self._missed.inc()
        decision = trace.decision
        if decision is not None:
            self._depth.labels(decision.reason.value).observe(decision.plan.depth)
            self._quality.observe(decision.predicted_quality)
        _log.info(
            "request_id=%s status=%d outcome=%s plan=%s reason=%s batch=%d total_ms=%.1f",
            _plain(trace.request_id),
            OUTCOMES[outcome],
            outcome,
            decision.plan.name if decision else "-",
            decision.reason.value if decision else "-",
            trace.batch_size,
            seconds * 1000,
        )

    def ran(self, decisions: Iterable[Decision]) -> None:
        """Count encoder batches and compute, of images that ran together.

        Compute counts when it is spent, also when nobody waits for the answer any more.
        """
        plans = [decision.plan for decision in decisions]
        for size in Tally(plan.name for plan in plans).values():
            self._batch.observe(size)
        self._gflops.inc(sum(plan.gflops for plan in plans))

    def shed(self, reason: str) -> None:
        """Count a refusal. reason: one of SHED."""
        if reason not in SHED:
            raise ValueError(f"{reason!r} is not in the closed set of reasons to shed")
        self._shed.labels(reason).inc()

    def build_info(self, *, version: str, bundle: str, backend: str) -> None:
        """Say what runs: the service's version, the bundle as NAME@DIGEST and the engine."""
        self._build.clear()
        self._build.labels(version, bundle, backend).set(1)

    def render(self) -> bytes:
        """The body of `/metrics`; its type is CONTENT_TYPE."""
        return prometheus.generate_latest(self.registry)


def _plain(text: str) -> str:
    """A logfmt value: quoted and escaped where needed, so that no caller's text can forge a line or a key."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
