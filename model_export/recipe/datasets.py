"""Data sets. A data set is a sequence of `Sample`s with class names and colours; adding one is one small class here.

`CamVid` needs its files, `Folder` takes any images with masks, `Scenes` draws its own (no files at all).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model_export.recipe import scenes

VOID = 255
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


class DataError(ValueError):
    """A data folder that cannot be used; the message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """image: (H, W, 3) uint8 RGB. mask: (H, W) uint8 class index, 255 = void."""

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


class Dataset(Protocol):
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Folder:
    """`images/*.{jpg,png,webp}` with `masks/<same name>.png` (8-bit class index, 255 = void)."""

    def __init__(
        self, root: Path, names: list[str] | None = None, classes: tuple[str, ...] = scenes.CLASSES,
        palette: tuple[tuple[int, int, int], ...] = PALETTE, below: str = "",
    ) -> None:  # fmt: skip
        """names: of the images to take, without suffix; all by default. below: a folder inside images/ and masks/."""
        self.classes, self.palette = classes, palette
        images, masks = root / "images" / below, root / "masks" / below
        if not images.is_dir():
            raise DataError(f"{root} has no folder images/; expected images/*.jpg with masks/*.png of the same names")
        files = {f.stem: f for f in sorted(images.iterdir()) if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")}
        chosen = list(files) if names is None else names
        self.files = [(files[n], masks / f"{n}.png") for n in chosen if n in files]
        if len(self.files) < len(chosen) or not chosen:
            raise DataError(f"{images} lacks {sorted(set(chosen) - set(files))[:3] or 'any image'}")
        missing = [mask for _, mask in self.files if not mask.exists()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(chosen)} images have no mask; the first one missing is {missing[0]}"
            )
        self._load = lru_cache(maxsize=1024)(self._read)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return self._load(index)

    def _read(self, index: int) -> Sample:
        image_file, mask_file = self.files[index]
        image = np.asarray(ImageOps.exif_transpose(_open(image_file)).convert("RGB"))  # masks are of what is shown
        mask = np.asarray(_open(mask_file))
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise DataError(
                f"{mask_file} is {mask.dtype} {mask.shape}; {image_file} needs an 8-bit mask of {image.shape[:2]}"
            )
        unknown = set(np.unique(mask).tolist()) - {*range(len(self.classes)), VOID}
        if unknown:
            raise DataError(
                f"{mask_file} has labels {sorted(unknown)}; known are 0..{len(self.classes) - 1} and {VOID}"
            )
        return Sample(image_file.stem, image, mask)


def _open(file: Path) -> Image.Image:
    """Decoded. Raises DataError that names the file."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"{file} is no image that can be read: {error}") from error


# Contiguous stretches of every training sequence, as fractions of its frames, that no parent ever trains on.
# Frames are about a second apart, so single frames held out would have near twins in the training set.
HELD_OUT = {"gate": (0.70, 0.80), "dev": (0.30, 0.40)}


class CamVid(Folder):
    """CamVid, 11 classes, 480x360 (Brostow, Fauqueur, Cipolla 2009; the SegNet release's splits).

    Splits: "train" without the held-out stretches, "gate" (gate's own training and calibration), "dev" (whatever is
    chosen is chosen here), "val" (official; for comparability only), "all" = train + gate + dev.
    """

    def __init__(self, root: Path, split: str) -> None:
        if not (root / "meta.json").exists():
            raise DataError(
                f"{root} has no meta.json; expected the folder of CamVid with images/, masks/ and meta.json"
            )
        meta = json.loads((root / "meta.json").read_text())
        names = self._names(meta["splits"], split)
        folder = "val" if split == "val" else "train"
        colours = tuple(map(tuple, meta["colors"]))
        super().__init__(root, names, tuple(meta["classes"]), colours, folder)

    @staticmethod
    def _names(splits: dict[str, list[dict[str, str]]], split: str) -> list[str]:
        if split == "val":
            return [entry["id"] for entry in splits["val"]]
        held: dict[str, list[str]] = {"train": [], "gate": [], "dev": []}
        sequences: dict[str, list[str]] = {}
        for entry in splits["train"]:
            sequences.setdefault(entry["seq"], []).append(entry["id"])
        for frames in sequences.values():
            for i, frame in enumerate(frames):
                place = i / len(frames)
                held[next((k for k, (a, b) in HELD_OUT.items() if a <= place < b), "train")].append(frame)
        held["all"] = [entry["id"] for entry in splits["train"]]
        if split not in held:
            raise DataError(f"CamVid has no split {split!r}; choose one of {[*held, 'val']}")
        return held[split]


class Scenes:
    """Street scenes from our own generator: sample i of a seed is always the same, clutter is spread over its range."""

    def __init__(
        self, count: int, seed: int = 0, clutter: tuple[float, float] = (0.0, 1.0), height: int = 360, width: int = 480
    ) -> None:
        self.classes, self.palette = scenes.CLASSES, PALETTE
        self.count, self.seed, self.clutter, self.size = count, seed, clutter, (height, width)

    def __len__(self) -> int:
        return self.count

    def clutter_of(self, index: int) -> float:
        low, high = self.clutter
        return low + (high - low) * (index * 0.6180339887498949 % 1.0)  # low-discrepancy: any prefix covers the range

    def __getitem__(self, index: int) -> Sample:
        height, width = self.size
        image, mask = scenes.render(
            self.seed * 1_000_003 + index, height=height, width=width, clutter=self.clutter_of(index)
        )
        return Sample(f"scene-{self.seed}-{index}", image, mask)


def open_dataset(spec: str, root: Path | None) -> Dataset:
    """`camvid:SPLIT`, `folder` or `scenes:COUNT[:SEED]`; the first two read `root`."""
    kind, _, rest = spec.partition(":")
    if kind == "scenes":
        count, _, seed = rest.partition(":")
        if not ((count or "64").isdecimal() and (seed or "0").isdecimal() and int(count or 64)):
            raise DataError(f"unknown data set {spec!r}; scenes:COUNT[:SEED] takes a positive count, e.g. scenes:64:1")
        return Scenes(int(count or 64), int(seed or 0))
    makers: dict[str, Callable[[Path], Dataset]] = {"camvid": lambda r: CamVid(r, rest or "train"), "folder": Folder}
    if kind not in makers:
        raise DataError(f"unknown data set {spec!r}; choose camvid:SPLIT, folder or scenes:COUNT[:SEED]")
    if root is None:
        raise DataError(f"data set {spec!r} needs --data FOLDER")
    return makers[kind](root)
