"""The CUDA driver by ctypes, which releases the GIL in each call: kernels, memory, streams, graphs.

It uses only functions with a stable interface. Addresses, streams and graphs are plain integers.
`Device` takes the primary context, which all CUDA libraries of a process share; a `Device` belongs
to the thread that made it.
"""

from __future__ import annotations

import ctypes
from functools import cache

OUT_OF_MEMORY = 2
_THREAD_LOCAL = 1  # a mode of capture that other threads' work does not disturb
_MAJOR, _MINOR = 75, 76  # attributes of a device


class DriverError(RuntimeError):
    """There is no CUDA driver, or it refused a call; the message is the driver's own."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


Argument = ctypes.c_void_p | ctypes.c_int


class Kernel:
    """One entry of a PTX text or a cubin, loaded into the current context for the process's life.

    The caller has a CUDA context, and keeps the arguments' memory alive until the stream is done.
    """

    def __init__(self, image: bytes, entry: str) -> None:
        cuda, module = _library(), ctypes.c_void_p()
        self._context, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(cuda, cuda.cuCtxGetCurrent(ctypes.byref(self._context)))
        _check(cuda, cuda.cuModuleLoadData(ctypes.byref(module), image))
        _check(cuda, cuda.cuModuleGetFunction(ctypes.byref(self._function), module, entry.encode()))

    def launch(
        self, grid: tuple[int, int, int], block: int, stream: int, *arguments: Argument
    ) -> None:
        """Queue it on a stream (0: the default one). Device pointers: c_void_p; numbers: c_int."""
        cuda, current = _library(), ctypes.c_void_p()
        _check(cuda, cuda.cuCtxGetCurrent(ctypes.byref(current)))
        if not current:  # a thread that has not used CUDA before
            _check(cuda, cuda.cuCtxSetCurrent(self._context))
        array = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        queue = ctypes.c_void_p(stream)
        _check(cuda, cuda.cuLaunchKernel(self._function, *grid, block, 1, 1, 0, queue, array, None))


def gpu_name(ordinal: int = 0) -> str:
    """The driver's name of a GPU. Makes no context. Raises DriverError."""
    cuda, device, text = _library(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _check(cuda, cuda.cuInit(ctypes.c_uint(0)))
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(ordinal)))
    _check(cuda, cuda.cuDeviceGetName(text, ctypes.c_int(len(text)), device))
    return text.value.decode()


class Device:
    """A GPU, its primary context current in this thread. All methods raise DriverError."""

    def __init__(self, ordinal: int = 0) -> None:
        self._cuda = _library()
        self.name = gpu_name(ordinal)
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(ordinal))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, e.g. (9, 0)."""
        return self._attribute(_MAJOR), self._attribute(_MINOR)

    @property
    def free_memory(self) -> int:
        """Free bytes on the device."""
        total = ctypes.c_uint64()
        return self._made(ctypes.c_uint64(), "cuMemGetInfo_v2", ctypes.byref(total))

    def allocate(self, size: int) -> int:
        """Device memory, filled with zeros and aligned to 256 bytes. size: in bytes."""
        address = self._made(ctypes.c_uint64(), "cuMemAlloc_v2", ctypes.c_size_t(size))
        target = ctypes.c_uint64(address)
        self._call("cuMemsetD8_v2", target, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        # The default stream sets the zeros, and ours does not wait for it.
        self._call("cuCtxSynchronize")
        return address

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size: int) -> int:
        """Pinned host memory: copies from and to it do not block. size: in bytes."""
        return self._made(ctypes.c_void_p(), "cuMemAllocHost_v2", ctypes.c_size_t(size))

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def make_stream(self) -> int:
        independent = ctypes.c_uint(1)  # it does not wait for the default stream
        return self._made(ctypes.c_void_p(), "cuStreamCreate", independent)

    def wait(self, stream: int) -> None:
        """Wait until all queued work is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def free_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def to_device(self, target: int, host: int, size: int, stream: int) -> None:
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_void_p(host),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def to_host(self, host: int, source: int, size: int, stream: int) -> None:
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(host),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def begin_capture(self, stream: int) -> None:
        """From here on, queued work is recorded instead of run."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        """The graph of the recorded work, ready to launch."""
        recorded = ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(recorded))
        try:
            return self._made(
                ctypes.c_void_p(), "cuGraphInstantiateWithFlags", recorded, ctypes.c_uint64(0)
            )
        finally:
            self._call("cuGraphDestroy", recorded)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def free_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        # The release may destroy the context, so it must not stay current.
        self._call("cuCtxSetCurrent", ctypes.c_void_p())
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, number: int) -> int:
        return self._made(
            ctypes.c_int(), "cuDeviceGetAttribute", ctypes.c_int(number), self._device
        )

    def _made(
        self,
        result: ctypes.c_int | ctypes.c_uint64 | ctypes.c_void_p,
        name: str,
        *arguments: object,
    ) -> int:
        self._call(name, ctypes.byref(result), *arguments)
        return result.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        _check(self._cuda, getattr(self._cuda, name)(*arguments))


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
        raise DriverError(
            f"CUDA driver error {status}: {(text.value or b'unknown').decode()}", status
        )
