"""The promise of max-loss, by simulation: it holds on average, in every group and for useless
gates, and has power."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_export.gating.calibrate import ASKED, CalibrationError, contiguous_blocks, margin_table
from service.core import Ask, Budget, Margin, Plan
from service.inference.policy import Policy, Pressure

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Images of which some lose much by cheap plans. skill: how much of that the gate foresees,
    0..1.

    means: mean loss per plan; spread: standard deviation of the first plan's loss; factors: of the
    means, per group.
    """

    skill: float = 0.0
    means: tuple[float, ...] = (0.013, 0.008, 0.006, 0.002, 0.0)
    spread: float = 0.03
    factors: dict[str, float] = field(default_factory=lambda: {"only": 1.0})

    def draw(
        self, rng: np.random.Generator, images: int
    ) -> tuple[Floats, Floats, NDArray[np.str_]]:
        """scores, quality (images, plans), groups (images,)."""
        groups = rng.choice(list(self.factors), images)
        factor = np.array([self.factors[g] for g in groups])[:, None]
        means, fading = np.array(self.means), np.linspace(1, 0, len(self.means))
        # Shared by all plans of an image.
        hard = rng.normal(size=(images, 1)) * fading * self.spread
        noise = rng.normal(size=(images, len(means))) * fading * self.spread / 3
        return 0.7 - means - self.skill * hard, 0.7 - (means * factor + hard + noise), groups


def taken(scores: Floats, margin: float | None) -> NDArray[np.int64]:
    """By the service's policy: the index of each image's plan."""
    plans = [Plan(f"d{i}", i + 1, 1.0, 1.0, float(i + 1), 0.5) for i in range(scores.shape[1])]
    policy = Policy(tuple(plans), (Margin(0.01, margin),), 0.0)
    ask = Ask(Budget(max_loss=0.01))
    chosen = [
        policy.choose(row.tolist(), ask, Budget(), [0.0] * len(plans), Pressure()).plan.depth
        for row in scores
    ]
    return np.array(chosen) - 1


def by_margin(scores: Floats, margin: float | None) -> NDArray[np.int64]:
    """What the router does, for many images at once; `test_router_does_the_same` compares."""
    safe = scores[:, -1:] - scores <= (-np.inf if margin is None else margin)
    safe[:, -1] = True
    return safe.argmax(1)


def loss(quality: Floats, plans: NDArray[np.int64]) -> Floats:
    return quality[:, -1] - quality[np.arange(len(quality)), plans]


def simulate(
    world: World, images: int, draws: int, **options: object
) -> tuple[Floats, Floats, Floats]:
    """Per draw and asked level: the expected loss, the mean plan (0 = cheapest), the worst group's
    loss."""
    rng = np.random.default_rng(0)
    new_scores, new_quality, new_groups = world.draw(rng, 20_000)
    found = []
    for _ in range(draws):
        table = margin_table(*world.draw(rng, images), **options)  # type: ignore[arg-type]
        row = []
        for entry in table:
            plans = by_margin(new_scores, entry["margin"])
            lost = loss(new_quality, plans)
            worst = max(lost[new_groups == g].mean() for g in world.factors)
            row.append((lost.mean(), plans.mean(), worst))
        found.append(row)
    return tuple(np.moveaxis(np.array(found), -1, 0))  # type: ignore[return-value]


def test_router_does_the_same() -> None:
    scores, _, _ = World(skill=0.5).draw(np.random.default_rng(1), 60)
    for margin in (None, -0.01, 0.0, 0.004, 0.5):
        assert by_margin(scores, margin).tolist() == taken(scores, margin).tolist()


@pytest.mark.parametrize("deviations", [0.0, 1.645])
@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_promise_holds_on_average_over_calibrations(skill: float, deviations: float) -> None:
    lost, _, _ = simulate(World(skill), images=120, draws=60, deviations=deviations)
    assert (lost.mean(0) <= ASKED).all()


def test_deviations_leave_the_promise_broken_for_few_tables_and_the_bound_alone_for_many() -> None:
    world = World(skill=0.5)
    with_error, _, _ = simulate(world, images=120, draws=60)
    alone, _, _ = simulate(world, images=120, draws=60, deviations=0.0)
    assert (with_error > ASKED).mean(0).max() <= 0.15
    assert (alone > ASKED).mean(0).max() >= 0.25


