"""The kinds of panel that the dashboard is made of, each with the look that all of its kind
share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel: TypeAlias = heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
Queries: TypeAlias = Mapping[str, str]  # legend -> PromQL
Steps: TypeAlias = Sequence[tuple[float, str]]  # from this value on this colour

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def glance(
    title: str,
    queries: Queries,
    unit: str,
    steps: Steps,
    about: str,
    *,
    decimals: int = 1,
    base: str = "green",
) -> stat.Panel:
    """The latest value on a colour, for the top of the page. base: the colour below the first
    step."""
    panel = (
        stat.Panel().unit(unit).thresholds(_steps(steps, base)).no_value("none").decimals(decimals)
    )
    panel.color_mode(kinds.BigValueColorMode.BACKGROUND).graph_mode(kinds.BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if len(queries) > 1:
        panel.text_mode(kinds.BigValueTextMode.VALUE_AND_NAME)
    _fill(panel, title, about, 3, 4, [query.instant() for query in _queries(queries)])
    return panel


def lines(
    title: str,
    queries: Queries,
    unit: str,
    about: str,
    *,
    width: int = 8,
    stacked: bool = False,
    limit: float | None = None,
    top: float | None = None,
    exemplars: bool = False,
    shares: Sequence[str] = (),
) -> timeseries.Panel:
    """Lines over time. limit: where an alert begins, drawn as a dashed line; top: the end of the
    axis; shares: legends of lines from 0 to 1, which have an axis of their own at the right."""
    panel = (
        timeseries.Panel().unit(unit).min(0).show_points(kinds.VisibilityMode.NEVER).line_width(1)
    )
    panel.fill_opacity(60 if stacked else 5)
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(kinds.TooltipDisplayMode.MULTI)
        .sort(kinds.SortOrder.DESCENDING)
    )
    legend = common.VizLegendOptions().show_legend(True).display_mode(kinds.LegendDisplayMode.LIST)
    panel.legend(legend.placement(kinds.LegendPlacement.BOTTOM).calcs([]))
    if stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if limit is not None:
        panel.thresholds(_steps([(limit, "red")]))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    if top is not None:
        panel.max(top)
    for legend in shares:
        properties = {"unit": "percentunit", "max": 1, "custom.axisPlacement": "right"}
        panel.override_by_name(
            legend,
            [model.DynamicConfigValue(name, value) for name, value in properties.items()],
        )
    asked = [query.range() for query in _queries(queries)]
    _fill(
        panel,
        title,
        about,
        width,
        8,
        [query.exemplar(True) for query in asked] if exemplars else asked,
    )
    return panel


def heat(title: str, expr: str, about: str) -> heatmap.Panel:
    """A classic histogram over time: a row per bucket of `le`, darker where more falls into it."""
    panel = heatmap.Panel().calculate(False).cell_gap(1).show_legend().min(0)
    panel.color(
        heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    )
    panel.y_axis(heatmap.YAxisConfig().unit("none").decimals(0))
    panel.mode(kinds.TooltipDisplayMode.SINGLE)
    _fill(
        panel,
        title,
        about,
        8,
        8,
        [_query("{{le}}", expr, "A").range().format(PromQueryFormat.HEATMAP)],
    )
    return panel


def states(title: str, queries: Queries, about: str) -> statetimeline.Panel:
    """A bar per series for as long as it exists."""
    panel = (
        statetimeline.Panel()
        .no_value("none")
        .show_value(kinds.VisibilityMode.NEVER)
        .merge_values(True)
    )
    panel.thresholds(_steps([(1, "red")])).row_height(0.8)
    panel.legend(common.VizLegendOptions().show_legend(False))
    _fill(panel, title, about, 8, 8, [query.range() for query in _queries(queries)])
    return panel


def rows(title: str, expr: str, about: str, *, hidden: Sequence[str]) -> table.Panel:
    """A table of the labels of a metric. hidden: columns that say nothing."""
    panel = table.Panel()
    excluded = dict.fromkeys((*hidden, "Time", "Value", "__name__"), True)
    panel.with_transformation(
        model.DataTransformerConfig(id_val="organize", options={"excludeByName": excluded})
    )
    _fill(
        panel, title, about, 8, 8, [_query("", expr, "A").instant().format(PromQueryFormat.TABLE)]
    )
    return panel


def _query(legend: str, expr: str, letter: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter).datasource(SOURCE)


def _queries(queries: Queries) -> list[prometheus.Dataquery]:
    return [
        _query(legend, expr, chr(ord("A") + i)) for i, (legend, expr) in enumerate(queries.items())
    ]


def _steps(steps: Steps, base: str = "green") -> dashboard.ThresholdsConfig:
    listed = [
        model.Threshold(None, base),
        *(model.Threshold(value, colour) for value, colour in steps),
    ]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(listed)


def _fill(
    panel: Panel,
    title: str,
    about: str,
    width: int,
    height: int,
    queries: Sequence[prometheus.Dataquery],
) -> None:
    """width: in 24ths of the page; height: in grid units of 30 pixels."""
    panel.title(title).description(about).datasource(SOURCE).span(width).height(height)
    for query in queries:
        panel.with_target(query)
