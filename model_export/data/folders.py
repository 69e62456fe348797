"""Images with their labels in files: `masks/` has a class for every pixel, `instances/` an object
for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model_export.data.scenes import CLASSES
from model_export.tasks.core_and_border import CHANNELS, core_and_rim

VOID = 255
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


class DataError(ValueError):
    """A data folder that cannot be used; the message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """image: (H, W, 3) uint8 RGB. mask: (H, W) uint8, which of the network's channels each pixel
    is, 255 = void.

    Semantic: the mask has the classes. Instance: it has 0 = background, 1 = core, 2 = rim
    (rims.py), and instances are (H, W) uint16, 0 = background, k = object k. group: the same for
    images that are alike, e.g. frames of one video. labels_right: pixels by which the labels lie to
    the right of what the image shows.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint16] | None = None
    group: str = ""
    labels_right: float = 0.0


class _Pairs:
    """`images/*.{jpg,png,webp}` with `LABELS/<same name>.png`."""

    labels: str

    def __init__(
        self, root: Path, names: Sequence[str] | None, below: str, groups: Groups | None
    ) -> None:
        """names: of the images to take, without suffix; None: all. below: a folder inside images/
        and LABELS/.

        groups: of the names that have one.
        """
        images, labels, self.groups = (
            root / "images" / below,
            root / self.labels / below,
            groups or {},
        )
        if not images.is_dir():
            expected = f"images/*.jpg with {self.labels}/*.png of the same names"
            raise DataError(
                f"{root} has no folder {images.relative_to(root)}/; expected {expected}"
            )
        files: dict[str, Path] = {}
        for file in sorted(images.iterdir()):
            if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
                if file.stem in files:
                    raise DataError(
                        f"{files[file.stem]} and {file.name} would share one label; rename or "
                        f"delete one"
                    )
                files[file.stem] = file
        chosen = list(files) if names is None else names
        self.files = [(files[n], labels / f"{n}.png") for n in chosen if n in files]
        if len(self.files) < len(chosen) or not chosen:
            raise DataError(f"{images} lacks {sorted(set(chosen) - set(files))[:3] or 'any image'}")
        missing = [file for _, file in self.files if not file.exists()]
        if missing:
            found = f"{len(missing)} of {len(chosen)} images have no file in {self.labels}/"
            raise DataError(f"{found}; the first one missing is {missing[0]}")
        self._load = lru_cache(maxsize=1024)(self._read)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self._load(index)

    def group_of(self, index: int) -> str:
        """The image's group, empty where it has none."""
        return self.groups.get(self.files[index][0].stem, "")

    def _read(self, index: int) -> Sample:
        raise NotImplementedError

    def _pixels(
        self, index: int, bits: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.unsignedinteger]]:
        """Image and labels, of one size and of so many bits."""
        image_file, file = self.files[index]
        image = np.asarray(
            ImageOps.exif_transpose(open_image(image_file)).convert("RGB")
        )  # labels are of what is shown
        labels = np.asarray(open_image(file))
        if labels.dtype != f"uint{bits}" or labels.shape != image.shape[:2]:
            needs = f"one channel of {bits} bits, {image.shape[:2]}"
            raise DataError(
                f"{file} is {labels.dtype} {labels.shape}; for {image_file} it must be {needs}"
            )
        return image, labels


class Folder(_Pairs):
    """`images/*.{jpg,png,webp}` with `masks/<same name>.png` (8-bit class index, 255 = void)."""

    labels, task, labels_right = "masks", "semantic", 0.0

    def __init__(
        self,
        root: Path,
        names: Sequence[str] | None = None,
        classes: tuple[str, ...] = CLASSES,
        palette: Colours = PALETTE,
        below: str = "",
        groups: Groups | None = None,
    ) -> None:
        """names: of the images to take, without suffix; all by default. below: a folder inside
        images/ and masks/."""
        super().__init__(root, names, below, groups)
        self.classes, self.palette, self.channels = classes, palette, len(classes)

    def _read(self, index: int) -> Sample:
        image, mask = self._pixels(index, 8)
        file = self.files[index][1]
        unknown = set(np.unique(mask).tolist()) - {*range(len(self.classes)), VOID}
        if unknown:
            raise DataError(
                f"{file} has labels {sorted(unknown)}; known are 0..{len(self.classes) - 1} and "
                f"{VOID}"
            )
        return Sample(
            file.stem, image, mask, group=self.group_of(index), labels_right=self.labels_right
        )


class InstanceFolder(_Pairs):
    """`images/*.{jpg,png,webp}` with `instances/<same name>.png` (16-bit, 0 = background, k =
    object k), one class."""

    labels, task, channels = "instances", "instance", CHANNELS

    def __init__(
        self,
        root: Path,
        names: Sequence[str] | None = None,
        thing: str = "object",
        below: str = "",
        groups: Groups | None = None,
    ) -> None:
        """names, below: as for Folder. thing: what every object is."""
        super().__init__(root, names, below, groups)
        self.classes, self.palette = (thing,), (OBJECT,)

    def _read(self, index: int) -> Sample:
        image, instances = self._pixels(index, 16)
        name = self.files[index][0].stem
        return Sample(name, image, core_and_rim(instances), instances, self.group_of(index))


def open_image(file: Path) -> Image.Image:
    """Decoded. Raises DataError that names the file."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"{file} is no image that can be read: {error}") from error
