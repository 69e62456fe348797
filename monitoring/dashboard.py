"""The Grafana dashboard as code; `python -m monitoring.build` writes it to dashboards/fathom.json.

The top says at one glance what is wrong, and since when. Each row below answers one question of
whoever is on call, and each panel's description says what to do. Numbers at the top are recording
rules, the same that the alerts read, so they are about all replicas; everything below follows the
variable `instance`.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from monitoring.panels import SOURCE, Panel, glance, heat, lines, rows, states

SERVICE = 'namespace=~"$namespace", job="$job"'  # the labels that recording rules keep
ONE = f'{SERVICE}, instance=~"$instance"'
W = "[$__rate_interval]"
GPU = 'UUID=~"$gpu"'
BURN = [(1, "yellow"), (6, "orange"), (14.4, "red")]


def rate(metric: str, by: str, more: str = "") -> str:
    """Events per second of the chosen replicas, summed by some labels."""
    return f"sum by ({by}) (rate({metric}{{{ONE}{more}}}{W}))"


def share(metric: str, by: str) -> str:
    """Each label's share of the events, absent where nothing happened."""
    return f"{rate(metric, by)} / on () group_left () (sum(rate({metric}{{{ONE}}}{W})) > 0)"


def mean(histogram: str, more: str = "") -> str:
    total, count = (f"sum(rate({histogram}_{part}{{{ONE}{more}}}{W}))" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"


def quantile(q: float, histogram: str, more: str = "", by: str = "le") -> str:
    """A percentile, absent where nothing happened (it would be NaN)."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', by, more)}) >= 0"


def percentiles(histogram: str, more: str = "") -> dict[str, str]:
    return {
        name: quantile(q, histogram, more)
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def top() -> list[Panel]:
    """What is wrong, and since when."""
    requests, shed = (
        "namespace_job:fathom_requests:rate5m",
        "namespace_job:fathom_shed_per_requests:ratio_rate5m",
    )
    errors = "namespace_job:fathom_request_errors_per_requests:ratio_rate1h"
    slow = "namespace_job:fathom_slow_requests_per_requests:ratio_rate1h"
    missed = "namespace_job_kind:fathom_budget_missed_per_requests:ratio_rate5m"
    firing = f'ALERTS{{alertname=~"Fathom.+", alertstate="firing", {SERVICE}}}'
    return [
        glance(
            "Alerts firing",
            {"": f"count(count by (alertname) ({firing})) or vector(0)"},
            "none",
            [(1, "red")],
            "How many of Fathom's alerts fire. Start with the critical ones: each has a runbook.",
            decimals=0,
        ),
        glance(
            "Replicas up",
            {"": f"count(up{{{SERVICE}}} == 1) or vector(0)"},
            "none",
            [(1, "green")],
            "Replicas that Prometheus can scrape. 0 means an outage, or that discovery is broken.",
            decimals=0,
            base="red",
        ),
        glance(
            "Requests",
            {"": f"sum({requests}{{{SERVICE}}})"},
            "reqps",
            [],
            "All answers per second, refusals included, over 5 minutes.",
        ),
        glance(
            "Error budgets burn (1 h)",
            {
                "errors": f"max({errors}{{{SERVICE}}}) / 0.001",
                "latency": f"max({slow}{{{SERVICE}}}) / 0.01",
            },
            "none",
            BURN,
            "How many times faster than the objectives allow: 99.9 % of requests without 5xx, 99 % "
            "of "
            "answers within 0.5 s. At 1 the budget of 30 days is just used up; from 14.4 on "
            "someone is paged.",
        ),
        glance(
            "p99 of an answer",
            {"": f"max(namespace_job:fathom_request_duration_seconds:p99_rate5m{{{SERVICE}}})"},
            "s",
            [(0.4, "yellow"), (0.5, "red")],
            "The objective is 0.5 s. If it is red, see where the time goes: "
            "queue means too few replicas, any other stage means too little CPU or GPU.",
            decimals=2,
        ),
        glance(
            "Refused (429)",
            {"": f"max({shed}{{{SERVICE}}})"},
            "percentunit",
            [(0.001, "yellow"), (0.01, "red")],
            "Share of requests that are shed. Add replicas, or lower the node's budget to trade "
            "depth for speed.",
        ),
        glance(
            "Budgets missed",
            {"{{kind}}": f"max by (kind) ({missed}{{{SERVICE}}})"},
            "percentunit",
            [(0.005, "yellow"), (0.01, "red")],
            "Requests whose deadline passed, and requests whose floor on "
            "quality (max-loss) load, a deadline or the node's budget beat.",
        ),
        glance(
            "Quality given up",
            {"": f"max(namespace_job:fathom_quality_given_up:mean5m{{{SERVICE}}})"},
            "none",
            [(0.0025, "yellow"), (0.005, "red")],
            "Predicted quality (0..1) that the mean image lost against the "
            "plan that its gate wanted. It rises before anything is refused: see what decided.",
            decimals=4,
        ),
        states(
            "Alerts over time",
            {"{{alertname}}": f"max by (alertname) ({firing})"},
            "When each alert fired. The one that began first is often the cause of the others.",
        ),
        lines(
            "Answers by outcome",
            {"{{outcome}}": f"{rate('fathom_requests_total', 'outcome')} > 0"},
            "reqps",
            "ok is good; overloaded was refused (429); internal, not-ready and deadline-exceeded "
            "count against the "
            "objective; the rest are callers' mistakes.",
            stacked=True,
        ),
        lines(
            "Latency of good answers",
            percentiles("fathom_request_duration_seconds", ', outcome="ok"'),
            "s",
            "From the first byte of a request to its answer. The dashed line is the objective for "
            "p99. Where tracing "
            "is on, each dot is an exemplar that leads to a trace.",
            limit=0.5,
            exemplars=True,
        ),
    ]


def depth() -> list[Panel]:
    """How much compute do images get, and who decides?"""
    quality = "fathom_quality_given_up"
    taken = f'sum(rate({quality}_sum{{{ONE}, reason=~"load|node|deadline"}}{W}))'
    counted = f"sum(rate({quality}_count{{{ONE}}}{W}))"
    gflops, images = (
        f"sum(rate(fathom_{each}{{{ONE}}}{W}))"
        for each in ("compute_gflops_total", "batch_size_sum")
    )
    return [
        heat(
            "Depth of images",
            rate("fathom_exit_depth_layers_bucket", "le"),
            "Encoder layers that ran. When the dark band sinks, images get less depth: see beside "
            "what decided.",
        ),
        lines(
            "Images by what decided",
            {"{{reason}}": rate("fathom_exit_depth_layers_count", "reason")},
            "ops",
            "gate: the image needed no more. request: its caller's ceiling. node: the node's "
            "budget. deadline: no "
            "time for more. load: the queue fills up; add replicas.",
            stacked=True,
        ),
        lines(
            "Depth that ran, depth and compute given up",
            {
                "layers": mean("fathom_exit_depth_layers"),
                "layers given up": mean("fathom_depth_given_up_layers"),
                "compute given up": mean("fathom_compute_given_up_ratio"),
            },
            "none",
            "Means per image. Given up: layers of the plan that the gate wanted, less those that "
            "ran; and the share of its GFLOPs that was not spent (right axis), which also counts "
            "fewer tokens or channels and smaller canvases.",
            shares=("compute given up",),
        ),
        lines(
            "Canvas share",
            {"{{canvas}}": share("fathom_exit_depth_layers_count", "canvas")},
            "percentunit",
            "Share of the images by canvas, the size at which they are looked at. When small ones "
            "gain, the images are simpler, or ceilings or load rule the large ones out: see above "
            "what decided.",
            width=6,
            stacked=True,
            top=1,
        ),
        lines(
            "Quality given up",
            {
                "mean": mean(quality),
                "by load, node, deadline": f"{taken} / ({counted} > 0)",
                "p95": quantile(0.95, quality),
            },
            "none",
            "Predicted quality (0..1) of the plan that the gate wanted less that of the plan that "
            "ran; and what load, the node and deadlines took of it: the dashed line is where that "
            "raises an alert. If load decided, add replicas; if the node, raise its budget.",
            width=6,
            limit=0.005,
        ),
        lines(
            "Predicted quality",
            {
                "mean": mean("fathom_predicted_quality"),
                "p10": quantile(0.1, "fathom_predicted_quality"),
            },
            "none",
            "The gate's estimate for the plans that ran. If it sinks while no quality is given up, "
            "the images have "
            "changed: retarget the bundle to them.",
            width=6,
            top=1,
        ),
        lines(
            "Compute per image",
            {
                "per image": f"{gflops} / ({images} > 0)",
                "node's budget": f"min(fathom_node_budget_gflops{{{ONE}}} < Inf)",
            },
            "none",
            "GFLOPs that the mean image took, and the lowest ceiling of a node, if there is one. "
            "Where the two meet, "
            "the node's budget decides.",
            width=6,
        ),
    ]


def latency() -> list[Panel]:
    """Where does the time go?"""
    about = {
        "p50": "The usual image. decode and mask run beside the engine; glance, front, encoder "
        "and decoder run in it. glance counts images whose plan has a larger canvas.",
        "p95": "If queue leads, there are too few replicas; if a stage of the engine does, too "
        "little CPU or GPU.",
        "p99": "The slowest. A queue here and not at p50 means bursts: a lower target-ms or more "
        "replicas help.",
    }
    return [
        lines(
            f"Stages, {name}",
            {"{{stage}}": quantile(q, "fathom_stage_duration_seconds", by="stage, le")},
            "s",
            about[name],
        )
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    ]


def capacity() -> list[Panel]:
    """Is there enough of it?"""
    return [
        lines(
            "Images that wait and run",
            {
                "waiting": f"sum(fathom_queue_depth{{{ONE}}})",
                "in the engine": f"sum(fathom_inflight{{{ONE}}})",
                "places taken": f"sum(fathom_places_taken{{{ONE}}})",
            },
            "none",
            "A queue that stays is too little capacity. The more wait, the cheaper the plans. "
            "Places that are taken while few wait: bodies come slowly, or the decoders are busy.",
        ),
        lines(
            "Wait in the queue",
            percentiles("fathom_stage_duration_seconds", ', stage="queue"'),
            "s",
            "Time from admission to the engine. The alert begins where p95 is over the dashed "
            "line.",
            limit=0.25,
        ),
        lines(
            "What the autoscaler sees",
            {
                "pressure": f"max(fathom_pressure_ratio{{{ONE}}})",
                "queue wait, s": f"max(namespace_job:fathom_queue_wait_seconds:mean1m"
                f"{{{SERVICE}}})",
                "compute given up": f"max(namespace_job:fathom_compute_given_up_ratio:mean1m"
                f"{{{SERVICE}}})",
            },
            "none",
            "The two signals to scale on, over one minute: seconds, and a share of the wanted "
            "compute. Pressure is the predicted wait against the objective: above 1, images are "
            "late. If they stay high at the most replicas, allow more.",
        ),
        lines(
            "Refused, by reason",
            {"{{reason}}": rate("fathom_shed_total", "reason")},
            "reqps",
            "full: the queue is. predicted: the deadline could not be met. expired: it passed in "
            "the queue. "
            "draining: a replica was stopping while still in the load balancer.",
            stacked=True,
        ),
        lines(
            "Budgets missed, by kind",
            {"{{kind}}": rate("fathom_budget_missed_total", "kind")},
            "reqps",
            "deadline: the request's ms passed. max-loss: load, a deadline or the node's budget "
            "beat the floor on quality.",
            stacked=True,
        ),
        lines(
            "Images per batch",
            {"mean": mean("fathom_batch_size"), "p95": quantile(0.95, "fathom_batch_size")},
            "none",
            "Images of one plan that ran together. Small batches under load mean that plans vary "
            "much.",
        ),
    ]


def replicas() -> list[Panel]:
    """What runs, and is it healthy?"""
    each = "{{instance}}"
    return [
        lines(
            "Replicas up",
            {"up": f"count(up{{{ONE}}} == 1) or vector(0)"},
            "none",
            "Replicas that Prometheus can scrape.",
        ),
        lines(
            "Failed batches and restarts",
            {
                "failed batches, {{instance}}": f"increase(fathom_engine_errors_total{{{ONE}}}{W})",
                "restarts, {{instance}}": f"changes(process_start_time_seconds{{{ONE}}}{W})",
            },
            "none",
            "Both should be 0. The log has a failed batch's error under the ids of its requests.",
        ),
        rows(
            "What runs",
            f"fathom_build_info{{{ONE}}}",
            "Version, bundle and engine of each replica. Two versions "
            "at once are a rollout that is going on or stuck.",
            hidden=["container", "endpoint", "service"],
        ),
        lines(
            "GFLOPs per second",
            {each: rate("fathom_compute_gflops_total", "instance")},
            "none",
            "Compute that each replica spends. A replica below the others gets less traffic, or is "
            "slower.",
            width=6,
        ),
        lines(
            "CPU",
            {each: rate("process_cpu_seconds_total", "instance")},
            "none",
            "Cores in use. At the container's limit the kernel throttles: raise it, or add "
            "replicas.",
            width=6,
        ),
        lines(
            "Memory",
            {each: f"process_resident_memory_bytes{{{ONE}}}"},
            "bytes",
            "Resident memory. It is flat after the first images; growth is a leak and ends in an "
            "OOM kill.",
            width=6,
        ),
        lines(
            "Open files",
            {each: f"process_open_fds{{{ONE}}} / process_max_fds{{{ONE}}}"},
            "percentunit",
            "Share of the limit. Each connection takes one; at 100 % new ones fail.",
            width=6,
            top=1,
        ),
    ]


def gpu() -> list[Panel]:
    """Series of NVIDIA's dcgm-exporter, where there is one."""
    name = "{{Hostname}} GPU {{gpu}}"
    return [
        lines(
            "GPU busy",
            {
                f"{name}, any": f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{GPU}}}",
                f"{name}, tensor cores": f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{GPU}}}",
                f"{name}, sampled": f"DCGM_FI_DEV_GPU_UTIL{{{GPU}}} / 100",
            },
            "percentunit",
            "Share of time in which the GPU, and its tensor cores, did anything. Low while images "
            "wait: larger "
            "batches (max-batch, batch-wait-ms) or a second replica per GPU.",
            width=6,
            top=1,
        ),
        lines(
            "GPU memory",
            {
                f"{name}, used": f"DCGM_FI_DEV_FB_USED{{{GPU}}} * 1048576",
                f"{name}, free": f"DCGM_FI_DEV_FB_FREE{{{GPU}}} * 1048576",
            },
            "bytes",
            "Memory of the whole GPU, whoever uses it.",
            width=6,
        ),
        lines(
            "GPU power and temperature",
            {
                f"{name}, W": f"DCGM_FI_DEV_POWER_USAGE{{{GPU}}}",
                f"{name}, °C": f"DCGM_FI_DEV_GPU_TEMP{{{GPU}}}",
            },
            "none",
            "At its power or heat limit a GPU lowers its clock, and every stage gets slower.",
            width=6,
        ),
        lines(
            "GPU errors (XID)",
            {name: f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}}"},
            "none",
            "The last error code of the driver; 0 is none. Drain the node and look the code up.",
            width=6,
        ),
    ]


