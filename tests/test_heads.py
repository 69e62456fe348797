"""Heads of several tasks: their answers, and what a width is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_export.network.config import Config, Head, streets
from model_export.network.heads import (
    Boxes,
    DepthHead,
    DetectionHead,
    Proposals,
    SemanticHead,
    distances,
)
from model_export.network.segmenter import Segmenter
from model_export.network.slimmable import Branch, SlimConv, SlimLinear, SlimNorm
from model_export.training.runs import RunError, save_model, write_config
from model_export.training.task_net import TaskNet, full, sandwich
from model_export.training.train_tasks import Options, config_of, initial_network, resized
from service.bundle import Canvas, Shape
from tests.small_network import randomised, worst
from tests.toy import command

SHAPES = [(2, 3), (4, 6), (8, 12)]


def given(channels: int = 64, batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    maps = [torch.randn(batch, channels, *shape) for shape in SHAPES]
    return torch.randn(batch, channels, 16, 24), maps


# ---- layers


def test_a_width_takes_the_first_channels() -> None:
    x = torch.randn(2, 16, 5, 6)
    conv, norm, linear = SlimConv(16, 24, 3), SlimNorm(24), SlimLinear(16, 24)
    whole, part = conv(x), conv(x, 8)
    assert part.shape == (2, 8, 5, 6)
    assert worst(part, whole[:, :8]) < 1e-5
    assert worst(norm(part), norm(whole)[:, :8]) < 1e-5, "a group's statistics are its own"
    assert worst(linear(x[:, :, 0].mT, 8), linear(x[:, :, 0].mT)[..., :8]) < 1e-5


def test_a_narrow_branch_depends_on_its_own_weights_alone() -> None:
    branch = randomised(Branch(16, 32))
    x = torch.randn(1, 16, 4, 4)
    narrow = branch(x, 0.25)
    assert narrow.shape == (1, 8, 4, 4)
    with torch.no_grad():
        for conv in (branch.reduce, *branch.convs):
            conv.weight[8:] += 1
    assert worst(branch(x, 0.25), narrow) == 0
    assert worst(branch(x, 1.0)[:, :8], narrow) > 0.1


# ---- heads


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_semantic_answers_for_every_class(width: float) -> None:
    config = streets()
    head = randomised(SemanticHead(config, config.tasks[0]))
    (answer,) = head(*given(), width)
    assert answer.classes.shape == (2, 11, 12)
    assert answer.masks.shape == (2, 11, 32, 48), "four values for each cell of stride 4"


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_depth_stays_in_its_range(width: float) -> None:
    config = streets()
    head = randomised(DepthHead(config, config.tasks[2]))
    depth = head(*given(), width).exp()
    assert depth.shape == (2, 16, 24)
    assert depth.min() >= 0.999
    assert depth.max() <= 120.1


def test_a_value_belongs_to_its_part_of_a_cell() -> None:
    """One that is moved moves every second row and column, beginning with its own."""
    config = streets()
    lateral, maps = given()
    head = randomised(SemanticHead(config, config.tasks[0]))
    head.layers = head.layers[:0]  # between them the mean of the parts counts, too
    before = head(lateral, maps)[0].masks
    with torch.no_grad():
        head.embed_mask.bias[64:128] += 1  # of the second part: at the top right
    moved = (before != head(lateral, maps)[0].masks).flatten(0, -3).any(0)
    assert moved[::2, 1::2].all()
    assert moved.sum() == moved[::2, 1::2].numel()


@pytest.mark.parametrize(("width", "queries", "layers"), [(0.25, 12, 1), (0.5, 24, 1), (1, 48, 2)])
def test_detection_has_queries_and_layers_by_width(width: float, queries: int, layers: int) -> None:
    config = streets()
    head = randomised(DetectionHead(config, replace(config.tasks[1], layers=2)))
    proposals, *answers = head(*given(), width)
    assert isinstance(proposals, Proposals)
    assert proposals.scores.shape == (2, 96, 3)
    assert len(answers) == layers
    for answer in answers:
        assert isinstance(answer, Boxes)
        assert answer.classes.shape == (2, queries, 4)
        assert ((answer.boxes > 0) & (answer.boxes < 1)).all()


def test_a_new_detection_head_proposes_boxes_around_its_cells() -> None:
    config = streets()
    proposals = DetectionHead(config, config.tasks[1])(*given())[0]
    assert worst(proposals.boxes[0, :, :2], proposals.reference) < 1e-3
    assert proposals.scores.sigmoid().max() < 0.2


def test_queries_are_the_best_proposals() -> None:
    config = streets()
    head = DetectionHead(config, replace(config.tasks[1], queries=4)).eval()
    proposals, first = head(*given(batch=1))
    best = proposals.scores.amax(-1).topk(4).indices[0]
    assert worst(first.boxes[0], proposals.boxes[0, best]) < 1e-4, "a new head refines nothing"


def test_one_image_does_not_change_another() -> None:
    config = streets()
    lateral, maps = given()
    for place, kind in enumerate((SemanticHead, DetectionHead, DepthHead)):
        head = kind(config, config.tasks[place]).eval()
        both, alone = (head(lateral[:n], [m[:n] for m in maps]) for n in (2, 1))
        if kind is SemanticHead:
            both, alone = both[0].masks, alone[0].masks
        elif kind is DetectionHead:
            both, alone = both[-1].boxes, alone[-1].boxes
        assert worst(both[:1], alone) < 1e-4 * max(1.0, both.abs().max().item())


def test_attention_looks_around_boxes_by_their_size() -> None:
    boxes, places = torch.rand(2, 5, 4), torch.rand(7, 2)
    gaps = (boxes[:, :, None, :2] - places) / boxes[:, :, None, 2:].clamp(min=0.02)
    naive = gaps.square().sum(-1)
    assert worst(distances(boxes, places) / naive, torch.ones_like(naive)) < 1e-5


# ---- configs


def test_a_config_survives_json() -> None:
    import json

    config = streets()
    again = Config.from_dict(json.loads(json.dumps(config.as_dict())))
    assert again == config
    assert again.tasks[2].range == (1.0, 120.0)


def test_a_network_has_heads_or_one_decoder() -> None:
    several = Segmenter(streets())
    assert list(several.heads) == ["semantic", "detection", "depth"]
    assert several.decoder is None
    assert not any(name.startswith("decoder.") for name in several.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (0.5,)}, "must ascend and end with 1"),
        ({"widths": (1.0, 0.5)}, "must ascend and end with 1"),
        ({"widths": (0.1, 1.0)}, "multiple of 8"),
    ],
)
def test_widths_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Head("depth", "depth", **change)


def test_two_heads_of_one_name_are_refused() -> None:
    config = streets()
    with pytest.raises(ValueError, match="two heads have one name"):
        replace(config, tasks=(config.tasks[0], config.tasks[0]))


# ---- training


def options(**changes: object) -> Options:
    values = dict.fromkeys(Options.__dataclass_fields__) | {
        "heads": ("semantic", "depth"),
        "sampling": "sandwich",
        "batch": 8,
    }
    return Options(**(values | changes))


def test_a_batch_is_divided_among_the_full_a_random_and_the_smallest_network() -> None:
    import numpy as np

    config, seen = streets(), set()
    for seed in range(40):
        first, between, last = sandwich(config, 8, np.random.default_rng(seed))
        assert [first.rows, between.rows, last.rows] == [slice(0, 4), slice(4, 6), slice(6, 8)]
        assert (first.knobs.depth, first.knobs.width, {*first.widths.values()}) == (4, 1.0, {1.0})
        assert (last.knobs.depth, last.knobs.width, {*last.widths.values()}) == (1, 0.25, {0.25})
        seen.add((between.knobs.depth, tuple(between.widths.values())))
    assert len(seen) > 20, "widths of heads are drawn by themselves"
    (whole,) = full(config, 8, np.random.default_rng(0))
    assert whole.rows == slice(0, 8)


def test_a_network_of_fixed_width_has_one_width() -> None:
    config = config_of(options(sampling="full"), 11)
    assert config.widths == (1.0,)
    assert [head.widths for head in config.tasks] == [(1.0,), (1.0,)]
    with pytest.raises(RunError, match="--batch 3"):
        initial_network(options(batch=3), 11, None)


def written(run: Path, model: Segmenter) -> Path:
    """The run of a network."""
    canvases = (Canvas.of([Shape(64, 96)]),)
    write_config(run, model.config, canvases, {}, [("scenes:1:1", None)], [])
    save_model(run, model.state_dict())
    return run


def test_a_head_is_cut_to_its_first_channels_and_all_else_stays(tmp_path: Path) -> None:
    config = streets()
    semantic, own, depth = config.tasks
    large = replace(own, channels=2 * own.channels, queries=90, layers=3)
    torch.manual_seed(1)
    source = Segmenter(replace(config, tasks=(semantic, large, depth))).eval()
    model, canvases = resized(written(tmp_path, source), ["detection"], 11)
    assert model.config == config
    assert [canvas.name for canvas in canvases] == ["c96"]
    head, theirs = model.heads["detection"].eval(), source.heads["detection"]
    assert torch.equal(head.propose_class.weight, theirs.propose_class.weight[:, : own.channels])
    _, maps = given()
    ours, whole = (part(None, maps, width)[0].boxes for part, width in ((head, 1), (theirs, 0.5)))
    assert worst(ours, whole) < 1e-5, "as the larger one at half of its width"
    kept = {n: v for n, v in source.state_dict().items() if not n.startswith("heads.detection.")}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())


def coarse(**changes: object) -> Config:
    """The recipe's network as it was before its heads told parts of a cell apart."""
    config = replace(streets(), detail=False, **changes)
    return replace(config, tasks=tuple(replace(head, fine=1) for head in config.tasks))


