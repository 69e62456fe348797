"""The network is Mask2Former: with the weights of `transformers`' implementation it gives what that
one gives.

The reference is left as it is and runs from pixels to logits. Its backbone (a small Swin, random
like all the rest) also stands behind our Segmenter, so that both see the same feature maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_export.network import segmenter as segmenter_module
from model_export.network.config import Config
from model_export.network.decoder import Attention
from model_export.network.knobs import Knobs
from model_export.network.segmenter import Segmenter

transformers = pytest.importorskip(
    "transformers", reason="the reference implementation is not installed"
)

# logits have a spread of 1 to 10, so this is float32 rounding through 3 + 4 layers and no more
TOLERANCE = 1e-4
CLASSES, QUERIES, CHANNELS, HEADS, ENCODER_LAYERS, DECODER_LAYERS = 5, 7, 64, 4, 3, 4
SIZES = [(64, 64), (96, 160)]
Case = tuple[Tensor, dict[str, Any]]


class SwinMaps(nn.Module):
    """The reference's backbone in the place of ours: maps at strides 4, 8, 16, 32."""

    mean, std = 127.5, 127.5

    def __init__(self, swin: nn.Module) -> None:
        super().__init__()
        self.swin, self.channels = swin, tuple(swin.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.swin(x).feature_maps)


def build_reference() -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=CHANNELS,
        mask_feature_size=CHANNELS,
        hidden_dim=CHANNELS,
        num_attention_heads=HEADS,
        encoder_layers=ENCODER_LAYERS,
        encoder_feedforward_dim=96,
        decoder_layers=DECODER_LAYERS + 1,  # it counts the head before the first layer
        dim_feedforward=80,
        num_queries=QUERIES,
        num_labels=CLASSES,
        output_auxiliary_logits=True,
    )
    torch.manual_seed(3)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    # The usual start has zeros (offset weights, biases) that would hide a mix-up.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "embed" in name and "mask_embedder" not in name:
                parameter.copy_(noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.2 * noise)
        projection = model.model.pixel_level_module.decoder.mask_projection
        # Its inputs are positive: rows of mean 0 bring mask logits around 0, so that masks block
        # some places, not all.
        projection.weight.copy_(0.4 * (projection.weight - projection.weight.mean(1, keepdim=True)))
        projection.bias.mul_(0.4)
    return model


def converted(reference: nn.Module) -> dict[str, Tensor]:
    """The reference's weights under our names."""
    theirs, ours = reference.state_dict(), {}

    def copy(source: str, target: str, *parts: str) -> None:
        for part in parts or ("weight", "bias"):
            ours[f"{target}.{part}"] = theirs[f"{source}.{part}"]

    pixel, transformer = "model.pixel_level_module.decoder", "model.transformer_module"
    copy(f"{pixel}.adapter_1.0", "lateral.0", "weight")
    copy(f"{pixel}.adapter_1.1", "lateral.1")
    for scale in range(3):
        copy(f"{pixel}.input_projections.{scale}.0", f"project.{scale}.0")
        copy(f"{pixel}.input_projections.{scale}.1", f"project.{scale}.1")
    ours["encoder.level_embedding"] = theirs[f"{pixel}.level_embed"]
    for i in range(ENCODER_LAYERS):
        source, target = f"{pixel}.encoder.layers.{i}", f"encoder.layers.{i}"
        copy(f"{source}.self_attn.sampling_offsets", f"{target}.attention.offsets")
        copy(f"{source}.self_attn.attention_weights", f"{target}.attention.logits")
        copy(f"{source}.self_attn.value_proj", f"{target}.attention.value")
        copy(f"{source}.self_attn.output_proj", f"{target}.attention.output")
        copy(f"{source}.self_attn_layer_norm", f"{target}.norm1")
        copy(f"{source}.fc1", f"{target}.linear1")
        copy(f"{source}.fc2", f"{target}.linear2")
        copy(f"{source}.final_layer_norm", f"{target}.norm2")
    copy(f"{pixel}.layer_1.0", "decoder.pixel_embedding.smooth.0", "weight")
    copy(f"{pixel}.layer_1.1", "decoder.pixel_embedding.smooth.1")
    copy(f"{pixel}.mask_projection", "decoder.pixel_embedding.project")
    ours["decoder.queries"] = theirs[f"{transformer}.queries_features.weight"]
    ours["decoder.query_positions"] = theirs[f"{transformer}.queries_embedder.weight"]
    ours["decoder.level_embedding"] = theirs[f"{transformer}.level_embed.weight"]
    for i in range(DECODER_LAYERS):
        source, target = f"{transformer}.decoder.layers.{i}", f"decoder.layers.{i}"
        for part in ("weight", "bias"):  # torch packs the three input projections into one matrix
            packed = theirs[f"{source}.cross_attn.in_proj_{part}"].chunk(3)
            for name, piece in zip(("query", "key", "value"), packed, strict=True):
                ours[f"{target}.cross.{name}.{part}"] = piece
        copy(f"{source}.cross_attn.out_proj", f"{target}.cross.output")
        for ours_name, name in (
            ("query", "q_proj"),
            ("key", "k_proj"),
            ("value", "v_proj"),
            ("output", "out_proj"),
        ):
            copy(f"{source}.self_attn.{name}", f"{target}.self_attention.{ours_name}")
        copy(f"{source}.cross_attn_layer_norm", f"{target}.norm1")
        copy(f"{source}.self_attn_layer_norm", f"{target}.norm2")
        copy(f"{source}.fc1", f"{target}.linear1")
        copy(f"{source}.fc2", f"{target}.linear2")
        copy(f"{source}.final_layer_norm", f"{target}.norm3")
    copy(f"{transformer}.decoder.layernorm", "decoder.norm")
    copy("class_predictor", "decoder.classify")
    for i in range(3):
        copy(
            f"{transformer}.decoder.mask_predictor.mask_embedder.{i}.0",
            f"decoder.embed_mask.{2 * i}",
        )
    return ours


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return build_reference()


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
    )
    with pytest.MonkeyPatch.context() as patch:
        maps = SwinMaps(reference.model.pixel_level_module.encoder)
        patch.setitem(segmenter_module.BACKBONES, config.backbone, lambda: maps)
        network = Segmenter(config).eval()
    missing, unexpected = network.load_state_dict(converted(reference), strict=False)
    assert not unexpected
    # Everything else came from the reference.
    assert {name.split(".")[0] for name in missing} == {
        "backbone",
        "front_head",
    }
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
    got = ours.decoder.pixel_embedding(lateral, ours.encoder(maps, ENCODER_LAYERS)[-1])
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
def test_attention_equals_torch_s_multi_head_attention_under_a_mask() -> None:
    torch.manual_seed(5)
    theirs, ours = nn.MultiheadAttention(32, 4, batch_first=True), Attention(32, 4)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    for i, layer in enumerate((ours.query, ours.key, ours.value)):
        layer.weight.copy_(theirs.in_proj_weight.chunk(3)[i])
        layer.bias.copy_(theirs.in_proj_bias.chunk(3)[i])
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    blocked = torch.rand(2, 5, 9) < 0.5
    blocked[..., 0] = False  # torch answers NaN where a row may look nowhere
    want, _ = theirs(query, key, value, attn_mask=blocked.repeat_interleave(4, 0))
    assert worst(ours(query, key, value, blocked), want) < 1e-5
