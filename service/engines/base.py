"""What the pipeline needs of an engine: named stages, each from tensors to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class Tensors(Protocol):
    """A batch of named tensors that stays where its backend put it, on the host or on a device."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor that no later stage reads, (B, ...) in host memory: scores, paused, answers."""
        ...

    def take(self, rows: Sequence[int]) -> Tensors:
        """The images at these rows, in this order."""
        ...


class Backend(Protocol):
    """An engine with a bundle's stages open. Called from one thread only."""

    @property
    def name(self) -> str:
        """The label of `build_info`, e.g. "onnxruntime"."""
        ...

    def run(self, stage: str, tensors: Tensors | Arrays) -> Tensors:
        """Run a stage of the manifest on a batch of B images.

        tensors: for the front {"image": (B, H, W, 3) uint8} in host memory; for every other stage
        what an earlier one returned. What comes back holds the stage's outputs, and what was passed
        in for the stages after it.
        """
        ...

    def close(self) -> None:
        """Free everything. Twice does no harm."""
        ...


@dataclass(frozen=True, slots=True)
class HostTensors:
    """Tensors in host memory. arrays: name -> (B, ...)."""

    arrays: Arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def take(self, rows: Sequence[int]) -> HostTensors:
        kept = list(rows)
        return HostTensors({name: values[kept] for name, values in self.arrays.items()})


def on_host(tensors: Tensors | Arrays) -> Arrays:
    """The arrays of a batch in host memory. Raises TypeError for another backend's tensors."""
    if isinstance(tensors, HostTensors):
        return tensors.arrays
    if isinstance(tensors, Mapping):
        return tensors
    raise TypeError(f"tensors of another backend: {type(tensors).__name__}")
