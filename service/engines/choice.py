"""Which backend serves: the one in the settings, or with `auto` the best that is ready here.

It is chosen once, and the log says why. `auto` looks at what is installed and built; it opens
nothing. The choice must then work: an engine that does not fit, or a missing library, ends the
start with an error. No slower backend takes over silently.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.bundle import Bundle
from service.engines import engine_cache
from service.engines.base import Backend
from service.engines.compiled import compiled
from service.engines.cpu_limit import resolve_threads
from service.engines.cuda import DriverError, gpu_name
from service.engines.tensorrt_runtime import MODULES
from service.errors import BackendError
from service.settings import Settings

CUDA_PROVIDER = "CUDAExecutionProvider"
_log = logging.getLogger("fathom")


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that was chosen.

    backend: a row of BACKENDS.
    reason: a label of `build_info`: asked, engines, cuda-provider, no-gpu or no-gpu-runtime.
    why: the reason for people.
    """

    backend: str
    reason: str
    why: str


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def choose_backend(
    settings: Settings, served: Bundle, *, gpu: Callable[[], str] = gpu_name
) -> Choice:
    """The backend to serve with. Raises BackendError if the folder of engines cannot be read."""
    if settings.backend != "auto":
        return Choice(settings.backend, "asked", "--backend asks for it")
    try:
        name = gpu()
    except DriverError as error:
        backend, why = _for_cpu(settings, served)
        return Choice(backend, "no-gpu", f"there is no GPU to use ({error}), and {why}")
    if not any(map(installed, MODULES.values())):
        missing = "TensorRT is not installed"
    elif served.manifest.input.tiled:
        missing = "its tensors have fixed places, which hold one tile"
    elif not engine_cache.holds(settings.engine_cache, engine_cache.content_of(served.manifest)):
        missing = (
            f"{settings.engine_cache} has no TensorRT engines for this bundle "
            "(build-trt makes them)"
        )
    else:
        return Choice(
            "tensorrt",
            "engines",
            f"{settings.engine_cache} has engines for this bundle, and {name} is here",
        )
    if CUDA_PROVIDER in _providers():
        return Choice("onnxruntime-cuda", "cuda-provider", f"{name} is here, and {missing}")
    why = (
        f"{name} stays idle: {missing}, and onnxruntime with its {CUDA_PROVIDER} (the extra gpu) "
        "is not installed"
    )
    return Choice("onnxruntime", "no-gpu-runtime", why)


def _for_cpu(settings: Settings, served: Bundle) -> tuple[str, str]:
    """The backend without a GPU, and why. OpenVINO takes twice the memory and, before its models
    are compiled, longer to start: who wants it has asked for it once."""
    if not installed("openvino"):
        return "onnxruntime", "OpenVINO is not installed"
    attention = compiled()
    if attention is None or not attention.bfloat16:
        return "onnxruntime", "this processor or installation is not what OpenVINO is faster on"
    folder = engine_cache.openvino_folder(settings.engine_cache, served.manifest)
    if not any(folder.glob("*.blob")):
        return "onnxruntime", f"{folder} has no models of OpenVINO (--backend openvino makes them)"
    return "openvino", f"{folder} has its models, and this processor multiplies in bfloat16"


def open_backend(choice: Choice, settings: Settings, served: Bundle) -> Backend:
    """Open the chosen backend, and no other. Raises BackendError."""
    level = logging.WARNING if choice.reason == "no-gpu-runtime" else logging.INFO
    _log.log(level, "backend %s: %s", choice.backend, choice.why)
    return open_named(
        choice.backend,
        served,
        threads=resolve_threads(settings.threads),
        max_batch=settings.max_batch,
        engine_cache=settings.engine_cache,
    )


def open_named(
    name: str, served: Bundle, *, threads: int, max_batch: int, engine_cache: Path
) -> Backend:
    """Open a row of BACKENDS for a verified bundle. Imports its libraries.

    threads: for an engine on the CPU, at least 1.
    max_batch: most images that run together.
    engine_cache: folder of TensorRT engines and of OpenVINO's compiled models.
    Raises BackendError.
    """
    if name not in BACKENDS:
        raise BackendError(f"{name!r} is not a backend: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name](served, Limits(threads, max_batch, engine_cache))


@dataclass(frozen=True, slots=True)
class Limits:
    """See `open_named`."""

    threads: int
    max_batch: int
    engine_cache: Path


def _onnxruntime(served: Bundle, limits: Limits) -> Backend:
    _require_onnxruntime()
    from service.engines.onnxruntime import OnnxRuntimeBackend

    _log.info("onnxruntime runs on the CPU, %d threads", limits.threads)
    return OnnxRuntimeBackend(served, threads=limits.threads)


def _openvino(served: Bundle, limits: Limits) -> Backend:
    if not installed("openvino"):
        raise BackendError(
            "openvino is not installed: pip install '.[cpu,openvino]' in Fathom's source folder"
        )
    from service.engines.openvino import OpenVinoBackend

    _log.info("openvino runs on the CPU, %d threads", limits.threads)
    folder = engine_cache.openvino_folder(limits.engine_cache, served.manifest)
    return OpenVinoBackend(served, threads=limits.threads, cache=folder)


def _onnxruntime_cuda(served: Bundle, limits: Limits) -> Backend:
    _require_onnxruntime()
    from service.engines.onnxruntime_cuda import OnnxRuntimeCudaBackend

    return OnnxRuntimeCudaBackend(served, max_batch=limits.max_batch)


def _tensorrt(served: Bundle, limits: Limits) -> Backend:
    from service.engines.tensorrt import TensorRTBackend

    if served.manifest.input.tiled:
        raise BackendError(
            f"{served.manifest.name} has tiled canvases, and TensorRT's tensors have fixed places, "
            "which hold one tile: use --backend onnxruntime-cuda"
        )
    return TensorRTBackend(served, cache=limits.engine_cache, max_batch=limits.max_batch)


def _fake(served: Bundle, limits: Limits) -> Backend:
    from service.engines.fake import FakeBackend

    _log.warning("the backend is fake: masks are made up")
    return FakeBackend(served.manifest)


BACKENDS: Mapping[str, Callable[[Bundle, Limits], Backend]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "tensorrt": _tensorrt,
    "fake": _fake,
}


def _require_onnxruntime() -> None:
    if not installed("onnxruntime"):
        raise BackendError(
            "onnxruntime is not installed: pip install '.[cpu]' in Fathom's source folder, or "
            "'.[gpu]' for a GPU"
        )


def _providers() -> list[str]:
    if not installed("onnxruntime"):
        return []
    import onnxruntime

    providers: list[str] = onnxruntime.get_available_providers()
    return providers
