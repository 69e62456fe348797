"""Step A: its parts, and that a stopped run continues as if it had not been stopped."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model_export.data.augment import parse_size
from model_export.data.datasets import Scenes
from model_export.gating.derive_targets import measure_plans
from model_export.network.backbone import MobileNetV2
from model_export.network.config import Config, proscale, streets, tiny
from model_export.network.heads import HEADS
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from model_export.training.initial_weights import (
    InitialOptions,
    config_of,
    initial_model,
    parse_canvases,
)
from model_export.training.optimizer import parameter_groups, rate
from model_export.training.progress import Progress
from model_export.training.quality import dev_quality, knobs_to_watch
from model_export.training.run_files import RunError
from model_export.training.runs import Average, append_log, read_config, read_log, trained_on
from model_export.training.supernet import TERMS
from service.bundle import Canvas, Shape
from tests.toy import CANVASES, Stripes, Words, command, toy

pytestmark = pytest.mark.usefixtures("toy_config")


def test_rate_warms_up_then_falls_to_zero() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 200)
    assert max(rates) == rates[200] == 1
    assert (np.diff(rates[:200]) > 0).all()
    assert (np.diff(rates[200:]) < 0).all()
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("text", ["384", "384x", "100x96", "0x96", "ax96", "384x480x3", "-64x96"])
def test_sizes_must_fit_the_stride(text: str) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        parse_size(text)
    assert parse_size("64x96") == (64, 96)


def test_canvases_are_named_by_their_longest_side_and_may_have_several_shapes() -> None:
    assert parse_canvases(["32x64", "64x96"]) == CANVASES
    landscape, portrait = Shape(192, 256), Shape(256, 192)
    found = parse_canvases(["192x256,256x192", "480x640"])
    assert found == (Canvas("c256", (landscape, portrait)), Canvas("c640", (Shape(480, 640),)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["64x96", "32x64"], "--canvases 64x96 32x64 must go from small to large"),
        (["64x96", "64x96"], "must go from small to large"),
        (["64x96", "96x64"], "must go from small to large"),
        (["32x64,64x96", "64x96"], "must go from small to large"),
        (["32x96", "64x96"], "--canvases 32x96 64x96: two have the same longest side"),
        (["64x96,64x96"], "--canvases 64x96,64x96: a shape occurs twice"),
        (["32x64", "64x96,32x64"], "a shape occurs twice"),
        (["64x96,64"], "size '64' must be HEIGHTxWIDTH in multiples of 32"),
        (["64x96,"], "size '' must be HEIGHTxWIDTH"),
        (["100x96"], "multiples of 32"),
    ],
)
def test_canvases_that_cannot_be_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_canvases(texts)


def _options(**changes: Any) -> InitialOptions:
    return InitialOptions(**{"config": "tiny", **changes})


def test_config_takes_the_command_line_s_changes() -> None:
    assert config_of(_options(schedule="1,2,3"), Scenes(1)).schedule == proscale(1, 2, 3)
    assert config_of(_options(), Scenes(1)).schedule == toy().schedule
    assert config_of(_options(schedule="1,1,4", pause_after=2), Scenes(1)).pauses_from == 3
    changed = config_of(_options(matching="hungarian", queries=20, recalibration=True), Scenes(1))
    assert (changed.matching, changed.queries, changed.recalibration) == ("hungarian", 20, True)
    with pytest.raises(RunError, match=r"of 2 layers cannot .* after 2: .* by --pause-after"):
        config_of(_options(schedule="1,1,0"), Scenes(1))  # the config pauses after 2


def test_config_is_that_of_what_a_run_starts_from() -> None:
    source = replace(toy(), backbone="mobilenet_v2", schedule=proscale(1, 1, 1))
    assert config_of(_options(config=None), Scenes(1), source) == source
    assert (
        config_of(_options(config=None, schedule="standard"), Scenes(1), source).backbone
        == "mobilenet_v2"
    )
    assert config_of(_options(), Scenes(1), source) == toy(), (
        "a config that is named goes before it"
    )
    two = config_of(_options(config=None), Stripes(), source)
    assert (two.classes, two.queries, two.backbone) == (2, 2, "mobilenet_v2"), "one query a class"


@pytest.mark.parametrize("schedule", ["2,2", "a,b,c", "", "1,2,3,4", "0,0,0", "-1,2,2"])
def test_config_refuses_other_schedules(schedule: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        config_of(_options(schedule=schedule), Scenes(1))


def test_config_takes_task_and_channels_from_the_data() -> None:
    objects = Stripes()
    objects.task, objects.channels = "instance", 3
    config = config_of(_options(queries=3), objects)
    assert (config.task, config.classes) == ("instance", 3)


@pytest.mark.parametrize("config", [tiny(), streets(11, tuple(HEADS))], ids=["one", "several"])
def test_parameter_groups_hold_every_parameter_once(config: Config) -> None:
    model = Segmenter(config)
    groups = parameter_groups(model, 1.0, 0.2, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    grouped = {names[id(p)]: group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(grouped)
    assert set(grouped) == set(names.values())
    for name, group in grouped.items():
        assert group["lr"] == (0.2 if name.startswith("backbone.") else 1.0)
        free = any(
            part in name
            for part in ("norm", "bias", "level_embedding", "queries", "query_positions")
        )
        if free:
            assert group["weight_decay"] == 0, name
        elif name.endswith("weight") and dict(model.named_parameters())[name].ndim > 1:
            assert group["weight_decay"] == 0.05, name


def test_a_new_data_set_is_one_class() -> None:
    model = Segmenter(toy(2, 2)).eval()
    assert list(dev_quality(model, Stripes(), CANVASES)) == [
        "dev_c96-d1",
        "dev_c96-d2",
        "dev_c96-d2-w50",
        "dev_c96-d2-k25",
        "dev_c96-d2-k25-w50",
        "dev_c64-d1",
        "dev_c64-d2",
    ]
    plans = [Knobs(1, canvas="c96")]
    targets = measure_plans(model, plans, [Stripes()], "stripes", CANVASES, 1, 0)
    assert targets["counts"].shape == (2, 1, 2, 2)


def test_the_log_shows_every_exit_and_the_other_knobs_at_the_deepest() -> None:
    """On the largest canvas; on each other one the first exit and the deepest."""
    canvases = (Canvas.of([Shape(32, 32)]), *CANVASES)
    assert [knobs.name for knobs in knobs_to_watch(toy(), canvases)] == [
        "c96-d1",
        "c96-d2",
        "c96-d3",
        "c96-d3-w50",
        "c96-d3-k25",
        "c96-d3-k25-w50",
        "c32-d1",
        "c32-d3",
        "c64-d1",
        "c64-d3",
    ]
    plain = replace(toy(), widths=(1.0,), pause_after=None)
    exits = [Knobs(depth, canvas="c96") for depth in (1, 2, 3)]
    assert knobs_to_watch(plain, CANVASES[1:]) == exits
    assert len(knobs_to_watch(toy(layers=1), CANVASES)) == 5, "the only exit is both ends"


def test_average_follows_at_once_early_and_slowly_late() -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, 0.99)
    torch.nn.init.ones_(model.weight)
    average.update(model, 0)
    assert float(average.state["weight"]) == pytest.approx(0.9)
    average = Average(model, 0.99)
    torch.nn.init.zeros_(model.weight)
    average.update(model, 10_000)
    assert float(average.state["weight"]) == pytest.approx(0.99)


def _rows(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(run)]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(one[k], other[k]) for k in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    train_words: Words, trained_run: Path, tmp_path: Path
) -> None:
    """Weights, their average, the optimizer's state and the log, to the last bit."""
    run = tmp_path / "run"
    assert command(*train_words, "--out", run, "--stop-after", "0") == 0
    assert [row["step"] for row in read_log(run)] == ["1"]
    assert command(*train_words, "--out", run) == 0
    whole, pieces = (
        torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (trained_run, run)
    )
    assert whole["step"] == pieces["step"] == 3
    assert _equal(whole["optimizer"]["state"], pieces["optimizer"]["state"])
    assert _equal(whole["average"], pieces["average"])
    assert _equal(whole["model"], pieces["model"])
    assert not _equal(whole["model"], whole["average"])
    assert (run / "model.safetensors").read_bytes() == (
        trained_run / "model.safetensors"
    ).read_bytes()
    assert _rows(run) == _rows(trained_run)
    assert len(_rows(run)) == 3


