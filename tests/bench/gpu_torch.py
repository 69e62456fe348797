"""A bundle's network in torch behind the service's interface of a backend: eager or compiled,
recorded or not. The decoder runs with each plan's encoder, as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.export.graphs import Decode, Encode, Front, Glance
from model_export.network.knobs import Knobs
from model_export.training.bundle_weights import WEIGHTS, read_weights
from service.bundle import SIZE, Bundle
from service.core import Plan
from service.engines.base import WHOLE_BATCH, Arrays, rows_of
from tests.bench.gpu_clock import Clock, Recorded

# Encoders share their code, and each plan's is compiled for itself: more often than torch allows a
# function.
COMPILED_AT_MOST = 64
MAPS = 4  # f4, f8, f16, f32
ENCODED = 3
Function = Callable[..., Any]


@dataclass(frozen=True)
class TorchTensors:
    """maps: f4, f8, f16, f32 of a batch. answers: in host memory. decoded: from an encoder on."""

    maps: tuple[Tensor, ...]
    answers: Arrays
    decoded: Tensor | None = None

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.answers[name]

    def take(self, rows: Sequence[int]) -> TorchTensors:
        maps = tuple(each[list(rows)] for each in self.maps)
        return TorchTensors(maps, rows_of(self.answers, rows))


class Cast(nn.Module):
    """A stage under autocast to bfloat16, or as it is. The number that masks the decoder's
    attention is no float16."""

    def __init__(self, stage: nn.Module, kind: str, half: bool) -> None:
        super().__init__()
        self.stage, self.kind, self.half_precision = stage, kind, half

    def forward(self, *inputs: Tensor) -> Any:
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.half_precision):
            return self.stage(*inputs)


class Uncast(nn.Module):
    """The gate in float32 inside a stage that is not, as in the prepared graphs: bfloat16 is 0.004
    wide at 0.75."""

    def __init__(self, gate: nn.Module, kind: str) -> None:
        super().__init__()
        self.gate, self.kind = gate, kind

    def forward(self, seen: Tensor) -> Any:
        with torch.autocast(self.kind, enabled=False):
            return self.gate(seen.float())


class TorchBackend:
    """graphs: what runs is recorded once for a batch size and then replayed. wrap: makes a compiled
    function of one."""

    name = "torch"
    whole_batch = WHOLE_BATCH

    def __init__(
        self,
        served: Bundle,
        clock: Clock,
        *,
        half: bool,
        graphs: bool = False,
        wrap: Callable[[nn.Module], Function] = lambda module: module,
    ) -> None:
        torch._dynamo.config.recompile_limit = COMPILED_AT_MOST
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in convolutions, too
        model, gate, _ = read_weights(served.root / WEIGHTS)
        self._model, self._clock = model.to(clock.device), clock
        self._half, self._graphs, self._wrap = half, graphs, wrap
        front = self._ready(self._stage(Front(model)))
        uncast = Uncast(gate.to(clock.device), clock.device.type)
        glance = self._ready(self._stage(Glance(model, uncast)))
        self._decode = self._stage(Decode(model))
        manifest = served.manifest
        glances = {shape.name for shape in manifest.glance.shapes}
        self._fronts: dict[str, Function] = {}
        self._plans: dict[str, Plan] = {}
        self._answers: dict[str, str] = {}
        for shape, graphs in manifest.graphs.items():
            self._fronts[graphs.front] = glance if shape in glances else front
            self._plans |= {
                graphs.encoders[plan.name]: plan
                for plan in manifest.plans
                if plan.name in graphs.encoders
            }
            for head in graphs.heads.values():
                self._answers[head] = manifest.stages[head].outputs[0].name
        self._made: dict[str, Function] = {}

    @torch.inference_mode()
    def run(self, stage: str, tensors: TorchTensors | Arrays) -> TorchTensors:
        if isinstance(tensors, Mapping):
            # A copy on any device: a recording writes the images of later calls into the first.
            given = [
                torch.from_numpy(tensors[name]).to(self._clock.device, copy=True)
                for name in ("image", SIZE.name)
                if name in tensors
            ]
            made = self._fronts[stage](*given)
            maps, of_gate = tuple(made[:MAPS]), made[MAPS:]  # of the glance alone
            scores = {"quality": of_gate[0].float().cpu().numpy()} if of_gate else {}
            return TorchTensors(maps, scores)
        if stage in self._plans:
            return TorchTensors(tensors.maps, {}, self._rest(stage)(*tensors.maps))
        if tensors.decoded is None:
            raise KeyError("there are no encoded maps among these tensors")
        answer = {self._answers[stage]: tensors.decoded.float().cpu().numpy()}
        return TorchTensors(tensors.maps, answer)

    def _rest(self, encoder: str) -> Function:
        if encoder not in self._made:
            plan = self._plans[encoder]
            encode = self._stage(Encode(self._model, Knobs(plan.depth, plan.keep, plan.width)))
            decode = self._decode
            self._made[encoder] = self._ready(
                lambda f4, *maps: decode(f4, *encode(*maps)[:ENCODED])
            )
        return self._made[encoder]

    def close(self) -> None:
        self._made = {}
        torch._dynamo.reset()

    def _stage(self, stage: nn.Module) -> Function:
        return self._wrap(Cast(stage.eval(), self._clock.device.type, self._half))

    def _ready(self, function: Function) -> Function:
        return Replayed(self._clock, function) if self._graphs else function


class Replayed:
    """A function of tensors, recorded for each shape of its inputs. Its result is good until the
    next call."""

    def __init__(self, clock: Clock, function: Function) -> None:
        self._clock, self._function = clock, function
        self._made: dict[tuple[torch.Size, ...], tuple[tuple[Tensor, ...], Recorded]] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._made:
            # The inputs themselves, not copies: those that another recording wrote lie at the same
            # place every time.
            self._made[shapes] = inputs, self._clock.record([lambda: self._function(*inputs)], 1)
        held, recorded = self._made[shapes]
        for place, given in zip(held, inputs, strict=True):
            if place is not given:
                place.copy_(given)
        recorded.run()
        return recorded.outputs[0]
