"""Data sets: sequences of `Sample`s with class names and colours. A new one is a small class here.

`CamVid` and `Nuclei` need their files, `Folder` takes any images with labels, `Coco` those of an
annotation file, `Scenes` draws its own and needs no files at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from model_export.data import scenes
from model_export.data.cache import SampleCache
from model_export.data.coco import Coco, Spec
from model_export.data.folders import OBJECT, PALETTE, Folder
from model_export.data.image_places import image_files_of, place_of
from model_export.data.labelled import LabelledImages
from model_export.data.meta_json import groups_in, open_folder, open_instances, read_description
from model_export.data.sample import DataError, Sample
from model_export.tasks import VOID

__all__ = [
    "PALETTE",
    "VOID",
    "CamVid",
    "DataError",
    "Dataset",
    "Folder",
    "Nuclei",
    "Sample",
    "Scenes",
    "open_dataset",
]


class Dataset(Protocol):
    """task: a name in TASKS. classes, palette: of the bundle, each class with its colour.

    channels: of the network, as the task has them.
    """

    task: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@contextmanager
def meta_of(root: Path, expected: str) -> Iterator[dict[str, Any]]:
    """What meta.json says. Raises DataError that says what was expected where there is no such
    file, or where what is read of it is missing."""
    if not (root / "meta.json").exists():
        raise DataError(f"{root} has no meta.json; expected {expected}")
    try:
        yield read_description(root)
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}; expected {expected}"
        raise DataError(f"{root / 'meta.json'} is of other data ({why})") from error


def pick(parts: dict[str, list[str]], split: str, name: str) -> list[str]:
    """The images of a split, or of several joined with "+"."""
    chosen = split.split("+")
    for part in chosen:
        if part not in parts:
            raise DataError(
                f"{name} has no split {part!r}; choose one of {[*parts]}, or several, as in "
                f"train+dev"
            )
    if "val" in chosen and len(chosen) > 1:
        raise DataError(f"{name}'s val is for comparison: use it alone, not as in {split!r}")
    images = [image for part in chosen for image in parts[part]]
    if len(set(images)) < len(images):
        raise DataError(f"the splits of {split!r} share images; name each image once")
    return images


# Contiguous stretches of every training sequence, as fractions of its frames. No network ever
# trains on "gate". Frames are about a second apart, so a single frame held out would have near
# duplicates in the training set.
HELD_OUT = {"gate": (0.70, 0.80), "dev": (0.30, 0.40)}


class CamVid(Folder):
    """CamVid, 11 classes, 480x360 (Brostow, Fauqueur, Cipolla 2009; the SegNet release's splits).

    Splits: "train" without the held-out stretches, "gate" (to train and calibrate the gate), "dev"
    (to choose by, until a last run trains on it, too), "val" (official; for comparison only), "all"
    = train + gate + dev. A group is a sequence.
    """

    def __init__(self, root: Path, split: str) -> None:
        with meta_of(root, "the folder of CamVid with images/, masks/ and meta.json") as meta:
            names = pick(self._parts(meta["splits"]), split, "CamVid")
            classes, colours = tuple(meta["classes"]), tuple(map(tuple, meta["colors"]))
        below = "val" if split == "val" else "train"
        super().__init__(
            root,
            "semantic",
            names,
            classes=classes,
            palette=colours,
            below=below,
            groups=groups_in(meta, root),
            # The labels are as if they were every second pixel of 960x720: predictions fit best
            # 0.25 to 0.5 pixels further right.
            labels_right=0.25,
        )

    @staticmethod
    def _parts(splits: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
        held: dict[str, list[str]] = {"train": [], "gate": [], "dev": []}
        sequences: dict[str, list[str]] = {}
        for entry in splits["train"]:
            sequences.setdefault(entry["seq"], []).append(entry["id"])
        for frames in sequences.values():
            for i, frame in enumerate(frames):
                place = i / len(frames)
                held[next((k for k, (a, b) in HELD_OUT.items() if a <= place < b), "train")].append(
                    frame
                )
        held["all"] = [entry["id"] for entry in splits["train"]]
        held["val"] = [entry["id"] for entry in splits["val"]]
        return held


# Shares of the training images. As far as is known, the images are independent of each other.
SHARES = {"gate": 0.203, "dev": 0.089}


class Nuclei(Folder):
    """Nuclei under the microscope (Data Science Bowl 2018, stage 1; Caicedo et al. 2019, CC0), one
    class.

    Splits as CamVid's: "train", "gate" and "dev" are parts of the folder train/, "all" is the whole
    of it; and "val". A group is a kind of image: fluorescence, stained or brightfield.
    """

    def __init__(self, root: Path, split: str) -> None:
        with meta_of(root, "the folder of nuclei with images/, instances/ and meta.json") as meta:
            names = pick(self._parts(meta["splits"]), split, "nuclei")
            classes = tuple(meta["classes"][:1])
        super().__init__(
            root,
            "instance",
            names,
            classes=classes,
            palette=(OBJECT,),
            below="val" if split == "val" else "train",
            groups=groups_in(meta, root),
        )

    @staticmethod
    def _parts(splits: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
        """Images of one kind and size mostly come from one laboratory, so each part gets its share
        of them."""
        ordered = sorted(
            splits["train"], key=lambda entry: (entry["kind"], entry["size"], entry["id"])
        )
        held: dict[str, list[str]] = {"train": [], "gate": [], "dev": []}
        for index, entry in enumerate(ordered):
            place, dev = spread(index), 1 - SHARES["dev"]
            held["gate" if place < SHARES["gate"] else "dev" if place >= dev else "train"].append(
                entry["id"]
            )
        held["all"] = [entry["id"] for entry in ordered]
        held["val"] = [entry["id"] for entry in splits["val"]]
        return held


def spread(index: int) -> float:
    """In [0, 1): consecutive indices cover the range evenly, however many there are (golden
    ratio)."""
    return index * 0.6180339887498949 % 1.0


BARE = -1.0  # the clutter of a street with nothing in it


class Scenes:
    """Street scenes from our own generator. Sample i of a seed is always the same.

    clutter: the range over which the samples' clutter is spread. bare: share of streets with
    nothing in them (clutter -1), spread among the others.
    """

    task = "semantic"

    def __init__(
        self,
        count: int,
        seed: int = 0,
        clutter: tuple[float, float] = (0.0, 1.0),
        height: int = 360,
        width: int = 480,
        bare: float = 0.0,
    ) -> None:
        self.classes, self.palette, self.channels = scenes.CLASSES, PALETTE, len(scenes.CLASSES)
        self.count, self.seed, self.size = count, seed, (height, width)
        self.clutter, self.bare = clutter, bare

    def __len__(self) -> int:
        return self.count

    def clutter_of(self, index: int) -> float:
        (low, high), place = self.clutter, spread(index)
        if place < self.bare:
            return BARE
        return low + (high - low) * (place - self.bare) / (1 - self.bare)

    def key(self, index: int) -> str:
        """Of a sample: all that it depends on, for the name of a file."""
        height, width = self.size
        return f"{self.seed}-{index}-{height}x{width}-{self.clutter_of(index):.6f}"

    def __getitem__(self, index: int) -> Sample:
        height, width = self.size
        street = scenes.draw(
            self.seed * 1_000_003 + index,
            height=height,
            width=width,
            clutter=self.clutter_of(index),
        )
        return Sample(
            f"scene-{self.seed}-{index}",
            street.image,
            street.mask,
            depth=street.depth,
            boxes=street.boxes,
        )


SPECS = (
    "camvid:SPLIT, nuclei:SPLIT (or SPLIT+SPLIT), folder[:SUBFOLDER], instances[:SUBFOLDER], "
    "coco:ANNOTATIONS.json[@TASK[:CLASS,...]] or scenes:COUNT[:SEED[:BARE]]"
)


def share_images(
    spec: str, other: str, root: Path | None = None, other_root: Path | None = None
) -> bool:
    """Whether two data sets, each one of SPECS, have an image in common. Without roots they are
    taken to lie in the same folder. Of data sets that are `is_nameless` the files are compared,
    where both can be read here."""
    (kind, _, rest), (other_kind, _, other_rest) = spec.partition(":"), other.partition(":")
    if is_nameless(spec) and is_nameless(other):
        known = (root is not None and other_root is not None) or kind == "coco"
        place = place_of(spec, root if known else None)
        if kind == other_kind and place == place_of(other, other_root if known else None):
            return True
        return not image_files_of(spec, root).isdisjoint(image_files_of(other, other_root))
    if kind != other_kind:
        return False
    if kind == "scenes":
        return _scenes(spec).seed == _scenes(other).seed
    splits, others = (
        set((part or "train").replace("all", "train+gate+dev").split("+"))
        for part in (rest, other_rest)
    )
    return bool(splits & others)


def absolute(spec: str, root: Path | None) -> str:
    """The same data set, one of SPECS, wherever a later command is run."""
    kind, _, rest = spec.partition(":")
    if kind != "coco":
        return spec
    parsed = Spec.parse(rest)
    return spec.replace(parsed.path, str(parsed.file(root).resolve()), 1)


def is_coco(spec: str) -> bool:
    """Whether the data set, one of SPECS, is an annotation file."""
    return spec.partition(":")[0] == "coco"


def is_nameless(spec: str) -> bool:
    """Whether the data set, one of SPECS, is any folder: elsewhere the same name may mean other
    images."""
    return spec.partition(":")[0] in ("folder", "instances", "coco")


def refuse_shared(
    flag: str, spec: str, root: Path | None, seen: str, seen_root: Path | None, learner: str
) -> None:
    """Raises DataError where a data set that is to judge shares images with one that the learner
    has seen. learner: "the network" or "the gate"."""
    if share_images(spec, seen, root, seen_root):
        raise DataError(
            f"{flag} {spec} shares images with {seen}, which {learner} learned from, so it would "
            f"look better than it is: name another split, subfolder or seed"
        )


def refuse_unread(root: Path | None, flag: str, *specs: str | None) -> None:
    """Raises DataError where --data names a folder that no data set reads: whoever names one wants
    it to be. flag: that names such a data set. specs: those that were named."""
    if root is not None and all(spec is None or spec.startswith("scenes") for spec in specs):
        raise DataError(
            f"--data {root} would not be read: name a data set in it, e.g. {flag} folder"
        )


def open_dataset(
    spec: str, root: Path | None, cache: SampleCache | None = None, segments: bool = False
) -> Dataset:
    """spec: one of SPECS; all but the scenes read `root`. cache: shared with other data sets; None:
    one of its own. segments: of annotation files, labels as a network of queries needs them."""
    kind, _, rest = spec.partition(":")
    if kind == "scenes":
        return _scenes(spec)
    makers: dict[str, Callable[[Path], LabelledImages]] = {
        "camvid": lambda r: CamVid(r, rest or "train"),
        "nuclei": lambda r: Nuclei(r, rest or "train"),
        "folder": lambda r: open_folder(r, rest),
        "instances": lambda r: open_instances(r, rest),
    }
    if kind == "coco":
        data: LabelledImages = Coco(Spec.parse(rest), root, segments)
    elif kind not in makers:
        raise DataError(f"unknown data set {spec!r}; choose {SPECS}")
    elif root is None:
        raise DataError(f"data set {spec!r} needs --data FOLDER")
    else:
        data = makers[kind](root)
    if cache is not None:
        data.cache = cache
    return data


def _scenes(spec: str) -> Scenes:
    rest = spec.partition(":")[2]
    parts = re.fullmatch(r"(?P<count>[1-9]\d*)?(:(?P<seed>\d+)(:(?P<bare>0?\.\d+))?)?", rest)
    if parts is None:
        raise DataError(
            f"unknown data set {spec!r}; scenes:COUNT[:SEED[:BARE]] takes a positive count, a "
            f"whole number and a share below 1, e.g. scenes:64:1:0.5"
        )
    return Scenes(
        int(parts["count"] or 64), int(parts["seed"] or 0), bare=float(parts["bare"] or 0)
    )
