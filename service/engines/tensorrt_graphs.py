"""All work that TensorRT may have to do, recorded at start: contexts and CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from service.engines.device_memory import Held
from service.engines.tensorrt_places import Places
from service.engines.tensorrt_runtime import Context, Engine

_log = logging.getLogger("fathom")


class Graphs:
    """One context for each stage and batch size, and one graph for each of its places.

    All stages share one block of memory for their activations, since no two run at once. recorded:
    the number of graphs.
    """

    def __init__(
        self,
        held: Held,
        stream: int,
        engines: Mapping[str, Engine],
        places: Places,
        batches: Sequence[int],
    ) -> None:
        self._held, self._stream = held, stream
        self._scratch_bytes = max(engine.scratch for engine in engines.values())
        self._scratch = held.on_device(self._scratch_bytes)
        self._contexts: list[Context] = []  # a graph uses its context's memory
        self._runs: dict[tuple[str, int, str], Callable[[], None]] = {}
        self.recorded, unrecorded = 0, dict[str, None]()
        held.also(self._contexts.clear)
        held.also(self._runs.clear)
        for stage, engine in engines.items():
            for profile, batch in enumerate(batches):
                context = engine.context(profile, batch, stream)
                self._contexts.append(context)
                for place in places.of(stage):
                    queue = partial(self._queue, context, places.addresses(stage, place))
                    recording = self._recording(context, queue)
                    self._runs[stage, batch, place] = recording or queue
                    if recording is None:
                        unrecorded[stage] = None
        for stage in unrecorded:
            _log.warning(
                "%s cannot be recorded as a CUDA graph: each run queues its kernels", stage
            )

    def run(self, stage: str, batch: int, place: str) -> None:
        """Queue a stage for a batch of one of the recorded sizes."""
        self._runs[stage, batch, place]()

    def _queue(self, context: Context, addresses: Mapping[str, int]) -> None:
        context.bind(addresses, self._scratch, self._scratch_bytes)
        context.enqueue(self._stream)

    def _recording(self, context: Context, queue: Callable[[], None]) -> Callable[[], None] | None:
        """A function that launches the work as a graph; None if it cannot be recorded."""
        device, stream = self._held.device, self._stream
        queue()  # the first run loads things, which must not happen while recording
        device.wait(stream)
        if not context.can_capture(stream):
            return None
        device.begin_capture(stream)
        try:
            context.enqueue(stream)
        finally:
            graph = device.end_capture(stream)
            self._held.also(partial(device.free_graph, graph))
        launch = partial(device.launch_graph, graph, stream)
        launch()  # the first launch uploads the graph to the device
        device.wait(stream)
        self.recorded += 1
        return launch
