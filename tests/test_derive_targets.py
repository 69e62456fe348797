"""Step B: what targets hold, how views are made, and what the command refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.data.augment import on_canvases
from model_export.data.datasets import VOID, DataError, Sample, Scenes
from model_export.gating.derive_targets import (
    DataOptions,
    Network,
    measure_parts,
    measure_plans,
    view_of,
)
from model_export.gating.train_gate import blocks_of
from model_export.network.gate import gate_input
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter, semantic_probabilities
from model_export.tasks import TASKS, qualities
from model_export.tasks.core_and_border import core_and_border
from model_export.tasks.semantic import confusion, labels_at
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import load_model, read_targets, write_plans
from service.bundle import Canvas, Shape
from tests.small_network import randomised
from tests.toy import CANVASES, PLANS, Stripes, command, toy

pytestmark = pytest.mark.usefixtures("one_thread")


def test_targets_are_what_each_plan_alone_predicts(toy_run: Path) -> None:
    """Layers run once for plans that differ in depth only, and the backbone once for those of a
    canvas; the answer must be that of the plan alone."""
    held, model = read_targets(toy_run, "held"), load_model(toy_run)
    assert held["names"].tolist() == [f"scene-5-{i}" for i in range(4)]
    assert str(held["spec"]) == "scenes:4:5"
    assert held["specs"].tolist() == ["scenes:4:5"]
    assert held["plans"].tolist() == list(PLANS)
    assert held["counts"].shape == (4, 4, 11, 11)
    data = Scenes(4, 5)
    for i in range(2):
        frames = on_canvases(data[i], CANVASES)
        batches = {name: torch.from_numpy(each.pixels)[None] for name, each in frames.items()}
        with torch.inference_mode():
            for row, plan in enumerate(PLANS):
                knobs = Knobs.parse(plan)
                geometry = frames[knobs.canvas].geometry
                probabilities = semantic_probabilities(model(batches[knobs.canvas], knobs)[-1])
                inner = geometry.scaled_height, geometry.scaled_width
                labels = labels_at(probabilities, geometry.canvas, inner, data[i].mask.shape)
                assert np.array_equal(held["counts"][i, row], confusion(labels, data[i].mask, 11))
            _, maps = model.features(batches["c64"])
            size = torch.tensor([[360.0, 480.0]])
            inputs = gate_input(maps, model.front_head(maps), size)[0]
        assert np.allclose(held["inputs"][i], inputs.numpy(), atol=1e-6)
        assert held["counts"][i, 0].sum() == (data[i].mask != VOID).sum()


def test_fitting_targets_come_from_all_sets_and_only_from_them(toy_run: Path) -> None:
    fit_on = read_targets(toy_run, "fit")
    assert fit_on["names"].tolist() == [
        "scene-3-0",
        "scene-3-1",
        "scene-3-2",
        "scene-4-0",
        "scene-4-1",
    ]
    assert not set(fit_on["names"].tolist()) & set(read_targets(toy_run, "held")["names"].tolist())


def test_a_subset_of_plans_can_be_asked_for(toy_run: Path) -> None:
    model, sample = load_model(toy_run), Scenes(1, 5)[0]
    every = read_targets(toy_run, "held")["counts"][0]
    asked = [Knobs.parse(PLANS[row]) for row in (3, 0)]
    assert np.array_equal(counts_by_knobs(model, sample, CANVASES, asked)[0], every[[3, 0]])


@pytest.mark.parametrize("turned", [False, True], ids=["landscape", "portrait"])
def test_several_canvases_at_once_give_what_each_gives_alone(turned: bool) -> None:
    """In the order of the plans, whatever their canvases; the gate sees the first canvas, whether
    or not a plan is on it."""
    torch.manual_seed(0)
    # No larger than on the smallest canvas: what is larger is scaled by way of the largest one.
    model = randomised(Segmenter(replace(toy(), decoder_layers=2)))
    sample = Scenes(1, 5, height=28, width=56)[0]
    if turned:
        turn = {name: np.rot90(getattr(sample, name)).copy() for name in ("image", "mask")}
        sample = replace(sample, **turn)
    canvases = tuple(
        Canvas.of([*canvas.shapes, Shape(canvas.shapes[0].width, canvas.shapes[0].height)])
        for canvas in CANVASES
    )
    plans = [Knobs.parse(name) for name in ("c96-d3", "c64-d2", "c96-d1-w50", "c64-d1", "c96-d2")]
    counts, inputs = counts_by_knobs(model, sample, canvases, plans)
    assert len({each.tobytes() for each in counts}) >= 4, "no comparison of constants"
    for canvas in canvases:
        rows = [row for row, plan in enumerate(plans) if plan.canvas == canvas.name]
        alone, seen = counts_by_knobs(model, sample, [canvas], [plans[row] for row in rows])
        assert np.array_equal(counts[rows], alone)
        assert np.array_equal(inputs, seen) == (canvas is canvases[0])
    large = [plan for plan in plans if plan.canvas == "c96"]
    assert np.array_equal(counts_by_knobs(model, sample, canvases, large)[1], inputs)


class _Void(Stripes):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return (
            sample
            if index == 0
            else Sample(sample.name, sample.image, np.full_like(sample.mask, VOID))
        )


def test_views_of_an_image_stay_together_and_void_images_are_left_out() -> None:
    """Cross-validation takes contiguous folds: a view in another fold than its image would give the
    answer away."""
    model = Segmenter(toy(2, 1)).eval()
    plans = [Knobs(1, canvas="c96")]
    found = measure_plans(model, plans, [Stripes(), _Void()], "stripes", CANVASES, 3, 0)
    first = ["stripe-0", "stripe-0-1", "stripe-0-2"]
    assert found["names"].tolist() == [*first, "stripe-1", "stripe-1-1", "stripe-1-2", *first]
    assert not np.array_equal(found["counts"][0], found["counts"][1])
    assert np.array_equal(found["counts"][0], found["counts"][6])
    assert np.isfinite(qualities(TASKS[model.config.task], found["counts"])).all()


class _Corner(Stripes):
    """One object in a corner of an image that is brighter there."""

    task, channels = "instance", 3

    def __getitem__(self, index: int) -> Sample:
        objects = np.zeros((40, 60), np.uint16)
        objects[:9, :20] = 1
        return Sample(
            "corner",
            np.stack([objects * 90] * 3, -1).astype(np.uint8),
            core_and_border(objects),
            objects,
        )


def test_views_of_objects_are_the_eight_orientations_of_an_image() -> None:
    sample, rng = _Corner()[0], np.random.default_rng(0)
    views = [view_of(sample, view, CANVASES, rng) for view in range(8)]
    assert len({view.name for view in views}) == 8
    assert len({(view.instances.shape, view.instances.tobytes()) for view in views}) == 8
    for view in views:
        assert view.instances.sum() == 180
        assert np.array_equal(view.image[..., 0] == 90, view.instances == 1)
        assert np.array_equal(view.mask, core_and_border(view.instances))


def test_other_views_are_of_the_shape_of_the_largest_canvas_that_fits_the_image() -> None:
    upright = Canvas.of([Shape(64, 96), Shape(96, 64)])
    for height, width, shape in ((40, 60, (64, 96)), (60, 40, (96, 64))):
        image = np.zeros((height, width, 3), np.uint8)
        sample = Sample("plain", image, np.zeros((height, width), np.uint8))
        canvases = (CANVASES[0], upright)
        assert view_of(sample, 0, canvases, np.random.default_rng(0)) is sample
        view = view_of(sample, 1, canvases, np.random.default_rng(0))
        assert (view.image.shape, view.mask.shape) == ((*shape, 3), shape)


def test_objects_have_no_more_views_than_orientations(
    toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model_export.gating.derive_targets.open_dataset", lambda spec, root, **_: _Corner()
    )
    options = DataOptions(None, ["corner"], "another", 9, 0)
    network = Network(load_model(toy_run), CANVASES, Path("none"), [], ["corner"])
    with pytest.raises(DataError, match="--views 9 must be at least 1 and, for objects, at most 8"):
        next(measure_parts(network, [Knobs(3, canvas="c96")], options, Path("none")))


def test_targets_that_were_stopped_go_on_where_they_were(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen, stop_at = shutil.copytree(toy_run, tmp_path / "run"), [], 6
    words = ("derive-targets", run, "--fit", "scenes:3:3", "--held", "scenes:4:5", "--views", 2)

    def counting(model: Segmenter, sample: Sample, *rest: object) -> tuple[np.ndarray, np.ndarray]:
        seen.append(sample.name)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return counts_by_knobs(model, sample, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("model_export.gating.derive_targets.counts_by_knobs", counting)
    monkeypatch.setattr("model_export.gating.partial_results.SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        command(*words)
    before = len(seen)
    assert command(*words) == 0
    assert seen[before:] == [
        seen[before - 1],
        *(f"scene-3-{i}{view}" for i in (1, 2) for view in ("", "-1")),
    ]
    assert not list(run.glob("*.partial.npz"))
    held, fit_ = read_targets(run, "held"), read_targets(run, "fit")
    assert all(
        np.array_equal(held[name], whole) for name, whole in read_targets(toy_run, "held").items()
    )
    assert fit_["names"].tolist() == [f"scene-3-{i}{view}" for i in range(3) for view in ("", "-1")]
    assert fit_["views"].tolist() == [0, 1] * 3
    stop_at = len(seen) + 6
    with pytest.raises(KeyboardInterrupt):
        command(*words)
    assert command(*words, "--seed", 1) == 0
    assert len(seen) == stop_at + 10, (
        "another seed draws other views: all of them, and the held-out ones"
    )


def test_views_of_an_image_are_in_one_block_and_blocks_count_images() -> None:
    groups, views = np.array(["a"] * 7 + ["b"] * 2), np.array([0, 1, 0, 1, 0, 0, 1, 0, 1])
    assert blocks_of(groups, views, 1).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert blocks_of(groups, views, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_targets_of_other_plans_are_refused(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    write_plans(run, [Knobs(1, canvas="c64"), Knobs(3, canvas="c96")], {})
    assert command("train-gate", run) == 1
    # They are gone with the plans that they were of.
    assert "derive-targets" in capsys.readouterr().err


def test_derive_targets_measures_nothing_before_all_it_was_given_is_right(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(toy_run, tmp_path / "run")
    for words, said in (
        (
            ("--fit", "scenes:5:3", "camvid:gate", "--held", "scenes:3:5"),
            "'camvid:gate' needs --data FOLDER",
        ),
        (
            ("--fit", "scenes:5:3", "--held", "scenes:3:3"),
            "shares images with scenes:5:3, which the gate learned",
        ),
        (("--fit", "scenes:5:3", "--held", "scenes:9"), "which the network learned from"),
        (
            ("--fit", "scenes:5:3", "--held", "scenes:3:5", "--data", "mine"),
            "--data mine would not be read: name a data set in it, e.g. --fit folder",
        ),
    ):
        assert command("derive-targets", run, *words) == 1
        assert said in capsys.readouterr().err
    (run / "run.json").write_text((run / "run.json").read_text().replace('"trained_on"', '"seen"'))
    assert command("derive-targets", run, "--fit", "scenes:5:3", "--held", "scenes:3:5") == 1
    assert "run.json does not tell all that the weights were trained on" in capsys.readouterr().err
    assert (run / "targets-held.npz").read_bytes() == (toy_run / "targets-held.npz").read_bytes()
