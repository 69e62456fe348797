"""The decoder and the pixel embedding against slow and plain statements of what they should do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model_export.network.decoder import Decoder, PixelEmbedding, Prediction, mask_logits
from model_export.network.segmenter import semantic_probabilities
from model_export.network.slimmable import SlimConv
from tests.small_network import SHAPES, SMALL, random_maps, randomised, worst

pytestmark = pytest.mark.usefixtures("one_thread", "seed")


@pytest.fixture(params=["conv", "light", "depthwise"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return randomised(Decoder(replace(SMALL, pixel_embedding=request.param)))


@torch.no_grad()
def test_deep_supervision_leaves_the_final_prediction_as_it_is(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    heads, (final,) = decoder(lateral, maps, deep=True), decoder(lateral, maps)
    assert len(heads) == SMALL.decoder_layers + 1
    assert final.classes.shape == (2, SMALL.queries, SMALL.classes + 1)
    assert final.masks.shape == (2, SMALL.queries, 16, 24)
    assert torch.equal(final.classes, heads[-1].classes)
    assert torch.equal(final.masks, heads[-1].masks)
    assert all(worst(a.masks, b.masks) > 1e-2 for a, b in pairwise(heads))


@torch.no_grad()
def test_resizing_mask_features_first_equals_resizing_full_masks(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    features, embedding = (
        decoder.pixel_embedding(lateral, maps[-1]),
        torch.randn(2, SMALL.queries, 32),
    )
    for shape in SHAPES:
        full = torch.einsum("bqc,bchw->bqhw", embedding, features)
        want = F.interpolate(full, shape, mode="bilinear", align_corners=False)
        got = embedding @ F.interpolate(
            features, shape, mode="bilinear", align_corners=False
        ).flatten(2)
        assert worst(got.unflatten(2, shape), want) < 1e-5


@torch.no_grad()
def test_each_layer_looks_only_where_the_full_size_mask_before_it_is_on(decoder: Decoder) -> None:
    lateral, maps = torch.randn(2, 32, 16, 24), random_maps()
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[-1]))
    heads = decoder(lateral, maps, deep=True)
    for i, blocked in enumerate(seen):
        resized = F.interpolate(
            heads[i].masks, SHAPES[i % 3], mode="bilinear", align_corners=False
        ).flatten(2)
        assert resized.abs().min() > 1e-6  # no bit of this seed hangs on rounding
        want = resized.sigmoid() < 0.5
        want[want.all(-1)] = False  # an empty mask looks everywhere
        assert torch.equal(blocked, want)
    assert any(blocked.any() and not blocked.all() for blocked in seen)


@torch.no_grad()
@pytest.mark.parametrize("width", [12, 8])
def test_mask_logits_are_of_projected_features(width: int) -> None:
    """Of a slimmable projection, too."""
    project = SlimConv(12, 12, 1)
    features, embedding = torch.randn(2, width, 4, 6), torch.randn(2, 5, width)
    want = embedding @ project(features, width).flatten(2)
    assert worst(mask_logits(embedding, features.flatten(2), project), want) < 1e-5


@torch.no_grad()
def test_a_query_whose_mask_is_empty_looks_everywhere(decoder: Decoder) -> None:
    pixels, last = decoder.pixel_embedding.project, decoder.embed_mask[-1]
    for layer in (pixels, last):
        layer.weight.zero_()
    last.bias.copy_(-pixels.bias)  # every logit is now -|bias|^2
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[-1]))
    (final,) = decoder(torch.randn(2, 32, 16, 24), random_maps())
    assert final.masks.max() < 0
    assert len(seen) == SMALL.decoder_layers
    assert not any(blocked.any() for blocked in seen)


@torch.no_grad()
def test_light_pixel_embedding_takes_the_greatest_of_nine_neighbours() -> None:
    layer = PixelEmbedding(replace(SMALL, pixel_embedding="light"))
    x = torch.randn(1, 32, 4, 6)
    got = layer.smooth[0](x)
    for y in range(4):
        for z in range(6):
            around = x[0, :, max(y - 1, 0) : y + 2, max(z - 1, 0) : z + 2]
            assert torch.equal(got[0, :, y, z], around.amax((1, 2)))


@torch.no_grad()
def test_semantic_probability_sums_class_times_mask_over_queries_without_no_object() -> None:
    prediction = Prediction(torch.randn(2, 3, 5), torch.randn(2, 3, 2, 2))
    got = semantic_probabilities(prediction)
    assert got.shape == (2, 4, 2, 2)
    for b, c, y, x in np.ndindex(2, 4, 2, 2):
        want = 0.0
        for q in range(3):
            share = (
                math.exp(prediction.classes[b, q, c]) / prediction.classes[b, q].exp().sum().item()
            )
            want += share / (1 + math.exp(-prediction.masks[b, q, y, x]))
        assert got[b, c, y, x].item() == pytest.approx(want, abs=1e-6)
