"""Whether ONNX Runtime computes what torch does: every stage, plan and batch size that is served,
on real images.

Each stage is compared on the same input, and each plan from pixels to masks. The limits allow for
the two places where the network decides by a threshold, which rounding can turn over: the decoder's
attention looks where a mask's logit is above 0, and the encoder pauses the tokens of lowest
entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_export.export.graphs import (
    ENCODED,
    FEATURES,
    Decode,
    DecodeQueries,
    Stage,
    front_inputs,
)
from model_export.network.decoder import Prediction
from model_export.network.segmenter import semantic_probabilities
from model_export.training.runs import RunError
from service.bundle import Graphs
from service.core import Frame

# Of a stage, on the same input; of features as `allowed`, of decoders as `enforce_turned` says.
MAX_ERROR = 1e-3
# Of a plan's probabilities: one place of the attention that is masked on one side only costs 1e-3.
MAX_CHAIN = 1e-2
MIN_EQUAL = 0.999  # share of pixels with the same class, of tokens alike paused
MIN_ALIKE = 0.95  # share of the queries, of which those that nearly tie may change places
BATCHES = (1, 2, 4)

Arrays = dict[str, NDArray[Any]]


def enforce(
    what: str, ours: NDArray[Any], theirs: NDArray[Any], most: float, equal: float = 1.0
) -> None:
    gap = largest(ours, theirs)
    if not (gap <= most and equal >= MIN_EQUAL):  # in this form nan is refused, too
        raise RunError(
            f"{what}: ONNX Runtime differs from torch by {gap:.2e} "
            f"and on {1 - equal:.4%} of the pixels; nothing was bundled"
        )


def enforce_turned(what: str, output: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Of an answer behind masked attention. Of many queries and places a few lie so near to the
    threshold that rounding masks them on one side only, which moves every query. As probabilities
    the two sides then differ by no more than those of a whole plan may, and by 1e-3 on average.
    Raises RunError."""
    p, q = (as_probabilities(output, side) for side in (ours, theirs))
    decided = [p > 0.5, q > 0.5] if output == "mask_logits" else [p.argmax(-1), q.argmax(-1)]
    enforce(what, p, q, MAX_CHAIN, equal_share(*decided))
    mean = np.abs(p - q).mean(keepdims=True)
    enforce(f"{what} on average", mean, np.zeros_like(mean), MAX_ERROR)


def as_probabilities(output: str, values: NDArray[Any]) -> NDArray[Any]:
    """Of an output of `Decode` or of `DecodeQueries`. Classes come last, where there are any."""
    if output == "probabilities":
        return np.moveaxis(values, 1, -1)
    logits = torch.from_numpy(values)
    made = logits.sigmoid() if output == "mask_logits" else logits.softmax(-1)
    return made.numpy()


