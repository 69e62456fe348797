"""Tiled canvases: cutting and joining, which images get them, and what a manifest may say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import bundle
from service.bundle import Canvas, Shape, Tiles, is_larger, load, open_to
from service.core import Ask, Budget, Frame, Geometry, Outcome
from service.engines.base import Backend
from service.engines.choice import open_named
from service.engines.fake import FakeBackend
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.errors import BackendError, BadBudget, BundleError
from service.inference.batches import Job
from service.inference.pipeline import Pipeline
from service.inference.policies import Policies
from service.inference.stages import Stages
from service.inference.tiles import join, split
from service.inference.warm_up import check, warm_up
from service.model import Model, metrics_of
from service.pixels.decode import Limits, from_memory
from service.settings import Settings
from service.tasks import tasks_of
from tests.tiled_bundle import PLAIN, PLANS, TILED, WHOLE, write_tiled_bundle

LIMITS = Limits(max_pixels=1_000_000, max_side=2000, min_side=1)
GRIDS = [(2, 2, 32), (1, 3, 32), (3, 1, 0), (3, 4, 32), (2, 1, 64)]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiled_bundle(tmp_path_factory.mktemp("tiled") / "tiles")


@pytest.mark.parametrize(("rows", "columns", "overlap"), GRIDS)
def test_what_is_cut_and_joined_again_is_what_it_was(rows: int, columns: int, overlap: int) -> None:
    tiles, tile = Tiles("c", rows, columns, overlap), Shape(128, 160)
    covered = tiles.covered(tile)
    pixels = np.random.default_rng(0).integers(0, 256, (covered.height, covered.width, 3), np.uint8)
    pieces = split(pixels, tiles, tile)
    assert len(pieces) == tiles.count
    assert {piece.shape for piece in pieces} == {(128, 160, 3)}
    maps = [piece.transpose(2, 0, 1).astype(np.float32) for piece in pieces]
    whole = pixels.transpose(2, 0, 1)
    assert np.array_equal(join(maps, tiles, tile), whole)
    assert np.array_equal(join(maps, tiles, tile, blend=False), whole)
    coarse = [each[:, ::8, ::8] for each in maps]  # cells of 8 pixels, as a head's are of 4
    assert np.array_equal(join(coarse, tiles, tile), whole[:, ::8, ::8])
    batch = [np.stack([each, each]) for each in coarse]
    assert join(batch, tiles, tile).shape == (2, 3, covered.height // 8, covered.width // 8)


@pytest.mark.parametrize(("rows", "columns", "overlap"), GRIDS)
def test_ramps_are_linear_and_add_up_to_one(rows: int, columns: int, overlap: int) -> None:
    """The map of tile k is 1 and the others' 0: what is joined is its weight."""
    tiles, tile, parts = Tiles("c", rows, columns, overlap), Shape(128, 160), rows * columns
    weights = [
        join(
            [np.full((128, 160), float(place == k), np.float32) for place in range(parts)],
            tiles,
            tile,
        )
        for k in range(parts)
    ]
    assert np.abs(np.sum(weights, 0) - 1).max() < 1e-6
    for weight in weights:
        for axis in (0, 1):
            steps = np.abs(np.diff(weight, axis=axis)).max(initial=0.0)
            assert steps <= (1.001 / overlap if overlap else 1)


def test_without_blending_each_tile_has_half_of_the_overlap() -> None:
    tiles, tile = Tiles("c", 1, 2, 32), Shape(64, 64)
    maps = [np.full((8, 8), k, np.uint8) for k in range(2)]
    assert join(maps, tiles, tile, blend=False)[0].tolist() == [0] * 6 + [1] * 6
    assert join(maps, tiles, tile, blend=False).dtype == np.uint8


def test_a_tiled_canvas_has_the_shapes_that_its_tiles_cover() -> None:
    assert (TILED.name, TILED.shapes) == ("t96", (Shape(96, 96), Shape(96, 160)))
    odd = Canvas.tiled(PLAIN, 1, 3, 32)
    assert (odd.name, odd.shapes) == ("t128", (Shape(64, 128), Shape(64, 224)))


@pytest.mark.parametrize(
    ("size", "larger"),
    [
        *(((64, 64), False), ((96, 64), False), ((40, 64), False), ((300, 20), True)),
        *(((65, 64), True), ((97, 64), True), ((66, 66), True), ((10, 65), True)),
    ],
)
def test_an_image_is_larger_where_the_largest_plain_canvas_would_shrink_it(
    size: tuple[int, int], larger: bool
) -> None:
    """By the shape that it fills best: 65 x 64 pixels fill 64x64 best, and are shrunk there."""
    assert is_larger((PLAIN, TILED), *size) is larger


