"""Which plans are worth having: what is tried, what it costs, which are chosen, and a search that
goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.datasets import VOID, Sample, Scenes
from model_export.gating.choose_plans import NOISE, Candidate, choose_plans, undominated
from model_export.gating.combinations import combinations_of
from model_export.gating.measure_cost import measure_cost
from model_export.gating.partial_results import PartialResults
from model_export.gating.search_plans import measure_quality, shares
from model_export.network.config import standard, tiny
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.tasks.semantic import image_quality
from model_export.training.quality import counts_by_knobs
from model_export.training.runs import RunError, load_model, read_plans
from service.bundle import Canvas, Shape
from tests.toy import CANVASES, command, last_json, toy

pytestmark = pytest.mark.timeout(900)  # a test of the toy run waits for its training


# ---- candidates


def test_every_combination_is_tried_and_keep_only_where_something_can_be_paused() -> None:
    found = combinations_of(tiny(), CANVASES, (1.0, 0.5, 0.25), (1.0, 0.5, 0.25))
    assert len(found) == len(set(found)) == 2 * (4 * 3 + 2 * 3 * 3)
    assert all(plan.keep == 1 or plan.depth >= 5 for plan in found)
    for name in ("c64", "c96"):
        assert Knobs(6, 0.25, 0.25, name) in found
        assert Knobs(5, 0.5, 1.0, name) in found
    plain = combinations_of(standard(), CANVASES, (1.0, 0.5), (1.0,))
    assert {plan.keep for plan in plain} == {1.0}


def test_the_full_plan_is_tried_even_if_nobody_asks_for_it() -> None:
    found = combinations_of(tiny(), CANVASES, (0.5,), (0.25,))
    assert Knobs(6, canvas="c96") in found
    assert Knobs(6, canvas="c64") not in found, "it is the one on the largest canvas"


@pytest.mark.parametrize("text", ["", "2", "0", "1,x", "1,,0.5", "-0.5"])
def test_shares_out_of_range_are_refused_with_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"--keeps .* must be shares in \(0, 1\]"):
        shares("--keeps", text)
    assert shares("--keeps", "1,0.5, 0.25") == (1.0, 0.5, 0.25)


# ---- choice

costs = st.floats(0.1, 100, allow_nan=False)
SOME = [Knobs(d, k, w) for d in (1, 2, 3) for k in (1.0, 0.5) for w in (1.0, 0.5)]
FULL = Knobs(3)


def candidates_of(rows: list[tuple[float, float, float]]) -> list[Candidate]:
    """Of all that are tried, the full plan takes most GFLOPs; what else holds of costs is left
    open."""
    found = [Candidate(knobs, *row) for knobs, row in zip(SOME, rows, strict=True)]
    return [replace(c, gflops=c.gflops + 100) if c.knobs == FULL else c for c in found]


measured = st.lists(
    st.tuples(costs, costs, st.floats(0, 1)), min_size=len(SOME), max_size=len(SOME)
).map(candidates_of)


def depths(plans: list[Candidate]) -> list[int]:
    return [plan.knobs.depth for plan in plans]


@given(candidates=measured, most=st.integers(2, 12))
def test_chosen_plans_are_a_front_that_ends_in_the_full_plan(
    candidates: list[Candidate], most: int
) -> None:
    chosen, full = choose_plans(candidates, most), candidates[SOME.index(FULL)]
    assert chosen[-1] is full
    assert len(chosen) <= most
    assert all(low.gflops < high.gflops and low.ms < high.ms for low, high in pairwise(chosen))
    assert all(high.quality - low.quality >= NOISE for low, high in pairwise(chosen[:-1]))
    cheaper = [
        candidate
        for candidate in candidates
        if candidate.gflops < full.gflops and candidate.ms < full.ms
    ]
    assert bool(cheaper) == bool(chosen[:-1])
    # What is left out, though there was room, is no better than a plan that is no more expensive by
    # one of both.
    if len(chosen) < most:
        for candidate in cheaper:
            rivals = [
                c.quality for c in chosen if c.gflops <= candidate.gflops or c.ms <= candidate.ms
            ]
            assert rivals
            assert max(rivals) > candidate.quality - NOISE


@given(candidates=measured, least=st.integers(2, 12))
def test_a_short_front_is_filled_up_with_cheaper_plans_than_the_full_one(
    candidates: list[Candidate], least: int
) -> None:
    front, filled = choose_plans(candidates, 12), choose_plans(candidates, 12, least)
    full = candidates[SOME.index(FULL)]
    assert {candidate.knobs for candidate in front} <= {candidate.knobs for candidate in filled}
    assert filled[-1] is full
    assert len({candidate.knobs for candidate in filled}) == len(filled) <= max(least, len(front))
    assert all(low.gflops < high.gflops and low.ms < high.ms for low, high in pairwise(filled))


def test_a_short_front_is_filled_where_the_steps_in_cost_are_widest() -> None:
    """Depth 1 is as good as all others: the front has nothing between it and the full plan."""
    costs = {1: 1, 2: 2, 3: 4, 4: 5, 5: 6, 6: 10}
    candidates = [
        Candidate(Knobs(depth), cost, cost, 0.5 - depth / 1e4) for depth, cost in costs.items()
    ]
    candidates[4] = Candidate(Knobs(5), 6, 6, 0.49999)
    assert depths(choose_plans(candidates, 9)) == [1, 6]
    assert depths(choose_plans(candidates, 9, 3)) == [1, 5, 6]  # the best between 1 and 10
    assert depths(choose_plans(candidates, 9, 4)) == [1, 2, 5, 6]  # the best between 1 and 6
    assert depths(choose_plans(candidates, 9, 12)) == [1, 2, 3, 4, 5, 6]


def test_a_more_expensive_plan_must_be_better_by_more_than_noise() -> None:
    candidates = [
        Candidate(Knobs(1), 1, 1, 0.60),
        Candidate(Knobs(2), 2, 2, 0.6009),
        Candidate(Knobs(3), 3, 3, 0.6011),
    ]
    candidates += [Candidate(Knobs(4), 4, 4, 0.6012)]
    # The full plan stays, whatever it is worth.
    assert depths(choose_plans(candidates, 9)) == [
        1,
        3,
        4,
    ]


def test_a_plan_that_does_less_but_is_slower_than_a_better_one_is_left_out() -> None:
    slow, good, full = (
        Candidate(Knobs(1), 7.3, 121, 0.61),
        Candidate(Knobs(1, 1, 0.5), 7.6, 112, 0.62),
        Candidate(Knobs(2), 9, 140, 0.63),
    )
    assert choose_plans([slow, good, full], 9) == [good, full]
    assert choose_plans([slow, Candidate(good.knobs, 7.6, 112, 0.60), full], 9) == [slow, full]


def test_of_too_many_plans_those_stay_that_serve_most_budgets_best() -> None:
    rows = {1: (1, 0.50), 2: (2, 0.60), 3: (2.1, 0.605), 4: (4, 0.66), 5: (4.2, 0.69), 6: (8, 0.70)}
    candidates = [
        Candidate(Knobs(depth), cost, cost, quality) for depth, (cost, quality) in rows.items()
    ]
    assert depths(choose_plans(candidates, 4)) == [1, 2, 5, 6]
    assert depths(choose_plans(candidates, 2)) == [1, 6]


def test_plans_of_several_canvases_compete_by_cost_and_quality_alone() -> None:
    """Depth 1 on the large canvas is better than any depth on the small one, the last of which
    costs more, too."""
    rows = {
        "c64-d1": (1.0, 0.50),
        "c64-d3": (2.0, 0.55),
        "c64-d6": (3.5, 0.58),
        "c96-d1": (3.0, 0.60),
        "c96-d3": (5.0, 0.6004),
        "c96-d6": (8.0, 0.62),
    }
    candidates = [
        Candidate(Knobs.parse(name), cost, 10 * cost, quality)
        for name, (cost, quality) in rows.items()
    ]

    def names(most: int, least: int = 2) -> list[str]:
        return [each.knobs.name for each in choose_plans(candidates, most, least)]

    assert names(9) == ["c64-d1", "c64-d3", "c96-d1", "c96-d6"]
    assert names(9, 5) == ["c64-d1", "c64-d3", "c96-d1", "c96-d3", "c96-d6"]
    assert names(3) == ["c64-d1", "c96-d1", "c96-d6"]
    # Fewer GFLOPs but more time: such a plan is no cheaper.
    candidates[1] = Candidate(Knobs.parse("c64-d3"), 2.0, 31.0, 0.55)
    assert names(9) == ["c64-d1", "c96-d1", "c96-d6"]


# ---- quality


class _Data(Scenes):
    """Three scenes; the second one is all void."""

    def __init__(self) -> None:
        super().__init__(3, 8)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, mask=np.full_like(sample.mask, VOID)) if index == 1 else sample


@pytest.mark.usefixtures("one_thread")
def test_a_search_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = Segmenter(toy()).eval(), []
    plans = [Knobs(1, 1, 0.5, "c64"), Knobs(3, 0.5, canvas="c96")]
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    def counting(model: Segmenter, sample: Sample, *rest: object) -> tuple[np.ndarray, np.ndarray]:
        seen.append(sample.name)
        if stopping and len(seen) == 2:
            raise KeyboardInterrupt
        return counts_by_knobs(model, sample, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("model_export.gating.derive_targets.counts_by_knobs", counting)
    monkeypatch.setattr("model_export.gating.partial_results.SAVE_EVERY", 0.0)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        measure_quality(tmp_path, model, _Data(), "scenes:3:8", CANVASES, plans)
    stopping = False
    counts = measure_quality(tmp_path, model, _Data(), "scenes:3:8", CANVASES, plans)
    # The first image once only, the void one never.
    assert seen == [
        "scene-8-0",
        "scene-8-2",
        "scene-8-2",
    ]
    wanted = [counts_by_knobs(model, _Data()[i], CANVASES, plans)[0] for i in (0, 2)]
    assert np.array_equal(counts, np.stack(wanted))
    assert np.array_equal(
        measure_quality(tmp_path, model, _Data(), "scenes:3:8", CANVASES, plans), counts
    )
    assert len(seen) == 3
    other = (Canvas.of([Shape(32, 64), Shape(64, 32)]), *CANVASES[1:])
    for change in (
        lambda: measure_quality(tmp_path, model, _Data(), "scenes:3:9", CANVASES, plans),
        lambda: measure_quality(tmp_path, model, _Data(), "scenes:3:9", CANVASES, plans[:1]),
        lambda: measure_quality(tmp_path, model, _Data(), "scenes:3:9", other, plans[:1]),
        lambda: (
            (tmp_path / "model.safetensors").write_bytes(b"other weights"),
            measure_quality(tmp_path, model, _Data(), "scenes:3:9", other, plans[:1]),
        ),
    ):
        seen.clear()
        change()
        assert seen == ["scene-8-0", "scene-8-2"]


def test_what_was_measured_is_of_the_files_that_were_there(tmp_path: Path) -> None:
    """Two folders, or one whose files have changed, may have one name and as many images."""
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image, labels = (tmp_path / name / file for file in ("1.jpg", "1.png"))
        image.write_bytes(b"image")
        labels.write_bytes(b"labels")
        found.append(SimpleNamespace(files=[(image, labels)], classes=("road",)))
    first, other = found
    path = tmp_path / "search.npz"

    def rows_of(data: object) -> int:
        results = PartialResults(path, "key")
        results.begin([data])  # type: ignore[list-item]
        return len(results.rows)

    results = PartialResults(path, "key")
    results.begin([first])
    results.add({"counts": np.arange(3)})
    results.add(None)
    results.save()
    assert (rows_of(first), rows_of(other)) == (2, 0)
    first.classes = ("car",)
    assert rows_of(first) == 0
    first.classes = ("road",)
    assert rows_of(first) == 2
    first.files[0][1].write_bytes(b"other labels")
    assert rows_of(first) == 0
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(RunError, match=r"search\.npz is damaged: .*; delete it, and repeat"):
        rows_of(first)


class _AllVoid(_Data):
    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(1)


def test_a_data_set_without_any_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(RunError, match="scenes:3: every image is all void"):
        measure_quality(
            *(tmp_path, Segmenter(toy()).eval(), _AllVoid(), "scenes:3", CANVASES),
            [Knobs(1, canvas="c64")],
        )


# ---- cost


def test_a_canvas_costs_what_its_largest_shape_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a bundle, so that the plans of either are in one order."""
    seen: list[Canvas] = []

    def stop(
        folder: Path, model: object, gate: object, canvases: list[Canvas], plans: object
    ) -> None:
        seen.extend(canvases)
        raise KeyboardInterrupt

    monkeypatch.setattr("model_export.gating.measure_cost.write_stages", stop)
    canvases = [
        Canvas.of([Shape(32, 64), Shape(64, 64)]),
        Canvas.of([Shape(96, 96), Shape(64, 128)]),
    ]
    with pytest.raises(KeyboardInterrupt):
        measure_cost(Segmenter(toy()), Scenes(1), canvases, [Knobs(1, canvas="c96")], 1, 1)
    assert seen == [Canvas("c64", (Shape(64, 64),)), Canvas("c96", (Shape(96, 96),))]


