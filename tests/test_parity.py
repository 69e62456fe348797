"""Parity with torch: what is compared, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model_export.export import parity
from model_export.export.graphs import DecodeQueries, Encode, Stage, graphs_of, stages_of
from model_export.export.parity import (
    Comparison,
    check_parity,
    enforce,
    enforce_turned,
    equal_share,
)
from model_export.network.gate import Gate
from model_export.network.knobs import Knobs
from model_export.network.pausing import Active
from model_export.network.segmenter import Segmenter
from model_export.training.bundle_weights import read_weights
from model_export.training.runs import (
    RunError,
)
from tests.exported import scene_frames
from tests.toy import CANVASES, PLANS, STAGES

# The first test waits for the export.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(900),
]
KNOBS = [Knobs.parse(name) for name in PLANS]


def _check(folder: Path, stages: dict[str, Stage]) -> dict[str, float]:
    return check_parity(folder, stages, graphs_of(CANVASES, KNOBS), scene_frames(3))


def _stages(
    folder: Path, change: Callable[[Segmenter, Gate], object] | None = None
) -> dict[str, Stage]:
    model, gate, _ = read_weights(folder / "model.safetensors")
    if change is not None:
        with torch.no_grad():
            change(model, gate)
    return stages_of(model, gate, CANVASES, KNOBS)


def test_parity_is_measured_on_all_stages_and_enforced(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = _check(toy_bundle, _stages(toy_bundle))
    assert set(errors) == set(STAGES)
    assert 0 < min(errors.values()) <= max(errors.values()) < 1e-3
    for limit, message in (
        ("MAX_CHAIN", "encoder-32x64-d1-w50, decoder-32x64 from pixels to the answer at batch 1"),
        ("MAX_ERROR", "front-32x64, "),
    ):
        monkeypatch.setattr(parity, limit, 0.0)
        with pytest.raises(
            RunError, match=rf"{message}.*differs from torch by .*nothing was bundled"
        ):
            _check(toy_bundle, _stages(toy_bundle))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("gate.output.bias", "front-32x64, quality"),
        ("encoder.layers.2.linear2.bias", "encoder-64x96-d3"),
        ("encoder.top_down.1.bias", "encoder-32x64-d1-w50, e8"),
        ("decoder.norm.bias", "decoder-32x64, probabilities"),
    ],
)
def test_parity_notices_a_wrong_weight_in_any_stage(
    toy_bundle: Path, part: str, message: str
) -> None:
    def change(model: Segmenter, gate: Gate) -> None:
        value = (
            torch.nn.ModuleDict({"gate": gate}).get_parameter(part)
            if "gate" in part
            else model.get_parameter(part)
        )
        value += torch.linspace(-3, 3, len(value))

    with pytest.raises(RunError, match=message):
        _check(toy_bundle, _stages(toy_bundle, change))


def test_parity_notices_a_gate_that_takes_one_size_for_another(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = _stages(toy_bundle)
    glance = stages["front-32x64"]
    right = glance.forward
    monkeypatch.setattr(glance, "forward", lambda image, size: right(image, 2 * size))
    with pytest.raises(RunError, match="front-32x64, gate_input"):
        _check(toy_bundle, stages)


def _swap(pairs: int) -> Callable[[Active, tuple[int, int]], torch.Tensor]:
    """A map of paused tokens of which, in the first image, so many active ones have changed places
    with paused ones."""
    right = Active.paused

    def paused(self: Active, shape: tuple[int, int]) -> torch.Tensor:
        found = right(self, shape).flatten(1)
        for value in (0, 1):
            found[0, (right(self, shape).flatten(1)[0] == value).nonzero().flatten()[:pairs]] = (
                1 - value
            )
        return found.unflatten(1, shape)

    return paused


def test_other_paused_tokens_are_refused_but_for_near_ties(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = _stages(toy_bundle)
    monkeypatch.setattr(Active, "paused", _swap(1))
    with pytest.raises(
        RunError,
        match=r"encoder-64x96-d3-k50: ONNX Runtime pauses other tokens than torch, 2\.0833%",
    ):
        _check(toy_bundle, stages)
    monkeypatch.setattr(parity, "MIN_EQUAL", 0.97)  # 2 of 96 tokens are more than 0.1 %
    # By the other images of the batches.
    assert _check(toy_bundle, stages)["encoder-64x96-d3-k50"] < 1e-3
    # Each image is the first one of its batch: none is left to compare.
    monkeypatch.setattr(parity, "BATCHES", (1,))
    with pytest.raises(
        RunError, match="encoder-64x96-d3-k50: no image of --parity pauses the same tokens"
    ):
        _check(toy_bundle, stages)


def test_features_may_differ_with_their_size_and_answers_not() -> None:
    large = np.array([-18.0, 2], np.float32)
    assert parity.allowed("f4", large) == parity.allowed("e32", large) == pytest.approx(0.018)
    assert parity.allowed("f4", large[1:] / 8) == 1e-3
    assert parity.allowed("mask_logits", large) == 1e-3


def test_one_cell_may_tie_on_a_canvas_of_few() -> None:
    """A pixel in a thousand is less than one of the 512 cells of 64x128 pixels."""
    ours = np.zeros((1, 16, 32), np.intp)
    theirs = ours.copy()
    theirs[0, 0, 0] = 1
    assert equal_share(ours, theirs) == 1
    theirs[0, 0, 1] = 1
    assert equal_share(ours, theirs) == pytest.approx(1 - 2 / 512)
    assert equal_share(ours[:0], theirs[:0]) == 1


def test_a_place_that_is_masked_on_one_side_only_moves_the_logits_of_every_query() -> None:
    """As measured: 1.8e-2 of mask logits up to 15, all 96x128 pixels of the same class."""
    rng = np.random.default_rng(0)
    for output, shape in (("mask_logits", (1, 200, 24, 32)), ("class_logits", (1, 200, 151))):
        theirs = rng.normal(0, 5, shape).astype(np.float32)
        moved = rng.normal(0, 0.004, shape).astype(np.float32)
        near = np.abs(theirs) < 1  # those would turn over: what is measured has few of them
        theirs[near] = np.copysign(1, theirs[near])
        enforce_turned("x", output, theirs + moved, theirs)
        for ours in (
            theirs + 20 * moved,
            np.where(rng.random(shape) < 0.01, -theirs, theirs),
            np.full_like(theirs, np.nan),
        ):
            with pytest.raises(RunError, match="x: ONNX"):
                enforce_turned("x", output, ours, theirs)
    theirs = rng.random((1, 5, 24, 32)).astype(np.float32)
    with pytest.raises(RunError, match="x on average: ONNX Runtime differs"):
        enforce_turned("x", "probabilities", theirs + np.float32(0.005), theirs)


class _Answers(DecodeQueries):
    """A head that says the same of everything, as torch does; `session` says it otherwise."""

    def __init__(self, masks: np.ndarray) -> None:
        torch.nn.Module.__init__(self)
        self.answer = torch.zeros(1, 7, 3), torch.from_numpy(masks)

    def forward(self, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.answer


@pytest.mark.parametrize("head", [True, False])
def test_only_what_is_behind_masked_attention_may_be_moved(
    head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = np.random.default_rng(0).choice([-2, 3], (1, 7, 8, 8)).astype(np.float32)
    stage = _Answers(masks)
    given = dict.fromkeys(stage.inputs, np.zeros((1, 2), np.float32))
    pairs = Comparison(Path(), {})
    pairs.stages, pairs.errors = {"head": stage}, {"head": 0.0}
    said = [stage.answer[0].numpy(), masks * np.float32(1.002)]
    pairs._sessions = {"head": SimpleNamespace(run=lambda *_: said)}  # type: ignore[dict-item]
    if head:
        pairs.run("head", given)
        assert pairs.errors["head"] == pytest.approx(0.006, rel=1e-3)
    else:
        monkeypatch.setattr(parity, "DecodeQueries", Encode)
        with pytest.raises(RunError, match="head, mask_logits at batch 1: ONNX Runtime differs"):
            pairs.run("head", given)


def test_parity_limits() -> None:
    zeros = np.zeros(4, np.float32)
    enforce("x", zeros, zeros + 0.0009, 1e-3, 0.9995)
    for theirs, equal in (
        (zeros + 0.0011, 1.0),
        (zeros, 0.998),
        (zeros + np.nan, 1.0),
        (zeros, np.nan),
    ):
        with pytest.raises(RunError, match="x: ONNX Runtime differs"):
            enforce("x", zeros, theirs, 1e-3, equal)