def fathom() -> model.Dashboard:
    """The dashboard, ready to be written."""
    board = dashboard.Dashboard("Fathom").uid("fathom").tags(["fathom"]).readonly().refresh("30s")
    board.description(
        "Adaptive segmentation: what is wrong, who decides the depth, where the time goes."
    )
    board.tooltip(model.DashboardCursorSync.CROSSHAIR).time("now-1h", "now").timezone("browser")
    board.with_variable(
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    )
    for name, query, several in (
        ("namespace", "label_values(fathom_build_info, namespace)", True),
        ("job", 'label_values(fathom_build_info{namespace=~"$namespace"}, job)', False),
        ("instance", f"label_values(fathom_build_info{{{SERVICE}}}, instance)", True),
        ("gpu", "label_values(DCGM_FI_DEV_FB_USED, UUID)", True),
    ):
        variable = dashboard.QueryVariable(name).query(query).datasource(SOURCE)
        variable.sort(model.VariableSort.ALPHABETICAL_ASC).refresh(
            model.VariableRefresh.ON_TIME_RANGE_CHANGED
        )
        # `.*` also fits where the label is absent, as `namespace` is outside of Kubernetes.
        if several:
            variable.multi(True).include_all(True).all_value(".*")
            variable.current(model.VariableOption(text="All", value="$__all"))
        board.with_variable(variable)
    number = 0

    def numbered(panel: Panel) -> Panel:
        nonlocal number
        number += 1
        panel.id(number)
        return panel

    for panel in top():
        board.with_panel(numbered(panel))
    for title, panels in (
        ("Depth and quality: how much compute do images get, and who decides?", depth()),
        ("Latency: where does the time go?", latency()),
        ("Capacity: is there enough of it?", capacity()),
        ("Replicas: what runs, and is it healthy?", replicas()),
    ):
        number += 1
        board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            board.with_panel(numbered(panel))
    number += 1
    folded = (
        dashboard.Row("GPU: is it the bottleneck? (needs dcgm-exporter)").id(number).collapsed(True)
    )
    for panel in gpu():
        folded.with_panel(numbered(panel))
    return board.with_row(folded).build()
