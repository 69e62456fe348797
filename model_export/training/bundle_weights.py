"""The weights of a bundle: network and gate in one file, which torch can load and the graphs refer
to.

Matrices are fp16, or fp32 where the network shall stay what it was. Tensors have the network's own
names, those of the gate start with "gate."; the metadata has config and canvases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model_export.files import replacing
from model_export.network.config import Config
from model_export.network.gate import Gate
from model_export.network.segmenter import Segmenter
from model_export.training.run_files import WEIGHTS, RunError, reading
from model_export.training.runs import canvases_of, gate_of, shapes_of
from service.bundle import Canvas

__all__ = ["GATE", "WEIGHTS", "read_weights", "write_weights"]

GATE = "gate."


def write_weights(
    path: Path, model: Segmenter, gate: Gate, canvases: Sequence[Canvas], *, half: bool = True
) -> None:
    """half: matrices and kernels as fp16. Vectors (norms, biases) are fp32: they are a tenth of a
    percent of the file. So is the gate: it is as small, and tells plans apart by a thousandth."""
    stored = {
        n: (v.half() if half and v.ndim > 1 else v.float()).contiguous()
        for n, v in model.state_dict().items()
        if v.is_floating_point()
    }
    stored |= {GATE + n: v.float().contiguous() for n, v in gate.state_dict().items()}
    about = {
        "config": json.dumps(model.config.as_dict()),
        "canvases": json.dumps(shapes_of(canvases)),
    }
    with replacing(path) as temporary:
        save_file(stored, temporary, metadata=about)
        temporary.chmod(0o644)  # the library writes 0600; a container's user must be able to read


def read_weights(path: Path) -> tuple[Segmenter, Gate, tuple[Canvas, ...]]:
    """The network and its gate in eval mode, and the canvases. Raises RunError that names the
    file."""
    again = "take the bundle from where it came from, or export its run again"
    with reading(path, again), safe_open(path, "pt") as file:
        about = file.metadata() or {}
    # Before there were several canvases, a bundle named its only one.
    canvases = about.get("canvases") or f"[[{about.get('canvas', '')}]]"
    if "config" not in about or canvases == "[[]]":
        raise RunError(
            f"{path} does not say which network it belongs to; repeat `python -m model_export "
            f"export RUN`"
        )
    with reading(path, again):
        tensors = {name: value.float() for name, value in load_file(path).items()}
        model = Segmenter(Config.from_dict(json.loads(about["config"])))
        of_gate = {
            name.removeprefix(GATE): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(GATE)
        }
        # The norms' counts of batches, of no use after training, are not in the file.
        counts = {n: v for n, v in model.state_dict().items() if not v.is_floating_point()}
        model.load_state_dict(tensors | counts)
        return model.eval(), gate_of(of_gate), canvases_of(json.loads(canvases))
