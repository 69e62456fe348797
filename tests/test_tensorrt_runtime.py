"""What is asked of TensorRT's own API, in which order, and what its refusals become: by a module
that notes it."""

from __future__ import annotations

import enum
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from service.engines import tensorrt_runtime
from service.engines.tensorrt_runtime import Runtime
from service.errors import BackendError

TENSORS = {"image": ((-1, 4, 6, 3), "UINT8", "INPUT"), "f4": ((-1, 8, 1, 2), "HALF", "OUTPUT")}


class Why(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


class Context:
    def __init__(self, told: list[object]) -> None:
        self.told, self.answer = told, True

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.told.append(("profile", profile, stream))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.told.append((name, shape))
        return shape[0] < 9

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.told.append((name, address))
        return address > 0

    def set_device_memory(self, address: int, size: int) -> None:
        self.told.append(("scratch", address, size))

    def execute_async_v3(self, stream: int) -> bool:
        self.told.append(("run", stream))
        return self.answer


class Engine:
    num_io_tensors, num_optimization_profiles = 2, 3

    def __init__(self, told: list[object]) -> None:
        self.told, self.context = told, Context(told)

    def get_tensor_name(self, index: int) -> str:
        return list(TENSORS)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return TENSORS[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        return TENSORS[name][1]

    def get_tensor_mode(self, name: str) -> str:
        return TENSORS[name][2]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return (100, 300, 200)[profile]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=self.told.append)

    def create_execution_context(self, how: Any) -> Any:
        self.told.append(getattr(how, "dynamic_shapes_kernel_specialization_strategy", how))
        return self.context


class Module(SimpleNamespace):
    """tensorrt, or tensorrt_rtx if `rtx`."""

    def __init__(self, *, rtx: bool, verdict: str = "VALID", opens: bool = True) -> None:
        told: list[object] = []
        kinds = ("FLOAT", "HALF", "BF16", "UINT8", "INT32")
        super().__init__(
            __version__="1.7" if rtx else "11.4",
            told=told,
            engine=Engine(told),
            DataType=SimpleNamespace(**{k: k for k in kinds}),
            TensorIOMode=SimpleNamespace(INPUT="INPUT"),
            ILogger=object,
            EngineInvalidityDiagnostics=Why,
            EngineValidity=SimpleNamespace(INVALID="INVALID"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        )
        methods = {"deserialize_cuda_engine": lambda plan: self.engine if opens else None}
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
            methods["get_engine_validity"] = lambda head: (verdict, 3 if head == b"pl" else 0)
        self.Runtime = lambda logger: SimpleNamespace(
            engine_header_size=2, logger=logger, **methods
        )


def opened(module: Module) -> tensorrt_runtime.Engine:
    return Runtime("tensorrt", module).open("front.plan", b"plan", {})  # type: ignore[arg-type]


@pytest.mark.parametrize("rtx", [False, True])
def test_a_context_has_its_profile_shapes_and_memory_before_it_runs(rtx: bool) -> None:
    module = Module(rtx=rtx)
    engine = opened(module)
    assert engine.scratch == 300
    assert {
        name: (t.dtype, t.dims, t.is_input, t.row_bytes) for name, t in engine.tensors.items()
    } == {
        "image": ("uint8", (4, 6, 3), True, 72),
        "f4": ("float16", (8, 1, 2), False, 32),
    }
    context = engine.context(1, 4, 77)
    made = ["user managed", "eager"] if rtx else ["user managed"]
    assert module.told == [*made, ("profile", 1, 77), ("image", (4, 4, 6, 3))]
    module.told.clear()
    context.bind({"image": 10, "f4": 20}, 30, 300)
    context.enqueue(77)
    assert module.told == [("scratch", 30, 300), ("image", 10), ("f4", 20), ("run", 77)]
    assert context.can_capture(77)
    module.engine.context.is_stream_capturable = lambda stream: False
    assert not context.can_capture(77)


def test_refusals_name_the_plan() -> None:
    with pytest.raises(
        BackendError, match=r"front\.plan: .* refuses it here \(UNSUPPORTED_CC, VERSION_MISMATCH\)"
    ):
        opened(Module(rtx=True, verdict="INVALID"))
    with pytest.raises(BackendError, match=r"front\.plan: tensorrt 11\.4 cannot open it"):
        opened(Module(rtx=False, opens=False))
    engine = opened(Module(rtx=False))
    with pytest.raises(
        BackendError, match=r"front\.plan: batch 9 is not one that it was built for"
    ):
        engine.context(0, 9, 77)
    context = engine.context(0, 1, 77)
    with pytest.raises(BackendError, match=r"front\.plan: tensor f4 cannot lie at 0x0"):
        context.bind({"f4": 0}, 1, 1)
    module = Module(rtx=False)
    context = opened(module).context(0, 1, 77)
    module.engine.context.answer = False
    with pytest.raises(BackendError, match=r"front\.plan: TensorRT failed to queue it"):
        context.enqueue(77)
    module.engine.context = None
    with pytest.raises(BackendError, match="no execution context for batch 1"):
        opened(module).context(0, 1, 77)


def test_a_tensor_that_the_service_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TENSORS, "f4", ((-1, 8, -1, 2), "HALF", "OUTPUT"))
    with pytest.raises(BackendError, match=r"front\.plan: tensor f4 is float16 \(8, -1, 2\)"):
        opened(Module(rtx=False))
    monkeypatch.setitem(TENSORS, "f4", ((-1, 8), "INT64", "OUTPUT"))
    with pytest.raises(BackendError, match="tensor f4 is INT64"):
        opened(Module(rtx=False))


def test_the_flavours_that_can_be_imported_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Module:
        if name == "tensorrt":
            raise ImportError("no libnvinfer")
        return Module(rtx=True)

    monkeypatch.setattr(tensorrt_runtime.importlib, "import_module", load)
    assert [(runtime.flavour, runtime.version) for runtime in tensorrt_runtime.installed()] == [
        ("tensorrt-rtx", "1.7")
    ]


def test_tensorrt_s_words_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger = tensorrt_runtime._logger(Module(rtx=False))  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG, "fathom"):
        for severity in ("ERROR", "WARNING", "VERBOSE"):
            logger.log(SimpleNamespace(name=severity), "words")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "TensorRT: words"),
        ("WARNING", "TensorRT: words"),
        ("DEBUG", "TensorRT: words"),
    ]
