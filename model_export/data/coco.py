"""COCO's annotation files as data sets: instances (polygons and run lengths) and panoptic.

The file tells which one it is: panoptic annotations have `segments_info`. Of both, the semantic
task gets a class per pixel and the instance task the objects of one class. A network of queries
gets segments with classes: of the panoptic task all, of the instance task the things.

| | no annotation there | crowd | a category that was not chosen |
|---|---|---|---|
| instances, semantic | "background", the first class | void | background |
| instances, instance | background | void | background |
| panoptic, semantic | void | void | "background", which is then the first class |
| panoptic, instance | background (0 in the PNG: void) | void | background |
| panoptic, panoptic | void | void | background |

Where objects overlap, the smaller one lies on top.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.class_names import few, named_in
from model_export.data.coco_files import flag, images_of, is_panoptic, read_document
from model_export.data.coco_masks import Annotated, region_of
from model_export.data.folders import OBJECT, open_labels
from model_export.data.labelled import Colours, LabelledImages, Read
from model_export.data.meta_json import colour_map, is_colour
from model_export.data.sample import DataError
from model_export.tasks import TASKS, VOID
from model_export.tasks.segments import VOID_SEGMENT, Segments, segment_label
from service.bundle import is_line

BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Spec:
    """coco:PATH[@TASK[:CLASS,CLASS]]. task: "" = what the file suggests. classes: names of the
    file's, with commas; "" = all."""

    path: str
    task: str
    classes: str

    @classmethod
    def parse(cls, text: str) -> Spec:
        """text: behind "coco:". Raises DataError that shows the form."""
        match = re.fullmatch(r"(.+?\.json)(?:@(\w+)(?::(.+))?)?", text)
        if match is None or (match[2] and match[2] not in TASKS):
            raise DataError(
                f"unknown data set 'coco:{text}'; it is coco:PATH.json, and optionally a task and "
                f"classes, e.g. coco:instances_val2017.json@instance:person"
            )
        return cls(match[1], match[2] or "", match[3] or "")

    def file(self, root: Path | None) -> Path:
        """The annotation file: as named, or else in `root`, whether it is there or not."""
        named = Path(self.path)
        return root / named if root and not named.is_file() else named


@dataclass(frozen=True, slots=True)
class Category:
    """place: its class, counted from 0; None: not chosen."""

    name: str
    colour: tuple[int, int, int] | None
    place: int | None


