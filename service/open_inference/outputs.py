"""The outputs of the model: which there are, and answers as their tensors.

A head that gives masks has labels and segments, one that gives boxes has segments, and one that
measures something has values and statistics. In a bundle with several heads the head's name stands
before them: semantic.labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.core import Ask
from service.errors import BadInference, shown
from service.inference.policies import Policies
from service.model import Model
from service.open_inference.parameters import PREFERENCE
from service.segmenting import Answer
from service.tasks import Boxes, Masks, Shown, Task, Values

_DECIMALS = 4  # of a measured value in JSON
_BAND = 1 << 18  # values written at a time: bounds the memory

Part: TypeAlias = bytes | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output. data: of BYTES, its elements; else an array of the shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[bytes] | NDArray[Any]

    def raw(self) -> bytes:
        """The binary form: little endian, an element of BYTES behind its length."""
        if isinstance(self.data, list):
            return b"".join(len(text).to_bytes(4, "little") + text for text in self.data)
        return np.ascontiguousarray(self.data).tobytes()

    def in_json(self) -> bytes:
        """The values, flat, with blanks before them, up to one width: so tables of their texts can
        be looked up for all pixels of a large photo at once. Nothing else of this process runs
        while Python writes numbers one by one, which takes it seconds."""
        if isinstance(self.data, list):
            return ",".join(json.dumps(element.decode()) for element in self.data).encode()
        flat = self.data.ravel()
        if flat.dtype.kind == "f":
            return _decimals(flat)
        return bytes(_texts(int(flat.max()), ",")[flat].tobytes()[:-1])


def _texts(most: int, end: str) -> NDArray[np.bytes_]:
    """(most + 1,): the texts of the whole numbers from 0 on, all of one width."""
    width = len(str(most))
    return np.array([f"{value:{width}}{end}" for value in range(most + 1)], f"S{width + len(end)}")


def _decimals(values: NDArray[np.floating[Any]]) -> bytes:
    """(n,), from 0 to the end of a head's range -> their texts, _DECIMALS digits behind the
    point."""
    parts = 10**_DECIMALS
    wholes = _texts(int(values.max()) + 1, ".")  # the largest may be rounded up
    rests = np.array([f"{rest:0{_DECIMALS}}," for rest in range(parts)], f"S{_DECIMALS + 1}")
    row = np.dtype([("whole", wholes.dtype), ("rest", rests.dtype)])
    bands = list[bytes]()
    for start in range(0, len(values), _BAND):
        rounded = np.rint(values[start : start + _BAND].astype(float) * parts).astype(np.intp)
        texts = np.empty(len(rounded), row)
        texts["whole"], texts["rest"] = wholes[rounded // parts], rests[rounded % parts]
        bands.append(texts.tobytes())
    return b"".join(bands)[:-1]


@dataclass(frozen=True, slots=True)
class Output:
    """One row. shape: as metadata has it, -1 is a size that varies. make: from the head's answer
    for one image, (height, width) or the bytes of an element."""

    name: str
    head: str
    datatype: str
    shape: tuple[int, ...]
    make: Callable[[Answer], Part]

    @property
    def per_pixel(self) -> bool:
        """Whether it has a value per pixel, so that all images must be of one size."""
        return len(self.shape) == 3

    def tensor(self, parts: Sequence[Part]) -> Tensor:
        """parts: of each image, as `make` makes them."""
        elements = [part for part in parts if isinstance(part, bytes)]
        if elements:
            return Tensor(self.name, self.datatype, (len(elements),), elements)
        array = np.stack([part for part in parts if not isinstance(part, bytes)])
        return Tensor(self.name, self.datatype, array.shape, array)


class Outputs:
    """What a bundle can answer, by name, in the order of its heads."""

    def __init__(self, manifest: Manifest, tasks: Mapping[str, Task], policies: Policies) -> None:
        self._policies = policies
        several = len(manifest.heads) > 1
        self.known = {
            output.name: output
            for head in manifest.heads
            for output in _of_head(head.name, tasks[head.name], several=several)
        }

    @classmethod
    def of(cls, model: Model) -> Outputs:
        return cls(model.manifest, model.tasks, model.policies)

    def chosen(self, names: Sequence[object], ask: Ask) -> tuple[str, ...]:
        """The names, or without any, those of all heads that are asked for.

        Raises BadInference for one that is unknown or not asked for, BadPreference for a head that
        the bundle does not have.
        """
        self._policies.check(ask)
        asked = self._policies.shares(ask.preference)
        for name in names:
            if not isinstance(name, str) or name not in self.known:
                listed = " and ".join(f"'{known}'" for known in self.known)
                raise BadInference(f"the output {shown(name)} is unknown: the outputs are {listed}")
            if (head := self.known[name].head) not in asked:
                raise BadInference(
                    f"the output '{name}' is of the head '{head}', which is not asked for: give it "
                    f"a weight in {PREFERENCE}"
                )
        found = tuple(str(name) for name in names)
        if len(set(found)) < len(found):
            raise BadInference("an output is requested twice")
        return found or tuple(row.name for row in self.known.values() if row.head in asked)


def _of_head(head: str, task: Task, *, several: bool) -> list[Output]:
    before = f"{head}." if several else ""
    return [
        Output(f"{before}{name}", head, _datatype(task, datatype), shape, make)
        for name, datatype, shape, make in _KINDS[task.gives]
    ]


def _datatype(task: Task, datatype: str) -> str:
    """That of labels depends on the task: ids of objects may need more than 8 bits."""
    return "INT32" if datatype == "UINT8" and task.objects else datatype


def _labels(answer: Answer) -> Part:
    return answer.labels.astype(np.dtype("<i4") if answer.task.objects else np.uint8, copy=False)


def _segments(answer: Answer) -> Part:
    return json.dumps([found.as_json() for found in answer.segments]).encode()


def _boxes(answer: Answer) -> Part:
    return json.dumps([found.as_json() for found in answer.detections]).encode()


def _values(answer: Answer) -> Part:
    return answer.values.values.astype("<f4", copy=False)


def _statistics(answer: Answer) -> Part:
    return json.dumps(answer.values.as_json()).encode()


_Row: TypeAlias = tuple[str, str, tuple[int, ...], Callable[[Answer], Part]]
_KINDS: dict[type[Shown], tuple[_Row, ...]] = {
    Masks: (
        ("labels", "UINT8", (-1, -1, -1), _labels),
        ("segments", "BYTES", (-1,), _segments),
    ),
    Boxes: (("segments", "BYTES", (-1,), _boxes),),
    Values: (
        ("values", "FP32", (-1, -1, -1), _values),
        ("statistics", "BYTES", (-1,), _statistics),
    ),
}
