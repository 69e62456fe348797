"""Small ONNX graphs for a bundle, and what they compute, in numpy: for backends that open real
graphs. And the stages of such a bundle by short names."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import Bundle, Manifest, TensorSpec
from service.core import Ask, Budget, Outcome, Plan
from service.engines.base import Backend, Tensors
from service.inference.batches import Job
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
from service.pixels.decode import Limits, from_memory

DTYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((4, 8, 1, 1)).astype(np.float32)  # the decoder's 1x1 convolution
TASTE = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
PROBABILITIES = TensorSpec("probabilities", "float32", ("batch", 4, 12, 16))
GAINS = np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1, 1) / 1000


def images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


def front(backend: Backend, pixels: NDArray[np.uint8]) -> tuple[Tensors, NDArray[np.float32]]:
    """(B, H, W, 3) -> the front's tensors, and the gate's scores (B, plans)."""
    tensors = backend.run("front", {"image": pixels})
    return tensors, tensors["quality"]


def encode(backend: Backend, plan: Plan, tensors: Tensors) -> Tensors:
    """By a plan's encoder, which in these bundles is named after it."""
    return backend.run(f"encoder-{plan.name}", tensors)


def decode(backend: Backend, tensors: Tensors) -> NDArray[np.float32]:
    """Encoded tensors -> probabilities (B, channels, h, w)."""
    return backend.run("decoder", tensors)["probabilities"]


def value_infos(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.dims))
        for spec in specs
    ]