def test_good_gate_has_power_even_where_the_cheap_plan_alone_would_break_the_promise() -> None:
    lost, skilled, _ = simulate(World(skill=1.0), images=120, draws=20)
    assert (lost.mean(0) <= ASKED).all()
    lost, useless, _ = simulate(World(), images=120, draws=20)
    assert (lost.mean(0) <= ASKED).all()
    # At 0.005; fixed, the first three plans lose 0.006 and more, the next is 3.
    assert skilled.mean(0)[1] < 2.0
    assert useless.mean(0)[1] >= 3.0


def test_useless_gate_gets_the_cheapest_plan_that_keeps_the_promise_for_everybody() -> None:
    rng = np.random.default_rng(0)
    scores, quality, groups = World(spread=0.002).draw(rng, 400)
    chosen = {
        row["asked"]: set(by_margin(scores, row["margin"]).tolist())
        for row in margin_table(scores, quality, groups)
    }
    assert chosen == {0.0025: {3}, 0.005: {3}, 0.01: {1}, 0.02: {0}, 0.05: {0}}


def test_promise_holds_in_every_group_though_the_whole_set_would_allow_more() -> None:
    world = World(skill=0.3, spread=0.01, factors={"easy": 0.2, "easier": 0.1, "hard": 2.0})
    lost, _, worst = simulate(world, images=300, draws=25)
    assert (worst.mean(0) <= ASKED).all()
    # No group is large enough: only all together.
    _, _, ignored = simulate(world, images=300, draws=25, least=10_000)
    assert (ignored.mean(0) > ASKED).any()
    assert (lost.mean(0) <= ASKED).all()


def test_small_groups_are_controlled_together() -> None:
    rng = np.random.default_rng(0)
    scores, quality, _ = World(means=(0.0, 0.0), spread=1e-4).draw(rng, 230)
    groups = np.array(["big"] * 200 + ["a"] * 15 + ["b"] * 15)
    quality[200:, 0] -= 0.04  # 0.005 over all
    free = margin_table(scores, quality, np.array(["big"] * 230), deviations=0.0)
    assert free[2]["margin"] is not None
    pooled = margin_table(scores, quality, groups, deviations=0.0)
    assert [row["margin"] is None for row in pooled] == [True, True, True, True, False]
    assert margin_table(scores, quality, groups, deviations=0.0, least=31) == free


def test_the_next_recording_may_lose_more_than_those_at_hand() -> None:
    rng, broken = np.random.default_rng(0), dict.fromkeys((False, True), 0)
    for _ in range(80):
        world = World(
            spread=0.004, factors=dict(zip("abcdefgh", rng.uniform(0.2, 1.8, 8), strict=True))
        )
        next_one = World(spread=0.004, factors={"next": rng.uniform(0.2, 1.8)}).draw(rng, 2000)
        at_hand = world.draw(rng, 90)
        for recordings in broken:
            table = margin_table(*at_hand, asked=(0.01,), recordings=recordings)
            broken[recordings] += (
                loss(next_one[1], by_margin(next_one[0], table[0]["margin"])).mean() > 0.01
            )
    assert broken[False] >= 10
    assert broken[True] <= 4, "of 80"


def test_recordings_that_differ_by_chance_alone_cost_no_more_than_their_number_does() -> None:
    rng, taken_by = np.random.default_rng(0), {False: 0.0, True: 0.0}
    for _ in range(20):
        scores, quality, _ = World(skill=0.5).draw(rng, 150)
        names = rng.choice(list("abcde"), 150)
        for recordings in taken_by:
            table = margin_table(scores, quality, names, recordings=recordings)
            taken_by[recordings] += by_margin(scores, table[2]["margin"]).mean() / 20
    assert taken_by[False] <= taken_by[True] <= taken_by[False] + 0.3  # plans of 4


def test_twins_count_once_when_they_are_one_block() -> None:
    rng = np.random.default_rng(0)
    scores, quality, groups = World(skill=0.5).draw(rng, 40)
    twins = [np.repeat(each, 10, axis=0) for each in (scores, quality, groups)]
    blocks = np.repeat(np.arange(40), 10)
    assert margin_table(*twins, blocks=blocks) == margin_table(scores, quality, groups)
    blind = margin_table(*twins)
    assert blind != margin_table(scores, quality, groups)
    known = [
        -1.0 if row["margin"] is None else row["margin"]
        for row in margin_table(*twins, blocks=blocks)
    ]
    assert all(
        k <= (-1.0 if b["margin"] is None else b["margin"])
        for k, b in zip(known, blind, strict=True)
    )


