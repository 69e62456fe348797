"""What a folder's meta.json says about its images: classes, their colours, groups, what the labels'
values mean. All of it is optional."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from model_export.data.class_names import UNNAMED
from model_export.data.folders import OBJECT, PALETTE, Folder
from model_export.data.label_values import LabelValues, names_in
from model_export.data.labelled import Colours
from model_export.data.sample import DataError, same_form
from model_export.data.scenes import CLASSES
from model_export.tasks import VOID
from service.bundle import is_line

FORM = (
    '{"classes": [NAME, ...], "colors": [[R, G, B], ...], "labels": {VALUE: NAME, ...}, '
    '"splits": {NAME: [{"id": ..., "seq" or "kind": ...}]}}'
)


READ = ("classes", "colors", "labels", "splits")
# What others call them.
ALSO_CALLED = {
    **dict.fromkeys(
        ("names", "name_list", "class_names", "categories", "class_list", "id2label", "nc"),
        "classes",
    ),
    **dict.fromkeys(("colours", "colormap", "palette", "color_map"), "colors"),
    **dict.fromkeys(("label_map", "mapping", "label_mapping", "values", "label_values"), "labels"),
    **dict.fromkeys(("groups", "sequences", "sets", "subsets"), "splits"),
}
# What says something about the data to people, and nothing to the code.
ABOUT = (
    *("name", "title", "description", "task", "source", "url", "version", "date", "year", "author"),
    *("authors", "contributor", "license", "licence", "licenses", "citation", "notes", "info"),
    *("images", "size", "encoding", "ignore_index", "train_pixel_counts"),
)


def open_folder(root: Path, below: str) -> Folder:
    """Images with a class for every pixel. Without meta.json, or where it names no classes, the
    classes are CamVid's.

    below: a folder inside images/ and masks/, "" = none. Raises DataError that names the file.
    """
    meta = read_description(root)
    classes, colours = classes_in(meta, root)
    return Folder(
        root,
        "semantic",
        classes=classes or CLASSES,
        palette=colours if classes else PALETTE,
        below=below,
        groups=groups_in(meta, root),
        values=values_in(meta, root, classes),
    )


def open_instances(root: Path, below: str) -> Folder:
    """Images with an object for every pixel, all of one class, which meta.json may name."""
    meta = read_description(root)
    classes = classes_in(meta, root)[0] or UNNAMED
    if len(classes) > 1:
        raise DataError(
            f"{root / 'meta.json'} names {len(classes)} classes, but instances/ does not tell "
            f"classes apart: name one"
        )
    if "labels" in meta:
        raise DataError(
            f'{root / "meta.json"}: "labels" is for masks/; in instances/ each value is an object'
        )
    groups = groups_in(meta, root)
    return Folder(root, "instance", classes=classes, palette=(OBJECT,), below=below, groups=groups)


def read_description(root: Path) -> dict[str, Any]:
    """What meta.json says; nothing where there is no such file. Raises DataError where it is no
    JSON object."""
    file = root / "meta.json"
    if not file.exists() and not file.is_symlink():  # a link to nowhere was meant to be read
        return {}
    try:
        meta = dict(json.loads(file.read_text("utf-8-sig")).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise _unexpected(root, error) from error
    for key in meta:
        if key not in READ and key not in ABOUT and not key.startswith("_"):
            raise DataError(
                f"{file} has {key!r}, which means nothing here; do you mean {_nearest(key)!r}? "
                f"Notes of your own can stand under keys that begin with _"
            )
    if meta.get("ignore_index", VOID) != VOID and "labels" not in meta:
        raise DataError(
            f"{file}: void is {VOID}; another value is named by "
            f'"labels": {{"{meta["ignore_index"]}": "void", ...}}, not by ignore_index'
        )
    return meta


def _nearest(key: str) -> str:
    """The key that was probably meant."""
    names = {**{name: name for name in READ}, **ALSO_CALLED}
    plain = key.lower().replace("-", "_").replace(" ", "_")
    return names[get_close_matches(plain, names, 1, 0)[0]]


def values_in(
    meta: dict[str, Any], root: Path, classes: tuple[str, ...] | None
) -> LabelValues | None:
    """What the values in label files mean, None: each is its class. classes: their names; none:
    CamVid's. root: as in `classes_in`."""
    if "labels" not in meta:
        return None
    try:
        return LabelValues.read(meta["labels"], classes or CLASSES)
    except ValueError as error:
        raise DataError(f"{root / 'meta.json'}: {error}") from error


def classes_in(meta: dict[str, Any], root: Path) -> tuple[tuple[str, ...], Colours]:
    """Names, and as many (red, green, blue); by default those of PASCAL VOC's colour map.

    root: the folder that meta.json describes, for the messages.
    """
    names, colours = meta.get("classes", names_in(meta.get("labels"))), meta.get("colors")
    if (
        not _is_list_of(names, str)
        or not all(map(is_line, names))
        or len(set(names)) < len(names)
        or len(names) > VOID
    ):
        raise DataError(
            f"{root / 'meta.json'}: classes must be a list of at most {VOID} names, each a "
            f"different one and one line of text"
        )
    if colours is None:
        return tuple(names), (OBJECT,) if len(names) == 1 else colour_map(len(names))
    if (
        not _is_list_of(colours, list)
        or len(colours) != len(names)
        or not all(is_colour(colour) for colour in colours)
    ):
        raise DataError(
            f"{root / 'meta.json'}: colors must be [R, G, B] of 0 to 255 for each of the "
            f"{len(names)} classes"
        )
    return tuple(names), tuple((red, green, blue) for red, green, blue in colours)


def groups_in(meta: dict[str, Any], root: Path) -> dict[str, str]:
    """Image's name -> group, from the splits in meta.json; empty without splits. root: as in
    `classes_in`."""
    try:
        entries = [entry for split in meta.get("splits", {}).values() for entry in split]
        return {
            same_form(str(e["id"])): str(e.get("seq", e.get("kind")))
            for e in entries
            if "seq" in e or "kind" in e
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise _unexpected(root, error) from error


def colour_map(count: int) -> Colours:
    """PASCAL VOC's: the bits of 1, 2, .. go to red, green and blue in turn, the highest first."""

    def channel(index: int, which: int) -> int:
        return sum(((index >> (3 * place + which)) & 1) << (7 - place) for place in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(1, count + 1))


def _unexpected(root: Path, error: Exception) -> DataError:
    return DataError(
        f"{root / 'meta.json'}: expected {FORM}, or no such file ({type(error).__name__}: {error})"
    )


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def is_colour(value: list[object]) -> bool:
    """Whether it is [R, G, B] of whole numbers 0 to 255."""
    return len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)
