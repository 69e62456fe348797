"""Fathom's engines on a CPU, and the same network in others' hands, in turns on one machine.

    python tests/bench/cpu_peers.py [--bundle trained_weights/camvid-tiny] [--only plans ...]
        [--ours] [--threads 2] [--rounds 9] [--data DIR --below val --images 100]

| part | in turns |
|---|---|
| attention | one layer, all tokens at 640 x 480: the node's body in ONNX Runtime, and compiled |
| plans | each plan in ONNX Runtime without and with the compiled attention, and in OpenVINO |
| network | the full plan's network in PyTorch, eager and compiled, and in those engines |
| published | pixel decoder of Mask2Former's published sizes, 512 x 512, random weights, as before |
| mask2former | transformers' Mask2Former of our channels and layers, random, on a ResNet-18 |
| quality | with --data: mIoU or PQ of the cheapest, a pausing and the full plan, or --plans |

wall: the median; cpu: the least time of the process, all threads together, which other work on the
machine disturbs less. Prints tables and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.evaluation.labelled_folder import open_labelled  # noqa: E402
from model_export.evaluation.measure_bundle import (  # noqa: E402
    LIMITS,
    EngineOptions,
    Meter,
    Truth,
)
from model_export.evaluation.report import table  # noqa: E402
from model_export.export.attention import INPUTS, Form, add_bodies  # noqa: E402
from model_export.export.graphs import Encode  # noqa: E402
from model_export.export.weights import trace  # noqa: E402
from model_export.network.config import base  # noqa: E402
from model_export.network.knobs import Knobs  # noqa: E402
from model_export.network.names import DOMAIN, OPERATOR  # noqa: E402
from model_export.network.position import reference_points  # noqa: E402
from model_export.network.segmenter import Segmenter, head_of  # noqa: E402
from model_export.training.bundle_weights import WEIGHTS, read_weights  # noqa: E402
from service import bundle  # noqa: E402
from service.bundle import Bundle, Stage, TensorSpec  # noqa: E402
from service.core import Frame  # noqa: E402
from service.engines.base import Backend  # noqa: E402
from service.engines.compiled import compiled  # noqa: E402
from service.engines.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from service.engines.openvino import OpenVinoBackend  # noqa: E402
from service.inference.stages import Stages  # noqa: E402
from service.pixels.decode import decode  # noqa: E402

Work = Callable[[], Any]
Result = dict[str, Any]


class Setting(NamedTuple):
    bundle: Bundle
    threads: int
    rounds: int
    cache: Path
    ours: bool  # leave PyTorch out, whose compiler takes minutes


def in_turns(contenders: Mapping[str, Work], rounds: int) -> Result:
    """Name -> wall and cpu in ms. The first of them is what the others are compared with."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 2):
        for name, work in contenders.items():
            began, used = time.perf_counter(), time.process_time()
            work()
            if turn >= 2:  # warm
                wall[name].append(1000 * (time.perf_counter() - began))
                cpu[name].append(1000 * (time.process_time() - used))
    return {n: {"wall": statistics.median(wall[n]), "cpu": min(cpu[n])} for n in contenders}


def show(title: str, measured: Mapping[str, Result]) -> None:
    rows = []
    for row, contenders in measured.items():
        first = next(iter(contenders.values()))
        for name, times in contenders.items():
            shares = (f"{times[key] / first[key]:.2f}" for key in ("wall", "cpu"))
            rows.append((row, name, f"{times['wall']:.1f}", f"{times['cpu']:.1f}", *shares))
    head = (title, "engine", "wall ms", "cpu ms", "of the first's wall", "of its cpu")
    print(f"\n{table(head, rows)}", flush=True)


def engines(served: Bundle, setting: Setting) -> dict[str, Backend]:
    threads, cache = setting.threads, setting.cache / served.digest[:16]
    return {
        "onnxruntime, plain": OnnxRuntimeBackend(served, threads=threads, decomposed=True),
        "onnxruntime": OnnxRuntimeBackend(served, threads=threads),
        "openvino": OpenVinoBackend(served, threads=threads, cache=cache),
    }


