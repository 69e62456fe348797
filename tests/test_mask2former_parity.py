"""The network is Mask2Former: with the weights of `transformers`' implementation it gives what that
one gives.

The reference is left as it is and runs from pixels to logits. Its backbone is a small Swin, random
like all the rest.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.importing.mask2former import converted
from model_export.network.config import Config, ImportedBackbone
from model_export.network.decoder import Attention
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter
from tests.checkpoints import (
    CHANNELS,
    CLASSES,
    DECODER_LAYERS,
    ENCODER_LAYERS,
    HEADS,
    QUERIES,
    random_model,
)

# logits have a spread of 1 to 10, so this is float32 rounding through 3 + 4 layers and no more
TOLERANCE = 1e-4
SIZES = [(64, 64), (96, 160)]
Case = tuple[Tensor, dict[str, Any]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return random_model()


@pytest.fixture(scope="module")
def ours(reference: nn.Module) -> Segmenter:
    config = Config(
        name="parity",
        task="semantic",
        classes=CLASSES,
        queries=QUERIES,
        channels=CHANNELS,
        heads=HEADS,
        schedule=(3,) * ENCODER_LAYERS,
        encoder_ffn=96,
        pixel_embedding="conv",
        decoder_layers=DECODER_LAYERS,
        decoder_ffn=80,
        matching="hungarian",
        backbone="transformers",
        imported=ImportedBackbone(
            reference.config.backbone_config.to_dict(), (127.5,) * 3, (127.5,) * 3
        ),
        front_head=False,
    )
    network = Segmenter(config).eval()
    network.load_state_dict(converted(reference.state_dict(), config))
    return network


@pytest.fixture(scope="module", params=SIZES, ids=["square", "wide"])
def case(request: pytest.FixtureRequest, reference: nn.Module) -> Case:
    """Two different images (2, H, W, 3) uint8, and what the reference says about them."""
    generator = torch.Generator().manual_seed(11)
    images = torch.randint(0, 256, (2, *request.param, 3), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        pixels = (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
        return images, dict(reference(pixel_values=pixels, output_hidden_states=True).items())


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@torch.no_grad()
def test_encoder_gives_the_reference_s_multi_scale_features(ours: Segmenter, case: Case) -> None:
    images, expected = case
    _, maps = ours.features(images)
    for got, want in zip(
        ours.encoder(maps, ENCODER_LAYERS), expected["pixel_decoder_hidden_states"], strict=True
    ):
        assert want.std() > 0.3
        assert worst(got, want) < TOLERANCE


@torch.no_grad()
def test_pixel_embedding_gives_the_reference_s_mask_features(ours: Segmenter, case: Case) -> None:
    images, expected = case
    lateral, maps = ours.features(images)
    embedding = ours.decoder.pixel_embedding
    got = embedding.project(embedding(lateral, ours.encoder(maps, ENCODER_LAYERS)[-1]))
    assert worst(got, expected["pixel_decoder_last_hidden_state"]) < TOLERANCE


@torch.no_grad()
def test_every_head_of_the_decoder_gives_the_reference_s_logits(
    ours: Segmenter, case: Case
) -> None:
    images, expected = case
    heads = ours(images, Knobs(ENCODER_LAYERS), deep=True)
    wanted = [*expected["auxiliary_logits"], expected]
    assert len(heads) == len(wanted) == DECODER_LAYERS + 1
    for head, want in zip(heads, wanted, strict=True):
        assert worst(head.classes, want["class_queries_logits"]) < TOLERANCE
        assert worst(head.masks, want["masks_queries_logits"]) < TOLERANCE


@torch.no_grad()
def test_final_prediction_without_deep_heads_gives_the_reference_s_logits(
    ours: Segmenter, case: Case
) -> None:
    images, expected = case
    (final,) = ours(images, Knobs(ENCODER_LAYERS))
    assert worst(final.classes, expected["class_queries_logits"]) < TOLERANCE
    assert worst(final.masks, expected["masks_queries_logits"]) < TOLERANCE


def test_the_compared_attention_masks_block_some_places_and_none_is_undecided(case: Case) -> None:
    """Guards the tests above: each kind of mask row must occur, and no logit may sit where rounding
    flips its bit."""
    images, expected = case
    _, height, width, _ = images.shape
    shares = []
    for i, head in enumerate(expected["auxiliary_logits"]):
        stride = (32, 16, 8)[i % 3]
        logits = F.interpolate(
            head["masks_queries_logits"], (height // stride, width // stride), mode="bilinear"
        )
        assert logits.abs().min() > 5e-5
        shares.append((logits < 0).flatten(2).float().mean(-1).flatten())
    blocked = torch.cat(shares)  # share of blocked places in every row of every layer
    assert ((blocked > 0.1) & (blocked < 0.9)).float().mean() > 0.3
    assert (blocked == 1).any()  # such a row must look everywhere


@torch.no_grad()
@pytest.mark.parametrize("added", [False, True], ids=["blocked", "added"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (2, 40)], ids=["projected", "folded"])
def test_attention_equals_torch_s_multi_head_attention_under_a_mask(
    queries: int, keys: int, added: bool
) -> None:
    torch.manual_seed(5)
    theirs, ours = nn.MultiheadAttention(32, 4, batch_first=True), Attention(32, 4)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    for i, layer in enumerate((ours.query, ours.key, ours.value)):
        layer.weight.copy_(theirs.in_proj_weight.chunk(3)[i])
        layer.bias.copy_(theirs.in_proj_bias.chunk(3)[i])
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    query, key, value = (torch.randn(2, count, 32) for count in (queries, keys, keys))
    mask = torch.randn(2, queries, keys) if added else torch.rand(2, queries, keys) < 0.5
    if not added:
        mask[..., 0] = False  # torch answers NaN where a row may look nowhere
    want, _ = theirs(query, key, value, attn_mask=mask.repeat_interleave(4, 0))
    projected: list[Any] = []
    ours.key.register_forward_pre_hook(lambda _, args: projected.append(args))
    assert worst(ours(query, key, value, mask), want) < 1e-5
    assert len(projected) == (keys == 9)
