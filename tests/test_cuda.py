"""What is asked of the CUDA driver, and what its refusals become: by a library that notes it."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from service.engines import cuda
from service.engines.cuda import DriverError


class Library:
    """libcuda: each function returns 0, or what `fails` has for it; `numbers` go where the first
    argument points."""

    def __init__(self, **fails: int) -> None:
        self.fails, self.calls, self.numbers = fails, [], {"cuDeviceGetAttribute": [9, 0]}

    def __getattr__(self, name: str) -> object:
        def function(*arguments: object) -> int:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of memory"  # type: ignore[attr-defined]
            elif arguments and hasattr(arguments[0], "_obj"):
                given = self.numbers.get(name)
                arguments[0]._obj.value = given.pop(0) if given else len(self.calls)
            return self.fails.get(name, 0)

        return function


def test_the_driver_is_called_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    library.numbers["cuMemGetInfo_v2"] = [1 << 30]
    monkeypatch.setattr(cuda, "_library", lambda: library)
    device = cuda.Device()
    assert device.free_memory == 1 << 30
    assert device.capability == (9, 0)
    assert device.name == ""
    memory, host, stream = device.allocate(100), device.allocate_host(100), device.make_stream()
    assert len({memory, host, stream}) == 3
    device.to_device(memory, host, 10, stream)
    device.on_device(memory, memory + 10, 10, stream)
    device.to_host(host, memory, 10, stream)
    device.begin_capture(stream)
    graph = device.end_capture(stream)
    device.launch_graph(graph, stream)
    device.wait(stream)
    device.free_graph(graph)
    device.free(memory)
    device.free_host(host)
    device.free_stream(stream)
    device.close()
    numbers = {
        name: [getattr(a, "value", None) for a in arguments] for name, arguments in library.calls
    }
    assert numbers["cuMemcpyHtoDAsync_v2"] == [memory, host, 10, stream]
    assert numbers["cuMemcpyDtoDAsync_v2"] == [memory, memory + 10, 10, stream]
    assert numbers["cuMemcpyDtoHAsync_v2"] == [host, memory, 10, stream]
    assert numbers["cuGraphLaunch"] == [graph, stream]
    assert numbers["cuMemFree_v2"] == [memory]
    assert numbers["cuMemsetD8_v2"] == [memory, 0, 100]
    assert isinstance(dict(library.calls)["cuMemFree_v2"][0], ctypes.c_uint64)
    assert "cuGraphDestroy" in numbers
    calls = [name for name, _ in library.calls]
    assert calls.index("cuMemsetD8_v2") < calls.index("cuCtxSynchronize")
    assert "cuDevicePrimaryCtxRelease_v2" in numbers


def test_the_driver_s_refusal_has_its_words_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(cuMemAlloc_v2=2)
    monkeypatch.setattr(cuda, "_library", lambda: library)
    with pytest.raises(DriverError, match="CUDA driver error 2: out of memory") as caught:
        cuda.Device().allocate(1)
    assert caught.value.status == cuda.OUT_OF_MEMORY


def test_a_kernel_is_loaded_and_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    library.numbers["cuCtxGetCurrent"] = [5, 0]  # at the launch, a thread without a context
    monkeypatch.setattr(cuda, "_library", lambda: library)
    cuda.Kernel(b"ptx", "entry").launch((3, 2, 1), 64, 7, ctypes.c_void_p(9), ctypes.c_int(4))
    calls = dict(library.calls)
    assert calls["cuLaunchKernel"][1:8] == (3, 2, 1, 64, 1, 1, 0)
    assert calls["cuLaunchKernel"][8].value == 7
    assert calls["cuCtxSetCurrent"][0].value == 5
    assert SimpleNamespace(**calls).cuModuleGetFunction[2] == b"entry"
