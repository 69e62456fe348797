"""TensorRT engines of a bundle: of each shape the front, the encoder of every plan and the decoder,
for every batch size, into a cache.

Each is compared with ONNX Runtime on this machine's GPU before the service uses it. Without a GPU
only TensorRT-RTX can build, with --no-check; the service refuses such engines. See `python -m
service --help` for the cache's setting.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from model_export.data.datasets import refuse_unread
from model_export.export import engine_parity
from model_export.export.attention import forms_of
from model_export.export.kernel_files import file_name, problem_of
from model_export.export.precision import NAMES, TYPES, prepare
from model_export.network.names import DOMAIN
from model_export.training.runs import RunError
from service import bundle
from service.bundle import Bundle
from service.engines import engine_cache
from service.engines.cuda import Device, DriverError
from service.engines.engine_cache import ANY, EngineSet
from service.engines.tensorrt_runtime import MODULES
from service.errors import BackendError

RTX = "tensorrt-rtx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder, e.g. trained_weights/camvid-tiny")
    add(
        "--cache",
        type=Path,
        required=True,
        help="folder for the engines; the service reads them from there",
    )
    add(
        "--flavour",
        choices=sorted(MODULES),
        help="default: the one that is installed, TensorRT before TensorRT-RTX",
    )
    add(
        "--precision",
        choices=sorted(TYPES),
        default="fp16",
        help="of storage; coordinates and sums stay fp32",
    )
    add(
        "--batches",
        type=batches,
        default=(1, 2, 4),
        help="batch sizes, e.g. 1,2,4; the largest is the service's limit",
    )
    add(
        "--parity",
        default="scenes:3:5",
        help="data set whose first images are compared with ONNX Runtime",
    )
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add(
        "--no-check",
        action="store_true",
        help="build without a GPU; the service refuses the engines",
    )
    add(
        "--target-capability",
        help="with --no-check: build for this chip only, e.g. 8.9; default: any that RTX knows",
    )


def batches(text: str) -> tuple[int, ...]:
    """ "1,2,4" -> (1, 2, 4), ascending, each once."""
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if not 1 <= sizes[0] <= sizes[-1] <= 64:
        raise argparse.ArgumentTypeError("each batch size must be 1 to 64")
    return sizes


def main(args: argparse.Namespace) -> None:
    refuse_unread(args.data, "--parity", args.parity)
    served = bundle.load(args.bundle)
    if served.manifest.input.tiled:
        raise RunError(
            f"{args.bundle} has tiled canvases, which TensorRT cannot run: serve it with --backend "
            f"onnxruntime-cuda, or export its run without tiles"
        )
    flavour = args.flavour or installed_flavour()
    capability = capability_of(flavour, check=not args.no_check, target=args.target_capability)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = {
            stage: prepared(served, stage, args.precision, flavour, folder)
            for stage in served.manifest.stages
        }
        target = None if flavour != RTX or capability == ANY else capability
        version = run_builder(folder, served, flavour, graphs, args.batches, target)
        plans = {stage: Path(graph["plan"]).read_bytes() for stage, graph in graphs.items()}
    about = EngineSet(
        engine_cache.content_of(served.manifest),
        flavour,
        version,
        capability,
        args.precision,
        args.batches,
        checked=False,
        parity={},
        files={},
    )
    about = engine_cache.save(args.cache, about, plans)
    if not args.no_check:
        about = checked(served, about, args.cache, args.parity, args.data)
    folder = args.cache / about.folder
    print(
        json.dumps({"engines": str(folder), "checked": about.checked, "parity": dict(about.parity)})
    )


def installed_flavour() -> str:
    for flavour, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            return flavour
    raise RunError("TensorRT is not installed: pip install '.[tensorrt]' or '.[tensorrt-rtx]'")


def capability_of(flavour: str, *, check: bool, target: str | None) -> str:
    """The compute capability that engines are for. Raises RunError where there is no GPU to build
    or check on.

    check: whether the engines will be compared on this machine. target: for this chip only.
    """
    if not check:
        if flavour != RTX:
            raise RunError(
                f"only {RTX} builds without a GPU: leave --no-check out, or use --flavour {RTX}"
            )
        return target or ANY
    if target:
        raise RunError(
            "--target-capability is for --no-check: engines that are checked are for the GPU of "
            "this machine"
        )
    try:
        device = Device()
    except DriverError as error:
        raise RunError(
            f"engines are checked on a GPU, and there is none ({error}). With --no-check --flavour "
            f"{RTX} they can still be built, and the service refuses them"
        ) from error
    major, minor = device.capability
    device.close()
    if flavour == RTX:
        refuse_unknown_chip(major, minor)
        return ANY
    return f"{major}.{minor}"


def refuse_unknown_chip(major: int, minor: int) -> None:
    """Raises RunError where TensorRT-RTX does not run on a chip: it would build every engine, and
    then open none."""
    trt = importlib.import_module(MODULES[RTX])
    named = [re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__]
    known = [(int(match[1]), int(match[2])) for match in named if match]
    if (major, minor) not in known:
        chips = ", ".join("{}.{}".format(*chip) for chip in known)
        raise RunError(
            f"{RTX} {trt.__version__} does not run on this GPU: its compute capability is "
            f"{major}.{minor}, and {RTX} knows {chips}. Use --flavour tensorrt, or serve with "
            f"--backend onnxruntime-cuda"
        )


def prepared(
    served: Bundle, stage: str, precision: str, flavour: str, folder: Path
) -> dict[str, Any]:
    """A stage's graph as TensorRT takes it, in `folder`: its path, that of the plan, and how many
    nodes are our plugin."""
    path = served.root / served.manifest.stages[stage].file
    kernels = {k.problem: k.sha256 for k in served.manifest.kernels}
    model = prepare(path, precision)
    forms = list(forms_of(model))
    if not forms and stage in encoders_of(served):
        raise RunError(
            f"{path}: its deformable attention is no node of its own. Export the bundle again"
        )
    for node, form in forms:
        problem = problem_of(form, NAMES[precision])
        if problem not in kernels:
            raise RunError(
                f"{served.root} has no kernel {file_name(problem)}: pip install '.[kernels]' "
                f"and export it again"
            )
        attributes: dict[str, Any] = {"kernel": kernels[problem]}
        if flavour != RTX:
            attributes |= {"plugin_namespace": DOMAIN, "aot": 1}
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
    del model.functions[:]  # parsers differ in whether the body or the plugin takes precedence
    onnx.save(model, folder / f"{stage}.onnx")
    return {
        "onnx": str(folder / f"{stage}.onnx"),
        "plan": str(folder / f"{stage}.plan"),
        "plugins": len(forms),
    }


def encoders_of(served: Bundle) -> set[str]:
    graphs = served.manifest.graphs.values()
    return {stage for own in graphs for stage in own.encoders.values()}


def run_builder(
    folder: Path,
    served: Bundle,
    flavour: str,
    graphs: dict[str, Any],
    sizes: tuple[int, ...],
    capability: str | None,
) -> str:
    """Build the plans in a separate process. Returns TensorRT's version. Raises RunError with the
    process's last messages."""
    job = {
        "flavour": flavour,
        "bundle": str(served.root),
        "graphs": graphs,
        "batches": sizes,
        "capability": capability,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "model_export.export.tensorrt_build", str(folder / "job.json")]
    version, done, messages = "", [], []
    with (
        library_link(flavour, folder) as environment,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if not line.startswith('{"'):  # TensorRT's own
                messages.append(line.rstrip())
                continue
            told = json.loads(line)
            version = told.get("version", version)
            if "stage" in told:
                done.append(told["stage"])
                print(
                    f"{told['stage']:<24}{told['megabytes']:>8} MB, {told['plugins']} plugins of "
                    f"{told['layers']} layers, {told['seconds']:.1f} s"
                )
    if child.returncode:
        failed = next((stage for stage in graphs if stage not in done), "none")
        raise RunError(
            f"{flavour} failed at {failed} (exit status {child.returncode}): "
            + "\n".join(messages[-6:] or ["no message"])
        )
    return version


@contextmanager
def library_link(flavour: str, folder: Path) -> Iterator[dict[str, str]]:
    """The builder's environment. TensorRT-RTX's parser opens libtensorrt_rtx.so when it meets a
    plugin, and aborts where there is only the package's libtensorrt_rtx.so.1. So a link by that
    name is put on the path."""
    environment = dict(os.environ)
    spec = importlib.util.find_spec("tensorrt_rtx_libs") if flavour == RTX else None
    if spec is not None and spec.origin is not None:
        for library in Path(spec.origin).parent.glob("libtensorrt_rtx.so.*"):
            (folder / "libtensorrt_rtx.so").symlink_to(library)
            break
        paths = [str(folder), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    yield environment


def checked(
    served: Bundle, about: EngineSet, cache: Path, parity: str, data: Path | None
) -> EngineSet:
    """The set, marked as checked once the service's own backend gives what ONNX Runtime gives with
    these engines. Raises RunError.

    parity: the data set to compare on. data: its folder.
    """
    try:
        differences = engine_parity.check(served, cache, about, parity, data)
    except BackendError as error:
        raise RunError(error.detail) from error
    return engine_cache.describe(cache, replace(about, checked=True, parity=differences))
