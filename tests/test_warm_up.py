"""What plans cost is measured at the start, and follows what really runs."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from service.bundle import Manifest
from service.engines.base import Arrays, Backend, HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.errors import BackendError
from service.inference.costs import Costs
from service.inference.stages import Stages
from service.inference.warm_up import warm_up
from tests.known_costs import known_costs
from tests.pipelines import (
    QUALITY,
    WIDE,
    Recorder,
    job,
    photo,
    pipeline_of,
    plans_of,
    run,
)


def warm(backend: Backend, manifest: Manifest, max_batch: int) -> Costs:
    return warm_up(Stages(backend, manifest), max_batch)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_gate_whose_scores_are_no_numbers_is_not_served(
    canvases_manifest: Manifest, score: float
) -> None:
    backend = FakeBackend(canvases_manifest, quality=[0.5, score, 0.5])
    with pytest.raises(
        BackendError, match=r"front-24x32\.onnx: the gate's scores of a blank image"
    ):
        warm(backend, canvases_manifest, 1)


def test_warm_up_runs_every_plan_and_the_largest_batch(fake_manifest: Manifest) -> None:
    backend = Recorder(fake_manifest)
    known = warm(backend, fake_manifest, 6)
    assert [count for name, count in backend.calls if name == "front"] == [1, 1, 6, 6]
    assert {name for name, count in backend.calls if count == 1} == {
        "front",
        "d1",
        "d2",
        "d3",
        "d4",
        "decoder",
    }
    assert {name for name, count in backend.calls if count == 6} == {"front", "d1", "decoder"}
    assert backend.calls.count(("d4", 1)) == backend.calls.count(("decoder", 1)) == 2
    assert list(known.encoders) == ["d1", "d2", "d3", "d4"]


def test_warm_up_runs_every_shape_and_the_largest_batch_of_every_canvas(
    canvases_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Recorder(canvases_manifest)
    known = warm(backend, canvases_manifest, 6)
    assert {name for name, count in backend.calls if count == 1} == {
        stage.removeprefix("encoder-") for stage in canvases_manifest.stages
    }
    assert [call for call in backend.calls if call[1] == 6] == [
        *[("front-48x64", 6)] * 2,
        *[("48x64-d1", 6)] * 2,
        *[("decoder-48x64", 6)] * 2,
        *[("front-24x32", 6)] * 2,
        *[("24x32-d1", 6)] * 2,
        *[("decoder-24x32", 6)] * 2,
    ]
    # A shape after the first costs about the same: nothing is measured.
    once = [call for call in backend.calls if "64x48" in call[0]]
    assert once == [(name, 1) for name in ("front-64x48", "64x48-d4", "64x48-d1", "decoder-64x48")]
    assert list(known.front) == ["c32", "c64"]
    assert list(known.encoders) == ["c32-d1", "c64-d1", "c64-d4"]
    monkeypatch.setattr(FakeBackend, "whole_batch", 48 * 64 // 2)
    backend.calls.clear()
    warm(backend, canvases_manifest, 6)
    assert [call for call in backend.calls if call[1] > 1 and "front" in call[0]] == [
        *[("front-48x64", 3)] * 2,
        *[("front-24x32", 6)] * 2,
    ]


def test_warm_up_measures_each_canvas(canvases_manifest: Manifest) -> None:
    slow = FakeBackend(
        canvases_manifest,
        delay_s={"front-24x32": 0.004, "front-48x64": 0.05, "front-64x48": 0.3},
    )
    measured = warm(slow, canvases_manifest, 1).plan_ms(canvases_manifest.plans)
    assert 4 <= measured["c32-d1"] < 50
    assert 54 <= measured["c64-d1"] < 300  # by its first shape


def test_a_canvas_may_have_no_plan_of_its_own(canvases_manifest: Manifest) -> None:
    graphs = dict(canvases_manifest.graphs)
    graphs["24x32"] = replace(graphs["24x32"], encoders={})
    plans = canvases_manifest.encoder_plans[1:]
    manifest = replace(canvases_manifest, encoder_plans=plans, graphs=graphs)
    backend = Recorder(manifest, [0.6, 0.8])
    known = warm(backend, manifest, 2)
    assert set(known.plan_ms(manifest.plans)) == {"c64-d1", "c64-d4"}
    backend.calls.clear()
    assert plans_of(run(pipeline_of(backend, manifest, known), [photo(manifest, WIDE)])) == [
        "c64-d4"
    ]
    assert [name for name, _ in backend.calls][:2] == ["front-24x32", "front-48x64"]


def test_warm_up_measures_what_plans_take_on_this_node(fake_manifest: Manifest) -> None:
    slow = FakeBackend(
        fake_manifest, delay_s={"front": 0.004, "encoder-d2": 0.010, "decoder": 0.002}
    )
    measured = warm(slow, fake_manifest, 1).plan_ms(fake_manifest.plans)
    assert 6 <= measured["d1"] < measured["d2"] - 5
    assert measured["d2"] >= 16


def test_a_hiccup_in_warm_up_does_not_make_a_plan_look_expensive(fake_manifest: Manifest) -> None:
    class Hiccup(FakeBackend):
        seen = 0

        def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
            self.seen += stage == "encoder-d3"
            if stage == "encoder-d3" and self.seen == 1:
                time.sleep(0.5)
            return super().run(stage, tensors)

    assert warm(Hiccup(fake_manifest), fake_manifest, 1).plan_ms(fake_manifest.plans)["d3"] < 250


def test_costs_follow_what_runs(fake_manifest: Manifest) -> None:
    known = known_costs({"c64": 5.0}, dict.fromkeys(fake_manifest.plans, 1.0))
    slow = FakeBackend(fake_manifest, delay_s={"encoder-d4": 0.02}, quality=QUALITY)
    for _ in range(7):
        run(pipeline_of(slow, fake_manifest, known), [job()])
    assert known.encoders["d4"].ms() > 19.0
    assert known.encoders["d1"].ms() == 1.0
    assert known.front["c64"].ms() < 5.0
