"""What clients ask about the server and its one model, as the JSON of Triton and KServe has it."""

from __future__ import annotations

from typing import Any

from service.labels import OUTCOMES
from service.metrics import Metrics
from service.model import Model
from service.open_inference.infer import VERSION
from service.open_inference.outputs import Outputs
from service.open_inference.request import IMAGE, PIXELS

EXTENSIONS = ["binary_tensor_data", "parameters", "model_configuration", "statistics"]
_TYPES = {
    "BYTES": "TYPE_STRING",
    "UINT8": "TYPE_UINT8",
    "INT32": "TYPE_INT32",
    "FP32": "TYPE_FP32",
}  # in /config
# Triton's stages -> those of ours that they are made of
_STAGES = {
    "queue": ("queue",),
    "compute_input": ("decode",),
    "compute_infer": ("glance", "front", "encoder", "decoder"),
    "compute_output": ("mask",),
}


def versions(model: Model) -> list[str]:
    """What a path may name: 1 for clients that expect numbers, and the bundle's revision."""
    return list(dict.fromkeys([VERSION, model.manifest.revision]))


def server(version: str) -> dict[str, Any]:
    """version: the service's."""
    return {"name": "fathom", "version": version, "extensions": EXTENSIONS}


def metadata(model: Model) -> dict[str, Any]:
    """Names, datatypes and shapes; -1 is a size that varies, the first one is the batch."""
    return {
        "name": model.manifest.name,
        "versions": versions(model),
        "platform": "fathom",
        "inputs": [_tensor(IMAGE, "BYTES", [-1]), _tensor(PIXELS, "UINT8", [-1, -1, -1, 3])],
        "outputs": [
            _tensor(row.name, row.datatype, list(row.shape))
            for row in Outputs.of(model).known.values()
        ],
    }


def config(model: Model, max_images: int) -> dict[str, Any]:
    """Triton's ModelConfig. Its max_batch_size is 0: the batch is an axis of the tensors.

    max_images: of one request.
    """
    described = metadata(model)
    name = model.manifest.name
    return {
        "name": name,
        "platform": "fathom",
        "backend": "fathom",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [
            # One of the two is sent.
            {**_configured(tensor), "format": "FORMAT_NONE", "optional": True}
            for tensor in described["inputs"]
        ],
        "output": [
            {**_configured(tensor), "label_filename": ""} for tensor in described["outputs"]
        ],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [
            {"name": name, "kind": "KIND_AUTO", "count": 1, "gpus": [], "profile": []}
        ],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {
            "max_images": {"string_value": str(max_images)},
            "revision": {"string_value": model.manifest.revision},
            "heads": {"string_value": ", ".join(head.name for head in model.manifest.heads)},
        },
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }


def statistics(model: Model, metrics: Metrics) -> dict[str, Any]:
    """Triton's statistics, from the counters of /metrics: every request counts, /segment's too."""
    counts = _samples(metrics)
    failed = [outcome for outcome in OUTCOMES if outcome != "ok"]
    success = _duration(counts, "fathom_request_duration_seconds", ["ok"])
    batches = counts.get(("fathom_batch_size_count", ""), 0.0)
    images = counts.get(("fathom_batch_size_sum", ""), 0.0)
    stages = {
        name: _duration(counts, "fathom_stage_duration_seconds", parts)
        for name, parts in _STAGES.items()
    }
    found = {
        "name": model.manifest.name,
        "version": VERSION,
        "last_inference": round(metrics.last_answer_s * 1000),
        "inference_count": int(images),
        "execution_count": int(batches),
        "inference_stats": {
            "success": success,
            "fail": _duration(counts, "fathom_request_duration_seconds", failed),
            **stages,
            "cache_hit": _cached(counts, "hit", "collapsed"),
            "cache_miss": _cached(counts, "miss"),
        },
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }
    return {"model_stats": [found]}


def index(model: Model, only_ready: bool = False) -> list[dict[str, str]]:
    """The repository: the one model, which nobody can load or unload."""
    found = {"name": model.manifest.name, "version": VERSION, "state": "READY", "reason": ""}
    if not is_ready(model):
        found |= {"state": "UNAVAILABLE", "reason": f"The service is {model.state}"}
    return [] if only_ready and not is_ready(model) else [found]


def is_ready(model: Model) -> bool:
    """Whether it takes work."""
    return model.state == "ready"


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tensor["name"],
        "data_type": _TYPES[tensor["datatype"]],
        "dims": tensor["shape"],
        "is_shape_tensor": False,
    }


def _samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(sample, its first label or "") -> value; buckets are left out. What is read has one label
    at most."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def _cached(counts: dict[tuple[str, str], float], *results: str) -> dict[str, int]:
    """How often the response cache had these. What it takes is not measured."""
    name = "fathom_response_cache_requests_total"
    return {"count": int(sum(counts.get((name, result), 0.0) for result in results)), "ns": 0}


def _duration(
    counts: dict[tuple[str, str], float], metric: str, labels: list[str] | tuple[str, ...]
) -> dict[str, int]:
    """The times of these labels together. count: the most that one of them has happened, or for
    outcomes, which exclude each other, all of them."""
    times = [counts.get((f"{metric}_sum", label), 0.0) for label in labels]
    happened = [counts.get((f"{metric}_count", label), 0.0) for label in labels]
    count = max(happened) if metric == "fathom_stage_duration_seconds" else sum(happened)
    return {"count": int(count), "ns": round(sum(times) * 1e9)}