def test_run_folder_holds_averaged_weights_config_and_log(trained_run: Path) -> None:
    config, canvases, arguments = read_config(trained_run)
    assert (config.exits, config.channels, canvases, arguments["steps"]) == (3, 32, CANVASES, 3)
    average = torch.load(trained_run / "checkpoint.pt", weights_only=True)["average"]
    assert _equal(load_file(trained_run / "model.safetensors").keys(), average.keys())
    assert all(
        torch.equal(v, average[n].float())
        for n, v in load_file(trained_run / "model.safetensors").items()
    )
    for row in read_log(trained_run):
        watched = {"dev_c96-d1", "dev_c96-d3", "dev_c96-d3-k25-w50", "dev_c64-d1", "dev_c64-d3"}
        assert {*TERMS} | watched <= row.keys()
        assert all(float(value) >= 0 for value in row.values())


def test_a_run_of_before_there_were_several_canvases_has_one(
    trained_run: Path, tmp_path: Path
) -> None:
    document = json.loads((trained_run / "run.json").read_text())
    assert document.pop("canvases") == [[[32, 64]], [[64, 96]]]
    (tmp_path / "run.json").write_text(json.dumps(document | {"canvas": [64, 96]}))
    config, canvases, arguments = read_config(tmp_path)
    assert canvases == CANVASES[1:]
    assert (config, arguments["steps"]) == (read_config(trained_run)[0], 3)


