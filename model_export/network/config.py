"""The sizes and parts of a network. `tiny()` is what ships, `standard()` what it is compared with.

`base()` has Mask2Former's published sizes (arXiv 2112.01527).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

STANDARD = (3, 3, 3, 3, 3, 3)  # every layer updates all three scales


def proscale(p1: int, p2: int, p3: int) -> tuple[int, ...]:
    """PRO-SCALE's progressive token length (arXiv 2404.14657): p1 layers on stride 32, p2 on 32 and
    16, p3 on all."""
    return (1,) * p1 + (2,) * p2 + (3,) * p3


IMPORTED = "transformers"  # the name of every backbone that came with a checkpoint


@dataclass(frozen=True, slots=True)
class ImportedBackbone:
    """A backbone of transformers that a checkpoint was trained with.

    about: the dictionary of its configuration, with "model_type". mean, std: of the image's
    normalisation, per channel (red, green, blue), in 0..255.
    """

    about: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImportedBackbone:
        return cls(values["about"], tuple(values["mean"]), tuple(values["std"]))


@dataclass(frozen=True, slots=True)
class Head:
    """One of several heads on one encoder (network/heads.py).

    name: of the head in its bundle. classes: those of its task; 0 of depth. channels: of its
    convolutions; queries, layers, ffn: of its decoder, as far as its task has them. widths: shares
    of all that it is trained to run with, ascending; the last is 1. unit, range: of depth, the
    smallest and the largest value.
    """

    name: str
    task: Literal["semantic", "detection", "depth"]
    classes: int = 0
    channels: int = 64
    queries: int = 0
    layers: int = 0
    ffn: int = 256
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)
    unit: str = ""
    range: tuple[float, float] = (0.0, 0.0)
    fine: int = 1

    def __post_init__(self) -> None:
        if list(self.widths) != sorted(set(self.widths)) or self.widths[-1:] != (1.0,):
            raise ValueError(f"head {self.name}: widths {self.widths} must ascend and end with 1")
        if any(self.channels * width % 8 for width in self.widths):
            raise ValueError(
                f"head {self.name}: each width's share of channels {self.channels} must be a "
                f"multiple of 8"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Head:
        lists = {name: tuple(values[name]) for name in ("widths", "range")}
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of one network.

    task: a name in tasks.TASKS. classes: the network's channels, as the task has them.
    schedule: for each encoder layer how many scales it updates, from the coarsest: 1 = stride 32, 2
        = 32 and 16, 3 = 32, 16 and 8. Its length is the number of layers and of exits.
    recalibration: PRO-SCALE's token re-calibration of a coarse scale by the finest one before its
        first layer.
    top_down: the coarser, encoded scales are added to a scale that no layer has reached yet, so
        that early exits give the decoder fine features with context. Without it they are the
        backbone's own.
    pause_after: after how many layers the token head decides which stride-8 tokens later layers may
        skip (PAUMER, arXiv 2311.00586); None = the network has no such head and never pauses.
    widths: shares of the encoder's FFN channels that the network is trained to run with, the full
        one included.
    pixel_embedding: what follows the stride-4 merge: Mask2Former's 3x3 convolution, PRO-SCALE's
        light pixel embedding (max-pooling), or a depthwise 3x3 convolution.
    matching: "hungarian" as in Mask2Former, or "class": query i answers for class i (MaskFormer's
        fixed matching, arXiv 2107.06278; queries == classes).
    head: what leaves the network: "dense", the probabilities of its channels for every cell, or
        "queries", the class and mask logits of each query, from which the task makes segments.
    things: with such a head, whether each class is countable.
    thresholds: with such a head, (score, mask, overlap) as service.bundle.Thresholds has them.
    imported: the backbone of a checkpoint; None: one of our own.
    front_head: whether a token head before the encoder tells the gate about difficulty. False of a
        checkpoint that nobody has taught one.
    exit_adapters: whether every exit but the last brings its features nearer to those of the last
        (network.encoder.ExitAdapter), which leaves the full plan what it was.
    detail: whether the lateral features see the pixels themselves beside the backbone's map at
        stride 4, for heads that answer finer than that (Head.fine).
    tasks: several heads; then matching, head, decoder and pixel embedding do not count, and task
        and classes are of the token head, which the gate sees by. Empty: the one head of `task`.
    """

    name: str
    task: Literal["semantic", "instance", "panoptic"]
    classes: int
    queries: int
    backbone: Literal[
        "mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "efficientnet_lite2", "transformers"
    ] = "mobilenet_v1"
    channels: int = 128
    heads: int = 8
    points: int = 4
    schedule: tuple[int, ...] = STANDARD
    encoder_ffn: int = 512
    recalibration: bool = False
    top_down: bool = False
    pause_after: int | None = None
    widths: tuple[float, ...] = (1.0,)
    pixel_embedding: Literal["conv", "light", "depthwise"] = "depthwise"
    decoder_layers: int = 3
    decoder_ffn: int = 512
    matching: Literal["hungarian", "class"] = "class"
    head: Literal["dense", "queries"] = "dense"
    things: tuple[bool, ...] = ()
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.8)
    imported: ImportedBackbone | None = None
    front_head: bool = True
    exit_adapters: bool = False
    detail: bool = False
    tasks: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        if any(scales not in (1, 2, 3) for scales in self.schedule) or not self.schedule:
            raise ValueError(f"schedule {self.schedule} must name 1, 2 or 3 scales for every layer")
        if list(self.schedule) != sorted(self.schedule):
            raise ValueError(
                f"schedule {self.schedule} must not drop a scale that an earlier layer updates"
            )
        if self.pause_after is not None and not 0 <= self.pause_after < len(self.schedule):
            raise ValueError(
                f"pause_after {self.pause_after} must be 0 to {len(self.schedule) - 1}, or None"
            )
        if 1.0 not in self.widths or not all(0 < width <= 1 for width in self.widths):
            raise ValueError(f"widths {self.widths} must be in (0, 1] and hold 1")
        if self.channels % self.heads or self.channels % 32:
            raise ValueError(
                f"channels {self.channels} must be a multiple of 32 and of heads {self.heads}"
            )
        if self.matching == "class" and self.queries != self.classes:
            raise ValueError(
                f"class matching needs queries == classes, not {self.queries} and {self.classes}"
            )
        if len(self.things) != (self.classes if self.head == "queries" else 0):
            raise ValueError(
                f"things must tell of each class of a queries head, not of {len(self.things)}"
            )
        if (self.imported is not None) != (self.backbone == IMPORTED):
            raise ValueError(f"backbone {self.backbone!r} must be {IMPORTED!r} if it is imported")
        if len({head.name for head in self.tasks}) < len(self.tasks):
            raise ValueError(f"two heads have one name: {[head.name for head in self.tasks]}")

    @property
    def exits(self) -> int:
        return len(self.schedule)

    @property
    def glanced(self) -> int | None:
        """The classes that the front head tells the gate about; None = there is no such head."""
        return self.classes if self.front_head else None

    @property
    def pauses_from(self) -> int | None:
        """The first exit whose encoder can leave tokens alone; None = there is none."""
        if self.pause_after is None or 3 not in self.schedule:
            return None
        return max(self.pause_after, self.schedule.index(3)) + 1

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Config:
        values = dict(values)
        for name in ("schedule", "widths", "things", "thresholds"):  # JSON has lists only
            if name in values:
                values[name] = tuple(values[name])
        if values.get("imported") is not None:
            values["imported"] = ImportedBackbone.from_dict(values["imported"])
            values.setdefault("front_head", False)  # before there was a way to teach one
        values["tasks"] = tuple(Head.from_dict(head) for head in values.get("tasks", ()))
        return cls(**values)