# ---- the command


def test_search_measures_what_is_served_and_writes_the_plans(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    words = (
        "--on",
        "scenes:3:6",
        "--keeps",
        "1",
        "--widths",
        "0.5",
        "--rounds",
        "2",
        "--threads",
        "1",
    )
    assert command("search-plans", run, *words, "--most", "3") == 0
    shown = capsys.readouterr().out
    said = last_json(shown)
    plans, report = read_plans(run)
    assert [plan.name for plan in plans] == said["plans"]
    assert plans[-1] == Knobs(3, canvas="c96")
    assert 2 <= len(plans) <= 3
    table = {row["plan"]: row for row in report["search"]}
    narrow = {f"{canvas}-d{depth}-w50" for canvas in ("c64", "c96") for depth in (1, 2, 3)}
    # What a shallower encoder equals on its canvas is left out; each canvas keeps its cheapest.
    assert {"c64-d1-w50", "c96-d1-w50", "c96-d3"} <= set(table) <= {*narrow, "c96-d3"}
    assert all(name in shown for name in table)
    cheapest, *_, dearest = table
    assert (cheapest, dearest) == ("c64-d1-w50", "c96-d3")
    assert all(
        row["gflops"] > 0 and row["ms"] > 0 and 0 <= row["quality"] <= 1 for row in table.values()
    )
    assert [row["gflops"] for row in table.values()] == sorted(
        row["gflops"] for row in table.values()
    )
    assert report["data"] == "scenes:3:6"
    assert (report["images"], said["images"], said["candidates"]) == (3, 3, len(table))
    assert report["machine"]["threads"] == 1
    model = load_model(run)
    full = [Knobs(3, canvas="c96")]
    counts = [counts_by_knobs(model, Scenes(3, 6)[i], CANVASES, full)[0] for i in range(3)]
    mean = np.mean([image_quality(each[0]) for each in counts])
    assert table["c96-d3"]["quality"] == pytest.approx(mean, abs=1e-5)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (lambda run: (run / "model.safetensors").unlink(), (), "train-exits --out"),
        (lambda run: None, ("--on", "scenes:2:6"), "3 are needed"),
        (lambda run: None, ("--on", "scenes:3:6", "--keeps", "half"), "--keeps"),
        (lambda run: None, ("--on", "scenes:3:6", "--widths", "0"), "--widths"),
        (lambda run: None, ("--on", "scenes:3:6", "--most", "3", "--least", "4"), "--least"),
        (lambda run: None, ("--on", "camvid:dev"), "needs --data FOLDER"),
        (lambda run: None, ("--on", "scenes:3:6", "--data", "mine"), "--data mine would not be"),
        (lambda run: None, ("--tiles-on", "folder:large"), "--tiles-on is about tiles: say which"),
        (
            lambda run: None,
            ("--on", "scenes:3"),
            "shares images with scenes:4, which the network learned",
        ),
    ],
)
def test_search_refuses_what_it_cannot_do_and_writes_nothing(
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    words: tuple[str, ...],
    message: str,
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    damage(run)
    assert command("search-plans", run, *words) == 1
    assert message in capsys.readouterr().err
    assert not (run / "plans.json").exists()


def test_a_combination_is_left_out_if_one_that_spends_no_more_on_its_canvas_is_as_good() -> None:
    names = ("c64-d1-w50", "c64-d1", "c64-d2", "c96-d1", "c96-d2", "c96-d3-k50", "c96-d3")
    combinations = [Knobs.parse(name) for name in names]
    quality = [0.60, 0.6005, 0.62, 0.55, 0.58, 0.57, 0.5]
    kept = undominated(combinations, quality, combinations[-1])
    # d1 is within NOISE of d1-w50; d3-k50 keeps fewer tokens than d2, which so cannot beat it; the
    # smaller canvas beats nobody, and the full plan stays although it is the worst.
    assert [names[k] for k in kept] == [
        "c64-d1-w50",
        "c64-d2",
        "c96-d1",
        "c96-d2",
        "c96-d3-k50",
        "c96-d3",
    ]
