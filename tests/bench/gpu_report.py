"""Results of the GPU benchmark as text: tables for people, and the bars with what became of each.

All from the JSON alone, so that what an earlier run left reads the same. What is not there was not
measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_export.evaluation.report import table
from tests.bench.gpu_layers import (
    BASELINE,
    DATASHEET,
    ENCODER_COMPILED,
    ENCODER_EAGER,
    ERROR,
    GRID_COMPILED,
    GRID_EAGER,
    Layer,
    gathered,
    layers,
    traffic,
)

Json = Mapping[str, Any]
MISSING = "not measured"


def accounting(shown: Sequence[Layer]) -> str:
    """What must move for one image, counted."""
    rows = []
    for layer in shown:
        moved = sum(traffic(layer).values())
        at_rate = (f"{1e6 * moved / rate:.2f} us" for rate in DATASHEET.values())
        rows.append(
            (
                layer.name,
                str(layer.queries),
                f"{moved / 1e6:.2f}",
                f"{gathered(layer) / 1e6:.1f}",
                *at_rate,
            )
        )
    chips = (f"at {rate / 1e12:g} TB/s" for rate in DATASHEET.values())
    counted = table(("layer, fp16, one image", "queries", "MB moved", "MB gathered", *chips), rows)
    return (
        f"{counted}\nMoved: inputs read once, output written once. The rates are those of the "
        f"datasheets of "
        f"{' and '.join(DATASHEET)}, for orientation: on a GPU the roofline is measured."
    )


def lines(results: Json) -> Iterator[str]:
    """Everything that was measured, table by table, and then the bars."""
    yield from kernel_lines(results.get("kernel", {}))
    yield from model_lines(results.get("models", {}))
    yield from service_lines(results.get("service", {}))
    yield "\nBars (set for the H100 and H200)"
    yield table(
        ("bar", "limit", "measured", ""),
        [(b["bar"], b["limit"], b["shown"], b["verdict"]) for b in bars(results)],
    )


def troubles(results: Json) -> Iterator[str]:
    """What was wrong or failed, as opposed to what is slow or not there."""
    for part in ("kernel", "models", "service"):
        for name, step in results.get(part, {}).items():
            inner = [*step.get("rows", {}).items(), *step.get("plans", {}).items()]
            if part == "kernel" and name == "parity":
                inner += [
                    (variant, {"wrong": reason})
                    for variant, reason in step.get("wrong", {}).items()
                ]
            for path, each in ((name, step), *((f"{name}, {key}", each) for key, each in inner)):
                if (reason := why_not(each)) and not reason.startswith(MISSING):
                    yield f"{part}: {path}: {reason}"


# --------------------------------------------------------------------------------------------------
# parts


def why_not(step: Json | None) -> str | None:
    """Why there are no figures; None where there are."""
    if step is None:
        return MISSING
    if "wrong" in step and isinstance(step["wrong"], str):
        return f"wrong: {step['wrong']}"
    if "failed" in step:
        return f"failed: {step['failed']}"
    return f"{MISSING}: {step['not_measured']}" if "not_measured" in step else None


def kernel_lines(steps: Json) -> Iterator[str]:
    parity = steps.get("parity")
    yield "\nParity against float64: " + (why_not(parity) or parity_line(parity))
    for layer in layers():
        step = steps.get(layer.name)
        reason = why_not(step)
        if reason is not None or step is None:
            yield f"\n{layer.name}: {reason}"
            continue
        yield f"\n{layer.name}: {roofline(step)}"
        head = (
            "one layer, fp16, one image",
            "error",
            "cold us",
            "quartiles",
            "hot us",
            "GB/s",
            "x roofline",
            "ours is",
        )
        yield table(head, [kernel_row(name, row, step) for name, row in step["rows"].items()])
        yield from (
            f"{name}: {reason}" for name, row in step["rows"].items() if (reason := why_not(row))
        )
        yield f"fastest: {step['best'] or 'none'}; the default, which is served: {step['default']}"


def parity_line(parity: Json) -> str:
    worst = ", ".join(f"{dtype} {error:.1e}" for dtype, error in parity["worst"].items())
    wrong = "".join(f"\n  wrong: {name}: {reason}" for name, reason in parity["wrong"].items())
    return f"{parity['checked']} variants, {len(parity['wrong'])} wrong; worst error {worst}{wrong}"


def roofline(step: Json) -> str:
    if "bandwidth" not in step:
        return "no bandwidth was measured"
    return (
        f"{step['bytes']['total'] / 1e6:.2f} MB at {step['bandwidth'] / 1e12:.2f} TB/s, a copy's, "
        f"is "
        f"{step['roofline_us']:.2f} us; cold: {step['sets']} sets of inputs in turn, "
        f"{step['caches']:.1f} x the cache"
    )


def kernel_row(name: str, row: Json, step: Json) -> tuple[str, ...]:
    cold, hot = row.get("cold_us"), row.get("hot_us")
    error = f"{row['error']:.1e}" if "error" in row else "-"
    if cold is None:
        return (name, error, *["-"] * 6)
    rate = step["bytes"]["total"] / cold["median"] / 1e3
    times = f"{cold['median'] / step['roofline_us']:.1f}" if "roofline_us" in step else "-"
    ours = step["rows"].get(step["default"], {}).get("cold_us")
    ratio = "-" if ours is None else f"{cold['median'] / ours['median']:.2f} x"
    spread = f"{cold['q1']:.1f}-{cold['q3']:.1f}"
    warm = "-" if hot is None else f"{hot['median']:.1f}"
    return name, error, f"{cold['median']:.1f}", spread, warm, f"{rate:.0f}", times, ratio


def model_lines(steps: Json) -> Iterator[str]:
    rows = []
    for name in (ENCODER_EAGER, ENCODER_COMPILED):
        step = steps.get(name)
        if (reason := why_not(step)) is not None or step is None:
            yield f"\n{name}: {reason}"
            continue
        line = (
            why_not(step["line"])
            or f"{step['line']['layer_us']:.0f} us, off by {step['line']['worst']:.1%}"
        )
        rows.append(
            (name, *(f"{each['median']:.0f}" for each in step["us"]), line, f"{step['error']:.1e}")
        )
    if rows:
        head = [f"depth {depth}" for depth in range(1, len(rows[0]) - 2)]
        yield "\nbase() at 1024 x 1024, fp16, CUDA graphs, us"
        yield table(("", *head, "a layer", "error"), rows)
    routes = {name: step for name, step in steps.items() if "plans" in step}
    if routes:
        plans = list(dict.fromkeys(plan for step in routes.values() for plan in step["plans"]))
        yield "\none image, from host memory to host memory, median ms"
        yield table(
            ("", *plans),
            [
                (name, *(cell(step["plans"].get(p), "ms") for p in plans))
                for name, step in routes.items()
            ],
        )
    for name, step in steps.items():
        if reason := why_not(step):
            yield f"{name}: {reason}"
        for plan, each in step.get("plans", {}).items():
            if reason := why_not(each):
                yield f"{name}, {plan}: {reason}"


def cell(plan: Json | None, key: str) -> str:
    return f"{plan[key]['median']:.2f}" if plan and key in plan else "-"


def service_lines(steps: Json) -> Iterator[str]:
    rows = []
    for name, step in steps.items():
        for plan, each in step.get("plans", {}).items():
            if why_not(each) is None:
                times = (f"{each[key]:.1f}" if key in each else "-" for key in ("p50_ms", "p95_ms"))
                rows.append((f"{name}, {plan}", f"{each['images_per_s']:.0f}", *times))
    if rows:
        yield "\n/segment, callers in a closed loop"
        yield table(("backend, plan", "images/s", "p50 ms", "p95 ms"), rows)
    for name, step in steps.items():
        if reason := why_not(step):
            yield f"service, {name}: {reason}"


# --------------------------------------------------------------------------------------------------
# bars


def bars(results: Json) -> list[dict[str, Any]]:
    """Each with its limit, what was measured (None: nothing) and a verdict: ok, missed or not
    measured."""
    kernel, models = results.get("kernel", {}), results.get("models", {})
    rows = kernel.get(layers()[0].name, {}).get("rows", {})
    ours = kernel.get(layers()[0].name, {}).get("default")

    def cold(name: str | None) -> float | None:
        return rows.get(name, {}).get("cold_us", {}).get("median")

    def ratio(*names: str) -> float | None:
        """How much faster ours is than the fastest of these; all of them must have been timed."""
        times = [cold(name) for name in (*names, ours)]
        return None if None in times else min(times[:-1]) / times[-1]

    parity = kernel.get("parity", {})
    worst = max(parity.get("worst", {}).values(), default=None)
    found = [
        bar("kernel, 1024 x 1024, cold", cold(ours), 45, "us"),
        bar(
            "faster than grid_sample, eager and compiled",
            ratio(GRID_EAGER, GRID_COMPILED),
            5,
            "x",
            least=True,
        ),
        bar("faster than thread per channel", ratio(BASELINE), 2.5, "x", least=True),
        bar("error of every variant, float64", worst, ERROR, "", ok=not parity.get("wrong")),
    ]
    for name in (ENCODER_EAGER, ENCODER_COMPILED):
        step = models.get(name, {})
        deepest = step["us"][-1]["median"] / 1000 if "us" in step else None
        off = step.get("line", {}).get("worst")
        found.append(bar(f"{name}: depth 6", deepest, 0.9, "ms"))
        found.append(bar(f"{name}: distance from a line, of a layer", off, 0.10, ""))
    return found


def bar(
    name: str, value: float | None, limit: float, unit: str, *, least: bool = False, ok: bool = True
) -> dict[str, Any]:
    """least: whether the limit is one from below. ok: what else must hold."""
    shown = MISSING if value is None else f"{value:.3g} {unit}".strip()
    kept = value is not None and ok and (value >= limit if least else value <= limit)
    verdict = MISSING if value is None and ok else "ok" if kept else "missed"
    sign = ">=" if least else "<="
    return {
        "bar": name,
        "limit": f"{sign} {limit:g} {unit}".strip(),
        "value": value,
        "shown": shown,
        "verdict": verdict,
    }
