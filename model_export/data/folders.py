"""Images with their labels in files: a class, or an object, for every pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model_export.data.label_values import LabelValues
from model_export.data.labelled import Colours, Groups, LabelledImages, Read
from model_export.data.sample import DataError, same_form
from model_export.data.scenes import CLASSES
from model_export.tasks import TASKS, VOID
from service.pixels.png_format import gray_step

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

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)

# How Pillow names gray PNGs of 2 and 4 bits, whose values it multiplies to fill 0..255.
SCALED = {"L;2": 2, "L;4": 4}


class Folder(LabelledImages):
    """`images/*.{jpg,png,webp,...}` with labels of the same names as PNG: for the semantic task
    `masks/` (8 bits, a class index, 255 = void; or any values that meta.json gives a class), for
    the instance task `instances/` (16 bits, 0 = background, k = object k)."""

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
        values: LabelValues | None = None,
    ) -> None:
        """names: of the images to take, without suffix; all by default. below: a folder inside
        images/ and that of the labels. groups: of the names that have one. values: what those in
        the label files mean; None: each is its class.

        Where something is missing, the rest is read, too, so that one message names it all. Raises
        DataError that names the files.
        """
        files, faults = pairs(root, TASKS[task].folder, names, below)
        super().__init__(task, classes, palette, files, groups, labels_right)
        self.values, self.chosen = values, names is not None
        if faults:
            self.look_at_all(str(root), faults)

    def label_bytes(self, index: int) -> bytes:
        meaning = repr(self.values).encode() if self.values else b""
        return super().label_bytes(index) + meaning

    def read_labels(self, index: int, size: tuple[int, int]) -> Read:
        image_file, file = self.files[index]
        image, bits = open_labels(file), self.kind.bits
        if self.values:
            try:
                labels, missing = self.values.classes_of(image)
            except ValueError as error:
                raise DataError(f"{file} {error}") from error
            if missing:
                raise DataError(
                    f'{file} has values that "labels" in meta.json does not name: '
                    f"{', '.join(missing[:10])}"
                )
        else:
            labels = np.asarray(image)
            if labels.dtype == np.bool_ and not self.kind.objects:
                labels = labels.astype(np.uint8)  # a PNG of one bit
        if labels.dtype != f"uint{bits}" or labels.shape != size:
            needs = f"one channel of {bits} bits, {size}"
            raise DataError(
                f"{file} is {labels.dtype} {labels.shape}; for {image_file} it must be {needs}"
                f"{self._advice(labels.shape, size)}"
            )
        return labels, None

    def hint(self, values: set[int]) -> str:
        if self.kind.objects or self.values:
            return ""
        known = values - {VOID}
        if known and min(known) == 1 and max(known) == len(self.classes):
            first = f'"labels": {{"1": "{self.classes[0]}", ...}}'
            return f"The labels seem to begin with 1: say so in meta.json by {first}"
        return ""

    def _advice(self, shape: tuple[int, ...], size: tuple[int, int]) -> str:
        if len(shape) == 3 and not self.kind.objects:
            return '; "labels" in meta.json can give colours a class, as "#RRGGBB"'
        if shape == size[::-1] and shape != size:
            return "; labels are of the image as shown, turned as its EXIF says"
        return ""


def pairs(
    root: Path, folder: str, names: Sequence[str] | None, below: str
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """(image, labels) of each name, and what is missing or there twice. folder: of the labels.
    Raises DataError where there are no images at all."""
    images, labels = root / "images" / below, root / folder / below
    if not images.is_dir():
        expected = f"images/*.jpg with {folder}/*.png of the same names"
        raise DataError(f"{root} has no folder {images.relative_to(root)}/; expected {expected}")
    if not labels.is_dir():
        raise DataError(f"{root} has no folder {labels.relative_to(root)}/ with labels as PNG")
    faults: list[str] = []
    files: dict[str, Path] = {}
    for file in images_in(images):
        name = same_form(file.stem)
        if name in files:
            faults.append(
                f"{files[name]} and {file.name} would share one label; rename or delete one"
            )
        files.setdefault(name, file)
    chosen = list(files) if names is None else [same_form(name) for name in names]
    if not chosen:
        parts = sorted(place.name for place in images.iterdir() if place.is_dir())
        named = (
            f"; name one of its subfolders, as in folder:{parts[0]}" if parts and not below else ""
        )
        raise DataError(f"{images} lacks any image; it needs *{', *'.join(SUFFIXES)}{named}")
    others = {same_form(file.stem): file for file in listed_in(labels)}
    known = {stem: file for stem, file in others.items() if file.suffix.lower() == ".png"}
    for name in chosen:
        if name not in files:
            faults.append(f"{images / name}.* is missing, the image of that name")
        elif name not in known:
            faults.append(_missing(labels / f"{name}.png", others.get(name)))
    found = [(files[name], known[name]) for name in chosen if name in files and name in known]
    return found, faults


def listed_in(folder: Path) -> list[Path]:
    """The files in it, without hidden ones: macOS leaves `._a.jpg` beside `a.jpg`."""
    return sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Those of `listed_in` that are images by their name."""
    return [file for file in listed_in(folder) if file.suffix.lower() in SUFFIXES]


def images_below(folder: Path) -> list[Path]:
    """As `images_in`, and those in its subfolders, as cameras and downloads make them; without
    hidden ones, where thumbnails lie. Raises OSError for a folder that cannot be read."""

    def refused(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for place, below, _ in os.walk(folder, onerror=refused):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += images_in(Path(place))
    return found


def without_image(data: LabelledImages) -> list[Path]:
    """Label files whose image is not in the data set."""
    used = {label for _, label in data.files}
    return [
        file
        for folder in sorted({label.parent for label in used})
        for file in listed_in(folder)
        if file.suffix.lower() == ".png" and file not in used
    ]


def open_labels(file: Path) -> Image.Image:
    """A PNG, decoded: as an array, the values as they are stored. Raises DataError that names the
    file."""
    try:
        with Image.open(file) as image:
            if image.format != "PNG":
                raise DataError(
                    f"{file} is {image.format} inside; labels must be PNG: other formats change "
                    f"the values"
                )
            stored = image.tile[0].args if image.tile else ""
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is no readable image: {error}") from error
    if str(stored).endswith(";16B") and not image.mode.startswith("I"):
        raise DataError(f"{file} has colours of 16 bits, of which 8 would be lost: save it with 8")
    return _indexed(image, gray_step(SCALED[stored])) if stored in SCALED else image


def _indexed(image: Image.Image, step: int) -> Image.Image:
    """Gray whose values were scaled -> the values before that, with those grays as palette."""
    values = Image.fromarray(np.asarray(image) // step)
    values.putpalette([level * step for level in range(255 // step + 1) for _ in range(3)])
    return values


def _missing(file: Path, other: Path | None) -> str:
    if other is None:
        return f"{file} is missing, the labels of the image of that name"
    return f"{file} is missing; {other.name} must be a PNG: other formats change the values"
