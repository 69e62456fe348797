"""Every metric of the service, in its own registry.

Units are base units, and labels come from closed sets. `observe` reads a request's trace once, when
its answer is decided, and logs the request's line.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Tally
from collections.abc import Container, Hashable, Iterable, Sequence

import prometheus_client as prometheus
from prometheus_client.exposition import choose_encoder

from service.core import Decision, HeadWidth, Reason
from service.labels import (
    CACHED,
    COMPUTE_GIVEN_UP,
    MISSED,
    OUTCOMES,
    QUALITY,
    QUALITY_GIVEN_UP,
    REQUEST_SECONDS,
    SHED,
    STAGE_SECONDS,
    STAGES,
)
from service.request_line import request_line
from service.trace import Trace

_log = logging.getLogger("fathom.request")
# They would be a second series for each metric, which nobody reads.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


def _check(what: str, value: Hashable, known: Container[Hashable]) -> None:
    if value not in known:
        raise ValueError(f"{value!r} is not in the closed set of values of {what}")


class Metrics:
    """All metrics; may be called from several threads.

    layers: K, the encoder's depth. max_batch: most images per batch. canvases: the names of the
    bundle's canvases; without them, the label stays empty. heads: the bundle's, at each width.
    """

    def __init__(
        self,
        *,
        layers: int,
        max_batch: int,
        canvases: Sequence[str] = (),
        heads: Sequence[HeadWidth] = (),
    ) -> None:
        self._canvases, self._known_heads = tuple(canvases), frozenset(heads)
        self.registry = registry = prometheus.CollectorRegistry()
        self.last_answer_s = 0.0  # when the last "ok" was counted, in seconds of time.time
        prometheus.ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(name, text, labels, registry=registry)

        self._requests = counter("fathom_requests_total", "Answered requests.", "outcome")

        def histogram(
            name: str, text: str, edges: Sequence[float], *labels: str
        ) -> prometheus.Histogram:
            return prometheus.Histogram(name, text, labels, buckets=edges, registry=registry)

        self._request_seconds = histogram(
            "fathom_request_duration_seconds",
            "From the request's first byte to its answer.",
            REQUEST_SECONDS,
            "outcome",
        )
        name, text = "fathom_stage_duration_seconds", "Time that a request spent in a stage."
        self._stage_seconds = histogram(name, text, STAGE_SECONDS, "stage")
        self._depth = histogram(
            "fathom_exit_depth_layers",
            "Encoder layers that ran for an image, by the plan's canvas and what decided it.",
            range(1, layers + 1),
            *("canvas", "reason"),
        )
        name, text = "fathom_predicted_quality", "The gate's estimate for the plan that ran."
        self._quality = histogram(name, text, QUALITY)
        self._depth_given_up = histogram(
            "fathom_depth_given_up_layers",
            "Layers of the plan that the gate wanted minus those of the plan that ran; 0 if the "
            "wanted one ran.",
            range(layers),
        )
        self._compute_given_up = histogram(
            "fathom_compute_given_up_ratio",
            "Share of the GFLOPs of the plan that the gate wanted that was not spent, by what "
            "decided; 0 if the wanted one ran.",
            COMPUTE_GIVEN_UP,
            "reason",
        )
        self._quality_given_up = histogram(
            "fathom_quality_given_up",
            "Predicted quality of the plan that the gate wanted minus that of the plan that ran, "
            "by what decided.",
            QUALITY_GIVEN_UP,
            "reason",
        )
        text = "Images that ran together through one encoder."
        self._batch = histogram("fathom_batch_size", text, range(1, max_batch + 1))
        text = "Images that a head answered, by the share of its channels that ran."
        self._heads = counter("fathom_head_images_total", text, "head", "width")
        text = "Compute spent on images, in GFLOPs."
        self._gflops = counter("fathom_compute_gflops_total", text)
        text = "Requests refused to protect the others."
        self._shed = counter("fathom_shed_total", text, "reason")
        text = (
            "Answered requests whose deadline passed while they ran, or whose max-loss another "
            "ceiling than their own beat."
        )
        self._budget_missed = counter("fathom_budget_missed_total", text, "kind")
        text = "Batches that failed in the engine."
        self._engine_errors = counter("fathom_engine_errors_total", text)
        text = "Requests that asked the response cache, by what it had."
        self._cached = counter("fathom_response_cache_requests_total", text, "result")

        def gauge(name: str, text: str) -> prometheus.Gauge:
            return prometheus.Gauge(name, text, registry=registry)

        self.queue_depth = gauge("fathom_queue_depth", "Images that wait.")
        text = "Places of the queue that are taken: images that wait or come."
        self.places = gauge("fathom_places_taken", text)
        text = "Predicted wait with the cheapest plan against the objective."
        self.pressure = gauge("fathom_pressure_ratio", text)
        self.inflight = gauge("fathom_inflight", "Images in the engine.")
        self.held_bytes = gauge("fathom_held_bytes", "Bytes of bodies that are in memory.")
        self.cached_bytes = gauge("fathom_response_cache_bytes", "Bytes of answers that are kept.")
        text = "The node's ceiling; +Inf without one."
        self.node_budget_gflops = gauge("fathom_node_budget_gflops", text)
        self._build = prometheus.Gauge(
            "fathom_build_info",
            "Always 1; the labels say what runs.",
            ["version", "bundle", "backend", "reason"],
            registry=registry,
        )
        # A series must exist before its first event, or rate() misses that event.
        for reason in SHED:
            self._shed.labels(reason)
        for decided in Reason:
            self._compute_given_up.labels(decided.value)
            self._quality_given_up.labels(decided.value)
            for canvas in self._canvases or ("",):
                self._depth.labels(canvas, decided.value)
        for head in heads:
            self._heads.labels(head.name, f"{head.width:g}")
        for labelled, values in ((self._budget_missed, MISSED), (self._cached, CACHED)):
            for value in values:
                labelled.labels(value)
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._request_seconds.labels("ok")

    def observe(self, trace: Trace, outcome: str, seconds: float) -> None:
        """Count one answered request and log its line.

        outcome: one of OUTCOMES: "ok", or the problem type of its error; others raise ValueError.
        seconds: from the request's start to its answer.
        """
        _check("outcome", outcome, OUTCOMES)
        self._requests.labels(outcome).inc()
        if outcome == "ok":
            self.last_answer_s = time.time()
        # An exemplar must point to a trace that is recorded.
        exemplar = {"trace_id": trace.trace_id} if trace.sampled else None
        self._request_seconds.labels(outcome).observe(seconds, exemplar)
        for stage, spent in trace.stages.items():
            _check("stage", stage, STAGES)
            self._stage_seconds.labels(stage).observe(spent)
        if outcome == "deadline-exceeded" or (outcome == "ok" and trace.missed(seconds)):
            self._budget_missed.labels("deadline").inc()
        if trace.decision is not None and not trace.shared:
            self._observe_decision(trace.decision, outcome)
        if _log.isEnabledFor(logging.INFO):
            _log.info(request_line(trace, outcome, OUTCOMES[outcome], seconds))

    def _observe_decision(self, decision: Decision, outcome: str) -> None:
        plan, wanted = decision.plan, decision.wanted or decision.plan
        reason = decision.reason.value
        canvas = plan.canvas if self._canvases else ""
        _check("canvas", canvas, self._canvases or [""])
        self._depth.labels(canvas, reason).observe(plan.depth)
        self._quality.observe(decision.predicted_quality)
        # A plan on a smaller canvas, or with fewer tokens or channels, is cheaper without losing a
        # layer; it can even run more layers. Under a ceiling on depth, a plan can cost more.
        self._depth_given_up.observe(max(0, wanted.depth - plan.depth))
        unspent = max(0.0, 1 - plan.gflops / wanted.gflops)
        self._compute_given_up.labels(reason).observe(unspent)
        self._quality_given_up.labels(reason).observe(decision.quality_given_up)
        own = decision.reason is Reason.REQUEST  # what callers choose is no broken promise
        if outcome == "ok" and not (decision.floor_kept or own):
            self._budget_missed.labels("max-loss").inc()

    def ran(self, decisions: Iterable[Decision]) -> None:
        """Count the encoder batches, the heads and the compute of images that ran together.

        Compute counts when it is spent, even if nobody waits for the answer any more.
        """
        plans = [decision.plan for decision in decisions]
        for size in Tally(plan.encoder for plan in plans).values():
            self._batch.observe(size)
        for head, images in Tally(head for plan in plans for head in plan.heads).items():
            _check("head", head, self._known_heads)
            self._heads.labels(head.name, f"{head.width:g}").inc(images)
        self._gflops.inc(sum(plan.gflops for plan in plans))

    def engine_failed(self) -> None:
        """Count a batch that failed in the engine."""
        self._engine_errors.inc()

    def shed(self, reason: str) -> None:
        """Count a refusal. reason: one of SHED."""
        _check("reason to shed", reason, SHED)
        self._shed.labels(reason).inc()

    def cached(self, result: str) -> None:
        """Count a request that asked the response cache. result: one of CACHED."""
        self._cached.labels(result).inc()

    def build_info(self, *, version: str, bundle: str, backend: str, reason: str) -> None:
        """Say what runs. bundle: NAME@DIGEST. reason: why this engine, as in Choice."""
        self._build.clear()
        self._build.labels(version, bundle, backend, reason).set(1)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The body of `/metrics` and its content type.

        That is classic text, or OpenMetrics with exemplars if `accept` asks for it. accept: the
        field's lines, joined by commas; ignored if a version in it is not a number.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # prometheus_client compares such a version with a number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type
