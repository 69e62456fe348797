"""A GPU and a TensorRT of numpy for the TensorRT backend: memory is real, streams run at once, a
recording replays."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.bundle import Bundle, Manifest
from service.engines import engine_cache
from service.engines.cuda import OUT_OF_MEMORY, DriverError
from service.engines.engine_cache import EngineSet
from service.engines.tensorrt import TensorRTBackend
from service.engines.tensorrt_runtime import EngineTensor

STREAM = 77
MAP = re.compile(r"[ef]\d+")  # the name of a tensor between stages: its letter and its stride


class FakeDevice:
    """calls: what was asked for, in order. free_memory: bytes that can still be allocated."""

    name, capability = "Fake GPU", (8, 9)

    def __init__(self, free_memory: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.free_memory = free_memory
        self.memory: dict[int, np.ndarray] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.streams = self.closed = 0

    def allocate(self, size: int) -> int:
        if size > self.free_memory:
            raise DriverError("CUDA driver error 2: out of memory", OUT_OF_MEMORY)
        self.free_memory -= size
        return self.allocate_host(size)

    def free(self, address: int) -> None:
        self.free_memory += len(self.memory[address])
        self.free_host(address)

    def allocate_host(self, size: int) -> int:
        self.calls.append("allocate")
        # Zeros on a real device, but not here: what is read before it is written shows.
        block = np.full(size, 0xEE, np.uint8)
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    def free_host(self, address: int) -> None:
        del self.memory[address]

    def make_stream(self) -> int:
        self.streams += 1
        return STREAM

    def free_stream(self, stream: int) -> None:
        assert stream == STREAM
        self.streams -= 1

    def wait(self, stream: int) -> None:
        assert stream == STREAM
        assert self.recording is None, "a recording stream must not be waited for"
        self.calls.append("wait")

    def submit(self, name: str, work: Callable[[], None], stream: int) -> None:
        assert stream == STREAM
        self.calls.append(name)
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def copy(self, name: str, target: int, source: int, size: int, stream: int) -> None:
        self.submit(name, lambda: ctypes.memmove(target, source, size), stream)

    def to_device(self, target: int, host: int, size: int, stream: int) -> None:
        self.copy("to device", target, host, size, stream)

    def to_host(self, host: int, source: int, size: int, stream: int) -> None:
        self.copy("to host", host, source, size, stream)

    def on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self.copy("on device", target, source, size, stream)

    def begin_capture(self, stream: int) -> None:
        assert stream == STREAM
        self.recording = []
        self.calls.append("begin")

    def end_capture(self, stream: int) -> int:
        assert stream == STREAM
        assert self.recording is not None
        graph = 1000 + len(self.calls)
        self.graphs[graph], self.recording = self.recording, None
        self.calls.append("end")
        return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        def replay() -> None:
            for work in self.graphs[graph]:
                work()

        self.submit("graph", replay, stream)

    def free_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def close(self) -> None:
        self.closed += 1


class FakeRuntime:
    """Its plans are the names of the stages.

    made: every context, with how often its tensors were bound. unrecorded, failing: stages that
    cannot be recorded, and the one that fails.
    """

    def __init__(
        self,
        device: FakeDevice,
        manifest: Manifest,
        *,
        flavour: str = "tensorrt",
        version: str = "11",
    ) -> None:
        self.device, self.manifest, self.flavour, self.version = device, manifest, flavour, version
        self.unrecorded: Collection[str] = ()
        self.failing = ""
        self.made: list[FakeContext] = []

    def open(self, name: str, plan: bytes, kernels: Mapping[str, object]) -> FakeEngine:
        return FakeEngine(self, plan.decode())


class FakeEngine:
    def __init__(self, runtime: FakeRuntime, stage: str) -> None:
        self.runtime, self.stage, self.scratch = runtime, stage, 1000 * len(stage)
        spec = runtime.manifest.stages[stage]
        self.tensors = {
            each.name: EngineTensor(
                "float16" if MAP.fullmatch(each.name) else each.dtype,
                each.dims[1:],
                each in spec.inputs,
            )
            for each in (*spec.inputs, *spec.outputs)
        }

    def context(self, profile: int, batch: int, stream: int) -> FakeContext:
        made = FakeContext(self, batch)
        self.runtime.made.append(made)
        return made


class FakeContext:
    """Image -> maps full of its mean; encoder of depth d -> maps plus d; decoder -> f4 and, in
    channel 1, e8's mean."""

    def __init__(self, engine: FakeEngine, batch: int) -> None:
        self.engine, self.batch, self.bound = engine, batch, []

    def bind(self, addresses: Mapping[str, int], scratch: int, scratch_bytes: int) -> None:
        assert scratch_bytes >= self.engine.scratch
        self.bound.append((dict(addresses), scratch))

    def can_capture(self, stream: int) -> bool:
        return self.engine.stage not in self.engine.runtime.unrecorded

    def enqueue(self, stream: int) -> None:
        runtime, addresses = self.engine.runtime, self.bound[-1][0]
        if runtime.failing == self.engine.stage:
            raise DriverError(
                "CUDA driver error 700: an illegal memory access was encountered", 700
            )
        runtime.device.submit(self.engine.stage, lambda: self.compute(addresses), stream)

    def compute(self, addresses: Mapping[str, int]) -> None:
        view = dict(self.views(addresses))
        maps = [name for name in view if MAP.fullmatch(name)]
        if "image" in view:
            mean = view["image"].mean((1, 2, 3))
            for name in maps:
                view[name][...] = mean[:, None, None, None]
            if "quality" in view:
                plans = view["quality"].shape[1]
                view["quality"][...] = mean[:, None] / 255 * np.linspace(0.5, 1, plans)
        elif "probabilities" in view:
            view["probabilities"][...] = view["f4"][:, :1]
            view["probabilities"][:, 1] = view["e8"].mean((1, 2, 3), dtype=np.float32)[
                :, None, None
            ]
        else:
            depth = int(self.engine.stage.partition("-d")[2][0])
            for name in maps:
                if name.startswith("e"):
                    view[name][...] = view[f"f{name[1:]}"] + np.float16(depth)
            if "paused" in view:
                view["paused"][...] = np.arange(self.batch)[:, None, None] % 2

    def views(self, addresses: Mapping[str, int]) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in self.engine.tensors.items():
            size = self.batch * tensor.row_bytes
            raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(addresses[name]))
            yield name, raw.view(tensor.dtype).reshape(self.batch, *tensor.dims)


def engine_set(served: Bundle, **changes: object) -> EngineSet:
    about = EngineSet(
        engine_cache.content_of(served.manifest),
        "tensorrt",
        "11",
        "8.9",
        "fp16",
        (1, 2, 4),
        True,
        {},
        {},
    )
    return replace(about, **changes)  # type: ignore[arg-type]


def fill(served: Bundle, cache: Path, **changes: object) -> EngineSet:
    return engine_cache.save(
        cache, engine_set(served, **changes), {s: s.encode() for s in served.manifest.stages}
    )


class Opened:
    """A backend on a GPU of its own. unrecorded: stages that TensorRT cannot record."""

    def __init__(
        self,
        served: Bundle,
        cache: Path,
        *,
        free_memory: int = 1 << 30,
        unrecorded: Collection[str] = (),
        **words: object,
    ) -> None:
        self.device = FakeDevice(free_memory)
        self.runtime = FakeRuntime(self.device, served.manifest)
        self.runtime.unrecorded = unrecorded
        self.plans = served.manifest.plans
        self.backend = TensorRTBackend(
            served,
            cache=cache,
            device=lambda: self.device,
            runtimes=lambda: iter([self.runtime]),
            **words,
        )
