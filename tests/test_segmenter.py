"""The gate, and the network as a whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model_export.network.backbone import BACKBONES
from model_export.network.config import tiny
from model_export.network.gate import EDGES, OPENINGS, SIDES, Gate, gate_input, gate_inputs
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
    sizes = torch.tensor([[360.0, 480.0], [1500.0, 2000.0]])
    got = gate_input(maps, logits, sizes)
    assert got.shape == (2, gate_inputs(32, 4))
    for image in range(2):
        coarsest = maps[0][image].numpy().reshape(32, -1)
        shares = np.exp(logits[image].numpy().reshape(4, -1))
        shares /= shares.sum(0)
        unsure = -(shares * np.log(shares)).sum(0) / np.log(4)
        want = [*coarsest.mean(1), *coarsest.std(1), *shares.mean(1)]
        for side in (3, 5, 9, 17):
            for plane in shares.reshape(4, 8, 12):
                # Beyond the canvas is nothing that an erosion could take or a dilation bring.
                eroded = ndimage.minimum_filter(plane, side, mode="constant", cval=np.inf)
                opened = ndimage.maximum_filter(eroded, side, mode="constant", cval=-np.inf)
                want.append(opened.mean())
        want += [unsure.mean(), unsure.std(), *((unsure > edge).mean() for edge in EDGES)]
        side = np.log2(sizes[image].numpy()).mean()
        want += [np.interp(side, SIDES, hat) for hat in np.eye(len(SIDES))]
        assert np.abs(got[image].numpy() - np.array(want)).max() < 1e-4
        one = slice(image, image + 1)
        alone = gate_input([m[one] for m in maps], logits[one], sizes[one])
        assert worst(alone, got[one]) < 1e-5


SIZE = torch.tensor([[360.0, 480.0]])


def opened_shares(labels: np.ndarray) -> np.ndarray:
    """(1 + OPENINGS, classes): of a map of certain labels each class's share, and what openings
    leave of it."""
    logits = 40 * torch.from_numpy(np.eye(2, dtype=np.float32)[labels]).permute(2, 0, 1)[None]
    maps = [torch.zeros(1, 32, *shape) for shape in SHAPES]
    shares = gate_input(maps, logits, SIZE)[0, 64 : 64 + (1 + OPENINGS) * 2]
    return shares.reshape(1 + OPENINGS, 2).numpy()


@torch.no_grad()
def test_openings_leave_large_things_and_take_small_ones() -> None:
    """Squares of 3, 5, 9 and 17 tokens are opened with: a thing goes once it is thinner."""
    for wide, left in ((1, 0), (2, 0), (4, 1), (5, 2), (10, 3), (20, 4)):
        labels = np.zeros((40, 60), int)
        labels[8 : 8 + wide, 10 : 10 + wide] = 1
        small = opened_shares(labels)[:, 1]
        assert small[: 1 + left] == pytest.approx([wide**2 / 2400] * (1 + left), abs=1e-6)
        assert small[1 + left :] == pytest.approx(0, abs=1e-6)
    # As much of the class, in one piece or in many.
    one, many = np.zeros((40, 60), int), np.zeros((40, 60), int)
    one[10:20, 10:20] = 1
    many[::4, ::6] = 1
    of_one, of_many = opened_shares(one), opened_shares(many)
    assert of_one[0] == pytest.approx(of_many[0])
    assert of_one[2, 1] == pytest.approx(of_one[0, 1], abs=1e-6)
    assert of_many[1, 1] == pytest.approx(0, abs=1e-6)
    assert (np.diff(of_one, axis=0) <= 1e-6).all()
    assert (np.diff(of_many, axis=0) <= 1e-6).all()


@torch.no_grad()
def test_the_image_s_size_is_told_by_hats_that_interpolate_and_hold_on_at_the_ends() -> None:
    maps = [torch.zeros(1, 32, *shape) for shape in SHAPES]

    def hats(height: float, width: float) -> list[float]:
        size = torch.tensor([[height, width]])
        return gate_input(maps, torch.zeros(1, 4, 8, 12), size)[0, -len(SIDES) :].tolist()

    for place, side in enumerate(SIDES):
        wanted = [float(place == other) for other in range(len(SIDES))]
        assert hats(2**side, 2**side) == pytest.approx(wanted, abs=1e-5)
        assert hats(2 ** (side - 1), 2 ** (side + 1)) == pytest.approx(wanted, abs=1e-5), (
            "the mean of both sides, whatever their ratio"
        )
    for low, side in enumerate(SIDES[:-1]):
        between = 2 ** (0.25 * side + 0.75 * SIDES[low + 1])
        wanted = [0.25 * (low == i) + 0.75 * (low + 1 == i) for i in range(len(SIDES))]
        assert hats(between, between) == pytest.approx(wanted, abs=1e-5)
    assert hats(8, 8) == hats(128, 128) == [1.0, *[0.0] * (len(SIDES) - 1)]
    assert hats(8192, 8192) == hats(2048, 2048) == [*[0.0] * (len(SIDES) - 1), 1.0]
    rng = np.random.default_rng(0)
    for height, width in rng.uniform(8, 8192, (50, 2)):
        assert sum(hats(height, width)) == pytest.approx(1, abs=1e-5)


def test_gate_input_has_a_gradient_where_a_channel_does_not_vary() -> None:
    maps = [torch.ones(1, 32, *shape, requires_grad=True) for shape in SHAPES]
    gate_input(maps, torch.randn(1, 4, 8, 12), SIZE).sum().backward()
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
        gate(gate_input(maps, head(maps), SIZE))
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
        "efficientnet_lite0": (-1.0, 1.0),
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
