"""What a network is made of. `tiny()` ships, `base()` has Mask2Former's published sizes (arXiv 2112.01527)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

STANDARD = (3, 3, 3, 3, 3, 3)  # every layer updates all three scales


def proscale(p1: int, p2: int, p3: int) -> tuple[int, ...]:
    """PRO-SCALE's progressive token length (arXiv 2404.14657): p1 layers on stride 32, p2 on 32 and 16, p3 on all."""
    return (1,) * p1 + (2,) * p2 + (3,) * p3


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of one network.

    schedule: for each encoder layer, how many scales it updates, from the coarsest: 1 = stride 32, 2 = 32 and 16,
        3 = 32, 16 and 8. Its length is the number of layers and of exits.
    recalibration: PRO-SCALE's token re-calibration of a coarse scale by the finest one before its first layer.
    pixel_embedding: what follows the stride-4 merge: Mask2Former's 3x3 convolution, PRO-SCALE's light pixel embedding
        (max-pooling), or a depthwise 3x3 convolution.
    matching: "hungarian" as in Mask2Former, or "class": query i answers for class i (MaskFormer's fixed matching,
        arXiv 2107.06278; semantic task only, queries == classes).
    """

    name: str
    task: Literal["semantic"]
    classes: int
    queries: int
    backbone: Literal["mobilenet_v1", "mobilenet_v2"] = "mobilenet_v1"
    channels: int = 128
    heads: int = 8
    points: int = 4
    schedule: tuple[int, ...] = STANDARD
    encoder_ffn: int = 512
    recalibration: bool = False
    pixel_embedding: Literal["conv", "light", "depthwise"] = "depthwise"
    decoder_layers: int = 3
    decoder_ffn: int = 512
    matching: Literal["hungarian", "class"] = "class"
    gate_hidden: int = 32

    def __post_init__(self) -> None:
        if any(scales not in (1, 2, 3) for scales in self.schedule) or not self.schedule:
            raise ValueError(f"schedule {self.schedule} must name 1, 2 or 3 scales for every layer")
        if list(self.schedule) != sorted(self.schedule):
            raise ValueError(f"schedule {self.schedule} must not drop a scale that an earlier layer updates")
        if self.channels % self.heads or self.channels % 32:
            raise ValueError(f"channels {self.channels} must be a multiple of 32 and of heads {self.heads}")
        if self.matching == "class" and self.queries != self.classes:
            raise ValueError(f"class matching needs queries == classes, not {self.queries} and {self.classes}")

    @property
    def exits(self) -> int:
        return len(self.schedule)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Config:
        values = dict(values)
        values["schedule"] = tuple(values["schedule"])  # JSON has lists only
        return cls(**values)


def tiny(classes: int = 11) -> Config:
    """The shipped size: 128 channels, one query per class, made for CPUs."""
    return Config(name="tiny", task="semantic", classes=classes, queries=classes)


def base(classes: int = 11) -> Config:
    """Mask2Former's published sizes: 256 channels, FFN 1024, 100 queries, 9 decoder layers with FFN 2048."""
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
        gate_hidden=64,
    )


CONFIGS = {"tiny": tiny, "base": base}