def test_going_on_with_other_data_is_said_and_remembered(
    train_words: Words, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    assert command(*train_words, "--out", run) == 0
    assert "other arguments" not in capsys.readouterr().err
    others = ("--train", "scenes:4:77", "--steps", "4", "--lr", "0.001", "--decay", "0.1")
    assert command(*train_words, "--out", run, *others) == 0
    said = "--train scenes:4:77 (was scenes:4), --steps 4 (was 3), --lr 0.001 (was 0.0004)"
    assert f"other arguments: {said}, --decay 0.1 (was 0.05)" in capsys.readouterr().err
    assert {spec for spec, _ in trained_on(run)} == {"scenes:4", "scenes:4:77"}
    assert read_config(run)[2]["train"] == "scenes:4:77"
    groups = torch.load(run / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["base"] for group in groups] == pytest.approx([0.001] * 2 + [0.0002] * 2)
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0.1, 0]
    assert command("search-plans", run, "--on", "scenes:4:77") == 1
    assert "which the network learned from" in capsys.readouterr().err


def test_rows_after_the_checkpoint_are_done_again(
    train_words: Words, trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    append_log(
        run, {**read_log(run)[-1], "step": 4}
    )  # as if killed between the row and its checkpoint
    assert command(*train_words, "--out", run) == 0
    assert _rows(run) == _rows(trained_run)
    (run / "log.csv").unlink()
    assert command(*train_words, "--out", run) == 0


@pytest.mark.parametrize("spoilt", ["loss", "weights"])
def test_a_training_that_diverges_stops_and_keeps_its_last_checkpoint(
    tmp_path: Path, spoilt: str
) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer, average = torch.optim.SGD(model.parameters(), 1.0), Average(model, 0.5)
    progress = Progress(tmp_path, 1, ["mask"], 0)

    def report(step: int, loss: float) -> None:
        progress.add(step, {"mask": torch.tensor(loss)})
        progress.report(step, model, optimizer, average, dict)

    report(0, 1.0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if spoilt == "weights":
        torch.nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(RunError, match=r"step 2: .* \(the last one stays\): lower --lr"):
        report(1, float("inf") if spoilt == "loss" else 1.0)
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_log_refuses_a_row_with_other_columns(tmp_path: Path) -> None:
    append_log(tmp_path, {"step": 1, "dev_d1": 0.5})
    append_log(tmp_path, {"dev_d1": 0.6, "step": 2})
    assert read_log(tmp_path) == [{"step": "1", "dev_d1": "0.5"}, {"step": "2", "dev_d1": "0.6"}]
    with pytest.raises(ValueError, match="dev_d2"):
        append_log(tmp_path, {"step": 3, "dev_d1": 0.5, "dev_d2": 0.5})
    with (tmp_path / "log.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3


def test_training_on_discards_what_was_derived_from_older_weights(
    train_words: Words, toy_run: Path, tmp_path: Path
) -> None:
    """A gate and plans of other weights must not be exported with these."""
    run = shutil.copytree(toy_run, tmp_path / "run")
    assert command(*train_words, "--out", run, "--steps", "4") == 0
    left = sorted(file.name for file in run.iterdir() if file.suffix != ".png")
    assert left == ["checkpoint.pt", "log.csv", "model.safetensors", "run.json"]
    assert command("evaluate", run) == 1
    assert command("export", run, "--out", tmp_path / "bundle") == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--schedule", "0,0,3"), "holds a run of another config or of other canvases"),
        (("--canvases", "64x96"), "holds a run of another config or of other canvases"),
        (("--canvases", "32x64", "96x96"), "holds a run of another config or of other canvases"),
        (("--canvases", "64x96", "32x64"), "must go from small to large"),
        (("--canvases", "100x96"), "multiples of 32"),
        (("--train", "camvid:train"), "needs --data FOLDER"),
        (("--data", "mine"), "--data mine would not be read: name a data set in it, e.g. --train"),
        (("--gap-weight", "3"), "--gap-weight is for objects that touch"),
        (("--balance", "0.5"), "--balance needs a data set with groups"),
        (("--partly",), "--partly is about --start-from"),
        (("--zoom", "2", "0.5"), "--zoom 2 0.5 must go from small to large"),
    ],
)
def test_train_exits_refuses_with_a_message(
    train_words: Words,
    trained_run: Path,
    capsys: pytest.CaptureFixture[str],
    extra: tuple[str, ...],
    message: str,
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()}
    assert command(*train_words, "--out", trained_run, *extra) == 1
    assert message in capsys.readouterr().err
    assert before == {file.name: file.stat().st_mtime_ns for file in trained_run.iterdir()}


@pytest.fixture
def tune_words(train_words: Words) -> Words:
    """A command that starts from what is named next; at a learning rate of zero nothing else moves
    the weights."""
    named = train_words[: train_words.index("--backbone-weights")]
    at = named.index("--canvases")
    return (*named[:at], *named[at + 1 + len(CANVASES) :], "--lr", "0", "--start-from")


def _same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], names: set[str]) -> bool:
    """Running means and counts aside: those move without a learning rate."""
    floats = [name for name in names if after[name].is_floating_point() and "running" not in name]
    assert len(floats) > 100
    return all(torch.allclose(before[name].float(), after[name], atol=1e-6) for name in floats)


