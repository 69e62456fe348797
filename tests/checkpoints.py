"""Random Mask2Formers of transformers, small, with weights that make every part matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip(
    "transformers", reason="the reference implementation is not installed"
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]
ENCODER_LAYERS, DECODER_LAYERS, CLASSES, QUERIES, CHANNELS, HEADS = 3, 4, 5, 7, 64, 4
BACKBONES: dict[str, Any] = {
    "swin": lambda: transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=STAGES,
    ),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=STAGES,
    ),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=STAGES
    ),
    "swinv2": lambda: transformers.Swinv2Config(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=STAGES,
    ),
    "pvt_v2": lambda: transformers.PvtV2Config(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        out_features=STAGES,
    ),
    # Its positions are learned for one size.
    "hiera": lambda: transformers.HieraConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        image_size=[96, 128],
        out_features=STAGES,
    ),
    "dinov2": lambda: transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        out_features=STAGES,
    ),
}


def random_model(backbone: str = "swin", **changes: Any) -> nn.Module:
    """A Mask2Former in eval mode. changes: of its configuration."""
    config = transformers.Mask2FormerConfig(
        backbone_config=BACKBONES[backbone](),
        **{
            "feature_size": CHANNELS,
            "mask_feature_size": CHANNELS,
            "hidden_dim": CHANNELS,
            "num_attention_heads": HEADS,
            "encoder_layers": ENCODER_LAYERS,
            "encoder_feedforward_dim": 96,
            "decoder_layers": DECODER_LAYERS + 1,  # it counts the head before the first layer
            "dim_feedforward": 80,
            "num_queries": QUERIES,
            "num_labels": CLASSES,
            "output_auxiliary_logits": True,
        }
        | changes,
    )
    torch.manual_seed(3)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    # The usual start has zeros (offset weights, biases) that would hide a mix-up.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if "embed" in name and "mask_embedder" not in name and "encoder" not in name:
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


PROCESSOR = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 96, "width": 128},
}


def saved(model: nn.Module, folder: Path) -> Path:
    """As a user would save it."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
