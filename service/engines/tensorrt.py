"""TensorRT: engines from the cache, tensors that stay on the GPU, CUDA graphs for all stages.

There is one thread and one stream. All device memory is allocated when the backend opens, and the
log has its size; no request adds to it. It holds the engines, the activations of the largest stage,
the tensors of the largest batch (those between stages once per place), and what TensorRT and the
driver keep for each context and graph. Tensors stay valid until the next write to their place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from service.bundle import Bundle, Stage
from service.engines import engine_cache
from service.engines.base import (
    WHOLE_BATCH,
    Arrays,
    DeviceTensors,
    Tensors,
    fitting,
    on_device,
    passed_on,
)
from service.engines.cuda import Device
from service.engines.device_memory import Held, refusals_as_errors
from service.engines.engine_cache import EngineSet
from service.engines.tensorrt_graphs import Graphs
from service.engines.tensorrt_places import Placed, Places
from service.engines.tensorrt_plugin import Compiled
from service.engines.tensorrt_runtime import Engine, Runtime, installed
from service.errors import BackendError

_log = logging.getLogger("fathom")


class TensorRTBackend:
    """Opens the engines that `build-trt` built for a verified bundle.

    max_batch: most images per call.
    only: take this set, even if it was never compared with ONNX Runtime.
    device, runtimes: for tests.
    Raises BackendError with the command that builds the right engines.
    """

    whole_batch = WHOLE_BATCH

    def __init__(
        self,
        bundle: Bundle,
        *,
        cache: Path,
        max_batch: int = 1,
        only: EngineSet | None = None,
        device: Callable[[], Device] = Device,
        runtimes: Callable[[], Iterator[Runtime]] = installed,
    ) -> None:
        self._stages = bundle.manifest.stages
        build_command = f"python -m model_export build-trt {bundle.root} --cache {cache}"
        self._held = Held(device, "TensorRT")
        try:
            with refusals_as_errors(build_command):
                self._open(bundle, cache, max_batch, only, list(runtimes()), build_command)
        except BackendError:
            self.close()
            raise

    def _open(
        self,
        bundle: Bundle,
        cache: Path,
        max_batch: int,
        only: EngineSet | None,
        runtimes: list[Runtime],
        build_command: str,
    ) -> None:
        if not runtimes:
            raise BackendError(
                "TensorRT is not installed: pip install '.[tensorrt]' or "
                "'.[tensorrt-rtx]' in Fathom's source folder"
            )
        held, device = self._held, self._held.device
        free, capability = device.free_memory, "{}.{}".format(*device.capability)
        available = [(runtime.flavour, runtime.version) for runtime in runtimes]
        content = engine_cache.content_of(bundle.manifest)
        chosen = only or engine_cache.find(
            cache, content, available, capability, build_command=build_command
        )
        self._batches = served_sizes(chosen.batches, max_batch, cache, build_command)
        runtime = next(r for r in runtimes if r.flavour == chosen.flavour)
        self.name = f"{chosen.flavour}-{chosen.precision}"
        kernels = {k.sha256: Compiled.read(bundle.root, k) for k in bundle.manifest.kernels}
        engines: dict[str, Engine] = {}
        held.also(engines.clear)
        for stage in self._stages:
            plan = engine_cache.read(cache, chosen, stage, build_command=build_command)
            engines[stage] = runtime.open(f"{chosen.folder}/{stage}.plan", plan, kernels)
        compare(self._stages, engines, chosen.folder, build_command)
        stream = held.stream()
        self._places = Places(held, stream, self._stages, engines, self._batches[-1])
        self._graphs = Graphs(held, stream, engines, self._places, self._batches)
        _log.info(
            "%s %s on %s, batches %s: %d CUDA graphs, %.0f MB on the device",
            self.name,
            runtime.version,
            device.name,
            self._batches,
            self._graphs.recorded,
            (free - device.free_memory) / 1e6,
        )

    def run(self, stage: str, tensors: Tensors | Arrays) -> DeviceTensors[Placed]:
        if isinstance(tensors, Mapping):
            images = len(next(iter(tensors.values())))
            batch = fitting(self._batches, images)
            placed = self._places.upload(stage, tensors, images)
        else:
            received = on_device(tensors, self)
            images, placed = received.count, received.handles
            batch = fitting(self._batches, images)
        self._places.check(placed, self._stages[stage].inputs)
        self._graphs.run(stage, batch, placed.place)
        placed = self._places.after(stage, placed)
        return DeviceTensors(self, images, placed, self._places.answers(stage, images))

    def take(self, handles: Placed, rows: Sequence[int]) -> Placed:
        fitting(self._batches, len(rows))
        self._places.check(handles)
        return self._places.take(handles, rows)

    def close(self) -> None:
        self._held.release()


def served_sizes(
    batches: tuple[int, ...], max_batch: int, cache: Path, build_command: str
) -> tuple[int, ...]:
    """The engines' batch sizes up to the one that fits `max_batch` images. Raises BackendError."""
    if max_batch > batches[-1]:
        sizes = ",".join(str(size) for size in (*batches, max_batch))
        raise BackendError(
            f"{cache}: the engines take {batches[-1]} images at once, but the service may send "
            f"{max_batch}. Rebuild them with: {build_command} --batches {sizes}"
        )
    return batches[: batches.index(fitting(batches, max_batch)) + 1]


def compare(
    stages: Mapping[str, Stage], engines: Mapping[str, Engine], folder: str, build_command: str
) -> None:
    """Check that the engines have the manifest's tensors. Raises BackendError.

    Those between stages may be of another type.
    """
    between = passed_on(stages)
    for name, stage in stages.items():
        tensors = engines[name].tensors
        specs = (*stage.inputs, *stage.outputs)
        same = {spec.name for spec in specs} == tensors.keys() and all(
            tensors[spec.name].dims == spec.dims[1:]
            and (spec in between or tensors[spec.name].dtype == spec.dtype)
            for spec in specs
        )
        if not same:
            raise BackendError(
                f"{folder}/{name}.plan: its tensors are not those in the manifest. Rebuild it "
                f"with: {build_command}"
            )