def test_a_run_can_start_from_the_weights_of_another(
    tune_words: Words,
    train_words: Words,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(*tune_words, trained_run, "--out", tmp_path / "tuned") == 0
    assert "are new" not in capsys.readouterr().out
    before, after = (
        load_file(run / "model.safetensors") for run in (trained_run, tmp_path / "tuned")
    )
    assert _same(before, after, {*before})
    assert read_config(tmp_path / "tuned")[:2] == read_config(trained_run)[:2], (
        "canvases, too, are the other's"
    )
    others = (*tune_words, trained_run, "--train", "scenes:4:2", "--scenes", "0.5")
    assert command(*others, "--out", tmp_path / "on-others") == 0
    seen = [("scenes:4:2", None), ("scenes:4", None), ("scenes:100000:17", None)]
    assert trained_on(tmp_path / "on-others") == seen, (
        "its own, those of the run before, and what was mixed in"
    )
    assert (
        command(*tune_words, trained_run, "--schedule", "0,0,3", "--out", tmp_path / "other") == 1
    )
    message = capsys.readouterr().err
    assert "has another config" in message
    assert "add --partly" in message
    weights = train_words[train_words.index("--backbone-weights") + 1]
    words = (*tune_words, trained_run, "--backbone-weights", weights)
    assert command(*words, "--out", tmp_path / "other") == 1
    assert "leave --backbone-weights out" in capsys.readouterr().err
    assert command(*tune_words, tmp_path / "none", "--out", tmp_path / "third") == 1
    assert "is no run" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_run_can_start_from_a_bundle(tune_words: Words, toy_bundle: Path, tmp_path: Path) -> None:
    """What a user has of a shipped model is its bundle, with the matrices in fp16."""
    assert command(*tune_words, toy_bundle, "--out", tmp_path / "tuned") == 0
    before, after = (
        load_file(toy_bundle / "model.safetensors"),
        load_file(tmp_path / "tuned" / "model.safetensors"),
    )
    assert _same(before, after, {*before} & {*after})
    assert read_config(tmp_path / "tuned")[1] == CANVASES
    assert trained_on(tmp_path / "tuned") == [("scenes:4", None)], "its own and the bundle's"


def test_a_run_of_another_config_takes_the_weights_that_fit_and_names_the_others(
    tune_words: Words, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "other"
    words = (
        *tune_words,
        shutil.copytree(trained_run, tmp_path / "source"),
        "--partly",
        "--schedule",
        "0,1,2",
    )
    assert command(*words, "--out", run, "--stop-after", "0") == 0
    said = told_as_new(capsys)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained_run, run))
    anew = {n for n in after if n not in before or before[n].shape != after[n].shape}
    assert {n for n in after if any(fnmatch(n, pattern) for pattern in said)} == anew
    assert "encoder.layers.0.attention.offsets.weight" in anew, (
        "it looks at two scales, where it looked at one"
    )
    assert _same(before, after, {*after} - anew)
    shutil.rmtree(
        tmp_path / "source"
    )  # a run that was stopped has its own checkpoint to go on from
    assert command(*words, "--out", run) == 0
    assert [row["step"] for row in read_log(run)] == ["1", "2", "3"]


