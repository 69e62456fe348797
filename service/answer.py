"""What one image shows: its label map and segments, and the forms in which people take them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from service.bundle import Head, Manifest
from service.core import Decision, Geometry, Outcome
from service.errors import NotAcceptable
from service.pixels import png
from service.pixels.png import SHADES, object_color
from service.pixels.polygons import Polygon, polygons
from service.pixels.resample import covering
from service.pixels.runs import Runs
from service.tasks import (
    Boxes,
    BoxSegment,
    Masks,
    MaskTask,
    Segment,
    Shown,
    Task,
    Values,
    class_planes,
)

_T = TypeVar("_T", Masks, Boxes, Values)


@dataclass(frozen=True, repr=False)
class Answer:
    """What one head says of an image, and what that cost. Masks are made when they are first read.

    name: the head's; `heads` has the others that ran. stages: seconds per stage, in order. Computed
    attributes may be read in any thread; those of another kind of task raise NotAcceptable.
    """

    outcome: Outcome
    manifest: Manifest
    tasks: Mapping[str, Task]
    stages: Mapping[str, float]
    name: str

    def __repr__(self) -> str:
        decision, geometry = self.decision, self.geometry
        size = f"{geometry.width} x {geometry.height}"
        return f"<Answer: {size} pixels, {decision.plan.name} by {decision.reason.value}>"

    @classmethod
    def of(
        cls,
        outcome: Outcome,
        manifest: Manifest,
        tasks: Mapping[str, Task],
        stages: Mapping[str, float],
    ) -> Answer:
        """That of the head that matters most to its caller; of equals, the first one's."""
        most = max(outcome.heads, key=outcome.shares.__getitem__)
        return cls(outcome, manifest, tasks, stages, most)

    @cached_property
    def heads(self) -> Mapping[str, Answer]:
        """The answers of all heads that ran, by name, in the bundle's order."""
        names = self.outcome.heads
        return {name: self if name == self.name else replace(self, name=name) for name in names}

    @property
    def head(self) -> Head:
        """As the manifest has it."""
        return next(head for head in self.manifest.heads if head.name == self.name)

    @property
    def task(self) -> Task:
        """What makes an answer of the head's tensors."""
        return self.tasks[self.name]

    @property
    def width(self) -> float:
        """The share of the head's channels that ran."""
        return next(head.width for head in self.decision.plan.heads if head.name == self.name)

    @property
    def decision(self) -> Decision:
        """The plan that ran, and why."""
        return self.outcome.decision

    @property
    def geometry(self) -> Geometry:
        """The image's size, and where it was on the canvas."""
        return self.outcome.geometry

    @cached_property
    def shown(self) -> Shown:
        """Masks, boxes or values, as the task has it."""
        return self.task.read(self.outcome.heads[self.name], self.geometry)

    @property
    def masks(self) -> Masks:
        return self._as(Masks, "masks")

    @property
    def boxes(self) -> Boxes:
        return self._as(Boxes, "boxes")

    @property
    def values(self) -> Values:
        """What was measured; its `values` are (height, width), at the image's own size."""
        return self._as(Values, "values")

    @property
    def labels(self) -> NDArray[np.unsignedinteger]:
        """(height, width) at the image's own size: class ids, or object ids with 0 = background."""
        return self.masks.labels

    @cached_property
    def segments(self) -> list[Segment]:
        """The classes or objects of the image, by id."""
        return self.masks.segments(self.head.classes)

    @property
    def detections(self) -> list[BoxSegment]:
        """The objects of the image, by id, the most certain first."""
        return self.boxes.segments(self.head.classes)

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """(height, width): where a segment is."""
        return np.asarray(self.labels == segment.value)

    def polygons(self, segment: Segment) -> list[Polygon]:
        """A segment's parts: each an outline and its holes, as rings of corners of pixels (x, y).

        x runs to the right from 0 to the width, y down from 0 to the height; the last corner of a
        ring is its first. They cover exactly the pixels of the segment.
        """
        return self._polygons[segment.value]

    def png(self) -> bytes:
        """The label map, or the values times their scale, as a PNG, as in an HTTP answer."""
        if isinstance(self.shown, Values):
            return self.shown.png()
        return self._mask_task.to_png(self.labels, self.head.classes)

    def panoptic_png(self) -> bytes:
        """COCO's panoptic PNG: a pixel is R + 256 G + 65536 B = the segment's id, 0 = none."""
        return png.ids(self.labels, self._table([region.id for region in self.masks.regions]))

    def overlay_png(self) -> bytes:
        """A PNG to lay over the image: the segments' colours, half transparent.

        Classes have their own colours; objects have one by their id, which comes again after 255.
        """
        regions, classes = self.masks.regions, self.head.classes
        if self.task.objects:
            colors = [object_color(region.id) for region in regions[:SHADES]]
        else:
            colors = [classes[region.class_id].color for region in regions[:SHADES]]
        table = self._table([1 + index % SHADES for index in range(len(regions))])
        return png.overlay(table.astype(np.uint8)[self.labels], colors)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(channels, h, w) of the decoder's cells, which cover the whole canvas."""
        tensors = self.outcome.heads[self.name]
        if self.head.thresholds is not None:
            return class_planes(tensors)
        (planes,) = tensors.values()
        return np.asarray(planes, np.float32)

    @property
    def channels(self) -> list[str]:
        """What the channels of `probabilities` stand for."""
        return self._mask_task.channels(self.head.classes)

    def npz(self) -> bytes:
        """The probabilities and where they lie, as numpy's archive, as in an HTTP answer."""
        geometry = self.geometry
        file = io.BytesIO()
        np.savez(
            file,
            allow_pickle=False,
            probabilities=self.probabilities,
            channels=np.array(self.channels),
            image_size=np.array([geometry.height, geometry.width]),
            scaled_size=np.array([geometry.scaled_height, geometry.scaled_width]),
            canvas_size=np.array(geometry.canvas),
        )
        return file.getvalue()

    @cached_property
    def paused_runs(self) -> Runs | None:
        """The same as `paused`, as runs down the columns."""
        grid = self.outcome.paused
        if grid is None:
            return None
        height, width = grid.shape
        return Runs.looked_up(grid, *covering((height, width), self.geometry))

    @cached_property
    def paused(self) -> NDArray[np.uint8] | None:
        """(height, width): 1 where the plan paused tokens; None if it pauses none.

        A pixel belongs to the token that covers its centre.
        """
        runs = self.paused_runs
        return None if runs is None else np.asarray(runs.labels(), np.uint8)

    @property
    def _mask_task(self) -> MaskTask:
        self._as(Masks, "masks")
        return cast(MaskTask, self.task)

    def _as(self, kind: type[_T], what: str) -> _T:
        if not isinstance(self.shown, kind):
            raise NotAcceptable(f"the head '{self.name}' is of {self.task.name}: it has no {what}")
        return self.shown

    @cached_property
    def _polygons(self) -> dict[int, list[Polygon]]:
        """By the segments' values."""
        values = [region.value for region in self.masks.regions]
        return dict(zip(values, polygons(self.masks.runs, values), strict=True))

    def _table(self, entries: list[int]) -> NDArray[np.uint32]:
        """One entry per region -> one per value of the label map, 0 for those without a region."""
        values = [region.value for region in self.masks.regions]
        table = np.zeros(int(self.labels.max()) + 1, np.uint32)
        table[values] = entries
        return table
