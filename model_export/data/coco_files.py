"""COCO's annotation files as JSON, and where the images and PNGs lie that they name."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from model_export.data.coco_masks import Annotated
from model_export.data.sample import DataError


def read_document(file: Path) -> dict[str, Any]:
    """Raises DataError."""
    try:
        document = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no readable JSON: {error}") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not _is_rows(document.get(part)):
            raise DataError(
                f'{file} is no annotation file of COCO: it needs "{part}", a list of objects'
            )
    return document


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def is_panoptic(document: dict[str, Any]) -> bool:
    return any("segments_info" in entry for entry in document["annotations"])


def flag(entry: dict[str, Any], field: str, default: int | None = None) -> bool:
    """A field that is 0 or 1. default: where it is missing. Raises ValueError, since text, as "0",
    would always be true, and KeyError where it is missing without a default."""
    value = entry[field] if default is None else entry.get(field, default)
    if value not in (0, 1, None):
        raise ValueError(f"{field} must be 0 or 1, not {value!r}")
    return bool(value)


def images_of(
    document: dict[str, Any], file: Path, root: Path | None, panoptic: bool
) -> tuple[list[tuple[Annotated, Path, Path]], list[str]]:
    """Image, its annotations and where they stand; and what is missing. A panoptic image without
    annotations is left out: nothing is known about it."""
    for part, field in (("images", "id"), ("annotations", "image_id")):
        for row in document[part]:
            if not isinstance(row.get(field), int | str):
                raise DataError(f"{file}: one of {part} has no {field}, a number: {str(row)[:80]}")
    entries: dict[int | str, list[dict[str, Any]]] = {}
    for entry in document["annotations"]:
        entries.setdefault(entry["image_id"], []).append(entry)
    places = _places(file, root)
    found: list[tuple[Annotated, Path, Path]] = []
    faults: list[str] = []
    keys: set[int | str] = set()
    taken: dict[Path, int | str] = {}
    for image in document["images"]:
        key, name = image.get("id"), image.get("file_name")
        if not isinstance(name, str) or not _is_size(image.get("height"), image.get("width")):
            faults.append(
                f"{file}: image {key!r} needs file_name, and height and width as whole numbers"
            )
            continue
        if key in keys:
            faults.append(f"{file}: two images have the id {key!r}; each needs its own")
            continue
        keys.add(key)
        own = entries.get(key, [])
        if panoptic and not own:
            continue
        if panoptic and len(own) > 1:
            faults.append(f"{file}: image {key!r} has {len(own)} panoptic annotations, not one")
            continue
        path = _find(places, name)
        if path is None:
            faults.append(
                f"{name} of {file} is missing; looked in {', '.join(map(str, places))}: name the "
                f"images' folder by --data"
            )
            continue
        if taken.setdefault(path, key) != key:
            faults.append(
                f"{file}: images {taken[path]!r} and {key!r} are both {path}: merge their "
                f"annotations, or name each image's own file"
            )
            continue
        labels: Path | None = file
        if panoptic:
            png = str(own[0].get("file_name") or Path(name).with_suffix(".png").name)
            folders = [file.with_suffix(""), *(place / file.stem for place in places)]
            folders += [place / "panoptic" for place in places]
            labels = _find(folders, png)
            own = own[0].get("segments_info", [])
            if labels is None:
                faults.append(
                    f"{png} of {file} is missing; it is expected in {file.with_suffix('')}/"
                )
                continue
        annotated = Annotated(name, (image["height"], image["width"]), own)
        found.append((annotated, path, labels or file))
    known = {image.get("id") for image in document["images"]}
    lost = [key for key in entries if key not in known]
    if lost:
        faults.append(f"{file}: annotations are of images {lost[:5]}, which it lacks")
    return found, faults


@functools.lru_cache(maxsize=4)
def image_files(file: Path, root: Path | None) -> frozenset[Path]:
    """Where the images lie that an annotation file names, as far as they are there. Raises
    DataError."""
    places = _places(file, root)
    names = (str(image.get("file_name")) for image in read_document(file)["images"])
    return frozenset(path.resolve() for name in names if (path := _find(places, name)) is not None)


def _is_size(*sides: object) -> bool:
    return all(isinstance(side, int) and side > 0 for side in sides)


def _places(file: Path, root: Path | None) -> list[Path]:
    """Where images may lie: in --data, beside the annotations, or in the folder that COCO gives
    them (annotations/instances_val2017.json, val2017/)."""
    part = file.stem.rpartition("_")[2]
    bases = [*([root] if root else []), file.parent, file.parent.parent]
    places = [base / below for base in bases for below in ("", "images", part, f"images/{part}")]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _find(places: Sequence[Path], name: str) -> Path | None:
    """name: relative, perhaps with a folder, perhaps written on Windows, or with its accents in
    another form than the file's."""
    plain = name.replace("\\", "/")
    forms = [plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    relatives = [PurePosixPath(form) for form in dict.fromkeys(forms)]
    for place in places:
        for below in (*relatives, *(PurePosixPath(relative.name) for relative in relatives)):
            if (place / below).is_file():
                return place / below
    return None