def test_another_backbone_brings_its_own_weights_and_the_rest_is_the_other_run_s(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = MobileNetV2()
    layers = {"features.0.0": backbone.stem}
    for i, block in enumerate(backbone.blocks, 1):
        *first, last = [f"features.{i}.conv.{j}" for j in range(len(block.layers))]
        layers |= zip([*(f"{name}.0" for name in first), last], block.layers, strict=True)
    arrays = {
        f"{name}.{part}": getattr(layer.conv, part).detach().numpy()
        for name, layer in layers.items()
        for part in ("weight", "bias")
    }
    np.savez(tmp_path / "v2.npz", **arrays)
    options = InitialOptions(
        start_from=trained_run,
        partly=True,
        backbone="mobilenet_v2",
        backbone_weights=tmp_path / "v2.npz",
    )
    model, canvases = initial_model(options, Scenes(1), None)
    assert canvases == CANVASES
    found, before = model.state_dict(), load_file(trained_run / "model.safetensors")
    for name, value in backbone.state_dict().items():
        assert torch.equal(found[f"backbone.{name}"], value), name
    said = told_as_new(capsys)
    assert said[0] == "backbone.*", "what fits by chance means nothing there"
    assert {name.partition(".")[0] for name in said} == {"backbone", "lateral", "project"}
    kept = [name for name in found if not any(fnmatch(name, pattern) for pattern in said)]
    assert all(torch.equal(found[name], before[name]) for name in kept)


def told_as_new(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names, or patterns of names, of the tensors that --partly leaves as they were."""
    return capsys.readouterr().out.splitlines()[0].partition("these are new: ")[2].split(", ")


def test_scenes_cannot_be_mixed_with_other_classes(
    train_words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "model_export.training.train_exits.open_dataset", lambda spec, root, cache: Stripes()
    )
    assert command(*train_words, "--out", tmp_path / "run", "--scenes", "0.1") == 1
    assert "leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
