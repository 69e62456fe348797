"""The network's configuration and the names of plans: what is refused, and how it is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.network.config import CONFIGS, Config, base, proscale, standard, tiny
from model_export.network.encoder import Encoder
from model_export.network.knobs import Knobs
from tests.small_network import SMALL

# ---- config


@pytest.mark.parametrize("schedule", [(), (0, 1), (4,), (3, 1), (1, 3, 2)], ids=str)
def test_config_refuses_a_schedule_that_is_empty_or_unknown_or_drops_a_scale(
    schedule: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match="schedule"):
        replace(SMALL, schedule=schedule)


def test_config_refuses_class_matching_unless_every_class_has_its_query() -> None:
    with pytest.raises(ValueError, match="queries == classes, not 5 and 4"):
        replace(SMALL, queries=5)
    assert replace(SMALL, queries=5, matching="hungarian").queries == 5


@pytest.mark.parametrize(("channels", "heads"), [(48, 8), (64, 3)])
def test_config_refuses_channels_that_do_not_divide(channels: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"channels {channels}"):
        replace(SMALL, channels=channels, heads=heads)


@pytest.mark.parametrize("after", [-1, 3])
def test_config_refuses_to_pause_behind_the_last_layer(after: int) -> None:
    with pytest.raises(ValueError, match=f"pause_after {after} must be 0 to 2, or None"):
        replace(SMALL, schedule=(1, 2, 3), pause_after=after)


@pytest.mark.parametrize("widths", [(), (0.5,), (0.0, 1.0), (1.0, 1.5)], ids=str)
def test_config_refuses_widths_without_the_full_one_or_out_of_range(
    widths: tuple[float, ...],
) -> None:
    with pytest.raises(ValueError, match="widths"):
        replace(SMALL, widths=widths)


def test_config_knows_the_first_exit_that_can_pause_any_token() -> None:
    assert tiny().pauses_from == 5
    # Before, no layer updates tokens of stride 8.
    assert replace(tiny(), pause_after=2).pauses_from == 5
    assert replace(tiny(), pause_after=5).pauses_from == 6
    assert replace(standard(), pause_after=0).pauses_from == 1
    assert standard().pauses_from is None
    assert replace(tiny(), schedule=(1, 2), pause_after=0).pauses_from is None


def test_published_and_standard_sizes_turn_no_knob() -> None:
    """They are what others are compared with: Mask2Former's encoder, every layer over all
    scales."""
    for config in (base(), standard()):
        assert config.schedule == (3,) * 6
        assert (config.pause_after, config.widths, config.top_down, config.recalibration) == (
            None,
            (1.0,),
            False,
            False,
        )
        encoder = Encoder(config)
        assert encoder.token_head is None
        assert encoder.top_down is None
    sizes = (
        "channels",
        "encoder_ffn",
        "queries",
        "decoder_layers",
        "decoder_ffn",
        "pixel_embedding",
        "matching",
    )
    assert [getattr(base(), name) for name in sizes] == [
        256,
        1024,
        100,
        9,
        2048,
        "conv",
        "hungarian",
    ]
    same = (
        "channels",
        "encoder_ffn",
        "heads",
        "points",
        "decoder_layers",
        "decoder_ffn",
        "pixel_embedding",
    )
    assert all(getattr(standard(), name) == getattr(tiny(), name) for name in same)


def test_config_survives_json() -> None:
    for make in CONFIGS.values():
        assert Config.from_dict(json.loads(json.dumps(make(7).as_dict()))) == make(7)


def test_proscale_names_the_layers_of_each_group() -> None:
    assert proscale(1, 2, 3) == (1, 2, 2, 3, 3, 3)
    assert replace(SMALL, schedule=proscale(2, 2, 2)).exits == 6


# ---- knobs


percents = st.integers(1, 1000).map(lambda tenths: round(tenths / 1000, 3))


canvas_names = st.sampled_from(["", "c64", "c1024"])


@given(depth=st.integers(1, 99), keep=percents, width=percents, canvas=canvas_names)
def test_a_plan_s_name_says_all_of_it(depth: int, keep: float, width: float, canvas: str) -> None:
    knobs = Knobs(depth, keep, width, canvas)
    assert Knobs.parse(knobs.name) == knobs
    assert ("k" in knobs.name, "w" in knobs.name, "c" in knobs.name) == (
        keep != 1,
        width != 1,
        canvas != "",
    )
    assert knobs.name == "-".join(filter(None, (canvas, knobs.encoder)))


def test_names_of_plans_are_those_of_the_bundles() -> None:
    names = {
        Knobs(6): "d6",
        Knobs(5, 0.5): "d5-k50",
        Knobs(6, 0.25, 0.5): "d6-k25-w50",
        Knobs(1, 1, 0.125): "d1-w12.5",
        Knobs(6, canvas="c640"): "c640-d6",
        Knobs(6, 0.25, 0.5, "c256"): "c256-d6-k25-w50",
    }
    assert {knobs: knobs.name for knobs in names} == names


def test_the_encoder_of_a_plan_is_named_without_its_canvas() -> None:
    plans = [Knobs(6, 0.25, 0.5, canvas) for canvas in ("", "c256", "c640")]
    assert {plan.encoder for plan in plans} == {"d6-k25-w50"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "d0", "d06", "d6-k0", "d6-k101", "d6-w50-k50", "d6-", "d6-k50-k50", "d6 "),
        *("c640", "c640-", "c-d6", "640-d6", "c640d6", "c640-c640-d6", "d6-c640", "c640x480-d6"),
    ],
)
def test_a_name_that_is_no_plan_s_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="must be like c640-d6, c640-d6-k50 or d6-k25-w50"):
        Knobs.parse(text)