def largest(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest error."""
    return float(np.abs(ours - theirs).max(initial=0.0))


class Comparison:
    """Runs stages on both sides. errors: the largest difference of each stage so far."""

    def __init__(self, folder: Path, stages: dict[str, Stage]) -> None:
        self.stages = stages
        self.errors = dict.fromkeys(stages, 0.0)
        self._sessions = {
            name: onnxruntime.InferenceSession(
                folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
            )
            for name in stages
        }

    def run(self, name: str, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """What ONNX Runtime and what torch make of the same input. Raises RunError where they
        differ.

        Of two tokens with the same entropy the two sides may pause different ones. Such an image is
        left out of the numbers. A depth's error is relative.
        """
        stage = self.stages[name]
        inputs = {wanted: inputs[wanted] for wanted in stage.inputs}
        ours = dict(
            zip(stage.outputs, self._sessions[name].run(list(stage.outputs), inputs), strict=True)
        )
        theirs = in_torch(stage, inputs)
        same = alike(name, ours, theirs)
        for output in ours.keys() - {"paused"}:
            a, b = ours[output][same], theirs[output][same]
            if output == "depth":  # metres of what is near and of what is far
                a, b = np.log(a), np.log(b)
            what, most = f"{name}, {output} at batch {len(same)}", allowed(output, b)
            if isinstance(stage, Decode | DecodeQueries) and largest(a, b) > most:
                enforce_turned(what, output, a, b)
            else:
                enforce(what, a, b, most)
            self.errors[name] = max(self.errors[name], largest(a, b))
        return ours, theirs


def allowed(output: str, theirs: NDArray[Any]) -> float:
    """The largest error of an output. Of features it grows with their largest value: torch itself
    is that far from its answer in double precision where a norm is over a map of 256x256 cells."""
    if output in ("f4", *FEATURES, *ENCODED):
        return MAX_ERROR * max(1.0, float(np.abs(theirs).max(initial=0.0)))
    return MAX_ERROR


def in_torch(stage: Stage, inputs: Arrays) -> Arrays:
    out = stage(*(torch.from_numpy(inputs[name]) for name in stage.inputs))
    outputs: tuple[Tensor, ...] = out if isinstance(out, tuple) else (out,)
    return {name: value.numpy() for name, value in zip(stage.outputs, outputs, strict=True)}


def probabilities_of(answer: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """(B, channels, h, w) of a head's tensors, whatever its form."""
    if "probabilities" in answer:
        return answer["probabilities"]
    classes, masks = (torch.from_numpy(answer[name]) for name in DecodeQueries.outputs)
    return semantic_probabilities(Prediction(classes, masks)).numpy()


def alike(name: str, ours: Arrays, theirs: Arrays) -> NDArray[np.bool_]:
    """Which images of the batch pause the same tokens on both sides. Raises RunError where too many
    differ for ties."""
    if "paused" not in ours:
        return np.ones(len(next(iter(ours.values()))), bool)
    equal = ours["paused"] == theirs["paused"]
    if equal.mean() < MIN_EQUAL:
        raise RunError(
            f"{name}: ONNX Runtime pauses other tokens than torch, {1 - equal.mean():.4%} of them"
        )
    return equal.all((1, 2))


@torch.inference_mode()
def check_parity(
    folder: Path,
    stages: dict[str, Stage],
    graphs: Mapping[str, Graphs],
    frames: Mapping[str, Sequence[Frame]],
) -> dict[str, float]:
    """Largest difference per stage between ONNX Runtime and torch, over all plans, images and batch
    sizes.

    graphs, frames: by shape, its stages, and images on it. Raises RunError where a stage differs by
    more than is `allowed`, or a plan, from pixels to masks, by more than 1e-2 or in the class of
    more than one pixel in a thousand, or where other tokens are paused.
    """
    errors: dict[str, float] = {}
    for shape, own in graphs.items():
        names = (own.front, *own.encoders.values(), *own.heads.values())
        pairs = Comparison(folder, {name: stages[name] for name in names})
        _check_shape(pairs, own, frames[shape])
        errors |= pairs.errors
    return {name: float(f"{error:.3g}") for name, error in errors.items()}


def _check_shape(pairs: Comparison, graphs: Graphs, frames: Sequence[Frame]) -> None:
    stages, front = pairs.stages, pairs.stages[graphs.front]
    compared = dict.fromkeys(graphs.encoders.values(), 0)
    for batch in BATCHES:
        for start in range(len(frames)) if batch == 1 else (0,):
            shown = [frames[(start + i) % len(frames)] for i in range(batch)]
            inputs = [tensor.numpy() for tensor in front_inputs(front, shown)]
            ours, theirs = pairs.run(graphs.front, dict(zip(front.inputs, inputs, strict=True)))
            if not compared:  # a glance that no plan uses: features stand in for encoded ones
                as_encoded = zip(ENCODED, FEATURES, strict=True)
                given = {"f4": ours["f4"], **{e: ours[f] for e, f in as_encoded}}
                for head in graphs.heads.values():
                    pairs.run(head, given)
            for name in compared:
                encoded, _ = pairs.run(name, ours)
                given = {"f4": ours["f4"], **{n: encoded[n] for n in ENCODED}}
                expected = in_torch(stages[name], theirs)
                same = alike(name, encoded, expected)
                compared[name] += int(same.sum())
                for head in graphs.heads.values():
                    got, _ = pairs.run(head, given)
                    wanted = in_torch(stages[head], {**theirs, **expected})
                    what = f"{name}, {head} from pixels to the answer at batch {batch}"
                    _enforce_chain(what, got, wanted, same)
    for name, count in compared.items():
        if not count:
            raise RunError(
                f"{name}: no image of --parity pauses the same tokens in ONNX Runtime and torch"
            )


def _enforce_chain(what: str, got: Arrays, wanted: Arrays, same: NDArray[np.bool_]) -> None:
    """Of depth the error is relative. Boxes are compared where both sides chose the same queries in
    the same order: proposals with nearly the same score may change places."""
    if "depth" in got:
        p, q = (np.log(side["depth"][same]) for side in (got, wanted))
        enforce(what, p, q, MAX_CHAIN)
    elif "boxes" in got:
        p, q = (
            np.concatenate((side["boxes"], side["class_logits"]), -1)[same]
            for side in (got, wanted)
        )
        alike_rows = np.abs(p - q).max(-1, initial=0.0) <= MAX_CHAIN
        enforce(what, p[alike_rows], q[alike_rows], MAX_CHAIN)
        if alike_rows.size and alike_rows.mean() < MIN_ALIKE:
            raise RunError(f"{what}: {1 - alike_rows.mean():.2%} of the boxes differ from torch's")
    else:
        p, q = (probabilities_of(side)[same] for side in (got, wanted))
        enforce(what, p, q, MAX_CHAIN, equal_share(p.argmax(1), q.argmax(1)))


def equal_share(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Of the cells' classes. One may nearly tie, also where a canvas has fewer than a thousand."""
    other = np.count_nonzero(ours != theirs)
    return 1 - other / ours.size if other > 1 else 1.0
