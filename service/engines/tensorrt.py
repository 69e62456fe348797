"""TensorRT: engines from the cache, features that stay on the GPU, a CUDA graph for each stage and
batch.

One thread, one stream. All stages share one block of memory for their activations, as no two of
them ever run at once. A stage's tensors lie at fixed addresses, so that what is queued for it can
be recorded once and then replayed. Feature maps live in a few *places*. The front writes into the
first; `take` copies the chosen rows into the next one; an encoder reads and writes in the place
where its input is. Features are good until what they are of is written again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Bundle
from service.core import Plan
from service.engines import engine_cache
from service.engines.base import Features
from service.engines.cuda import Device, DriverError
from service.engines.device_memory import Held, refusals_as_errors
from service.engines.engine_cache import EngineSet
from service.engines.tensorrt_plugin import Compiled
from service.engines.tensorrt_runtime import Context, Engine, Runtime, installed
from service.errors import BackendError

PLACES = ("front", "taken", "taken again")
_log = logging.getLogger("fathom")


@dataclass(frozen=True, slots=True)
class DeviceFeatures:
    """The first `count` rows of what lies in a place. written, encoded: how often the front's maps
    and the encoder's had been written there by then; encoded is None before the encoder."""

    place: str
    count: int
    written: int
    encoded: int | None
    paused: NDArray[np.uint8] | None
    owner: TensorRTBackend

    def take(self, rows: Sequence[int]) -> DeviceFeatures:
        return self.owner.take(self, rows)


