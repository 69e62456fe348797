"""Graphs that tests share: the exporter takes some ten seconds for one, whatever its weights are.

A graph depends on what the network is, not on its weights, which it refers to. So each is traced
once, and the processes that share out the tests share the graphs. Every export still compares its
graphs with torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`trace` looks first whether somebody has traced the same."""
    import onnx

    from model_export.export import weights

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    folder.mkdir(exist_ok=True)
    original = weights.trace

    def trace(module: Any, example: Any, name: str) -> onnx.ModelProto:
        file = folder / hashlib.sha256(_described(module, example).encode()).hexdigest()
        if not file.exists():
            _write(file, original(module, example, name))
        return onnx.load_model_from_string(file.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "trace", trace)
        yield


def _described(module: Any, example: Any) -> str:
    """All that a graph depends on."""
    gate, config = getattr(module, "gate", None), module.model.config.as_dict()
    for name in ("task", "things", "thresholds"):  # what is made of the answers
        del config[name]
    own = [getattr(module, name, None) for name in ("knobs", "plans", "head", "width")]
    return repr(
        (
            type(module).__qualname__,
            config,
            (module.inputs, module.outputs, own),
            gate and [tuple(tensor.shape) for tensor in gate.state_dict().values()],
            [tuple(tensor.shape) for tensor in example],
        )
    )


def _write(file: Path, graph: Any) -> None:
    """Nobody reads a part of it."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(graph.SerializeToString())
    partial.replace(file)
