"""Panels of a Grafana dashboard, drawn by matplotlib from what Prometheus answered, where the
dashboard has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

Panel: TypeAlias = Mapping[str, Any]
Data: TypeAlias = Sequence[tuple[str, Any]]  # legend, series as Prometheus' API has it
PAGE, COLUMN, ROW = 24, 66, 30  # columns; pixels of a column and of a unit of height
DPI, EDGE = 80, 6
BACK, INK, FAINT = "#f4f5f5", "#24292e", "#6c7178"
COLOURS = (
    "#3274d9",
    "#e0752d",
    "#37872d",
    "#c4162a",
    "#8f3bb8",
    "#b88a00",
    "#0a7d8c",
    "#8a6d5c",
    "#5b5b5b",
    "#d64a8a",
)
NAMED = {"green": "#56a64b", "yellow": "#e5b400", "orange": "#fa6400", "red": "#c4162a"}


def draw(panels: Sequence[Panel], data: Mapping[int, Data], start: float, end: float) -> Figure:
    """The whole page. data: by the panel's id; start, end: of the axes of time, in seconds of the
    epoch."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(PAGE * COLUMN / DPI, height * ROW / DPI), dpi=DPI, facecolor=BACK)
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / PAGE, place["w"] / PAGE
        bottom, tall = 1 - (place["y"] + place["h"]) / height, place["h"] / height
        if panel["type"] == "row":
            figure.text(
                left + 0.006,
                bottom + tall / 2,
                panel["title"],
                size=12,
                weight="bold",
                va="center",
                color=INK,
            )
            continue
        dx, dy = EDGE / 2 / (PAGE * COLUMN), EDGE / 2 / (height * ROW)
        card = figure.add_axes(
            (left + dx, bottom + dy, width - 2 * dx, tall - 2 * dy), facecolor="white"
        )
        card.set(xticks=[], yticks=[])
        card.spines[:].set_color("#d8d9da")
        figure.text(
            left + 3 * dx, bottom + tall - 4 * dy, panel["title"], size=10.5, va="top", color=INK
        )
        room = (left + 0.13 * width, bottom + 0.24 * tall, width * 0.83, tall * 0.61)
        _KINDS[panel["type"]](card, room, panel, data[panel["id"]], (start, end))
    return figure


Room: TypeAlias = tuple[float, float, float, float]
Span: TypeAlias = tuple[float, float]


def _stat(card: Axes, room: Room, panel: Panel, data: Data, span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    values = [float(series["value"][1]) for _, series in data]
    steps = defaults["thresholds"]["steps"]
    worst = max(values, default=0.0)
    colour = [step["color"] for step in steps if step["value"] is None or worst >= step["value"]][
        -1
    ]
    card.set_facecolor(NAMED[colour])
    card.figure.texts[-1].set_color("white")
    for i, (legend, _) in enumerate(data):
        across = (i + 0.5) / len(data)
        text = _text(values[i], defaults["unit"], defaults.get("decimals"))
        card.text(
            across,
            0.42,
            text,
            size=20 if len(data) == 1 else 14,
            weight="bold",
            color="white",
            ha="center",
            va="center",
        )
        card.text(across, 0.12, legend, size=8.5, color="white", ha="center", va="center")


def _lines(card: Axes, room: Room, panel: Panel, data: Data, span: Span) -> None:
    axes, defaults = _axes(card, room, span), panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    shares = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
    right = _right(axes) if shares else axes
    if custom.get("stacking", {}).get("mode") == "normal":
        times = np.arange(int(span[0]), int(span[1]) + 1)
        rows = [_on(times, series["values"]) for _, series in data]
        axes.stackplot(
            times - span[0], rows, labels=[legend for legend, _ in data], colors=COLOURS, alpha=0.75
        )
    else:
        for i, (legend, series) in enumerate(data):
            times, values = np.asarray(series["values"], float).T
            # Absent series leave a gap, as in Grafana.
            gaps = np.flatnonzero(np.diff(times) > 1.5) + 1
            (right if legend in shares else axes).plot(
                np.insert(times, gaps, np.nan) - span[0],
                np.insert(values, gaps, np.nan),
                lw=1.3,
                label=legend,
                color=COLOURS[i % len(COLOURS)],
            )
    axes.set_ylim(0, defaults.get("max"))
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        axes.axhline(
            defaults["thresholds"]["steps"][-1]["value"], color=NAMED["red"], ls="--", lw=1
        )
    axes.yaxis.set_major_formatter(lambda value, _: _text(value, defaults["unit"], None))
    if defaults["unit"] == "bytes":
        axes.yaxis.set_major_locator(MultipleLocator(100 * 2**20))
    axes.grid(alpha=0.35, lw=0.6)
    if data:
        handles = [
            handle
            for each in dict.fromkeys((axes, right))
            for handle in each.get_legend_handles_labels()[0]
        ]
        axes.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(-0.13, -0.12),
            ncols=6,
            fontsize=7.5,
            frameon=False,
            borderpad=0,
            handlelength=1,
            columnspacing=1,
            labelcolor=INK,
        )


