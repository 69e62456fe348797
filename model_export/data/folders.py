"""Images with their labels in files: a class, or an object, for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.cache import SampleCache
from model_export.data.sample import DataError, Sample, read_image
from model_export.data.scenes import CLASSES
from model_export.tasks import TASKS, VOID
from model_export.tasks.base import Labels

PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
OBJECT = (86, 180, 233)

Colours = tuple[tuple[int, int, int], ...]
Groups = Mapping[str, str]


class Folder:
    """`images/*.{jpg,png,webp}` with labels of the same names as PNG: for the semantic task
    `masks/` (8 bits, a class index, 255 = void), for the instance task `instances/` (16 bits, 0 =
    background, k = object k)."""

    def __init__(
        self,
        root: Path,
        task: str,
        names: Sequence[str] | None = None,
        *,
        classes: tuple[str, ...] = CLASSES,
        palette: Colours = PALETTE,
        below: str = "",
        groups: Groups | None = None,
        labels_right: float = 0.0,
    ) -> None:
        """names: of the images to take, without suffix; all by default. below: a folder inside
        images/ and that of the labels. groups: of the names that have one.

        Raises DataError that names the file.
        """
        self.task, self._kind = task, TASKS[task]
        self.classes, self.palette = classes, palette
        self.channels = self._kind.channels(len(classes))
        self.groups, self.labels_right = groups or {}, labels_right
        self.files = pairs(root, self._kind.folder, names, below)
        self.cache = SampleCache()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self.cache.get((self, index), lambda: self._sample(index))

    def group_of(self, index: int) -> str:
        """The image's group, empty where it has none."""
        return self.groups.get(self.files[index][0].stem, "")

    def truth(self, index: int) -> Labels:
        """(H, W) labels as the file has them. Read anew each time: a folder may be larger than the
        memory."""
        return self._read(index)[1]

    def _sample(self, index: int) -> Sample:
        image, labels = self._read(index)
        return Sample(
            self.files[index][0].stem,
            image,
            self._kind.target(labels),
            labels if self._kind.objects else None,
            self.group_of(index),
            self.labels_right,
        )

    def _read(self, index: int) -> tuple[NDArray[np.uint8], Labels]:
        """Image and labels, of one size."""
        image_file, file = self.files[index]
        image = read_image(image_file)
        labels, bits = np.asarray(open_labels(file)), self._kind.bits
        if labels.dtype != f"uint{bits}" or labels.shape != image.shape[:2]:
            needs = f"one channel of {bits} bits, {image.shape[:2]}"
            raise DataError(
                f"{file} is {labels.dtype} {labels.shape}; for {image_file} it must be {needs}"
            )
        unknown = self._kind.unknown(labels, len(self.classes))
        if unknown:
            raise DataError(
                f"{file} has labels {unknown}; known are 0..{len(self.classes) - 1} and {VOID}"
            )
        return image, labels


def pairs(
    root: Path, folder: str, names: Sequence[str] | None, below: str
) -> list[tuple[Path, Path]]:
    """(image, labels) of each name. folder: of the labels. Raises DataError."""
    images, labels = root / "images" / below, root / folder / below
    if not images.is_dir():
        expected = f"images/*.jpg with {folder}/*.png of the same names"
        raise DataError(f"{root} has no folder {images.relative_to(root)}/; expected {expected}")
    files: dict[str, Path] = {}
    for file in sorted(images.iterdir()):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            if file.stem in files:
                raise DataError(
                    f"{files[file.stem]} and {file.name} would share one label; rename or delete "
                    f"one"
                )
            files[file.stem] = file
    chosen = list(files) if names is None else names
    known = [(files[name], labels / f"{name}.png") for name in chosen if name in files]
    if len(known) < len(chosen) or not chosen:
        raise DataError(f"{images} lacks {sorted(set(chosen) - set(files))[:3] or 'any image'}")
    missing = [file for _, file in known if not file.exists()]
    if missing:
        count = f"{len(missing)} of {len(chosen)} images have no file in {folder}/"
        raise DataError(f"{count}; the first one missing is {missing[0]}")
    return known


def open_labels(file: Path) -> Image.Image:
    """Decoded, the values as they are stored. Raises DataError that names the file."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"{file} is no readable image: {error}") from error
