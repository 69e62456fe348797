"""The memory of the tensors of TensorRT's stages, at fixed addresses so that work can be recorded.

A tensor that one stage writes and another reads has memory in each of a few *places*. The stage
that reads images writes to the first place. Taking rows copies them to the next one. Every other
stage reads and writes in the place where its input is. Images and answers have one address each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from numpy.typing import NDArray

from service.bundle import Stage, TensorSpec
from service.engines.base import Arrays, passed_on
from service.engines.device_memory import Held
from service.engines.tensorrt_runtime import Engine

PLACES = ("front", "taken", "taken again")


@dataclass(frozen=True, slots=True)
class Placed:
    """Tensors in a place, each with the number of the write that produced it."""

    place: str
    writes: Mapping[TensorSpec, int]


class Places:
    """Device memory and pinned memory for all tensors of a bundle, each for `most` images."""

    def __init__(
        self,
        held: Held,
        stream: int,
        stages: Mapping[str, Stage],
        engines: Mapping[str, Engine],
        most: int,
    ) -> None:
        self._device, self._stream, self._stages = held.device, stream, stages
        self._passed_on = passed_on(stages)
        self._row_bytes: dict[TensorSpec, int] = {}
        for name, stage in stages.items():
            for spec in (*stage.inputs, *stage.outputs):
                self._row_bytes[spec] = engines[name].tensors[spec.name].row_bytes
        self._address: dict[tuple[str, TensorSpec], int] = {}
        self._host: dict[TensorSpec, NDArray[Any]] = {}
        for spec, size in self._row_bytes.items():
            if spec in self._passed_on:
                for place in PLACES:
                    self._address[place, spec] = held.on_device(most * size)
            else:
                address = held.on_device(most * size)
                self._address |= {(place, spec): address for place in PLACES}
                self._host[spec] = held.pinned((most, *spec.sizes), spec.dtype)
        self._writes, self._last = count(1), dict[tuple[str, TensorSpec], int]()

    def of(self, stage: str) -> Sequence[str]:
        """The places that a stage can run in."""
        reads_images = self._passed_on.isdisjoint(self._stages[stage].inputs)
        return PLACES[:1] if reads_images else PLACES

    def addresses(self, stage: str, place: str) -> dict[str, int]:
        """The address of each of a stage's tensors, by name."""
        specs = (*self._stages[stage].inputs, *self._stages[stage].outputs)
        return {spec.name: self._address[place, spec] for spec in specs}

    def upload(self, stage: str, arrays: Arrays, images: int) -> Placed:
        """Queue a copy of a stage's inputs from host memory."""
        specs = self._stages[stage].inputs
        for spec in specs:
            staged = self._host[spec][:images]
            staged[...] = arrays[spec.name]
            self._device.to_device(
                self._address[PLACES[0], spec], staged.ctypes.data, staged.nbytes, self._stream
            )
        return Placed(PLACES[0], self._written(PLACES[0], specs))

    def check(self, placed: Placed, read: Sequence[TensorSpec] = ()) -> None:
        """Raises KeyError if a tensor to read is missing, ValueError if any was overwritten."""
        for spec in read:
            if spec not in placed.writes:
                raise KeyError(f"there is no {spec.name} among these tensors")
        if any(self._last[placed.place, spec] != write for spec, write in placed.writes.items()):
            raise ValueError(
                f"these tensors were overwritten by a later call (place {placed.place!r})"
            )

    def after(self, stage: str, placed: Placed) -> Placed:
        """The tensors in the place after a stage has run there."""
        written = self._written(placed.place, self._stages[stage].outputs)
        all_writes = {**placed.writes, **written}
        passed_on = {spec: write for spec, write in all_writes.items() if spec in self._passed_on}
        return Placed(placed.place, passed_on)

    def answers(self, stage: str, images: int) -> Arrays:
        """A stage's outputs that no stage reads, in host memory. Waits for all queued work."""
        specs = [spec for spec in self._stages[stage].outputs if spec in self._host]
        for spec in specs:
            staged = self._host[spec][:images]
            self._device.to_host(
                staged.ctypes.data, self._address[PLACES[0], spec], staged.nbytes, self._stream
            )
        self._device.wait(self._stream)
        return {spec.name: self._host[spec][:images].copy() for spec in specs}

    def take(self, placed: Placed, rows: Sequence[int]) -> Placed:
        """Queue a copy of these rows to another place."""
        target = PLACES[1] if placed.place != PLACES[1] else PLACES[2]
        for spec in placed.writes:
            source, size = self._address[placed.place, spec], self._row_bytes[spec]
            into = self._address[target, spec]
            for to, row in enumerate(rows):
                self._device.on_device(into + to * size, source + row * size, size, self._stream)
        return Placed(target, self._written(target, list(placed.writes)))

    def _written(self, place: str, specs: Sequence[TensorSpec]) -> dict[TensorSpec, int]:
        writes = {spec: next(self._writes) for spec in specs}
        self._last |= {(place, spec): write for spec, write in writes.items()}
        return writes
