"""What a backend holds on a GPU, given back together: memory there, pinned memory here, and what
lives in it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines.cuda import OUT_OF_MEMORY, Device, DriverError
from service.errors import BackendError


class Held:
    """Everything that was taken, in order; `release` goes backwards. Closes the device, too."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._back: list[Callable[[], None]] = [device.close]

    def also(self, give_back: Callable[[], None]) -> None:
        self._back.append(give_back)

    def stream(self) -> int:
        made = self.device.make_stream()
        self.also(lambda: self.device.free_stream(made))
        return made

    def on_device(self, size: int) -> int:
        """Address of so many bytes, at least one."""
        address = self.device.allocate(max(size, 1))
        self.also(lambda: self.device.free(address))
        return address

    def pinned(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """An array in host memory that the GPU can copy from and to while others work. Dead after
        `release`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        address = self.device.allocate_host(size)
        self.also(lambda: self.device.free_host(address))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return raw.view(dtype).reshape(shape)

    def release(self) -> None:
        """Once is enough, twice does no harm."""
        while self._back:
            self._back.pop()()


@contextmanager
def refusals_as_errors(mend: str) -> Iterator[None]:
    """A driver that refuses raises BackendError, which says how to make engines that need less if
    memory ran out."""
    try:
        yield
    except DriverError as error:
        if error.status == OUT_OF_MEMORY:
            raise BackendError(
                "the GPU has not enough free memory for this bundle. Free some, or build engines "
                "for smaller batches "
                f"or in half precision: {mend} --precision fp16 --batches 1"
            ) from error
        raise BackendError(f"the CUDA driver refused: {error}") from error
