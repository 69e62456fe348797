"""TensorRT or TensorRT-RTX, whichever is installed: opens plans and runs them.

Only this file knows their API. It checks all that it can before a call: some versions abort on a
plan that does not fit this chip or driver.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from service.engines import tensorrt_plugin
from service.engines.tensorrt_plugin import Compiled, type_name
from service.errors import BackendError

# Flavour -> the package to import.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
_log = logging.getLogger("fathom")


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """A tensor of an engine. dims: without the batch."""

    dtype: str
    dims: tuple[int, ...]
    is_input: bool

    @property
    def row_bytes(self) -> int:
        size = SIZES[self.dtype]
        for side in self.dims:
            size *= side
        return size


class Runtime:
    """One flavour of TensorRT in this process."""

    def __init__(self, flavour: str, module: ModuleType) -> None:
        self.flavour, self._trt = flavour, module
        self.version: str = module.__version__

    def open(self, name: str, plan: bytes, kernels: Mapping[str, Compiled]) -> Engine:
        """Open a plan. There must be a driver.

        kernels: sha256 -> kernel, for the plan's plugins. Raises BackendError that names the plan.
        """
        trt = self._trt
        if self.flavour == "tensorrt-rtx":
            tensorrt_plugin.register(trt, kernels)
        runtime = trt.Runtime(_logger(trt))
        if hasattr(runtime, "get_engine_validity"):
            verdict, why = runtime.get_engine_validity(plan[: runtime.engine_header_size])
            if verdict == trt.EngineValidity.INVALID:
                raise BackendError(
                    f"{name}: {self.flavour} {self.version} refuses it here ({_reasons(trt, why)})"
                )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{name}: {self.flavour} {self.version} cannot open it; the log has its reason"
            )
        return Engine(trt, name, runtime, engine)


class Engine:
    """An open plan. scratch: bytes that a run needs besides its tensors, in any profile."""

    def __init__(self, trt: ModuleType, name: str, runtime: Any, engine: Any) -> None:
        self._trt, self.name = trt, name
        self._runtime, self._engine = runtime, engine  # the engine must not outlive the runtime
        self.tensors = {
            name: self._tensor(name)
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        }
        profiles = range(engine.num_optimization_profiles)
        self.scratch: int = max(
            engine.get_device_memory_size_for_profile_v2(profile) for profile in profiles
        )

    def context(self, profile: int, batch: int, stream: int) -> Context:
        """A context for one profile and its batch size. The caller provides its memory."""
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        # By default RTX compiles for a shape when it first sees it.
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise BackendError(
                f"{self.name}: no execution context for batch {batch}; the log has the reason"
            )
        for name, tensor in self.tensors.items():
            if tensor.is_input and not context.set_input_shape(name, (batch, *tensor.dims)):
                raise BackendError(f"{self.name}: batch {batch} is not one that it was built for")
        return Context(self.name, context)

    def _tensor(self, name: str) -> EngineTensor:
        engine = self._engine
        dtype = type_name(self._trt, engine.get_tensor_dtype(name))
        dims = tuple(engine.get_tensor_shape(name))[1:]
        if dtype not in SIZES or any(side < 1 for side in dims):
            raise BackendError(
                f"{self.name}: tensor {name} is {dtype} {dims}, which this service cannot hold"
            )
        return EngineTensor(
            dtype, dims, engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        )


class Context:
    """One engine's state for one profile; used by one thread and one stream."""

    def __init__(self, name: str, context: Any) -> None:
        self._name, self._context = name, context

    def bind(self, addresses: Mapping[str, int], scratch: int, scratch_bytes: int) -> None:
        """Set the addresses of its tensors and of its own memory."""
        self._context.set_device_memory(scratch, scratch_bytes)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"{self._name}: tensor {name} cannot lie at {address:#x}")

    def can_capture(self, stream: int) -> bool:
        is_capturable = getattr(self._context, "is_stream_capturable", None)
        return is_capturable is None or bool(is_capturable(stream))

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"{self._name}: TensorRT failed to queue it; the log has the reason")


def installed() -> Iterator[Runtime]:
    """The flavours with a package that can be imported."""
    for flavour, name in MODULES.items():
        try:
            yield Runtime(flavour, importlib.import_module(name))
        except ImportError as error:
            _log.debug("no %s: %s", flavour, error)


def _reasons(trt: ModuleType, bits: int) -> str:
    kinds = trt.EngineInvalidityDiagnostics
    known = {
        name: int(value) for name in dir(kinds) if isinstance(value := getattr(kinds, name), kinds)
    }
    return (
        ", ".join(sorted(name for name, value in known.items() if bits & value))
        or "no driver, or not its plan"
    )


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            _log.log(_LEVELS.get(severity.name, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
