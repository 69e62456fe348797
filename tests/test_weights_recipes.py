"""trained_weights/recipes.mk: every command in it is one that the command line knows, with options
that it has."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from model_export.__main__ import parser_of

ROOT = Path(__file__).resolve().parent.parent
BUNDLES = ("camvid-tiny", "camvid-tiny-standard", "nuclei-tiny", "nuclei-tiny-standard")


def commands(*words: str) -> list[list[str]]:
    """What `make` would run of model_export, each without "python -m model_export"."""
    shown = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = re.findall(r"-m model_export ([^;&\n]*)", shown.replace("\\\n", " "))
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_made_by_one_command_that_runs_every_step(name: str) -> None:
    found = commands("weights", f"NAME={name}", "DATA=data", "BACKBONE=weights.npz")
    steps = list(dict.fromkeys(words[0] for words in found))
    assert steps == [
        "train-exits",
        "average",
        "search-plans",
        "derive-targets",
        "train-gate",
        "export",
    ]
    options = [parser_of(words[0]).parse_args(words[1:]) for words in found]
    # It starts from the adaptive bundle, and takes the weights that fit.
    if name == "camvid-tiny-standard":
        assert (options[0].config, options[0].partly) == ("standard", True)
        assert options[0].start_from == Path("trained_weights/camvid-tiny")
    else:
        assert (options[0].config, options[0].backbone_weights) == (None, Path("weights.npz"))
    made, first = [], True
    for words, each in zip(found, options, strict=True):  # each starts from what was made before it
        if words[0] == "train-exits":
            assert first or each.start_from in made
            made, first = [*made, each.out], False
        elif words[0] == "average":
            assert set(each.runs) <= set(made)
            made.append(each.out)
    assert options[-1].out == Path("trained_weights") / name


def test_streets_multi_is_made_from_streets_alone_and_no_step_sees_another_s() -> None:
    found = commands("weights", "NAME=streets-multi", "BACKBONE=weights.npz")
    steps = [words[0] for words in found]
    tail = ["search-plans", "derive-targets", "train-gate", "export"]
    assert steps == [*["train-tasks"] * 3, *tail]
    train, boxes, maps, search, derive, _, export = [
        parser_of(words[0]).parse_args(words[1:]) for words in found
    ]
    assert (boxes.start_from, boxes.only, boxes.train) == (train.out, ["detection"], train.train)
    assert (maps.start_from, maps.only) == (boxes.out, ["semantic", "depth"])
    own = [train.train, maps.train, train.dev, search.on, *derive.fit, derive.held, export.parity]
    assert {each.dev.split(":")[2] for each in (train, boxes, maps)} == {train.dev.split(":")[2]}
    seeds = [int(spec.split(":")[2]) for spec in own]
    assert len(set(seeds)) == len(seeds)
    assert export.out == Path("trained_weights/streets-multi")


def test_networks_are_compared_after_equal_steps_in_all() -> None:
    found = commands("compare-tasks", "BACKBONE=weights.npz")
    made = [parser_of(words[0]).parse_args(words[1:]) for words in found]
    trained = [each for words, each in zip(found, made, strict=True) if words[0] == "train-tasks"]
    adaptive, fixed, *separate = trained
    assert adaptive.steps == fixed.steps == sum(each.steps for each in separate)
    assert len({each.train for each in trained}) == 1
    compared = made[-1]
    assert compared.run == adaptive.out
    assert compared.fixed == fixed.out
    assert compared.separate == [each.out for each in separate]
    assert fixed.sampling == "full"


def test_the_two_nuclei_bundles_come_from_one_network_and_differ_by_the_encoder_alone() -> None:
    encoder, trained = {"config", "schedule", "pause_after", "out"}, []
    for name in ("nuclei-tiny", "nuclei-tiny-standard"):
        found = [
            words
            for words in commands("weights", f"NAME={name}", "DATA=data")
            if words[0] == "train-exits"
        ]
        trained.append([vars(parser_of(words[0]).parse_args(words[1:])) for words in found])
    for tiny, standard in zip(*trained, strict=True):
        assert {key for key in tiny if tiny[key] != standard[key]} in (set(), encoder)
    assert trained[1][-1]["config"] == "standard"


def test_the_mechanism_check_is_one_command_on_streets_where_no_step_sees_another_s() -> None:
    found = commands("mechanism", "SCENES=/nonexistent/scenes")
    steps = [words[0] for words in found]
    assert steps == ["draw-scenes"] * 2 + [
        "train-exits",
        "search-plans",
        "derive-targets",
        "train-gate",
        "export",
        "evaluate",
    ]
    options = [parser_of(words[0]).parse_args(words[1:]) for words in found]
    assert {each.bare for each in options[:2]} == {0.5}
    specs = " ".join([options[3].on, *options[4].fit, options[4].held])
    seeds = [each.seed for each in options[:2]] + [
        int(seed) for seed in re.findall(r"scenes:\d+:(\d+)", specs)
    ]
    assert len(set(seeds)) == len(seeds) == 5, (
        "nothing is trained, fitted or judged on the same streets"
    )
    assert options[-1].mirrored
