"""A backend without an engine, for tests: it makes up its answers from the image's own pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.engines.base import WHOLE_BATCH, Arrays, HostTensors, Tensors, on_host
from service.tasks import made_up, task_of


class FakeBackend:
    """delay_s: seconds to sleep per image, by stage. quality: the gate's scores, (S,)."""

    name = "fake"
    whole_batch = WHOLE_BATCH

    def __init__(
        self,
        manifest: Manifest,
        *,
        delay_s: Mapping[str, float] | None = None,
        quality: Sequence[float] | None = None,
    ) -> None:
        self._stages, graphs = manifest.stages, manifest.graphs.values()
        plans = {plan.name: plan for plan in manifest.encoder_plans}
        tasks = {at.key: task_of(head) for head in manifest.heads for at in head.at_widths()}
        self._fronts = {each.front for each in graphs}
        self._plans = {s: plans[name] for each in graphs for name, s in each.encoders.items()}
        self._heads = {s: tasks[key] for each in graphs for key, s in each.heads.items()}
        self._layers, self._shares = manifest.layers, made_up.shares(manifest)
        self._delay_s, self._quality = dict(delay_s or {}), quality

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        inputs = on_host(tensors)
        images, outputs = inputs["image"], dict[str, NDArray[Any]]()  # (B, H, W, 3)
        time.sleep(self._delay_s.get(stage, 0.0) * len(images))
        if stage in self._fronts:
            outputs["quality"] = made_up.scores(images, self._shares)
            if self._quality is not None:
                outputs["quality"][:] = self._quality
        elif stage in self._plans:
            plan, grid = self._plans[stage], self._stages[stage].paused
            # Deeper plans are more certain, so that the answer tells a test which plan ran.
            certainty = 0.5 + 0.4 * plan.depth / self._layers
            outputs["certainty"] = np.full(len(images), certainty)
            if grid is not None:
                outputs["paused"] = made_up.paused(images, grid, 1 - plan.keep)
        else:
            for spec in self._stages[stage].outputs:
                outputs[spec.name] = self._heads[stage].made_up(images, inputs["certainty"], spec)
        return HostTensors({**inputs, **outputs})

    def close(self) -> None:
        """There is nothing to free."""
