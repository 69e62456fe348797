"""TensorRT: engines from the cache, tensors that stay on the GPU, CUDA graphs for all stages.

One thread, one stream. All that a request needs on the device is made when the backend opens: the
engines, the activations of the largest stage, the tensors for the largest batch (in each place
those that pass between stages), and what TensorRT and the driver keep for each context and graph.
The log says how many bytes that came to; no request adds to them. Tensors can be used until they
are written again in their place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from service.bundle import Bundle, Stage
from service.engines import engine_cache
from service.engines.base import Arrays, DeviceTensors, Tensors, fitting, on_device, passed_on
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
    """Opens the engines that `build-trt` made of a verified bundle.

    max_batch: most images of a call. only: take this set, though it was never compared with ONNX
    Runtime. device, runtimes: for tests. Raises BackendError that names the command which mends it.
    """

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
        mend = f"python -m model_export build-trt {bundle.root} --cache {cache}"
        self._held = Held(device, "TensorRT")
        try:
            with refusals_as_errors(mend):
                self._open(bundle, cache, max_batch, only, list(runtimes()), mend)
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
        mend: str,
    ) -> None:
        if not runtimes:
            raise BackendError(
                "TensorRT is not installed: pip install 'fathom[tensorrt]' or "
                "'fathom[tensorrt-rtx]'"
            )
        held, device = self._held, self._held.device
        free, capability = device.free_memory, "{}.{}".format(*device.capability)
        there = [(runtime.flavour, runtime.version) for runtime in runtimes]
        content = engine_cache.content_of(bundle.manifest)
        chosen = only or engine_cache.find(cache, content, there, capability, mend=mend)
        self._batches = served_sizes(chosen.batches, max_batch, cache, mend)
        runtime = next(each for each in runtimes if each.flavour == chosen.flavour)
        self.name = f"{chosen.flavour}-{chosen.precision}"
        kernels = {k.sha256: Compiled.read(bundle.root, k) for k in bundle.manifest.kernels}
        engines: dict[str, Engine] = {}
        held.also(engines.clear)
        for stage in self._stages:
            plan = engine_cache.read(cache, chosen, stage, mend=mend)
            engines[stage] = runtime.open(f"{chosen.folder}/{stage}.plan", plan, kernels)
        compare(self._stages, engines, chosen.folder, mend)
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
            own = on_device(tensors, self)
            images, placed = own.count, own.kept
            batch = fitting(self._batches, images)
        self._places.check(placed, self._stages[stage].inputs)
        self._graphs.run(stage, batch, placed.place)
        kept = self._places.after(stage, placed)
        return DeviceTensors(self, images, kept, self._places.answers(stage, images))

    def take(self, kept: Placed, rows: Sequence[int]) -> Placed:
        fitting(self._batches, len(rows))
        self._places.check(kept)
        return self._places.take(kept, rows)

    def close(self) -> None:
        self._held.release()


def served_sizes(
    batches: tuple[int, ...], max_batch: int, cache: Path, mend: str
) -> tuple[int, ...]:
    """The engines' batch sizes up to the one that holds `max_batch` images. Raises BackendError."""
    if max_batch > batches[-1]:
        sizes = ",".join(str(size) for size in (*batches, max_batch))
        raise BackendError(
            f"{cache}: the engines take {batches[-1]} images at once, the service may bring "
            f"{max_batch}. Build them anew with: {mend} --batches {sizes}"
        )
    return batches[: batches.index(fitting(batches, max_batch)) + 1]


def compare(
    stages: Mapping[str, Stage], engines: Mapping[str, Engine], folder: str, mend: str
) -> None:
    """The plans' tensors must be the manifest's; between stages they may be of another type."""
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
                f"{folder}/{name}.plan: its tensors are not the manifest's. Build it anew with: "
                f"{mend}"
            )
