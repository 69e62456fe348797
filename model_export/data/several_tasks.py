"""Images on canvases with the labels of several tasks: classes, boxes and depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model_export.data.augment import jitter, on_canvases
from model_export.data.datasets import VOID, Dataset, Scenes
from model_export.data.sample import DataError, Sample
from model_export.files import replacing
from model_export.tasks.detection import large_enough
from service.bundle import Canvas


@dataclass(frozen=True, slots=True)
class Placed:
    """A sample on one canvas. image (h, w, 3) uint8; mask (h, w) uint8, VOID where padding is;
    depth (h, w) float16, 0 there; boxes (N, 5) float32: class, then centre x, centre y, width and
    height as shares of the canvas."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    depth: NDArray[np.float16]
    boxes: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """images (B, h, w, 3) uint8, masks (B, h, w) uint8, depth (B, h, w) float32; boxes: of each
    image as Placed has them. keys: what an image depends on, but for its colours: place in the data
    set, canvas, whether it is mirrored."""

    images: Tensor
    masks: Tensor
    depth: Tensor
    boxes: list[Tensor]
    keys: Sequence[tuple[int, str, bool]] = ()

    def __getitem__(self, rows: slice) -> TaskBatch:
        parts = (self.images, self.masks, self.depth, self.boxes, self.keys)
        return TaskBatch(*(part[rows] for part in parts))


def place(sample: Sample, canvases: Sequence[Canvas]) -> dict[str, Placed]:
    """Canvas -> the sample on it. Raises DataError where a label is missing."""
    if sample.depth is None or sample.boxes is None:
        raise DataError(f"{sample.name} has no depth or no boxes: train on scenes:COUNT[:SEED]")
    height, width = sample.mask.shape
    known = sample.boxes[large_enough(sample.boxes, (height, width))]
    placed = {}
    for name, frame in on_canvases(sample, canvases).items():
        geometry = frame.geometry
        size = geometry.scaled_width, geometry.scaled_height
        mask = np.full(geometry.canvas, VOID, np.uint8)
        depth = np.zeros(geometry.canvas, np.float16)
        for plane, source in ((mask, sample.mask), (depth, sample.depth)):
            resized = Image.fromarray(source).resize(size, Image.Resampling.NEAREST)
            plane[: size[1], : size[0]] = np.asarray(resized)
        boxes = known.copy()
        boxes[:, 1:3] += known[:, 3:] / 2
        share = np.array(size) / (width, height) / geometry.canvas[::-1]
        boxes[:, 1:] *= np.tile(share, 2)
        placed[name] = Placed(frame.pixels, mask, depth, boxes)
    return placed


class TaskBatches:
    """Batches of one canvas each, a random one by `chances`. Every image is prepared once and kept,
    and also in the folder `cache`, if there is one, for other runs on the same scenes.

    A batch depends on the seed and the step alone. Half of the images are mirrored, and all vary in
    colour, unless colours are to stay.
    """

    def __init__(
        self,
        data: Dataset,
        canvases: Sequence[Canvas],
        size: int,
        chances: Sequence[float],
        seed: int,
        cache: Path | None = None,
        *,
        colours_stay: bool = False,
    ) -> None:
        self.data, self.canvases, self.size, self.seed = data, canvases, size, seed
        self.cache, self.colours_stay = cache, colours_stay
        self.chances = np.array(chances) / sum(chances)
        self._kept: dict[int, dict[str, Placed]] = {}

    def _prepared(self, index: int) -> dict[str, Placed]:
        if self.cache is None or not isinstance(self.data, Scenes):
            return place(self.data[index], self.canvases)
        key = self.data.key(index)
        files = {
            canvas.name: self.cache / f"{key}-{canvas.largest.name}.npz" for canvas in self.canvases
        }
        if not all(file.exists() for file in files.values()):
            self.cache.mkdir(parents=True, exist_ok=True)
            for name, one in place(self.data[index], self.canvases).items():
                with replacing(files[name], mark=str(os.getpid())) as partial:
                    np.savez(
                        partial, image=one.image, mask=one.mask, depth=one.depth, boxes=one.boxes
                    )
        placed = {}
        for name, file in files.items():
            try:
                # np.load leaves a damaged file open that it opened itself.
                with file.open("rb") as stream, np.load(stream) as archive:
                    placed[name] = Placed(**{part: archive[part] for part in archive.files})
            except (OSError, EOFError, ValueError, TypeError, BadZipFile) as error:
                raise DataError(
                    f"{file} is damaged ({error}): delete it, and it is made again"
                ) from error
        return placed

    def batch(self, step: int) -> TaskBatch:
        rng = np.random.default_rng((self.seed, step))
        canvas = self.canvases[int(rng.choice(len(self.canvases), p=self.chances))].name
        images, masks, depths, boxes, keys = [], [], [], [], []
        for index in rng.integers(len(self.data), size=self.size).tolist():
            if index not in self._kept:
                self._kept[index] = self._prepared(index)
            one = self._kept[index][canvas]
            step_x = -1 if rng.random() < 0.5 else 1
            image = one.image[:, ::step_x]
            images.append(image if self.colours_stay else jitter(image, rng))
            keys.append((index, canvas, step_x < 0))
            masks.append(one.mask[:, ::step_x])
            depths.append(one.depth[:, ::step_x].astype(np.float32))
            own = one.boxes.copy()
            if step_x < 0:
                own[:, 1] = 1 - own[:, 1]
            boxes.append(torch.from_numpy(own))
        planes = (torch.from_numpy(np.stack(part)) for part in (images, masks, depths))
        return TaskBatch(*planes, boxes, keys)
