"""The builder's own process: python -m model_export.export.tensorrt_build JOB. `build-trt` starts
it.

TensorRT may abort the process that it runs in, and TensorRT-RTX's parser looks for a library under
a name that its package does not have, which only the environment of a new process can mend. So a
separate process builds. It writes a plan for each graph and prints a JSON line about it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from model_export.export import tensorrt_aot
from service import bundle
from service.engines import tensorrt_plugin
from service.engines.tensorrt_plugin import Compiled
from service.engines.tensorrt_runtime import MODULES


class BuildError(RuntimeError):
    """A graph that TensorRT does not accept. The message has the parser's words."""


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    trt = importlib.import_module(MODULES[job["flavour"]])
    root = Path(job["bundle"])
    kernels = {k.sha256: Compiled.read(root, k) for k in bundle.load(root).manifest.kernels}
    if job["flavour"] == "tensorrt-rtx":
        tensorrt_plugin.register(trt, kernels)
    else:
        tensorrt_aot.register(kernels)
    say({"version": trt.__version__})
    for stage, graph in job["graphs"].items():
        began = time.monotonic()
        plan, about = build(
            trt, Path(graph["onnx"]), graph["plugins"], job["batches"], job["capability"]
        )
        Path(graph["plan"]).write_bytes(plan)
        say(
            {
                "stage": stage,
                "megabytes": round(len(plan) / 1e6, 2),
                **about,
                "seconds": time.monotonic() - began,
            }
        )


def say(words: Mapping[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def build(
    trt: ModuleType, path: Path, plugins: int, batches: Sequence[int], capability: str | None
) -> tuple[bytes, dict[str, int]]:
    """A plan with a profile for each batch size, and how many layers the network has, and of them
    are plugins. Raises BuildError.

    plugins: how many layers must be our plugin. capability: build for this chip only, not for all
    that TensorRT-RTX knows.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Later versions have nothing else.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        raise BuildError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    ours = kinds.count(trt.LayerType.PLUGIN_V3)
    if ours != plugins:
        raise BuildError(f"{ours} layers of the network are our plugin, not {plugins}")
    config = builder.create_builder_config()
    # fp32 means fp32: the limits of parity are not for ten-bit mantissas.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Only then can a run be recorded in a CUDA graph.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(
            getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0
        )
    for size in batches:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = (size, *tuple(tensor.shape)[1:])
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("TensorRT built nothing; the log above has its reason")
    return bytes(plan), {"layers": len(kinds), "plugins": ours}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BuildError as failed:
        sys.exit(f"BuildError: {failed}")