def attention(setting: Setting) -> dict[str, Result]:
    shapes = [(15, 20), (30, 40), (60, 80)]
    tokens = sum(height * width for height, width in shapes)
    sizes = tuple(side for shape in shapes for side in shape)
    form = Form(sizes, heads=8, points=4, width=16, queries=tokens, per_image=False)
    dims = [[1, tokens, 8, 16], [1, tokens, 8, 3, 4, 2], [1, tokens, 8, 3, 4], [tokens, 2]]
    attributes = {**vars(form), "per_image": 0}
    node = helper.make_node(OPERATOR, INPUTS, ["out"], domain=DOMAIN, **attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip((*INPUTS, "out"), [*dims, [1, tokens, 128]], strict=True)
    ]
    graph = helper.make_graph([node], "layer", values[:4], values[4:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    add_bodies(model)
    random = np.random.default_rng(0)
    feeds = {
        name: scale * random.standard_normal(shape).astype(np.float32)
        for name, shape, scale in zip(INPUTS[:3], dims, (1, 2.5, 2), strict=False)
    }
    feeds["reference"] = reference_points(shapes, torch.device("cpu")).numpy().astype(np.float32)
    works: dict[str, Work] = {}
    library = compiled()
    assert library is not None
    library.use_threads(setting.threads)
    for name in ("body", "compiled"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        if name == "compiled":
            options.register_custom_ops_library(library.path)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        works[name] = lambda session=session: session.run(None, feeds)  # type: ignore[misc]
    return {f"{tokens} tokens": in_turns(works, setting.rounds)}


def frame_for(served: Bundle, shape: str) -> Frame:
    (found,) = (s for c in served.manifest.input.canvases for s in c.shapes if s.name == shape)
    size = (found.height, found.width, 3)
    return Frame.filling(np.random.default_rng(0).integers(0, 256, size, np.uint8))


def plans(setting: Setting) -> dict[str, Result]:
    """Glance, front, encoder and head of each plan, and of the full one its encoder alone."""
    served = setting.bundle
    manifest, found = served.manifest, engines(served, setting)
    glance = manifest.glance.shapes[0].name
    seen = frame_for(served, glance)
    measured = {}
    for plan in manifest.plans:
        shape = next(s for s, g in manifest.graphs.items() if plan.encoder in g.encoders)
        own = frame_for(served, shape)
        works, alone = {}, {}
        for name, backend in found.items():
            stages = Stages(backend, manifest)

            def run(
                stages: Stages = stages, shape: str = shape, plan: Any = plan, own: Frame = own
            ) -> None:
                features = stages.front([seen])
                if shape != glance:
                    features = stages.front([own])
                stages.head(shape, stages.encode(plan, shape, features))

            works[name] = run
            features = stages.front([own])
            alone[name] = lambda s=stages, p=plan, h=shape, f=features: s.encode(p, h, f)
        measured[plan.name] = in_turns(works, setting.rounds)
        if plan == manifest.plans[-1]:
            measured[f"{plan.name}, encoder"] = in_turns(alone, setting.rounds)
    return measured


def in_torch(setting: Setting, module: torch.nn.Module, *inputs: Any) -> dict[str, Work]:
    if setting.ours:
        return {}
    fast = torch.compile(module)

    def work(run: Any) -> Work:
        def call() -> None:
            with torch.inference_mode():
                run(*inputs)

        return call

    return {"torch": work(module), "torch.compile": work(fast)}


class Whole(torch.nn.Module):
    """The network without a gate, from pixels to its answer."""

    def __init__(self, model: Segmenter, knobs: Knobs) -> None:
        super().__init__()
        self.model, self.knobs = model, knobs

    def forward(self, images: torch.Tensor) -> Any:
        return head_of(self.model.config, self.model(images, self.knobs)[-1])


def network(setting: Setting) -> dict[str, Result]:
    served = setting.bundle
    manifest, plan = served.manifest, served.manifest.plans[-1]
    model, _, _ = read_weights(served.root / WEIGHTS)
    shape = next(s for s, g in manifest.graphs.items() if plan.encoder in g.encoders)
    frame = frame_for(served, shape)
    images = torch.from_numpy(frame.pixels.copy()[None])
    works = in_torch(setting, Whole(model, Knobs.parse(plan.encoder)).eval(), images)
    for name, backend in engines(served, setting).items():
        stages = Stages(backend, manifest)

        def run(stages: Stages = stages) -> None:
            stages.head(shape, stages.encode(plan, shape, stages.front([frame])))

        works[name] = run
    return {f"{plan.name}, no glance": in_turns(works, setting.rounds)}


def published(setting: Setting) -> dict[str, Result]:
    torch.manual_seed(0)
    model = Segmenter(base()).eval()
    # Offsets that depend on the query, as after training.
    for layer in model.encoder.layers:
        torch.nn.init.normal_(layer.attention.offsets.weight, std=0.02)
    knobs, sizes = Knobs(6), (64, 32, 16)
    features = [torch.randn(2, 256, size, size) for size in sizes]
    module = Encode(model, knobs)
    specs = [
        [
            TensorSpec(name, "float32", ("batch", 256, s, s))
            for name, s in zip(names, sizes, strict=True)
        ]
        for names in (module.inputs, module.outputs)
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        onnx.save(trace(module, tuple(features), "encoder"), root / "encoder.onnx")
        stage = Stage("encoder.onnx", "", tuple(specs[0]), tuple(specs[1]), 0.0)
        manifest = bundle.Manifest(
            **{n: getattr(setting.bundle.manifest, n) for n in bundle.Manifest.__dataclass_fields__}
            | {"stages": {"encoder": stage}}
        )
        feeds = {n: f[:1].numpy() for n, f in zip(module.inputs, features, strict=True)}
        works = in_torch(setting, module, *(f[:1] for f in features))
        setting = setting._replace(cache=root)
        for name, backend in engines(Bundle(root, manifest, "published"), setting).items():
            works[name] = lambda b=backend: b.run("encoder", feeds)  # type: ignore[misc]
        names = ("onnxruntime, plain", *(n for n in works if n != "onnxruntime, plain"))
        return {"512 x 512": in_turns({n: works[n] for n in names}, setting.rounds)}


def mask2former(setting: Setting) -> dict[str, Result]:
    import transformers

    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.ResNetConfig(
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 128),
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 512),
        encoder_layers=6,
        decoder_layers=4,  # one more than there are, in transformers' count
        num_attention_heads=8,
        num_queries=11,
        num_labels=11,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    return {
        "576 x 768": in_turns(in_torch(setting, model, torch.randn(1, 3, 576, 768)), setting.rounds)
    }


def quality(setting: Setting, data: Path, below: str, images: int, names: Sequence[str]) -> Result:
    """Percent of the set's measure by plan and engine, and what becomes of the gate's choices."""
    manifest = setting.bundle.manifest
    classes = tuple(entry.name for entry in manifest.head.classes)
    opened = open_labelled(data, below, manifest.head.task, classes)
    meters = {
        name: Meter(setting.bundle.root, EngineOptions(name, 1, setting.cache), None)
        for name in ("onnxruntime", "openvino")
    }
    pausing = [plan for plan in manifest.plans if plan.keep < 1]
    shown = [manifest.plans[0], *pausing[-1:], manifest.plans[-1]]
    if names:
        shown = [plan for plan in manifest.plans if plan.name in names]
    counts: dict[tuple[str, str], list[NDArray[Any]]] = {}
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in meters}
    for index in range(0, len(opened), max(1, len(opened) // images)):
        _, labels, void = opened.read(index)
        truth = Truth(labels, np.zeros(labels.shape, np.bool_) if void is None else void)
        frames = decode(opened.files[index][0].read_bytes(), "", LIMITS, manifest.input)
        for name, meter in meters.items():
            seen, score = meter.stages.glance([frames[manifest.glance.name]])
            scores[name].append(score[0])
            for plan in shown:
                frame = frames[plan.canvas]
                first = plan.canvas == manifest.glance.name
                features = seen if first else meter.stages.front([frame])
                shape = frame.geometry.shape
                answer = meter.stages.head(shape, meter.stages.encode(plan, shape, features))
                masks = meter.answers.read({n: v[0] for n, v in answer.items()}, frame.geometry)
                counts.setdefault((plan.name, name), []).append(meter.judge(masks, truth)[0])
    task = meters["onnxruntime"].task
    points = {key: 100 * float(task.of_set(np.array(c).sum(0))) for key, c in counts.items()}
    # What the policy goes by: how far each plan is below the full one.
    below_full = [np.array(own)[:, -1:] - np.array(own) for own in scores.values()]
    moved = float(np.abs(below_full[0] - below_full[1]).mean())
    alike = {}
    for margin in manifest.margins:
        first, second = ((own <= margin.margin) for own in below_full)
        first[:, -1] = second[:, -1] = True
        alike[f"{margin.asked:g}"] = float((first.argmax(1) == second.argmax(1)).mean())
    rows = [(plan.name, *(f"{points[plan.name, name]:.2f}" for name in meters)) for plan in shown]
    count = len(scores["openvino"])
    print(f"\n{table((f'{task.measure} of {count} images', *meters), rows)}")
    print(
        f"predicted losses move by {moved:.4f} in the mean; images with the same plan, by max-loss:"
    )
    print(", ".join(f"{asked}: {100 * share:.0f} %" for asked, share in alike.items()))
    return {
        "images": count,
        "losses_move": moved,
        "same_plan": alike,
        **{f"{plan}, {name}": value for (plan, name), value in points.items()},
    }


PARTS: Mapping[str, Callable[[Setting], Result]] = {
    each.__name__: each for each in (attention, plans, network, published, mask2former)
}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--bundle", type=Path, default=ROOT / "trained_weights/camvid-tiny")
    add("--only", nargs="*", choices=PARTS, default=list(PARTS))
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=9)
    add("--ours", action="store_true", help="only our engines: PyTorch's compiler takes minutes")
    add("--data", type=Path, help="labelled folder, as for `evaluate`")
    add("--below", default="")
    add("--images", type=int, default=100, help="about so many of the folder's")
    add("--plans", nargs="*", default=(), help="whose quality is measured")
    add("--engine-cache", type=Path, default=Path("engines"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = Setting(
        bundle.load(args.bundle), args.threads, args.rounds, args.engine_cache, args.ours
    )
    result: Result = {"machine": f"{platform.machine()}, {args.threads} threads"}
    for name in args.only:
        if args.ours and name == "mask2former":
            continue
        result[name] = PARTS[name](setting)
        show(name, result[name])
    if args.data:
        result["quality"] = quality(setting, args.data, args.below, args.images, args.plans)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
