"""What a task is: how a head's tensors become masks, and what the answers look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.bundle import ClassInfo, TensorSpec
from service.core import Geometry
from service.errors import BundleError
from service.pixels.rle import RunLengths, run_lengths
from service.pixels.runs import Runs
from service.tasks.boxes import Boxes
from service.tasks.values import Values

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
Labels: TypeAlias = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Region:
    """One class or object of an image.

    value: its value in the label map.
    id: its id in the answer, from 1 on.
    score: how certain it is, 0..1, as the task defines it.
    """

    value: int
    id: int
    class_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A region with its pixels, at the image's own size.

    id: from 1 on.
    value: its value in the label map.
    thing: whether its class is countable.
    score: how certain it is, 0..1, as the task defines it.
    mask: its run lengths, with its area and its box, in pixels.
    """

    id: int
    value: int
    class_id: int
    label: str
    thing: bool
    score: float
    mask: RunLengths

    def as_json(self) -> dict[str, object]:
        """As every transport tells it."""
        return {
            "id": self.id,
            "class_id": self.class_id,
            "label": self.label,
            "is_thing": self.thing,
            "score": round(self.score, 4),
            "area": self.mask.area,
            "box": self.mask.box,
            "rle": self.mask.as_json(),
        }


class Masks:
    """What the image shows.

    label_map: one value per region, as runs or as an array (height, width).
    regions: made when they are first read. A PNG needs only the label map, and scores can cost as
        much as the map.
    """

    def __init__(self, label_map: Runs | Labels, regions: Callable[[], Sequence[Region]]) -> None:
        self._label_map, self._regions = label_map, regions

    @cached_property
    def labels(self) -> Labels:
        """The label map, (height, width)."""
        return self._label_map.labels() if isinstance(self._label_map, Runs) else self._label_map

    @cached_property
    def runs(self) -> Runs:
        """The label map as runs down the columns."""
        return self._label_map if isinstance(self._label_map, Runs) else Runs.of(self._label_map)

    @cached_property
    def regions(self) -> Sequence[Region]:
        return self._regions()

    def segments(self, classes: Sequence[ClassInfo]) -> list[Segment]:
        """The regions with their names and run lengths, in order of id."""
        values = [region.value for region in self.regions]
        return [
            Segment(
                region.id,
                region.value,
                region.class_id,
                classes[region.class_id].name,
                classes[region.class_id].thing,
                region.score,
                mask,
            )
            for region, mask in zip(self.regions, run_lengths(self.runs, values), strict=True)
        ]


Shown: TypeAlias = Masks | Boxes | Values


class Task(Protocol):
    """One row of the table of tasks."""

    @property
    def name(self) -> str:
        """The name in manifests and answers."""
        ...

    @property
    def objects(self) -> bool:
        """Whether a segment is one object, with its own colour, or a whole class."""
        ...

    @property
    def dense(self) -> bool:
        """Whether its tensors are maps over the canvas, all of them, so that those of tiles can be
        joined."""
        ...

    @property
    def png(self) -> str:
        """What the pixels of a PNG mean, for people; empty if it has none."""
        ...

    @property
    def gives(self) -> type[Shown]:
        """What `read` makes: it decides which forms of an answer there are."""
        ...

    def check(self, classes: Sequence[ClassInfo], outputs: Sequence[TensorSpec], key: str) -> None:
        """Check that a head with these outputs fits. key: that of the outputs, for errors.

        Raises BundleError that names the key.
        """
        ...

    def read(self, tensors: Tensors, geometry: Geometry) -> Shown:
        """What the image shows, at its own size, from a head's tensors for one image (no batch
        axis)."""
        ...

    def made_up(
        self, images: NDArray[np.uint8], certainty: NDArray[np.float64], spec: TensorSpec
    ) -> NDArray[np.float32]:
        """A tensor of the fake engine's head for B images, (B, *spec.sizes).

        Brightness decides, in bands of equal width, the darkest first. certainty: (B,), 0..1.
        """
        ...


class MaskTask(Task, Protocol):
    """A task that gives masks."""

    def channels(self, classes: Sequence[ClassInfo]) -> list[str]:
        """What the planes of the head's tensor stand for, in order."""
        ...

    def read(self, tensors: Tensors, geometry: Geometry) -> Masks: ...

    def to_png(self, labels: Labels, classes: Sequence[ClassInfo]) -> bytes:
        """The label map as a PNG."""
        ...


def check_classes(classes: Sequence[ClassInfo]) -> None:
    """Raises BundleError where there are none."""
    if not classes:
        raise BundleError("classes: there must be at least 1")


def check_planes(outputs: Sequence[TensorSpec], key: str, channels: int, what: str) -> None:
    """Check that the head gives one stack of planes, of any name. Raises BundleError."""
    sizes = outputs[0].sizes if len(outputs) == 1 else ()
    if len(sizes) != 3 or sizes[0] != channels:
        raise BundleError(f"{key}: it must be one, (batch, {what}, h, w)")