def tiny(classes: int = 11) -> Config:
    """The shipped size: 128 channels, one query per class, made for CPUs. Depth, tokens and width
    can all be cut."""
    return Config(
        name="tiny",
        task="semantic",
        classes=classes,
        queries=classes,
        schedule=proscale(2, 2, 2),
        top_down=True,
        pause_after=4,
        widths=(0.25, 0.5, 1.0),
    )


def standard(classes: int = 11) -> Config:
    """What `tiny` is compared with: the same sizes with Mask2Former's encoder, six layers over all
    scales."""
    return Config(name="standard", task="semantic", classes=classes, queries=classes)


def base(classes: int = 11) -> Config:
    """Mask2Former's published sizes: 256 channels, FFN 1024, 100 queries, 9 decoder layers with FFN
    2048."""
    return Config(
        name="base",
        task="semantic",
        classes=classes,
        queries=100,
        channels=256,
        encoder_ffn=1024,
        pixel_embedding="conv",
        decoder_layers=9,
        decoder_ffn=2048,
        matching="hungarian",
    )


COUNTABLE = 3  # classes of the generated streets that have boxes
DEPTHS = (1.0, 120.0)  # metres, from the nearest to the farthest that are told apart


def streets(classes: int = 11, heads: Sequence[str] = ("semantic", "detection", "depth")) -> Config:
    """Several heads on one small encoder, for the generated streets. Depth and width of the encoder
    can be cut, and the width of each head, which make up most of the cost."""
    known = (
        Head("semantic", "semantic", classes, 64, queries=classes, layers=3, fine=2),
        Head("detection", "detection", COUNTABLE, 64, queries=48, layers=1),
        Head("depth", "depth", 0, 64, unit="m", range=DEPTHS),
    )
    by_name = {head.name: head for head in known}
    return Config(
        name="streets",
        task="semantic",
        classes=classes,
        queries=classes,
        backbone="mobilenet_v2",
        channels=64,
        schedule=proscale(1, 1, 2),
        encoder_ffn=256,
        top_down=True,
        widths=(0.25, 0.5, 1.0),
        detail=True,
        tasks=tuple(by_name[name] for name in heads),
    )


CONFIGS = {"tiny": tiny, "standard": standard, "base": base}