class Coco(LabelledImages):
    """The images of one annotation file. `files`: (image, panoptic PNG, or the annotation file)."""

    def __init__(self, spec: Spec, root: Path | None, segments: bool = False) -> None:
        """root: where images (and panoptic PNGs) lie, if not beside the annotation file. segments:
        whether labels are segments with classes (tasks/segments.py), as for a network of queries.
        Raises DataError: for faults of single images one message that lists them."""
        self.file = spec.file(root)
        document = read_document(self.file)
        self.panoptic = is_panoptic(document)
        known = _categories(document, self.file)
        task = spec.task or _suggested(self.panoptic, len(known), segments)
        whole = isinstance(TASKS[task], Segments)  # every pixel is of a segment
        if whole and not self.panoptic:
            raise DataError(f"{self.file} has no segments_info: its annotations are not panoptic")
        self.segments = segments or whole
        kind = Segments(task) if self.segments else TASKS[task]
        chosen = _chosen(known, spec, self.file)
        if self.segments and not whole and not spec.classes:
            chosen = _things(document, chosen)
        objects = kind.objects
        if objects and not self.segments and len(chosen) != 1:
            raise DataError(
                f"{self.file} has {len(chosen)} categories ({few(chosen)}), and the {task} task "
                f"has one class: name it, e.g. coco:{spec.path}@instance:{chosen[0]}"
            )
        names = list(chosen)
        if (
            not objects
            and BACKGROUND not in names
            and (not self.panoptic or len(chosen) < len(known))
        ):
            names.insert(0, BACKGROUND)
        self.rest = names.index(BACKGROUND) if BACKGROUND in names and not objects else 0
        self.categories = {
            key: Category(name, colour, names.index(name) if name in chosen else None)
            for key, (name, colour) in known.items()
        }
        if len(names) > VOID:
            raise DataError(
                f"{self.file} has {len(names)} classes; at most {VOID} can be told apart"
            )
        images, faults = images_of(document, self.file, root, self.panoptic)
        self.annotated = [annotated for annotated, _, _ in images]
        files = [(image, labels) for _, image, labels in images]
        palette = _palette(names, self.categories)
        super().__init__(task, tuple(names), palette, files, kind=kind)
        if faults:
            self.look_at_all(str(self.file), faults)
        if not files:
            raise DataError(f"{self.file} has no image with annotations")

    def label_bytes(self, index: int) -> bytes:
        said = repr((self.annotated[index], self.classes, self.task)).encode()
        return said + (super().label_bytes(index) if self.panoptic else b"")

    def read_labels(self, index: int, size: tuple[int, int]) -> Read:
        annotated = self.annotated[index]
        if annotated.size != size:
            turned = annotated.size == size[::-1]
            advice = "; annotations are of the image as shown, turned as its EXIF says" * turned
            raise DataError(
                f"{self.files[index][0]} is {size[1]} x {size[0]} pixels, in {self.file} it is "
                f"{annotated.size[1]} x {annotated.size[0]}{advice}"
            )
        read = self._segments if self.panoptic else self._annotations
        try:
            labels, void = read(index, annotated)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.file}: image {annotated.name}: {_said(error)}") from error
        return labels, void

    def _annotations(self, index: int, annotated: Annotated) -> Read:
        """Of polygons and run lengths: large ones first."""
        drawn = [
            (region_of(entry, annotated.size), flag(entry, "iscrowd", 0), self._category(entry))
            for entry in annotated.entries
        ]
        # A crowd lies behind the objects that are told apart from it.
        drawn.sort(key=lambda row: (not row[1], -row[0].area))
        labels = np.full(annotated.size, self.rest, self._dtype)
        void = np.zeros(annotated.size, np.bool_)
        objects = 0
        for region, crowd, category in drawn:
            if category.place is None:
                continue
            mask = region.pixels()
            void[mask] = crowd
            if not crowd:
                objects += 1
                labels[mask] = self._label(category.place, objects)
        return self._with_void(labels, void)

    def _segments(self, index: int, annotated: Annotated) -> Read:
        """Of a panoptic PNG."""
        ids = panoptic_ids(open_labels(self.files[index][1]))
        if ids.shape != annotated.size:
            raise ValueError(
                f"its PNG {self.files[index][1]} is {ids.shape[1]} x {ids.shape[0]} pixels"
            )
        by_id = {int(entry["id"]): entry for entry in annotated.entries}
        if len(by_id) < len(annotated.entries):
            raise ValueError("its segments_info has an id twice")
        found = np.array(sorted({0, *by_id}), np.uint32)
        rows = np.searchsorted(found, ids).clip(max=len(found) - 1)
        unknown = np.unique(ids[found[rows] != ids]).tolist()
        if unknown:
            raise ValueError(f"its PNG has the ids {unknown[:5]}, which segments_info lacks")
        table = np.full(len(found), self.rest, self._dtype)
        void = np.zeros(len(found), np.bool_)
        objects = 0
        for row, segment in enumerate(found.tolist()):
            entry = by_id.get(segment)
            category = None if entry is None else self._category(entry)
            if entry is None or category is None:
                void[row] = True
            elif flag(entry, "iscrowd", 0):
                void[row] = category.place is not None
            elif category.place is not None:
                objects += 1
                table[row] = self._label(category.place, objects)
        return self._with_void(table[rows], void[rows])

    def _label(self, place: int, number: int) -> int:
        if self.segments:
            return segment_label(place, number)
        return number if self.kind.objects else place

    def _with_void(self, labels: NDArray[Any], void: NDArray[np.bool_]) -> Read:
        if not self.kind.void:
            return labels, void if void.any() else None
        labels[void] = VOID_SEGMENT if self.segments else VOID
        return labels, None

    @property
    def _dtype(self) -> str:
        return f"uint{self.kind.bits}"

    def _category(self, entry: dict[str, Any]) -> Category:
        if entry["category_id"] not in self.categories:
            raise ValueError(f"category_id {entry['category_id']!r} is none of the categories")
        return self.categories[entry["category_id"]]