def test_finer_heads_begin_with_the_answers_of_the_coarser_ones(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = randomised(Segmenter(coarse())).eval()
    model, _ = resized(written(tmp_path, source), ["semantic", "depth"], 11)
    model.eval()
    assert model.config == streets()
    images = torch.randint(0, 255, (1, 64, 96, 3), dtype=torch.uint8)
    (ours, maps), (theirs, _) = model.features(images), source.features(images)
    assert torch.equal(ours, theirs), "what the pixels add begins with nothing"
    for width in (0.25, 1.0):
        fine, plain = (m.heads["semantic"](ours, maps, width)[0].masks for m in (model, source))
        assert worst(fine, plain.repeat_interleave(2, 2).repeat_interleave(2, 3)) < 1e-3
        depths = (m.heads["depth"](ours, maps, width) for m in (model, source))
        assert worst(*depths) < 1e-4


def test_lateral_features_learn_only_with_all_heads_that_see_them(tmp_path: Path) -> None:
    run = written(tmp_path, Segmenter(coarse()))
    for names, learns in ((["semantic", "depth"], True), (["depth"], False)):
        model, _ = resized(run, names, 11)
        assert model.config.detail == learns
        TaskNet(model, 1.0, "equal", names)
        learning = {
            name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad
        }
        assert learning == ({"lateral", "detail", "heads"} if learns else {"heads"})


def test_a_head_that_is_smaller_than_the_recipe_is_named(tmp_path: Path) -> None:
    config = streets()
    semantic, own, depth = config.tasks
    small = Segmenter(replace(config, tasks=(semantic, replace(own, channels=32), depth)))
    with pytest.raises(RunError, match=r"detection: in .* smaller than the recipe's"):
        resized(written(tmp_path / "small", small), ["detection"], 11)
    shallow = Segmenter(replace(config, tasks=(replace(semantic, layers=1), own, depth)))
    with pytest.raises(RunError, match=r"semantic depth: in .* smaller than the recipe's"):
        resized(written(tmp_path / "shallow", shallow), ["semantic", "depth"], 11)
    other = Segmenter(replace(config, tasks=(semantic, depth)))
    with pytest.raises(RunError, match=r"--only detection: .* has no head of this name"):
        resized(written(tmp_path / "other", other), ["detection"], 11)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train", "camvid:train"), "--train camvid:train: only scenes:COUNT"),
        (("--chances", "1", "2"), "must be one for each of 3 canvases"),
        (("--batch", "2"), "--batch 2 must be at least 4"),
        (("--only", "detection"), "--start-from and --only go together"),
        (("--start-from", "runs/x"), "--start-from and --only go together"),
        (
            ("--start-from", "runs/x", "--only", "detection", "--heads", "depth"),
            "leave --heads, --canvases",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    words: tuple[str, ...], message: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train-tasks", "--out", tmp_path / "run", *words) == 1
    assert message in capsys.readouterr().err
