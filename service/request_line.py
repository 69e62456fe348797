"""The one log line of a request: what it got, why, and how long that took."""

from __future__ import annotations

from service.logs import Line
from service.trace import Trace


def request_line(trace: Trace, outcome: str, status: int, seconds: float) -> Line:
    """The line of a request that took so many seconds. Its times are in milliseconds."""
    decision = trace.decision
    fields: dict[str, str | int | float | None] = {
        "request_id": trace.request_id,
        "status": status,
        "outcome": outcome,
        "plan": decision.plan.name if decision else None,
        "canvas": (decision.plan.canvas or None) if decision else None,
        "reason": decision.reason.value if decision else None,
        "batch": trace.batch_size,
        "total_ms": round(seconds * 1000, 1),
    }
    fields |= {f"{stage}_ms": round(spent * 1000, 1) for stage, spent in trace.stages.items()}
    optional = {"key": trace.caller, "trace_id": trace.trace_id}
    fields |= {name: text for name, text in optional.items() if text}
    return Line("request", fields)
