"""What the values in label files mean, where they are not the classes' places: "labels" in
meta.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.tasks import VOID

OTHERS = "others"
FORM = (
    '"labels" must give each value of the masks (0 to 65535, or its colour "#RRGGBB", or '
    '"others" for the rest) the name of a class, or "void"'
)


class LabelValues:
    """Pixel values, or colours as 0xRRGGBB, -> class or VOID. `others` stands for the rest, None:
    others are faults."""

    def __init__(self, values: Mapping[int, int], colours: bool, others: int | None) -> None:
        self.values, self.colours, self.others = dict(values), colours, others

    def __repr__(self) -> str:
        return f"LabelValues({sorted(self.values.items())}, {self.colours}, {self.others})"

    @classmethod
    def read(cls, document: object, classes: Sequence[str]) -> LabelValues:
        """document: the value of "labels". Raises ValueError that says what is wrong."""
        if not isinstance(document, dict) or not document:
            raise ValueError(FORM)
        values: dict[int, int] = {}
        others: int | None = None
        forms = set()
        for key, name in document.items():
            place = _place(name, classes)
            if key == OTHERS:
                others = place
            elif match := re.fullmatch(r"#([0-9a-fA-F]{6})", key):
                values[int(match[1], 16)] = place
                forms.add(True)
            elif re.fullmatch(r"0|[1-9]\d{0,4}", key) and int(key) <= 0xFFFF:
                values[int(key)] = place
                forms.add(False)
            else:
                raise ValueError(f"{FORM}; it has the key {key!r}")
        if len(forms) != 1:
            raise ValueError(f"{FORM}; give values or colours, not both")
        return cls(values, forms.pop(), others)

    def classes_of(self, image: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
        """(H, W) classes, and the values or colours that have none. Raises ValueError where the
        image has no such values."""
        codes = _colours(image) if self.colours else _values(image)
        places = self._table[codes]
        missing = np.unique(codes[places < 0]).tolist()
        names = [f"#{code:06X}" if self.colours else str(code) for code in missing]
        return places.astype(np.uint8), names

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """By value or colour; -1: a fault."""
        rest = -1 if self.others is None else self.others
        table = np.full(1 << (24 if self.colours else 16), rest, np.int16)
        for value, place in self.values.items():
            table[value] = place
        return table


def names_in(document: object) -> list[str]:
    """The classes that "labels" names, in its order."""
    if not isinstance(document, dict):
        return []
    names = [name for name in document.values() if isinstance(name, str) and name != "void"]
    return list(dict.fromkeys(names))


def _place(name: object, classes: Sequence[str]) -> int:
    if name in classes:
        return classes.index(str(name))
    if name is None or name == "void":
        return VOID
    near = get_close_matches(str(name), classes, 1, 0)
    raise ValueError(f"{FORM}; {name!r} is no class" + (f"; do you mean {near[0]!r}?" * bool(near)))


def _values(image: Image.Image) -> NDArray[np.unsignedinteger]:
    values = np.asarray(image)
    if values.ndim != 2:
        raise ValueError('has colours: "labels" in meta.json must name them, as "#RRGGBB"')
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def _colours(image: Image.Image) -> NDArray[np.uint32]:
    if image.mode.startswith("I"):
        raise ValueError('has 16 bits and no colours: "labels" in meta.json must give values')
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.uint32), -1, 0)
    return (red << 16) | (green << 8) | blue