def _suggested(panoptic: bool, categories: int, segments: bool) -> str:
    """The task of a file for which none was named."""
    if segments:
        return "panoptic" if panoptic else "instance"
    return "instance" if categories == 1 and not panoptic else "semantic"


def _things(document: dict[str, Any], names: list[str]) -> list[str]:
    """Those of the names that are countable, as far as the file tells."""
    stuff = {entry["name"] for entry in document["categories"] if not entry.get("isthing", 1)}
    return [name for name in names if name not in stuff]


def panoptic_ids(image: Image.Image) -> NDArray[np.uint32]:
    """(H, W) ids: R + 256 G + 65536 B, or the values of a gray or palette PNG. Raises
    ValueError."""
    values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.uint32)
    if values.shape[2] not in (3, 4):
        raise ValueError("its PNG has gray values with alpha; ids are RGB or gray")
    red, green, blue = np.moveaxis(values[..., :3].astype(np.uint32), -1, 0)
    return red + (green << 8) + (blue << 16)


def _categories(
    document: dict[str, Any], file: Path
) -> dict[int, tuple[str, tuple[int, int, int] | None]]:
    """Id -> name and colour, by id."""
    found: dict[int, tuple[str, tuple[int, int, int] | None]] = {}
    for entry in document["categories"]:
        key, name, colour = entry.get("id"), entry.get("name"), entry.get("color")
        if not isinstance(key, int) or not isinstance(name, str) or key in found:
            raise DataError(f"{file}: each category needs an id and a name of its own, not {entry}")
        try:
            flag(entry, "isthing", 1)
        except ValueError as error:
            raise DataError(f"{file}: category {key}: {error}") from error
        if not is_line(name):
            raise DataError(f"{file}: category {key}: its name {name!r} must be one line of text")
        listed = isinstance(colour, list)  # others write it as text; it is not needed
        if listed and not is_colour(colour):
            raise DataError(f"{file}: category {key}: color must be [R, G, B] of 0 to 255")
        found[key] = (name, (colour[0], colour[1], colour[2]) if listed else None)
    names = [name for name, _ in found.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        what = f"the names {twice} stand for several categories" if twice else "no categories"
        raise DataError(f"{file}: {what}; each needs a name of its own")
    return dict(sorted(found.items()))


def _chosen(things: dict[int, tuple[str, Any]], spec: Spec, file: Path) -> list[str]:
    """Names of categories, in the order of their ids."""
    names = [name for name, _ in things.values()]
    wanted = named_in(spec.classes, names)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(f"{file} has no category {unknown[0]!r}; it has {few(names, 20)}")
    return [name for name in names if not wanted or name in wanted]


def _palette(names: Sequence[str], categories: dict[int, Category]) -> Colours:
    if len(names) == 1:
        return (OBJECT,)
    colours = {category.name: category.colour for category in categories.values()}
    mapped = colour_map(len(names))
    if BACKGROUND in names:
        mapped = ((0, 0, 0), *mapped[:-1])
    return tuple(colours.get(name) or other for name, other in zip(names, mapped, strict=True))


def _said(error: Exception) -> str:
    return f"an annotation lacks {error}" if isinstance(error, KeyError) else str(error)
