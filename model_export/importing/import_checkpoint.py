"""A Mask2Former that transformers saved -> a run, whose full plan is the checkpoint.

Everything is read from the folder: nothing is downloaded, and nothing of it is executed. What the
network cannot compute as transformers does is refused by the name of its field.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from model_export.data.class_names import named_in
from model_export.data.coco_files import flag
from model_export.importing import mask2former
from model_export.importing.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    read_json,
)
from model_export.tasks import IMPORTED
from model_export.training.initial_weights import parse_canvases
from model_export.training.runs import discard_derived, shapes_of, write_config
from service.bundle import Canvas, is_line

SMALLER = (0.5, 0.75)  # of the checkpoint's size: canvases that need no training
MOST_CLASSES = 255  # that a bundle can have
DEFAULT_NAMES = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers leaves them out when it saves
# What the checkpoint's own configs may name, and what transformers takes by default.
THRESHOLDS = {"threshold": 0.5, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder that save_pretrained wrote: config.json, ...")
    add("--out", type=Path, required=True, help="the run's folder")
    add(
        "--weights",
        type=Path,
        help="a state dict of the original Mask2Former (detectron2) or of mmdetection, in place of "
        "the folder's own weights; .safetensors, or of torch.save with nothing but tensors in it",
    )
    add("--task", choices=IMPORTED, help="default: as the checkpoint's name says")
    add(
        "--things",
        help="the countable classes of a panoptic checkpoint: indices, as 0-79; names with "
        "commas; or a JSON file that says isthing of each, as COCO's panoptic annotations do",
    )
    add(
        "--canvases",
        nargs="+",
        metavar="CANVAS",
        help="sizes to look at images, height x width, from small to large, as for train-exits; "
        "default: the checkpoint's own size, and half and three quarters of it",
    )
    about = "default: as the checkpoint's configs say, else that of transformers"
    add("--threshold", type=float, help=f"least score of a segment, 0..1; {about}, 0.5")
    add("--mask-threshold", type=float, help=f"least probability inside a mask; {about}, 0.5")
    add(
        "--overlap-threshold",
        type=float,
        help=f"share of a mask that must be left after the overlaps; {about}, 0.8",
    )


def main(args: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(args.checkpoint, args.weights)
    names = class_names(checkpoint)
    task = args.task or task_of(checkpoint)
    things = things_of(args.things, names, task)
    canvases = parse_canvases(args.canvases or default_canvases(checkpoint))
    model = mask2former.load(checkpoint)
    if model.config.num_labels != len(names):
        raise checkpoint.refuse(
            "id2label",
            f"names {len(names)} classes, and the network has {model.config.num_labels}: name each",
        )
    thresholds = thresholds_of(
        checkpoint, args.threshold, args.mask_threshold, args.overlap_threshold
    )
    config = mask2former.config_of(checkpoint, model, task, things, thresholds)
    tell_of_raw_pixels(checkpoint)
    network = mask2former.build(model, config)
    canvases = usable(checkpoint, network, canvases, named=args.canvases is not None)
    arguments = {"imported": args.checkpoint.resolve().name, "transformers": version()}
    write_config(args.out, config, canvases, arguments, [], names, network.state_dict())
    discard_derived(args.out)
    print(json.dumps(summary(args.out, network, task, names, things, canvases, thresholds)))


def tell_of_raw_pixels(checkpoint: Checkpoint) -> None:
    """Where a processor does not normalise, training often did so outside of it."""
    if not checkpoint.processor.get("do_normalize", True):
        print(
            f"{checkpoint.processor_file}: do_normalize is false, and so the network gets "
            f"pixels that are not normalised. If it was trained on normalised ones, set "
            f"do_normalize, do_rescale, image_mean and image_std there, and import again",
            file=sys.stderr,
        )


def usable(
    checkpoint: Checkpoint,
    network: mask2former.Segmenter,
    canvases: Sequence[Canvas],
    *,
    named: bool,
) -> tuple[Canvas, ...]:
    """The canvases that the backbone can take: some have learned positions for one size alone.

    Says which are left out. Raises CheckpointError where the largest is none of them, or one that
    the user named.
    """
    taken = []
    for canvas in canvases:
        try:
            mask2former.check_maps(checkpoint, network, canvas)
        except mask2former.SizeError as error:
            if named or canvas is canvases[-1]:
                raise
            print(f"left out: {error}", file=sys.stderr)
        else:
            taken.append(canvas)
    return tuple(taken)


def summary(
    run: Path,
    network: mask2former.Segmenter,
    task: str,
    names: Sequence[str],
    things: Sequence[bool],
    canvases: Sequence[Canvas],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    config = network.config
    assert config.imported is not None
    return {
        "run": str(run),
        "task": task,
        "backbone": config.imported.about["model_type"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "classes": len(names),
        "things": sum(things),
        "queries": config.queries,
        "layers": {"encoder": config.exits, "decoder": config.decoder_layers},
        "canvases": shapes_of(canvases),
        "thresholds": list(thresholds),
    }


def version() -> str:
    return str(mask2former.transformers().__version__)


def class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """In the order of their indices. Raises CheckpointError."""
    given = checkpoint.config.get("id2label", DEFAULT_NAMES)
    if not isinstance(given, dict) or not given:
        raise checkpoint.refuse("id2label", "must name the classes, as {'0': NAME, ...}")
    try:
        table = {int(index): name for index, name in given.items()}
    except ValueError as error:
        raise checkpoint.refuse("id2label", f"its keys must be indices: {error}") from error
    for index, name in table.items():
        if not isinstance(name, str) or not is_line(name):
            raise checkpoint.refuse("id2label", f"{index}: {name!r} must be one line of text")
        if list(table.values()).count(name) > 1:
            raise checkpoint.refuse("id2label", f"two classes are named {name!r}: rename one")
    if len(table) > MOST_CLASSES:
        raise checkpoint.refuse("id2label", f"{len(table)} classes; at most {MOST_CLASSES}")
    missing = next((index for index in range(len(given)) if index not in table), None)
    if missing is not None:
        raise checkpoint.refuse("id2label", f"must name every class from 0 on; {missing} lacks one")
    return tuple(table[index] for index in range(len(table)))


def task_of(checkpoint: Checkpoint) -> Literal["semantic", "instance", "panoptic"]:
    """As the name under which the checkpoint was published, or that of its folder, says. Raises
    CheckpointError."""
    names = (str(checkpoint.config.get("_name_or_path", "")), checkpoint.folder.resolve().name)
    found = [task for task in IMPORTED if any(task in name.lower() for name in names)]
    if len(found) != 1:
        raise CheckpointError(
            f"{checkpoint.folder} does not say what it was trained for: name it by --task "
            f"{'|'.join(IMPORTED)}"
        )
    return cast(Literal["semantic", "instance", "panoptic"], found[0])


def things_of(given: str | None, names: Sequence[str], task: str) -> tuple[bool, ...]:
    """Whether each class is countable. Raises CheckpointError."""
    _, all_or_none = IMPORTED[task]
    if all_or_none is not None:
        if given is not None:
            raise CheckpointError(f"--things is for a panoptic checkpoint, and this one is {task}")
        return (all_or_none,) * len(names)
    if given is None:
        raise CheckpointError(
            "a checkpoint does not say which of its classes are things (countable): name them by "
            "--things, as 0-79, as person,car, or by the JSON file of COCO's panoptic annotations"
        )
    if given.endswith(".json"):
        return _things_in(Path(given), names)
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", given):
        ends = [part.partition("-") for part in given.split(",")]
        chosen = {k for low, _, high in ends for k in range(int(low), int(high or low) + 1)}
        if not chosen or max(chosen) >= len(names):
            raise CheckpointError(f"--things {given}: the classes are 0 to {len(names) - 1}")
        return tuple(index in chosen for index in range(len(names)))
    wanted = named_in(given, names)
    if not wanted:
        raise CheckpointError(f"--things {given}: it names no class")
    for name in wanted:
        if name not in names:
            raise CheckpointError(f"--things {given}: no class is named {name!r}")
    return tuple(name in wanted for name in names)


def _things_in(path: Path, names: Sequence[str]) -> tuple[bool, ...]:
    if not path.is_file():
        raise CheckpointError(f"--things {path}: there is no such file")
    content = read_json(path)
    entries = content.get("categories", content.get("classes", []))
    try:
        table = {str(entry["name"]): flag(entry, "isthing") for entry in entries}
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f'{path}: "categories" must be a list of {{"name": ..., "isthing": 0 or 1}}'
        ) from error
    for name in names:
        if name not in table:
            raise CheckpointError(f"{path} does not say of the class {name!r} if it is a thing")
    return tuple(table[name] for name in names)


def default_canvases(checkpoint: Checkpoint) -> list[str]:
    """The checkpoint's own size, and smaller ones. Raises CheckpointError.

    Where only the edges are given, landscapes and portraits of 4:3 with that shortest edge.
    """
    given = checkpoint.processor.get("size")
    size = given if isinstance(given, dict) else {}
    if type(given) is int:
        size = {"shortest_edge": given, "longest_edge": checkpoint.processor.get("max_size", 1333)}
    shapes: list[tuple[int, int]] = []
    if type(size.get("height")) is int and type(size.get("width")) is int:
        shapes = [(size["height"], size["width"])]
    elif type(short := size.get("shortest_edge")) is int:
        longest = size.get("longest_edge")
        long = min(round(short * 4 / 3), longest if type(longest) is int else 2 * short)
        shapes = [(short, long), (long, short)]
    if not shapes or min(min(sides) for sides in shapes) < 32:
        raise checkpoint.refuse_pixels(
            "size",
            f"{given!r} names no size of at least 32 pixels: name the sizes by --canvases",
        )
    canvases: dict[int, str] = {}  # by the longest side, which names them; small sizes share one
    for share in (*SMALLER, 1):
        sides = dict.fromkeys((_multiple(h * share), _multiple(w * share)) for h, w in shapes)
        canvases[max(map(max, sides))] = ",".join(f"{h}x{w}" for h, w in sides)
    return list(canvases.values())


def _multiple(pixels: float) -> int:
    """Of 32, rounded up."""
    return max(32, -int(-pixels // 32) * 32)


def thresholds_of(checkpoint: Checkpoint, *given: float | None) -> tuple[float, float, float]:
    """(score, mask, overlap), given or as the checkpoint's configs say. Raises CheckpointError."""
    values = []
    for value, (field, default) in zip(given, THRESHOLDS.items(), strict=True):
        configured = checkpoint.processor.get(field, checkpoint.config.get(field, default))
        chosen = configured if value is None else value
        if type(chosen) not in (int, float) or not 0 <= chosen <= 1:
            raise CheckpointError(f"{field}: {chosen!r} must be in 0..1")
        values.append(float(chosen))
    return values[0], values[1], values[2]
