"""Write a bundle: front, decoder and one encoder per exit as ONNX, weights once, parity and cost in the manifest.

The weights lie in one model.safetensors, matrices in fp16, with the network's own names; it is both the checkpoint
that torch loads and the external data of every graph. What torch and the graphs compute is compared on real images.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from model_export.export.flops import count_gflops
from model_export.export.graphs import ENCODED, FEATURES, Decode, Encode, Front
from model_export.network.segmenter import Segmenter
from model_export.recipe.augment import PAD, on_canvas
from model_export.recipe.datasets import Dataset, open_dataset
from model_export.recipe.quality import image_quality, mean_iou
from model_export.recipe.runs import RunError, load_model, read_config, read_gate, read_targets
from service import bundle
from service.core import Plan

WEIGHTS = "model.safetensors"
OPSET = 18
MAX_ERROR, MIN_EQUAL = 1e-3, 0.999  # on probabilities; share of pixels with the same class
BATCHES = (1, 2, 4)

Arrays = dict[str, NDArray[Any]]

# Once a graph, the exporter says of each operator of torchvision that it lacks the package. So does the network.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, help="a run's folder with a trained parent, targets and gate")
    add("-o", "--out", type=Path, required=True, help="the bundle's folder, e.g. trained_weights/NAME")
    add("--data", type=Path, help="folder of the data set (not needed for scenes)")
    add("--parity", default="scenes:3:5", help="data set whose first three images are compared with torch")
    add("--provenance", type=Path, help="JSON with data, recipe, licence and backbone; default: what the run says")


def main(args: argparse.Namespace) -> None:
    config, canvas, arguments = read_config(args.run)
    trained = load_model(args.run)
    if read_gate(args.run)["loss"] != "quality":
        raise RunError(
            f"{args.run} has a gate that classifies; the service routes by quality: train-gate --loss quality"
        )
    held = read_targets(args.run, "held")
    samples: Dataset = open_dataset(args.parity, args.data)
    if len(samples.classes) != config.classes:
        raise RunError(
            f"--parity {args.parity} has {len(samples.classes)} classes and the run {config.classes}; "
            "the bundle takes the classes' names from there: give --parity the data that the run was trained on"
        )
    if len(samples) < 3:
        raise RunError(f"--parity {args.parity} has {len(samples)} images; three are needed")
    args.out.mkdir(parents=True, exist_ok=True)
    for stale in (*args.out.glob("*.onnx"), args.out / bundle.FILE):
        stale.unlink(missing_ok=True)  # a folder without a manifest is no bundle: a failed export cannot be served
    offsets = write_weights(args.out / WEIGHTS, trained.state_dict())
    model = Segmenter(config)
    model.load_state_dict(offsets.rounded)
    model.eval()
    modules: dict[str, nn.Module] = {"front": Front(model), "decoder": Decode(model)}
    modules |= {f"encoder-d{k}": Encode(model, k) for k in range(1, config.exits + 1)}
    images = np.stack([on_canvas(samples[i], canvas)[0] for i in range(3)])
    for name, example in examples(model, torch.from_numpy(images[:2])).items():
        write_graph(modules[name], example, args.out / f"{name}.onnx", offsets)
    errors = check_parity(args.out, modules, images)
    parts = {name: count_gflops(args.out / f"{name}.onnx") for name in modules}
    stages = {name: stage_of(args.out / f"{name}.onnx", errors[name]) for name in modules}
    manifest = bundle.Manifest(
        name=args.out.name,
        revision=revision(),
        provenance=provenance(args.provenance, arguments),
        task=config.task,
        classes=tuple(
            bundle.ClassInfo(name, colour, False) for name, colour in zip(samples.classes, samples.palette, strict=True)
        ),
        input=bundle.InputSpec(*canvas, "uint8", "NHWC", (PAD,) * 3),
        stages=stages,
        files=(bundle.BundleFile(WEIGHTS, ""),),
        plans=tuple(plan_of(k, parts, held["confusions"][:, k - 1]) for k in range(1, config.exits + 1)),
        encoder_of={f"d{k}": f"encoder-d{k}" for k in range(1, config.exits + 1)},
        calibration=calibration(held, parts, errors),
    )
    bundle.save(args.out, manifest)
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 1e6
    for plan in manifest.plans:
        print(f"{plan.name}: {plan.gflops:6.2f} GFLOPs, quality {plan.quality:.4f}")
    print(json.dumps({"bundle": str(args.out), "megabytes": round(size, 2), "parity": errors}))


class Offsets:
    """Where each tensor lies in the weights file: (dtype, shape, offset, length), and what torch reads back from it."""

    def __init__(self, path: Path, rounded: dict[str, Tensor]) -> None:
        self.rounded = rounded
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        self.entries = {
            name: (
                entry["dtype"],
                entry["shape"],
                8 + size + entry["data_offsets"][0],
                np.diff(entry["data_offsets"])[0],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }


def write_weights(path: Path, state: dict[str, Tensor]) -> Offsets:
    """Matrices and kernels as fp16, vectors (norms, biases) as fp32: a tenth of a percent of the file."""
    stored = {
        n: (v.half() if v.ndim > 1 else v.float()).contiguous() for n, v in state.items() if v.is_floating_point()
    }
    save_file(stored, path)
    path.chmod(0o644)  # the library writes 0600; a container's user must be able to read it
    rounded = {n: stored[n].float() if n in stored else v for n, v in state.items()}
    return Offsets(path, rounded)


@torch.inference_mode()
def examples(model: Segmenter, images: Tensor) -> dict[str, tuple[Tensor, ...]]:
    f4, *features, _ = Front(model)(images)
    encoded = Encode(model, 1)(*features)
    found = {"front": (images,), "decoder": (f4, *encoded)}
    return found | {f"encoder-d{k}": tuple(features) for k in range(1, model.config.exits + 1)}


def write_graph(module: nn.Module, example: tuple[Tensor, ...], path: Path, offsets: Offsets) -> None:
    """Export one stage with a dynamic batch, its parameters pointing into the weights file."""
    names: tuple[str, ...] = module.inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about names of axes that it merges
        program = torch.onnx.export(
            module.eval(), example, dynamo=True, dynamic_shapes={n: {0: torch.export.Dim("batch")} for n in names},
            input_names=list(names), output_names=list(module.outputs),
            opset_version=OPSET, optimize=False, verbose=False,
        )  # fmt: skip
    model = program.model_proto
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of the exporting machine
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    casts = [refer(tensor, offsets) for tensor in model.graph.initializer]
    kept = [c for c in casts if c is not None]
    nodes = [*kept, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    onnx.checker.check_model(path)


def refer(tensor: TensorProto, offsets: Offsets) -> onnx.NodeProto | None:
    """Turn an initializer into a reference into the weights file; for fp16 also give the Cast back to fp32."""
    name = tensor.name.removeprefix("model.")
    if name not in offsets.entries:
        if tensor.ByteSize() > 4096:
            raise RunError(
                f"{tensor.name} ({tensor.ByteSize()} bytes) is no weight of the network; it would be stored twice"
            )
        return None
    dtype, shape, offset, length = offsets.entries[name]
    public, half = tensor.name, dtype == "F16"
    tensor.Clear()
    tensor.name = f"{public}.half" if half else public
    tensor.data_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    tensor.dims.extend(shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return helper.make_node("Cast", [tensor.name], [public], to=TensorProto.FLOAT) if half else None


def enforce(what: str, ours: NDArray[Any], theirs: NDArray[Any], equal: float) -> None:
    gap = float(np.abs(ours - theirs).max())
    if not (gap <= MAX_ERROR and equal >= MIN_EQUAL):  # in this form nan is refused, too
        raise RunError(
            f"{what}: ONNX Runtime differs from torch by {gap:.2e} "
            f"and on {1 - equal:.4%} of the pixels; nothing was bundled"
        )


@torch.inference_mode()
def check_parity(folder: Path, modules: dict[str, nn.Module], images: NDArray[np.uint8]) -> dict[str, float]:
    """Largest difference per stage between the chain of graphs and torch, over all plans, images and batch sizes.

    Raises RunError where a plan's probabilities or the gate's qualities differ by more than 1e-3, or fewer than 99.9 %
    of a plan's pixels agree.
    """
    errors = dict.fromkeys(modules, 0.0)
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in modules
    }

    def compare(name: str, inputs: Arrays, reference: dict[str, Tensor]) -> tuple[Arrays, dict[str, Tensor]]:
        module: Any = modules[name]
        ours = dict(zip(module.outputs, sessions[name].run(list(module.outputs), inputs), strict=True))
        out = module(*reference.values())
        theirs = dict(zip(module.outputs, out if isinstance(out, tuple) else (out,), strict=True))
        gap = max(float(np.abs(ours[n] - theirs[n].numpy()).max()) for n in ours)
        errors[name] = max(errors[name], gap)
        return ours, theirs

    for batch in BATCHES:
        pixels = np.resize(images, (batch, *images.shape[1:])) if batch > len(images) else images[:batch]
        for start in range(len(images) if batch == 1 else 1):
            feed = images[start : start + 1] if batch == 1 else np.ascontiguousarray(pixels)
            ours, theirs = compare("front", {"image": feed}, {"image": torch.from_numpy(feed)})
            enforce(f"the gate at batch {batch}", ours["quality"], theirs["quality"].numpy(), 1.0)
            for name in (n for n in modules if n.startswith("encoder")):
                encoded, expected = compare(name, {n: ours[n] for n in FEATURES}, {n: theirs[n] for n in FEATURES})
                got, wanted = compare(
                    "decoder",
                    {"f4": ours["f4"], **{n: encoded[n] for n in ENCODED}},
                    {"f4": theirs["f4"], **{n: expected[n] for n in ENCODED}},
                )
                p, q = got["probabilities"], wanted["probabilities"].numpy()
                enforce(f"{name} at batch {batch}", p, q, float((p.argmax(1) == q.argmax(1)).mean()))
    return {name: float(f"{error:.3g}") for name, error in errors.items()}


def stage_of(path: Path, error: float) -> bundle.Stage:
    graph = onnx.load(path, load_external_data=False).graph

    def specs(values: Any) -> tuple[bundle.TensorSpec, ...]:
        found = []
        for value in values:
            kind = value.type.tensor_type
            dims = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            found.append(bundle.TensorSpec(value.name, dtype, ("batch", *dims[1:])))
        return tuple(found)

    return bundle.Stage(path.name, "", specs(graph.input), specs(graph.output), error)


def plan_of(depth: int, parts: dict[str, float], confusions: NDArray[np.int64]) -> Plan:
    quality = np.array([image_quality(matrix) for matrix in confusions])
    return Plan(
        name=f"d{depth}",
        depth=depth,
        keep=1.0,
        width=1.0,
        gflops=round(parts["front"] + parts[f"encoder-d{depth}"] + parts["decoder"], 4),
        quality=round(float(quality.mean()), 5),
        quality_quantiles=tuple(round(float(q), 5) for q in np.quantile(quality, (0.05, 0.25, 0.5, 0.75, 0.95))),
    )


def calibration(held: dict[str, Any], parts: dict[str, float], errors: dict[str, float]) -> dict[str, Any]:
    confusions = held["confusions"]
    return {
        "data": str(held["spec"]),
        "images": len(confusions),
        "quality": "mean over images of the IoU averaged over the classes that the image shows",
        "dataset_miou": [round(mean_iou(confusions[:, k].sum(0)), 5) for k in range(confusions.shape[1])],
        "gflops": {name: round(value, 4) for name, value in parts.items()},
        "parity": {"images": 3, "batches": list(BATCHES), "largest_error": errors},
    }


def provenance(path: Path | None, arguments: dict[str, Any]) -> dict[str, str]:
    if path is not None:
        return {str(k): str(v) for k, v in json.loads(path.read_text()).items()}
    chosen = ("train", "scenes", "steps", "batch", "lr", "crop", "seed")
    return {
        "data": str(arguments["train"]),
        "recipe": " ".join(f"{name}={arguments[name]}" for name in chosen),
        "licence": "as the training data's",
        "backbone": Path(str(arguments["backbone_weights"] or "random initialisation")).name,
    }


def revision() -> str:
    """Of this code, "unknown" where it lies in no repository or git is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"
