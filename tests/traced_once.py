"""Graphs that tests share: the exporter takes some ten seconds for one, whatever its weights are.

A graph depends on what the network is, not on its weights, which it refers to. So each is traced
once, and the processes that share out the tests share the graphs. Every export still compares its
graphs with torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

# The fields of a network's configuration that shape one kind of stage alone, by an input of that
# kind: front, encoder, head.
PARTS = {
    "image": {"backbone", "imported", "front_head"},
    "f8": {
        *("schedule", "encoder_ffn", "recalibration", "top_down", "pause_after", "widths"),
        "exit_adapters",
    },
    "f4": {"queries", "matching", "pixel_embedding", "decoder_layers", "decoder_ffn", "tasks"},
}


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`trace` looks first whether somebody has traced the same."""
    import onnx
    from filelock import FileLock

    from model_export.export import weights

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    original = weights.trace

    def trace(module: Any, example: Any, name: str) -> onnx.ModelProto:
        file = folder / hashlib.sha256(_described(module, example).encode()).hexdigest()
        with FileLock(file.with_suffix(".lock")):  # another process may be at it
            if not file.exists():
                file.write_bytes(original(module, example, name).SerializeToString())
        return onnx.load_model_from_string(file.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "trace", trace)
        yield


def _described(module: Any, example: Any) -> str:
    """All that a graph depends on."""
    gate, config = getattr(module, "gate", None), module.model.config.as_dict()
    ignored = {"name", "task", "things", "thresholds", "head"}  # what is made of the answers
    for name, of_stage in PARTS.items():
        if name not in module.inputs:
            ignored |= of_stage
    own = [getattr(module, name, None) for name in ("knobs", "plans", "head", "width")]
    return repr(
        (
            type(module).__qualname__,
            {name: value for name, value in config.items() if name not in ignored},
            (module.inputs, module.outputs, own),
            gate and [tuple(tensor.shape) for tensor in gate.state_dict().values()],
            [tuple(tensor.shape) for tensor in example],
        )
    )
