"""Where the images of a data set lie that may be any folder: folder, instances or coco."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from model_export.data.coco import Spec
from model_export.data.coco_files import image_files
from model_export.data.folders import images_in
from model_export.data.sample import DataError


def place_of(spec: str, root: Path | None) -> Path:
    """The folder of its images, or its annotation file. spec: as it was named."""
    kind, _, rest = spec.partition(":")
    if kind == "coco":
        return Spec.parse(rest).file(root).resolve()
    return ((root or Path()) / "images" / rest).resolve()


def image_files_of(spec: str, root: Path | None) -> Set[Path]:
    """Its images; none where it cannot be read here."""
    place, is_coco = place_of(spec, root), spec.startswith("coco:")
    if root is None and not is_coco:
        return frozenset()
    try:
        if is_coco:
            return image_files(place, root)
        return {file.resolve() for file in images_in(place)}
    except (OSError, DataError):
        return frozenset()
