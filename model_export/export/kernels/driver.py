"""Load and launch a compiled kernel through the CUDA driver, by ctypes: six functions whose interface never changes.

The caller has a CUDA context (torch makes one) and keeps the arguments' memory alive until the stream is done.
"""

from __future__ import annotations

import ctypes
from functools import cache


class DriverError(RuntimeError):
    """There is no CUDA driver, or it refused; the message has the driver's own words."""


Argument = ctypes.c_void_p | ctypes.c_int


class Kernel:
    """One entry of a PTX text or a cubin, loaded into the current context for as long as the process lives."""

    def __init__(self, image: bytes, entry: str) -> None:
        cuda, module = _library(), ctypes.c_void_p()
        self._context, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(cuda, cuda.cuCtxGetCurrent(ctypes.byref(self._context)))
        _check(cuda, cuda.cuModuleLoadData(ctypes.byref(module), image))
        _check(cuda, cuda.cuModuleGetFunction(ctypes.byref(self._function), module, entry.encode()))

    def launch(self, grid: tuple[int, int, int], block: int, stream: int, *arguments: Argument) -> None:
        """Queue it on a stream (0 is the default one). Device pointers as c_void_p, numbers as c_int."""
        cuda, current = _library(), ctypes.c_void_p()
        _check(cuda, cuda.cuCtxGetCurrent(ctypes.byref(current)))
        if not current:  # a thread that has not used CUDA before
            _check(cuda, cuda.cuCtxSetCurrent(self._context))
        array = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        queue = ctypes.c_void_p(stream)
        _check(cuda, cuda.cuLaunchKernel(self._function, *grid, block, 1, 1, 0, queue, array, None))


@cache
def _library() -> ctypes.CDLL:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"no CUDA driver: {error}") from error
    cuda.cuModuleLoadData.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    cuda.cuModuleGetFunction.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
    return cuda


def _check(cuda: ctypes.CDLL, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"CUDA driver error {status}: {(text.value or b'unknown').decode()}")