def _heat(card: Axes, room: Room, panel: Panel, data: Data, span: Span) -> None:
    axes = _axes(card, room, span)
    edges = sorted(data, key=lambda each: float(each[1]["metric"]["le"]))
    times = np.arange(int(span[0]), int(span[1]) + 1)
    cumulative = np.array([_on(times, series["values"]) for _, series in edges])  # (edges, seconds)
    each = np.diff(cumulative, axis=0, prepend=0)[:-1]  # nothing is deeper than the last edge
    axes.pcolormesh(times - span[0], np.arange(len(each)), each, cmap="Blues", shading="nearest")
    axes.set_yticks(
        range(len(each)), [f"{float(series['metric']['le']):g}" for _, series in edges[:-1]]
    )


def _states(card: Axes, room: Room, panel: Panel, data: Data, span: Span) -> None:
    axes = _axes(
        card,
        (room[0] + room[2] * 0.2, room[1] - 0.2 * room[3], room[2] * 0.78, room[3] * 1.2),
        span,
    )
    for i, (_, series) in enumerate(data):
        for at, _ in series["values"]:
            axes.barh(i, 1.05, left=at - span[0], height=0.7, color=NAMED["red"])
    axes.set_yticks(range(len(data)), [legend.removeprefix("Fathom") for legend, _ in data])
    axes.set_ylim(-0.6, max(len(data), 4) - 0.4)
    axes.invert_yaxis()


def _table(card: Axes, room: Room, panel: Panel, data: Data, span: Span) -> None:
    hidden = panel["transformations"][0]["options"]["excludeByName"]
    for i, (_, series) in enumerate(data):
        shown = [
            f"{name}: {text}"
            for name, text in sorted(series["metric"].items())
            if name not in hidden
        ]
        card.text(
            0.03, 0.8 - 0.4 * i, "\n".join(shown), size=8.5, va="top", color=INK, linespacing=1.5
        )


_KINDS: dict[str, Callable[[Axes, Room, Panel, Data, Span], None]] = {
    "stat": _stat,
    "timeseries": _lines,
    "heatmap": _heat,
    "state-timeline": _states,
    "table": _table,
}


def _axes(card: Axes, room: Room, span: Span) -> Axes:
    axes = card.figure.add_axes(room)
    axes.set_xlim(0, span[1] - span[0])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.tick_params(labelsize=8, colors=FAINT, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color("#c7c8c9")
    return axes


def _right(axes: Axes) -> Axes:
    """An axis from 0 to 1 at the right, over the same time; its labels take room from the other."""
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom, 0.93 * width, height))
    right = axes.twinx()
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(lambda value, _: _text(value, "percentunit", None))
    right.tick_params(labelsize=8, colors=FAINT, length=2)
    right.spines[:].set_visible(False)
    return right


def _on(times: np.ndarray, values: Sequence[tuple[float, float]]) -> np.ndarray:
    """The values on a grid of whole seconds, 0 where there are none. (T,)"""
    found = np.zeros(len(times))
    for at, value in values:
        index = round(at - times[0])
        if 0 <= index < len(found):
            found[index] = value
    return found


def _text(value: float, unit: str, decimals: float | None) -> str:
    """A number as Grafana writes it in that unit, near enough."""
    if unit == "percentunit":
        return f"{100 * value:.{1 if decimals is None else int(decimals)}f} %".replace(".0 %", " %")
    if unit == "s":
        return f"{1000 * value:.3g} ms" if 0 < abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    number = f"{value:.4g}" if decimals is None else f"{value:.{int(decimals)}f}"
    return number + {"reqps": " req/s", "ops": " /s"}.get(unit, "")