def external(folder: Path, name: str, values: NDArray[np.float32]) -> onnx.TensorProto:
    """A tensor whose values lie in the bundle's file of common weights."""
    (folder / "model.safetensors").write_bytes(values.tobytes())
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", "model.safetensors"),
        ("offset", "0"),
        ("length", str(values.nbytes)),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_graphs(folder: Path, manifest: Manifest) -> None:
    """Front: mean brightness and, in the glance's, a gate; encoder of depth k: adds k; decoder:
    mixes f4, scaled by the mean of the coarsest map, e32; other heads: see `head_nodes`.

    An encoder that pauses tokens pauses those below the middle brightness.
    """

    def write(stage: str, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
        spec = manifest.stages[stage]
        graph = helper.make_graph(
            nodes, stage, value_infos(spec.inputs), value_infos(spec.outputs), constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, folder / spec.file)

    node, depths = helper.make_node, {plan.name: plan.depth for plan in manifest.encoder_plans}
    for graphs in manifest.graphs.values():
        outputs = [spec.name for spec in manifest.stages[graphs.front].outputs]
        strides = [int(name[1:]) for name in outputs if name.startswith("f")]
        coarsest = max(strides)
        start = [
            node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            node("ReduceMean", ["planes"], ["gray"], axes=[1], keepdims=1),
        ]
        for s in strides:
            start += [
                node("AveragePool", ["gray"], [f"pool{s}"], kernel_shape=[s, s], strides=[s, s]),
                node("Mul", [f"pool{s}", "gains"], [f"f{s}"]),
            ]
        constants = [numpy_helper.from_array(GAINS, "gains")]
        if "quality" in outputs:
            scores = len(manifest.encoder_plans) * len(manifest.head_keys)
            taste = np.resize(TASTE, (1, scores))
            constants.append(numpy_helper.from_array(taste, "taste"))
            start += [
                node("ReduceMean", [f"f{coarsest}"], ["mean"], axes=[1, 2, 3], keepdims=1),
                node("Flatten", ["mean"], ["flat"]),
                node("MatMul", ["flat", "taste"], ["logit"]),
                node("Sigmoid", ["logit"], ["quality"]),
            ]
        write(graphs.front, start, constants)
        for plan, encoder in graphs.encoders.items():
            added = numpy_helper.from_array(np.float32(depths[plan]), "added")
            encode = [node("Add", [f"f{s}", "added"], [f"e{s}"]) for s in strides if s != 4]
            constants = [added]
            if manifest.stages[encoder].paused is not None:
                middle = np.float32(127.5 * GAINS.mean())
                constants.append(numpy_helper.from_array(middle, "middle"))
                encode += [
                    node("ReduceMean", ["f8"], ["bright"], axes=[1], keepdims=0),
                    node("Less", ["bright", "middle"], ["dark"]),
                    node("Cast", ["dark"], ["paused"], to=TensorProto.UINT8),
                ]
            write(encoder, encode, constants)
        for name in graphs.heads.values():
            nodes, constants = head_nodes(manifest.stages[name].outputs, coarsest)
            if not constants:
                constants = [external(folder, "mix", MIX)]
            write(name, nodes, constants)


def head_nodes(
    outputs: tuple[TensorSpec, ...], coarsest: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A head by its outputs: probabilities as in `reference`, depth as the mean of f4, and the same
    box of class 0 for every image. The other maps are inputs that it does not need."""
    node, names = helper.make_node, [spec.name for spec in outputs]
    scale = node("ReduceMean", [f"e{coarsest}"], ["scale"], axes=[1, 2, 3], keepdims=1)
    if names == ["probabilities"]:
        return [
            node("Conv", ["f4", "mix"], ["mixed"], kernel_shape=[1, 1]),
            scale,
            node("Mul", ["mixed", "scale"], ["logits"]),
            node("Softmax", ["logits"], ["probabilities"], axis=1),
        ], []
    if names == ["depth"]:
        factor = numpy_helper.from_array(np.float32(100), "factor")
        mean = node("ReduceMean", ["f4"], ["mean"], axes=[1], keepdims=0)
        return [mean, node("Mul", ["mean", "factor"], ["depth"])], [factor]
    none = node("ReduceMean", ["f4"], ["one"], axes=[1, 2, 3], keepdims=1)
    flat = node("Flatten", ["one"], ["flat"])  # (B, 1): only for its batch
    apart = node("Sub", ["flat", "flat"], ["zero"])
    shaped = node("Unsqueeze", ["zero", "axis"], ["zeros"])
    made, constants = [none, flat, apart, shaped], [numpy_helper.from_array(np.int64([2]), "axis")]
    for spec in outputs:
        _, queries, columns = (int(size) if size != "batch" else 0 for size in spec.dims)
        values = np.zeros((1, queries, columns), np.float32)
        if spec.name == "boxes":
            values[:] = (0.5, 0.25, 0.5, 0.25)
        else:
            values[:, :, -1] = 9  # no object
            values[:, 0] = np.eye(columns)[0] * 9
        constants.append(numpy_helper.from_array(values, f"fixed_{spec.name}"))
        made.append(node("Add", ["zeros", f"fixed_{spec.name}"], [spec.name]))
    return made, constants


def reference(
    pixels: NDArray[np.uint8], depth: int, coarsest: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(H, W, 3) -> scores (plans,) and probabilities (classes, h, w), as the graphs above have
    them. coarsest: the largest stride of the maps."""
    gray = pixels.astype(np.float32).mean(axis=2)

    def map_of(stride: int) -> NDArray[np.float32]:
        """(8, h, w)"""
        rows, columns = (side // stride for side in gray.shape)
        whole = gray[: rows * stride, : columns * stride]
        return whole.reshape(rows, stride, columns, stride).mean(axis=(1, 3))[None] * GAINS[0]

    f4, coarse = map_of(4), map_of(coarsest)
    scores = 1 / (1 + np.exp(-coarse.mean() * TASTE[0]))
    logits = np.einsum("kc,chw->khw", MIX[:, :, 0, 0], f4) * (coarse + depth).mean()
    exponential = np.exp(logits - logits.max(axis=0))
    return scores, exponential / exponential.sum(axis=0)


def check_backend(backend: Backend, served: Bundle, counts: tuple[int, ...]) -> None:
    """A backend that opened such graphs computes for every plan what they say."""
    for count in counts:
        batch = images(count)
        tensors, quality = front(backend, batch)
        assert (quality.shape, quality.dtype) == ((count, 4), np.float32)
        for plan in served.manifest.plans:
            probabilities = decode(backend, encode(backend, plan, tensors))
            assert (probabilities.shape, probabilities.dtype) == ((count, 4, 12, 16), np.float32)
            for row, pixels in enumerate(batch):
                scores, expected = reference(pixels, plan.depth)
                np.testing.assert_allclose(quality[row], scores, atol=1e-5)
                np.testing.assert_allclose(probabilities[row], expected, atol=1e-5)


def check_canvases(backend: Backend, manifest: Manifest) -> None:
    """A batch of images with plans on several canvases, through the pipeline of the service: each
    gets what the graphs of `canvases_manifest` say of it alone. Twice, over what was left."""
    stages = Stages(backend, manifest)
    policies = Policies(manifest, 0.0)
    spine = Pipeline(stages, policies, warm_up(stages, 8), max_batch=8)
    sides, gflops = ((48, 64), (64, 48), (24, 32), (90, 120)), (1.5, 2.5, 9.0, 2.5, 9.0, 9.0, 1.5)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        jobs = []
        for side, most in zip(itertools.cycle(sides), gflops, strict=False):
            pixels = rng.integers(0, 256, (*side, 3), dtype=np.uint8) // (1 + len(jobs))
            frames = from_memory(pixels, Limits(10_000_000, 8192, 1), manifest.input)
            jobs.append(Job(frames, Ask(Budget(gflops=most)), None))
        last = dict(itertools.chain.from_iterable(spine.run(jobs, Budget())))
        for job, most in zip(jobs, gflops, strict=True):
            outcome = last[job].result
            assert isinstance(outcome, Outcome)
            plan = outcome.decision.plan
            assert plan == [plan for plan in manifest.plans if plan.gflops <= most][-1]
            glance, shown = (job.frames[name].pixels for name in ("c32", plan.canvas))
            scores = reference(glance, plan.depth, 16)[0][manifest.plans.index(plan)]
            assert outcome.decision.predicted_quality == pytest.approx(scores, abs=1e-5)
            (probabilities,) = outcome.heads["semantic"].values()
            expected = reference(shown, plan.depth, 16)[1]
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def pausing(instance_manifest: Manifest) -> Manifest:
    """Its plans, some of which pause tokens, for these graphs, whose task is the semantic one."""
    decoder = dataclasses.replace(instance_manifest.stages["decoder"], outputs=(PROBABILITIES,))
    stages = {**instance_manifest.stages, "decoder": decoder}
    (head,) = instance_manifest.heads
    head = dataclasses.replace(head, task="semantic", classes=head.classes * 4)
    return dataclasses.replace(instance_manifest, heads=(head,), stages=stages)


def check_paused(backend: Backend, manifest: Manifest) -> None:
    """What `write_graphs` says of paused tokens, also of chosen rows, and of plans that pause
    none."""
    batch = images(3)
    tensors, _ = front(backend, batch)
    dark = batch.reshape(3, 6, 8, 8, 8, 3).mean(axis=(2, 4, 5)) < 127.5
    for plan in manifest.plans:
        encoded = encode(backend, plan, tensors)
        if plan.keep < 1:
            assert encoded["paused"].dtype == np.uint8
            assert (encoded["paused"] == dark).all()
            assert (encoded.take([2, 0])["paused"] == dark[[2, 0]]).all()
        else:
            with pytest.raises(KeyError):
                encoded["paused"]
        np.testing.assert_allclose(
            decode(backend, encoded)[1], reference(batch[1], plan.depth)[1], atol=1e-5
        )
    with pytest.raises(KeyError):
        tensors["paused"]
