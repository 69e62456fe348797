"""What a backend holds for a GPU, freed together: device memory, pinned host memory, streams."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines.cuda import OUT_OF_MEMORY, Device, DriverError
from service.errors import BackendError

_log = logging.getLogger("fathom")


class Held:
    """Everything that was taken, in order; `release` goes backwards and closes the device last.

    device: opens the GPU. user: who needs it, for the BackendError if there is no GPU.
    """

    def __init__(self, device: Callable[[], Device], user: str) -> None:
        try:
            self.device = device()
        except DriverError as error:
            raise BackendError(f"{user} needs a GPU: {error}") from error
        self._back: list[Callable[[], None]] = [self.device.close]

    def also(self, give_back: Callable[[], None]) -> None:
        """Call this on release, before anything that was taken earlier is given back."""
        self._back.append(give_back)

    def stream(self) -> int:
        stream = self.device.make_stream()
        self.also(lambda: self.device.free_stream(stream))
        return stream

    def on_device(self, size: int) -> int:
        """The address of `size` zero bytes, at least one."""
        address = self.device.allocate(max(size, 1))
        self.also(lambda: self.device.free(address))
        return address

    def pinned(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """An array in host memory that the GPU copies from and to without blocking.

        It must not be used after `release`.
        """
        size = prod(shape) * np.dtype(dtype).itemsize
        address = self.device.allocate_host(size)
        self.also(lambda: self.device.free_host(address))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return raw.view(dtype).reshape(shape)

    def release(self) -> None:
        """Give everything back. Calling it twice does no harm.

        If the driver refuses, that is only logged: after a failed kernel it refuses everything.
        """
        while self._back:
            give_back = self._back.pop()
            try:
                give_back()
            except DriverError as error:
                _log.warning("the CUDA driver refused to free something: %s", error)


@contextmanager
def refusals_as_errors(build_command: str) -> Iterator[None]:
    """Turn the driver's refusals into BackendError.

    If memory ran out, it says how to build engines that need less, by `build_command`.
    """
    try:
        yield
    except DriverError as error:
        if error.status == OUT_OF_MEMORY:
            raise BackendError(
                "the GPU has too little free memory for this bundle. Free some, or build engines "
                "for smaller batches or in half precision: "
                f"{build_command} --precision fp16 --batches 1"
            ) from error
        raise BackendError(f"the CUDA driver refused: {error}") from error
