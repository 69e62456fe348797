"""The gate, and the network as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model_export.network.backbone import BACKBONES
from model_export.network.config import tiny
from model_export.network.gate import EDGES, Gate, gate_input, gate_inputs
from model_export.network.knobs import Knobs
from model_export.network.pausing import TokenHead
from model_export.network.segmenter import Segmenter
from tests.small_network import KNOBBED, SHAPES, SMALL, randomised, worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")


@torch.no_grad()
def test_gate_input_is_what_its_description_says() -> None:
    maps, logits = (
        [3 + 2 * torch.randn(2, 32, *shape) for shape in SHAPES],
        2 * torch.randn(2, 4, 8, 12),
    )
    got = gate_input(maps, logits)
    assert got.shape == (2, gate_inputs(32, 4))
    for image in range(2):
        coarsest = maps[0][image].numpy().reshape(32, -1)
        shares = np.exp(logits[image].numpy().reshape(4, -1))
        shares /= shares.sum(0)
        unsure = -(shares * np.log(shares)).sum(0) / np.log(4)
        want = [*coarsest.mean(1), *coarsest.std(1), *shares.mean(1), unsure.mean(), unsure.std()]
        want += [(unsure > edge).mean() for edge in EDGES]
        assert np.abs(got[image].numpy() - np.array(want)).max() < 1e-4
        alone = gate_input([m[image : image + 1] for m in maps], logits[image : image + 1])
        assert worst(alone, got[image : image + 1]) < 1e-5


def test_gate_input_has_a_gradient_where_a_channel_does_not_vary() -> None:
    maps = [torch.ones(1, 32, *shape, requires_grad=True) for shape in SHAPES]
    gate_input(maps, torch.randn(1, 4, 8, 12)).sum().backward()
    assert torch.isfinite(maps[0].grad).all()  # the bare square root would divide by zero


@torch.no_grad()
def test_gate_is_linear_in_the_standardised_inputs_and_stays_a_quality() -> None:
    gate, x = randomised(Gate(20, 3)), 5 + 3 * torch.randn(4, 20)
    gate.mean.fill_(5)
    gate.scale.fill_(3)
    want = ((x - 5) / 3) @ gate.output.weight.T + gate.output.bias
    assert worst(gate(x), want.clamp(0, 1)) < 1e-5
    assert (want < 0).any()  # both ends of the clamp are seen
    assert (want > 1).any()


def test_gate_costs_less_than_half_a_percent_of_the_full_plan() -> None:
    """With the front's token head, which runs for the gate alone, and ten plans."""
    config, shapes = tiny(), [(12, 15), (24, 30), (48, 60)]
    head, gate = (
        TokenHead(config.channels, config.classes),
        Gate(gate_inputs(config.channels, config.classes), 10),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = [torch.randn(1, config.channels, *shape) for shape in shapes]
        gate(gate_input(maps, head(maps)))
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        Segmenter(config).eval().requires_grad_(False)(
            torch.zeros(1, 384, 480, 3, dtype=torch.uint8), Knobs(6)
        )
    assert 0 < counter.get_total_flops() < 0.005 * whole.get_total_flops()


def test_every_parameter_learns_from_the_deepest_exit() -> None:
    """All but the token heads: which tokens are active has no gradient, they have a loss of their
    own."""
    network = Segmenter(replace(KNOBBED, recalibration=True)).train()
    randomised(
        network.encoder
    ).train()  # offsets start at weight 0, behind which no gradient can be told from none
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    heads = network(images, Knobs(5, 0.5), deep=True)
    sum(
        (head.classes.square().sum() + head.masks.square().sum() for head in heads), torch.zeros(())
    ).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    of_heads = {name for name in idle if name.startswith(("front_head.", "encoder.token_head."))}
    assert len(of_heads) == 12
    # A key's bias shifts all scores of a row alike: softmax does not see it.
    assert idle - of_heads <= {
        f"decoder.layers.{i}.{part}.key.bias"
        for i in range(4)
        for part in ("cross", "self_attention")
    }


@torch.no_grad()
def test_knobs_reach_the_encoder_through_the_whole_network() -> None:
    network, images = (
        Segmenter(KNOBBED).eval(),
        torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8),
    )
    randomised(network.encoder)
    lateral, maps = network.features(images)
    seen = []
    for knobs in (Knobs(5), Knobs(2), Knobs(5, 0.25), Knobs(5, 1, 0.25), Knobs(5, 0.25, 0.25)):
        (got,) = network(images, knobs)
        (want,) = network.decoder(
            lateral, network.encoder(maps, knobs.depth, knobs.keep, knobs.width)
        )
        assert torch.equal(got.masks, want.masks)
        seen.append(got.masks)
    assert all(worst(a, b) > 1e-4 for i, a in enumerate(seen) for b in seen[:i])


@torch.no_grad()
def test_segmenter_normalises_uint8_pixels_as_its_backbone_was_trained() -> None:
    for name, (zero, full) in {
        "mobilenet_v1": (-1.0, 1.0),
        "mobilenet_v2": (-1.0, 127 / 128),
    }.items():
        network = Segmenter(replace(SMALL, backbone=name)).eval()
        seen: list[Tensor] = []
        network.backbone.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        image = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
        image[..., 0] = 255
        lateral, maps = network.features(image)
        assert seen[0].shape == (1, 3, 32, 64)
        assert seen[0][0, :, 0, 0].tolist() == pytest.approx([full, zero, zero])
        assert [tuple(m.shape) for m in (lateral, *maps)] == [
            (1, 32, 8, 16),
            (1, 32, 1, 2),
            (1, 32, 2, 4),
            (1, 32, 4, 8),
        ]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_random_backbone_keeps_its_signal_to_the_last_stride(name: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        maps = BACKBONES[name]().eval()(torch.randn(1, 3, 64, 64))
    assert all(0.05 < float(m.std()) < 20 for m in maps)