def test_a_larger_image_s_full_plan_is_the_last_tiled_one() -> None:
    tiled = [False, True, False, True, False]
    assert open_to(tiled, larger=False) == [0, 2, 4]
    assert open_to(tiled, larger=True) == [0, 1, 2, 3]
    assert open_to([False, False], larger=True) == [0, 1]


# --------------------------------------------------------------------------------------------------
# stages


def frame(pixels: np.ndarray) -> Frame:
    return Frame.filling(np.ascontiguousarray(pixels))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", TILED.shapes)
@pytest.mark.parametrize("depth", [1, 2])
def test_tiles_answer_as_one_large_canvas_does(tmp_path: Path, shape: Shape, depth: int) -> None:
    """Where a cell sees itself alone, both are the same, whatever is cut: also which tokens
    paused."""
    plans = [(name, *rest) for name, *rest in PLANS if name.startswith("t")]
    alike = [(f"c64-d{k}", 1.0 * k, 0.5) for k in (1, 2)]
    folders = (
        write_tiled_bundle(tmp_path / "a", (PLAIN, TILED), (*alike, *plans), pauses=True),
        write_tiled_bundle(
            tmp_path / "b",
            (PLAIN, WHOLE),
            (*alike, *((name.replace("t", "c"), *rest) for name, *rest in plans)),
            pauses=True,
        ),
    )
    frames = [frame(picture(shape.height, shape.width, seed)) for seed in range(3)]
    found = []
    for folder, letter in zip(folders, "tc", strict=True):
        opened = load(folder)
        backend = OnnxRuntimeBackend(opened, threads=1)
        stages, plan = Stages(backend, opened.manifest), f"{letter}96-d{depth}"
        chosen = next(each for each in opened.manifest.encoder_plans if each.name == plan)
        encoded = stages.encode(chosen, shape.name, stages.front(frames).take([2, 0]))
        (answer,) = stages.head(shape.name, encoded).values()
        found.append((answer, stages.paused(chosen, shape.name, encoded)))
        backend.close()
    (tiled, tiled_paused), (whole, whole_paused) = found
    assert tiled.shape == (2, 3, shape.height // 4, shape.width // 4)
    assert np.abs(tiled - whole).max() < 1e-6
    assert tiled_paused is not None
    assert np.array_equal(tiled_paused, whole_paused)
    assert 0 < tiled_paused.mean() < 1


class Watched:
    """Notes how many images each stage gets at once."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name, self.runs = backend, backend.name, list[tuple[str, int]]()

    def run(self, stage: str, tensors: Any) -> Any:
        if isinstance(tensors, dict):
            self.runs.append((stage, len(tensors["image"])))
        return self.backend.run(stage, tensors)

    def close(self) -> None:
        self.backend.close()


def test_tiles_run_one_after_the_other_in_batches_of_the_images(tiled: Path) -> None:
    opened = load(tiled)
    watched = Watched(FakeBackend(opened.manifest))
    stages = Stages(watched, opened.manifest)
    stages.front([frame(picture(96, 160, seed)) for seed in range(3)])
    assert watched.runs == [("front-64x96", 3)] * 4


def test_costs_of_tiled_plans_are_measured_like_any_other(tiled: Path) -> None:
    opened = load(tiled)
    delay_s = {"front-64x64": 0.01, "encoder-d2-64x64": 0.005, "decoder-64x64": 0.002}
    stages = Stages(FakeBackend(opened.manifest, delay_s=delay_s), opened.manifest)
    costs = warm_up(stages, 2)
    ms = costs.plan_ms(opened.manifest.plans)
    assert ms["c64-d2"] >= 17
    assert ms["t96-d2"] >= 10 + 4 * 17
    assert list(costs.front) == ["c64", "t96"]
    check(stages)


# --------------------------------------------------------------------------------------------------
# policies and the pipeline


def job(width: int, height: int, manifest: bundle.Manifest, **budget: Any) -> Job:
    frames = from_memory(picture(height, width), LIMITS, manifest.input)
    return Job(frames, Ask(Budget(**budget)), None)


def names(policies: Policies, **kind: bool) -> list[str]:
    return [plan.name for plan in policies.of(None, **kind).plans]


def test_only_larger_images_have_tiled_plans(tiled: Path) -> None:
    manifest = load(tiled).manifest
    policies = Policies(manifest, 0.0)
    assert names(policies) == ["c64-d1", "c64-d2"]
    assert names(policies, larger=True) == [name for name, *_ in PLANS]
    assert [plan.name for plan in policies.plans()] == [name for name, *_ in PLANS]
    for size, larger in (((64, 64), False), ((96, 96), True), ((64, 200), True)):
        policy = policies.for_image(None, job(*size, manifest).frames)
        assert policy is policies.of(None, larger=larger)
    # Each has the gate's scores of its own plans.
    scores = [0.1, 0.2, 0.3, 0.4]
    assert policies.of(None).scores(scores) == [0.1, 0.3]
    assert policies.of(None, larger=True).scores(scores) == scores


def test_a_depth_that_only_a_tiled_plan_has_may_be_asked_for(tmp_path: Path) -> None:
    plans = (("c64-d1", 3.0, 0.7), ("t96-d2", 24.0, 0.9))
    policies = Policies(load(write_tiled_bundle(tmp_path / "b", plans=plans)).manifest, 0.0)
    policies.check(Ask(Budget(depth=2)))
    with pytest.raises(BadBudget, match="1 to 2"):
        policies.check(Ask(Budget(depth=3)))


@pytest.mark.parametrize("engine", ["fake", "onnxruntime"])
def test_a_batch_of_both_kinds_gives_each_image_its_own_full_plan(tiled: Path, engine: str) -> None:
    opened = load(tiled)
    manifest = opened.manifest
    backend: Backend = (
        FakeBackend(manifest, quality=[q for *_, q in PLANS])
        if engine == "fake"
        else OnnxRuntimeBackend(opened, threads=1)
    )
    stages, policies = Stages(backend, manifest), Policies(manifest, 0.0)
    pipeline = Pipeline(stages, policies, warm_up(stages, 4), 4)
    jobs = [job(*size, manifest) for size in ((96, 96), (64, 64), (100, 100), (30, 30))]
    jobs += [job(96, 96, manifest, gflops=5.5), job(64, 64, manifest, gflops=5.5)]
    jobs += [job(96, 96, manifest, max_loss=0.15), job(64, 64, manifest, max_loss=0.15)]
    ran = {}
    for step in pipeline.run(jobs, Budget()):
        ran |= {each: progress.result for each, progress in step if progress.result}
    plans = [ran[each].decision.plan.name for each in jobs]
    assert plans[:4] == ["t96-d2", "c64-d2", "t96-d2", "c64-d2"]
    assert plans[4:6] == ["t96-d1", "c64-d1"]
    # The loss counts against the image's own full plan: 0.9 - 0.75, and 0.8 - 0.7.
    assert plans[6:] == ["t96-d1", "c64-d1"]
    assert ran[jobs[0]].geometry.canvas == (96, 96)
    assert ran[jobs[0]].heads["instance"]["answer"].shape == (3, 24, 24)
    backend.close()


def test_a_strict_request_for_a_larger_image_is_queued_with_what_its_own_full_plan_takes(
    tiled: Path,
) -> None:
    """Its size is known only once it is decoded: until then it counts as a small one."""
    manifest, settings = load(tiled).manifest, Settings()
    delay_s = {"encoder-d2-64x64": 0.01}
    model = Model(
        bundle.Bundle(Path(), manifest, ""),
        settings,
        metrics_of(manifest, settings),
        lambda: FakeBackend(manifest, delay_s=delay_s),
    )
    model.engine.start()
    model.engine.warm.result(20)
    ask = Ask(Budget(max_loss=0.001, strict=True))  # which the full plan alone keeps
    for size, ms in ((64, 10), (96, 40)):
        ticket = model.reserve(ask, time.perf_counter(), "")
        assert 10 <= ticket.least_ms < 30
        model.engine.submit(ticket, job(size, size, manifest).frames)
        assert ticket.least_ms >= ms
        assert ticket.safe_ms >= ticket.least_ms
        assert (ticket.least_ms >= 30) is (size == 96)
        assert isinstance(ticket.done.result(20).result, Outcome)
        model.engine.leave(ticket)
    model.close(10)


# --------------------------------------------------------------------------------------------------
# the manifest


Change = Callable[[Any], object]


def changed(folder: Path, change: Change) -> str:
    """What `load` says of the bundle after a change to its manifest."""
    file = folder / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with pytest.raises(BundleError) as error:
        tasks_of(load(folder))
    return error.value.detail


def tiles(**values: Any) -> Change:
    return lambda value: value["input"]["canvases"][1]["tiles"].update(values)


def test_a_manifest_with_tiles_is_read_as_it_was_written(tiled: Path) -> None:
    manifest = load(tiled).manifest
    assert manifest.input.canvases == (PLAIN, TILED)
    assert manifest.input.tiled == {"t96": Tiles("c64", 2, 2, 32)}
    written = json.loads((tiled / "manifest.json").read_text())["input"]["canvases"]
    assert "tiles" not in written[0]
    assert written[1]["tiles"] == {"of": "c64", "rows": 2, "columns": 2, "overlap": 32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tiles(overlap=33), "t96: tiles.overlap: 33 must be a multiple of 32 from 0 to 32"),
        (tiles(overlap=64), "t96: tiles.overlap: 64 must be a multiple of 32 from 0 to 32"),
        (tiles(overlap=-32), "t96: tiles.overlap: -32 must be a multiple of 32"),
        (tiles(of="c65"), "t96: tiles.of: 'c65' must be a canvas that is not tiled, of c64"),
        (tiles(of="t96"), "t96: tiles.of: 't96' must be a canvas that is not tiled, of c64"),
        (tiles(rows=1, columns=1), "t96: tiles: rows and columns must be at least 1"),
        (tiles(rows=0), "t96: tiles: rows and columns must be at least 1"),
        (tiles(rows=3), "t96: tiles: its shapes must be 128x96, 128x160"),
        (tiles(row=3), "tiles.row: is unknown"),
        (
            lambda value: value["input"]["canvases"][1].update(name="c96"),
            "'c96' must be named like t640",
        ),
        (
            lambda value: value["input"]["canvases"][1].update(tiles=None),
            "'t96' must be named like c640",
        ),
        (
            lambda value: value["input"].update(canvases=value["input"]["canvases"][1:]),
            "the first must not be tiled, and tiled ones must follow all others",
        ),
        (
            lambda value: value["graphs"].update({"96x96": value["graphs"]["64x64"]}),
            "graphs.96x96: no canvas has this shape, but for tiled ones",
        ),
        (
            lambda value: value["graphs"]["64x64"]["encoders"].pop("t96-d1"),
            "graphs.64x64.encoders.t96-d1: is missing",
        ),
        (
            lambda value: [plan.update(canvas="t96") for plan in value["encoder_plans"]],
            "encoder_plans: all are on tiled canvases",
        ),
    ],
)
def test_tiles_that_break_the_contract_are_refused(
    tmp_path: Path, change: Change, words: str
) -> None:
    assert words in changed(write_tiled_bundle(tmp_path / "b"), change)


def test_a_head_that_answers_no_map_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiled_bundle(tmp_path / "b")

    def queries(value: Any) -> None:
        value["heads"][0] |= {"thresholds": {"score": 0.5, "mask": 0.5, "overlap": 0.8}}
        for name, stage in value["stages"].items():
            if name.startswith("decoder"):
                (answer,) = stage["outputs"]
                masks = answer | {"name": "mask_logits"}
                kinds = answer | {"name": "class_logits", "dims": ["batch", 3, 2]}
                stage["outputs"] = [kinds, masks]

    said = changed(folder, queries)
    assert "t96 is tiled, but the head 'instance' of the task 'instance' answers no map" in said


def test_cells_that_do_not_fit_the_overlap_are_refused(tmp_path: Path) -> None:
    def coarse(value: Any) -> None:
        for shape in PLAIN.shapes:
            (answer,) = value["stages"][f"decoder-{shape.name}"]["outputs"]
            answer["dims"][2:] = [1, 1]

    said = changed(write_tiled_bundle(tmp_path / "b"), coarse)
    assert "stages.decoder-64x64.outputs: the cells of answer do not fit the tiles of t96" in said


def test_tensorrt_says_that_it_cannot_run_tiles(tiled: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="use --backend onnxruntime-cuda"):
        open_named("tensorrt", load(tiled), threads=1, max_batch=1, engine_cache=tmp_path)


def test_an_image_on_a_tiled_canvas_lies_there_as_on_any_other(tiled: Path) -> None:
    manifest = load(tiled).manifest
    frames = from_memory(picture(80, 200), LIMITS, manifest.input)
    assert frames["t96"].geometry == replace(
        Geometry(200, 80, 160, 64, (96, 160)), orientation_applied=False
    )
    assert frames["t96"].pixels.shape == (96, 160, 3)
