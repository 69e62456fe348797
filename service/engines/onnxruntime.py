"""ONNX Runtime on the CPU: one session per graph, one memory arena for all of them.

Only one stage runs at a time. Therefore the threads of a session soon sleep when it is done; by
default they keep spinning and take the cores from the next session. All sessions share one arena;
by default each keeps the memory of its largest batch. Memory patterns are off, so that no batch
size allocates anything of its own.

The deformable attention is our compiled operator where this installation has it; else ONNX Runtime
takes the node's body, in its own operators.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import onnxruntime as ort

from service.bundle import Bundle, Stage, TensorSpec
from service.engines.base import Arrays, HostTensors, Tensors, on_host, passed_on
from service.engines.compiled import Compiled, compiled
from service.errors import BackendError
from service.native.library import MEND

# How long a thread that has nothing to do goes on looking for work. Between two operators there is
# some sooner, and to wake it would take as long.
SPIN_US = 50
_log = logging.getLogger("fathom")
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxRuntimeBackend:
    """Opens every graph of a verified bundle.

    threads: per session, at least 1. decomposed: leave the compiled deformable attention alone.
    Raises BackendError that names the file, and the tensor if one differs from the manifest.
    """

    name = "onnxruntime"
    # Of larger shapes, a batch takes as long as its images one after the other (docs/results.md).
    whole_batch = 384 * 288

    def __init__(self, bundle: Bundle, *, threads: int, decomposed: bool = False) -> None:
        _share_arena()
        attention = None if decomposed else compiled()
        if attention is None:
            why = "as asked" if decomposed else f"none compiled; with a C compiler: {MEND}"
            _log.info("deformable attention in ONNX Runtime's own operators (%s)", why)
        else:
            attention.use_threads(threads)
            _log.info("deformable attention compiled for %s", attention.instructions)
        self._stages = bundle.manifest.stages
        self._passed_on = {spec.name for spec in passed_on(self._stages)}
        open_stage = partial(_open, bundle.root, threads=threads, attention=attention)
        # ONNX Runtime optimizes a graph in one thread, and without Python's lock.
        with ThreadPoolExecutor(threads, thread_name_prefix="open") as pool:
            opened = pool.map(open_stage, self._stages.values())
            self._sessions = dict(zip(self._stages, opened, strict=True))
        _trim()

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        available, about = on_host(tensors), self._stages[stage]
        outputs = [spec.name for spec in about.outputs]
        inputs = {spec.name: available[spec.name] for spec in about.inputs}
        values = self._sessions[stage].run(outputs, inputs)
        passed_on = {name: array for name, array in available.items() if name in self._passed_on}
        return HostTensors({**passed_on, **dict(zip(outputs, values, strict=True))})

    def close(self) -> None:
        self._sessions = {}


def _trim() -> None:
    """Give back to the system what optimizing the graphs took. The GNU C library alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _share_arena() -> None:
    """Make the CPU arena that all sessions with use_env_allocators share.

    ONNX Runtime accepts it once per process.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(memory, None)


def _open(
    root: Path, stage: Stage, threads: int, attention: Compiled | None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Memory patterns keep a plan per batch size, and save no time here.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    try:
        if attention is not None:
            options.register_custom_ops_library(attention.path)
        session = ort.InferenceSession(
            root / stage.file, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BackendError(
            f"{stage.file}: ONNX Runtime {ort.__version__} cannot open it: {error}"
        ) from error
    compare(stage.file, "input", stage.inputs, session.get_inputs())
    compare(stage.file, "output", stage.outputs, session.get_outputs())
    return session


def compare(
    file: str, kind: str, specs: Sequence[TensorSpec], arguments: Sequence[ort.NodeArg]
) -> None:
    """Check that the graph has the manifest's tensors, in any order.

    A size that varies may have any name. Raises BackendError that names the tensor.
    """
    wanted = {spec.name: (spec.dtype, _sizes(spec.dims)) for spec in specs}
    actual = {arg.name: (_DTYPES.get(arg.type, arg.type), _sizes(arg.shape)) for arg in arguments}
    for name in sorted(wanted.keys() | actual.keys()):
        if wanted.get(name) != actual.get(name):
            raise BackendError(
                f"{file}: {kind} {name!r} is {actual.get(name, 'missing')}, the manifest has "
                f"{wanted.get(name, 'none')}"
            )


def _sizes(dims: Sequence[int | str | None]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in dims)