class TensorRTBackend:
    """Opens the engines that `build-trt` made of a verified bundle.

    max_batch: images that a call may bring. only: take this set, though it was never compared with
    ONNX Runtime. device, runtimes: for tests. Raises BackendError that names the command which
    mends it.
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
        manifest = bundle.manifest
        mend = f"python -m model_export build-trt {bundle.root} --cache {cache}"
        self._stages, self._encoder_of = manifest.stages, manifest.encoder_of
        self._graphs: dict[tuple[str, int, str], Callable[[], None]] = {}
        self._contexts: dict[tuple[str, int], Context] = {}
        self._written, self._encoded = dict.fromkeys(PLACES, 0), dict.fromkeys(PLACES, 0)
        self._places: dict[str, dict[str, int]] = {}
        try:
            self._device = device()
        except DriverError as error:
            raise BackendError(f"TensorRT needs a GPU: {error}") from error
        self._held = Held(self._device)
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
        here = "{}.{}".format(*self._device.capability)
        there = [(runtime.flavour, runtime.version) for runtime in runtimes]
        found = only or engine_cache.find(
            cache, engine_cache.content_of(bundle.manifest), there, here, mend=mend
        )
        self._batches = found.batches
        if max_batch > self._batches[-1]:
            sizes = ",".join(str(size) for size in (*self._batches, max_batch))
            raise BackendError(
                f"{cache}: the engines take {self._batches[-1]} images at once, the service may "
                f"bring {max_batch}. "
                f"Build them anew with: {mend} --batches {sizes}"
            )
        runtime = next(r for r in runtimes if r.flavour == found.flavour)
        self.name = f"{found.flavour}-{found.precision}"
        kernels = {k.sha256: Compiled.read(bundle.root, k) for k in bundle.manifest.kernels}
        self._engines: dict[str, Engine] = {}
        for stage in self._stages:
            plan = engine_cache.read(cache, found, stage, mend=mend)
            self._engines[stage] = runtime.open(f"{found.folder}/{stage}.plan", plan, kernels)
            self._compare(stage, found.folder, mend)
        self._allocate()
        _log.info(
            "%s %s on %s, batches %s", self.name, runtime.version, self._device.name, found.batches
        )

    def _compare(self, stage: str, folder: str, mend: str) -> None:
        """The plan's tensors must be the manifest's; only a map's storage may differ."""
        specs = (*self._stages[stage].inputs, *self._stages[stage].outputs)
        wanted, given = (
            {spec.name: tuple(spec.dims[1:]) for spec in specs},
            self._engines[stage].tensors,
        )
        if wanted != {name: tensor.dims for name, tensor in given.items()}:
            raise BackendError(
                f"{folder}/{stage}.plan: its tensors are not the manifest's. Build it anew with: "
                f"{mend}"
            )

    def _allocate(self) -> None:
        most, stages, held = self._batches[-1], self._stages, self._held
        self._stream = held.stream()
        self._scratch_bytes = max(engine.scratch for engine in self._engines.values())
        self._scratch = held.on_device(self._scratch_bytes)
        read = {spec.name for stage in stages.values() for spec in stage.inputs} - {"image"}
        sizes = {
            n: t.row_bytes for engine in self._engines.values() for n, t in engine.tensors.items()
        }
        self._maps = {name: sizes[name] for name in sorted(read)}  # bytes of a row
        self._of_front = {spec.name for spec in stages["front"].outputs} & read
        self._single = {
            name: held.on_device(most * size) for name, size in sizes.items() if name not in read
        }
        on_host = {
            spec.name: spec for stage in stages.values() for spec in (*stage.inputs, *stage.outputs)
        }
        self._mask = stages["decoder"].outputs[0].name
        self._host: dict[str, NDArray[Any]] = {
            name: held.pinned((most, *(int(side) for side in spec.dims[1:])), spec.dtype)
            for name, spec in on_host.items()
            if name in ("image", "quality", "paused", self._mask)
        }

    def front(self, images: NDArray[np.uint8]) -> tuple[DeviceFeatures, NDArray[np.float32]]:
        self._check_count(len(images))
        staged = self._host["image"][: len(images)]
        staged[...] = images
        self._device.to_device(
            self._single["image"], staged.ctypes.data, staged.nbytes, self._stream
        )
        self._run("front", len(images), "front")
        self._written["front"] += 1
        quality = self._fetch("quality", len(images))
        return self._features("front", len(images)), quality

    def take(self, features: DeviceFeatures, rows: Sequence[int]) -> DeviceFeatures:
        """The images at these rows, copied on the device."""
        source = self._place(self._own(features).place)
        if not all(0 <= row < features.count for row in rows):
            raise IndexError(f"rows {list(rows)} of {features.count}")
        self._check_count(len(rows))
        target = PLACES[1] if features.place != PLACES[1] else PLACES[2]
        into = self._place(target)
        for name, size in self._maps.items():
            if features.encoded is not None or name in self._of_front:
                for to, row in enumerate(rows):
                    self._device.on_device(
                        into[name] + to * size, source[name] + row * size, size, self._stream
                    )
        self._written[target] += 1
        paused = None if features.paused is None else features.paused[list(rows)]
        return self._features(target, len(rows), paused, encoded=features.encoded is not None)

    def encode(self, plan: Plan, features: Features) -> DeviceFeatures:
        own, stage = self._own(features), self._encoder_of[plan.name]
        self._run(stage, own.count, own.place)
        paused = None
        if self._stages[stage].paused is not None:
            paused = self._fetch("paused", own.count)
        self._device.wait(self._stream)  # so that the time of each stage is its own
        return self._features(own.place, own.count, paused, encoded=True)

    def decode(self, features: Features) -> NDArray[np.float32]:
        own = self._own(features)
        if own.encoded is None:
            raise ValueError("features must be encoded before they are decoded")
        self._run("decoder", own.count, own.place)
        return self._fetch(self._mask, own.count)  # (B, channels, h, w)

    def close(self) -> None:
        """Give back everything on the device. Once is enough, twice does no harm."""
        self._graphs, self._contexts, self._engines, self._host = {}, {}, {}, {}
        self._held.release()

    def _run(self, stage: str, count: int, place: str) -> None:
        """Queue a stage, by its graph if there is one; the first time for a batch it runs plainly
        and is recorded."""
        profile = next(i for i, size in enumerate(self._batches) if size >= count)
        key = (stage, profile, place)
        if key not in self._graphs:
            context = self._context(stage, profile)
            context.bind(self._addresses(stage, place), self._scratch, self._scratch_bytes)
            context.enqueue(
                self._stream
            )  # loads what loads late, which a recording must not; it is this call's run
            self._device.wait(self._stream)
            self._graphs[key] = self._record(stage, profile, place, context)
            return
        self._graphs[key]()

    def _record(self, stage: str, profile: int, place: str, context: Context) -> Callable[[], None]:
        device, stream = self._device, self._stream
        if not context.can_capture(stream):
            _log.warning(
                "%s cannot be recorded as a CUDA graph: it is queued anew each time", stage
            )

            def plainly() -> None:
                context.bind(self._addresses(stage, place), self._scratch, self._scratch_bytes)
                context.enqueue(stream)

            return plainly
        device.begin_capture(stream)
        try:
            context.enqueue(stream)
        finally:
            graph = device.end_capture(stream)
            self._held.also(lambda: device.free_graph(graph))
        return lambda: device.launch_graph(graph, stream)

    def _context(self, stage: str, profile: int) -> Context:
        key = (stage, profile)
        if key not in self._contexts:
            self._contexts[key] = self._engines[stage].context(
                profile, self._batches[profile], self._stream
            )
        return self._contexts[key]

    def _addresses(self, stage: str, place: str) -> dict[str, int]:
        there = self._place(place) | self._single
        return {name: there[name] for name in self._engines[stage].tensors}

    def _place(self, name: str) -> dict[str, int]:
        if name not in self._places:
            most = self._batches[-1]
            self._places[name] = {
                each: self._held.on_device(most * size) for each, size in self._maps.items()
            }
        return self._places[name]

    def _fetch(self, name: str, count: int) -> NDArray[Any]:
        """The first rows of an output, once everything that was queued is done."""
        staged = self._host[name][:count]
        self._device.to_host(staged.ctypes.data, self._single[name], staged.nbytes, self._stream)
        self._device.wait(self._stream)
        return staged.copy()

    def _features(
        self,
        place: str,
        count: int,
        paused: NDArray[np.uint8] | None = None,
        *,
        encoded: bool = False,
    ) -> DeviceFeatures:
        if encoded:
            self._encoded[place] += 1
        stamp = self._encoded[place] if encoded else None
        return DeviceFeatures(place, count, self._written[place], stamp, paused, self)

    def _own(self, features: Features) -> DeviceFeatures:
        if not isinstance(features, DeviceFeatures) or features.owner is not self:
            raise TypeError(f"features of another backend: {type(features).__name__}")
        place = features.place
        if features.written != self._written[place] or features.encoded not in (
            None,
            self._encoded[place],
        ):
            raise ValueError(f"these features were overwritten by a later call (place {place!r})")
        return features

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self._batches[-1]:
            raise ValueError(f"{count} images: the engines take 1 to {self._batches[-1]}")