def _by_definition(
    scores: Floats, quality: Floats, level: float, cap: float, deviations: float
) -> float | None:
    """The largest score gap at which the controlled risk, taken over all smaller ones too, is at
    most `level`."""
    best, n = None, len(scores)
    for margin in np.unique(scores[:, -1:] - scores[:, :-1]):
        lost = loss(quality, by_margin(scores, float(margin)))
        error = lost.std(ddof=1) / n**0.5
        if max((lost.sum() + cap) / (n + 1), lost.mean() + deviations * error) > level:
            break
        best = float(margin)
    return best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(2, 30),
    plans=st.integers(2, 5),
    step=st.sampled_from([0.0, 0.01]),
)
def test_margin_is_the_largest_whose_controlled_risk_meets_the_level(
    seed: int, images: int, plans: int, step: float
) -> None:
    rng = np.random.default_rng(seed)
    scores, quality = rng.uniform(0.6, 0.7, (2, images, plans))
    if step:  # many equal scores
        scores = np.round(scores / step) * step
    options = {"cap": 0.02, "deviations": 0.5}
    table = margin_table(
        scores, quality, np.full(images, "g"), asked=(0.003, 0.01, 0.03), **options
    )  # type: ignore[arg-type]
    for row in table:
        expected = _by_definition(scores, quality, row["asked"], **options)  # type: ignore[arg-type]
        margin = row["margin"]
        assert (margin is None) == (expected is None)
        if margin is not None and expected is not None:
            assert by_margin(scores, margin).tolist() == by_margin(scores, expected).tolist()
            assert expected <= margin <= expected + 1e-4


def test_cap_alone_forbids_what_few_images_cannot_promise() -> None:
    # The cheap plan never loses anything.
    scores, quality = (
        np.full((15, 2), 0.7),
        np.full((15, 2), 0.7),
    )
    groups = np.full(15, "g")
    assert [row["margin"] is None for row in margin_table(scores, quality, groups)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    # 0.03 / 16 < 0.0025.
    assert margin_table(scores, quality, groups, cap=0.03)[0]["margin"] is not None


def test_loss_above_the_cap_counts_in_full_where_it_was_seen() -> None:
    scores, quality = np.full((100, 2), 0.7), np.full((100, 2), 0.7)
    quality[0, 0] = 0.2
    margins = [
        row["margin"]
        for row in margin_table(scores, quality, np.full(100, "g"), cap=0.01, deviations=0.0)
    ]
    assert [m is None for m in margins] == [True, True, False, False, False]  # (0.5 + 0.01) / 101


def test_single_plan_has_nothing_to_promise() -> None:
    table = margin_table(np.full((30, 1), 0.7), np.full((30, 1), 0.7), np.full(30, "g"))
    assert [row["margin"] for row in table] == [None] * 5


def test_margins_ascend_with_what_is_asked_and_stay_in_the_range_of_the_manifest() -> None:
    rng = np.random.default_rng(3)
    scores, quality, groups = World(skill=0.4).draw(rng, 150)
    margins = [
        -1.0 if row["margin"] is None else row["margin"]
        for row in margin_table(scores, quality, groups)
    ]
    assert margins == sorted(margins)
    extreme = margin_table(np.tile([0.0, 1.0], (50, 1)), np.full((50, 2), 0.5), np.full(50, "g"))
    assert extreme[-1]["margin"] == 1.0


def test_blocks_are_contiguous_and_of_one_group() -> None:
    groups = np.array(["a"] * 10 + ["b"] * 3 + ["a"] * 7)
    blocks = contiguous_blocks(groups, 5)
    assert blocks.tolist() == [0] * 5 + [1] * 5 + [2] * 3 + [3] * 7
    assert contiguous_blocks(groups, 1).tolist() == list(range(20))
    assert contiguous_blocks(np.array([], str), 5).tolist() == []


@pytest.mark.parametrize(
    ("scores", "quality", "groups", "asked", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), 3, ASKED, r"\(3, 2\), \(3, 3\)"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 2, ASKED, "must be"),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0, ASKED, "must be"),
        (
            np.zeros((3, 2)),
            np.array([[1, 1], [1, np.nan], [1, 1]]),
            3,
            ASKED,
            "image 1 .of 3. has no",
        ),
        (np.zeros((3, 2)), np.zeros((3, 2)), 3, (0.01, 0.005), "ascend"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 3, (0.0, 0.005), "above 0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    scores: Floats, quality: Floats, groups: int, asked: tuple[float, ...], said: str
) -> None:
    with pytest.raises(CalibrationError, match=said):
        margin_table(scores, quality, np.full(groups, "g"), asked=asked)
