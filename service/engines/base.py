"""What the pipeline needs of an engine: named stages, each from tensors to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

from service.bundle import Stage, TensorSpec

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Kept = TypeVar("Kept")  # what a backend knows of tensors on its device


class Tensors(Protocol):
    """A batch of named tensors that stays where its backend put it, on the host or on a device."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor that no later stage reads, (B, ...) in host memory: scores, paused, answers."""
        ...

    def take(self, rows: Sequence[int]) -> Tensors:
        """The images at these rows, in this order."""
        ...


class Backend(Protocol):
    """An engine with a bundle's stages open. Called from one thread only.

    Whatever has to be compiled, recorded or allocated for a batch size is made while it opens, so
    that no request pays for it.
    """

    @property
    def name(self) -> str:
        """The label of `build_info`, e.g. "onnxruntime"."""
        ...

    def run(self, stage: str, tensors: Tensors | Arrays) -> Tensors:
        """Run a stage of the manifest on a batch of B images; it is done when this returns.

        tensors: for the front {"image": (B, H, W, 3) uint8} in host memory; for every other stage
        what an earlier one returned. What comes back holds the stage's outputs, and what was passed
        in for the stages after it. Raises KeyError if they lack one of the stage's inputs,
        TypeError if they are another backend's, and ValueError if they are more images than the
        backend was opened for, or were overwritten since.
        """
        ...

    def close(self) -> None:
        """Free everything. Twice does no harm."""
        ...


def passed_on(stages: Mapping[str, Stage]) -> frozenset[TensorSpec]:
    """The tensors that one stage writes and another reads. They stay where the engine is.

    Every other output is read by the service alone.
    """
    written = {spec for stage in stages.values() for spec in stage.outputs}
    return frozenset(written & {spec for stage in stages.values() for spec in stage.inputs})


@dataclass(frozen=True, slots=True)
class HostTensors:
    """Tensors in host memory. arrays: name -> (B, ...)."""

    arrays: Arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def take(self, rows: Sequence[int]) -> HostTensors:
        return HostTensors(rows_of(self.arrays, rows))


def on_host(tensors: Tensors | Arrays) -> Arrays:
    """The arrays of a batch in host memory. Raises TypeError for another backend's tensors."""
    if isinstance(tensors, HostTensors):
        return tensors.arrays
    if isinstance(tensors, Mapping):
        return tensors
    raise TypeError(f"tensors of another backend: {type(tensors).__name__}")


class Owner(Protocol[Kept]):
    """A backend whose tensors are on a device."""

    def take(self, kept: Kept, rows: Sequence[int]) -> Kept:
        """Copy these rows on the device. Raises ValueError if they were overwritten."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceTensors(Generic[Kept]):
    """B = `count` images on a device.

    kept: their tensors there that later stages read. answers: the outputs of the last stage that
    nobody else reads, name -> (B, ...) in host memory.
    """

    owner: Owner[Kept]
    count: int
    kept: Kept
    answers: Arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.answers[name]

    def take(self, rows: Sequence[int]) -> DeviceTensors[Kept]:
        if not all(0 <= row < self.count for row in rows):
            raise IndexError(f"rows {list(rows)} of {self.count}")
        kept, answers = self.owner.take(self.kept, rows), rows_of(self.answers, rows)
        return DeviceTensors(self.owner, len(rows), kept, answers)


def on_device(tensors: Tensors, owner: Owner[Kept]) -> DeviceTensors[Kept]:
    """A backend's own tensors. Raises TypeError for another's."""
    if not isinstance(tensors, DeviceTensors) or tensors.owner is not owner:
        raise TypeError(f"tensors of another backend: {type(tensors).__name__}")
    return tensors


def rows_of(arrays: Arrays, rows: Sequence[int]) -> Arrays:
    return {name: values[list(rows)] for name, values in arrays.items()}


def fitting(sizes: Sequence[int], count: int) -> int:
    """The smallest of ascending batch sizes that holds so many images. Raises ValueError."""
    if not 1 <= count <= sizes[-1]:
        raise ValueError(f"{count} images: the engines take 1 to {sizes[-1]}")
    return next(size for size in sizes if size >= count)
