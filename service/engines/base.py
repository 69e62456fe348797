"""What the pipeline needs from an engine: named stages, each from tensors to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from numpy.typing import NDArray

from service.bundle import Stage, TensorSpec

# The most pixels of a shape of which a whole batch runs together, where batches save time.
WHOLE_BATCH = 640 * 480
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Handles = TypeVar("Handles")  # what a backend holds for tensors on its device


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

    Opening it compiles, records and allocates all that a batch size needs, so that no request pays
    for it.
    """

    @property
    def name(self) -> str:
        """The label of `build_info`, e.g. "onnxruntime"."""
        ...

    @property
    def whole_batch(self) -> int:
        """The most pixels of a shape of which max_batch images run together; of larger ones fewer
        do, so that the memory of a batch has a bound that does not grow with the canvas."""
        ...

    def run(self, stage: str, tensors: Tensors | Arrays) -> Tensors:
        """Run a stage of the manifest on a batch of B images, and return when it is done.

        tensors: for a front {"image": (B, H, W, 3) uint8} in host memory, and SIZE if it reads it;
        for every other stage the result of an earlier one. The result holds the stage's outputs,
        and those inputs that later stages read. Raises KeyError if an input of the stage is
        missing, TypeError for another backend's tensors, and ValueError for more images than the
        backend was opened for or for tensors that were overwritten since.
        """
        ...

    def close(self) -> None:
        """Free everything. Calling it twice does no harm."""
        ...


def passed_on(stages: Mapping[str, Stage]) -> frozenset[TensorSpec]:
    """The tensors that one stage writes and another reads. They stay on the engine's device.

    Only the service reads the other outputs.
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


class Owner(Protocol[Handles]):
    """A backend whose tensors are on a device."""

    def take(self, handles: Handles, rows: Sequence[int]) -> Handles:
        """Copy these rows on the device. Raises ValueError if they were overwritten."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceTensors(Generic[Handles]):
    """B = `count` images on a device.

    handles: their tensors there that later stages read.
    answers: the last stage's outputs that no stage reads, name -> (B, ...) in host memory.
    """

    owner: Owner[Handles]
    count: int
    handles: Handles
    answers: Arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.answers[name]

    def take(self, rows: Sequence[int]) -> DeviceTensors[Handles]:
        if not all(0 <= row < self.count for row in rows):
            raise IndexError(f"rows {list(rows)} of {self.count}")
        handles, answers = self.owner.take(self.handles, rows), rows_of(self.answers, rows)
        return DeviceTensors(self.owner, len(rows), handles, answers)


def on_device(tensors: Tensors, owner: Owner[Handles]) -> DeviceTensors[Handles]:
    """The tensors, checked to belong to `owner`. Raises TypeError for another backend's."""
    if not isinstance(tensors, DeviceTensors) or tensors.owner is not owner:
        raise TypeError(f"tensors of another backend: {type(tensors).__name__}")
    return tensors


def rows_of(arrays: Arrays, rows: Sequence[int]) -> Arrays:
    return {name: values[list(rows)] for name, values in arrays.items()}


def fitting(sizes: Sequence[int], count: int) -> int:
    """The smallest of ascending batch sizes that holds `count` images. Raises ValueError."""
    if not 1 <= count <= sizes[-1]:
        raise ValueError(f"{count} images: the engines take 1 to {sizes[-1]}")
    return next(size for size in sizes if size >= count)
