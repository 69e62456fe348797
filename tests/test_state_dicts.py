"""State dicts of the original Mask2Former and of mmdetection become transformers' network.

Neither package is installed: the names below were written from their code, apart from the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_export.importing import mask2former
from model_export.importing.checkpoint import CheckpointError, open_checkpoint
from model_export.importing.state_dicts import BACKBONE, LAYOUTS, _source
from tests.checkpoints import CLASSES, DECODER_LAYERS, ENCODER_LAYERS, PROCESSOR, random_model

DETECTRON2, MMDET = LAYOUTS
BOTH, NORM = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def names(stem: str, parts: Iterable[str], ends: Iterable[str] = BOTH) -> set[str]:
    ends = [*ends]
    return {".".join(filter(None, (stem, part, end))) for part in parts for end in ends}


def of_detectron2() -> set[str]:
    pixel, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    found = {f"{pixel}.transformer.level_embed", f"{pixel}.adapter_1.weight"}
    found |= {f"{pixel}.layer_1.weight"} | names(pixel, ("adapter_1.norm", "layer_1.norm"))
    found |= names(
        pixel, ("mask_features", *(f"input_proj.{i}.{k}" for i in range(3) for k in "01"))
    )
    for i in range(ENCODER_LAYERS):
        parts = ("norm1", "linear1", "linear2", "norm2", *(f"self_attn.{d}" for d in DEFORMABLE))
        found |= names(f"{pixel}.transformer.encoder.layers.{i}", parts)
    found |= names(predictor, ("query_feat", "query_embed", "level_embed"), ["weight"])
    found |= names(predictor, ("decoder_norm", "class_embed"))
    found |= names(predictor, (f"mask_embed.layers.{i}" for i in range(3)))
    for i in range(DECODER_LAYERS):
        cross, own = (
            f"{predictor}.transformer_{k}_attention_layers.{i}" for k in ("cross", "self")
        )
        found |= names(cross, ["multihead_attn"], ATTENTION) | names(cross, ["norm"])
        found |= names(own, ["self_attn"], ATTENTION) | names(own, ["norm"])
        found |= names(f"{predictor}.transformer_ffn_layers.{i}", ("linear1", "linear2", "norm"))
    return found


def of_mmdet() -> set[str]:
    pixel, decoder = "panoptic_head.pixel_decoder", "panoptic_head.transformer_decoder"
    found = {f"{pixel}.level_encoding.weight"} | names(pixel, ["mask_feature"])
    found |= names(pixel, (f"input_convs.{i}.{k}" for i in range(3) for k in ("conv", "gn")))
    for convs in ("lateral_convs", "output_convs"):
        found |= {f"{pixel}.{convs}.0.conv.weight"} | names(pixel, [f"{convs}.0.gn"])
    for i in range(ENCODER_LAYERS):
        parts = ("norms.0", "norms.1", "ffn.layers.0.0", "ffn.layers.1")
        attention = (f"self_attn.{part}" for part in DEFORMABLE)
        found |= names(f"{pixel}.encoder.layers.{i}", (*parts, *attention))
    found |= names("panoptic_head", ("query_feat", "query_embed", "level_embed"), ["weight"])
    found |= names("panoptic_head", ("cls_embed", "mask_embed.0", "mask_embed.2", "mask_embed.4"))
    found |= names(decoder, ["post_norm"])
    for i in range(DECODER_LAYERS):
        layer = f"{decoder}.layers.{i}"
        found |= names(layer, ("cross_attn.attn", "self_attn.attn"), ATTENTION)
        found |= names(layer, ("norms.0", "norms.1", "norms.2", "ffn.layers.0.0", "ffn.layers.1"))
    return found


def swin_of_detectron2() -> set[str]:
    found = names("backbone", ("patch_embed.proj", "patch_embed.norm", "norm0", "norm1", "norm2"))
    found |= names("backbone", ["norm3"])
    for i, depth in enumerate((1, 1, 2, 1)):
        for j in range(depth):
            block = f"backbone.layers.{i}.blocks.{j}"
            parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            found |= names(block, parts) | {f"{block}.attn.relative_position_bias_table"}
        if i < 3:
            down = f"backbone.layers.{i}.downsample"
            found |= {f"{down}.reduction.weight"} | names(down, ["norm"])
    return found


def resnet_of_detectron2() -> set[str]:
    found = {"backbone.stem.conv1.weight"} | names("backbone.stem.conv1", ["norm"], NORM)
    for i in range(4):
        convs = ("conv1", "conv2", *(["shortcut"] if i else []))  # the first keeps its channels
        for conv in convs:
            stem = f"backbone.res{i + 2}.0.{conv}"
            found |= {f"{stem}.weight"} | names(stem, ["norm"], NORM)
    return found


def resnet_of_mmdet() -> set[str]:
    found = {"backbone.conv1.weight"} | names("backbone", ["bn1"], NORM)
    for i in range(4):
        stem = f"backbone.layer{i + 1}.0"
        found |= {f"{stem}.conv1.weight", f"{stem}.conv2.weight"}
        found |= names(stem, ("bn1", "bn2"), NORM)
        if i:
            found |= {f"{stem}.downsample.0.weight"} | names(stem, ["downsample.1"], NORM)
    return found


CASES = {
    (DETECTRON2, "swin"): of_detectron2() | swin_of_detectron2(),
    (DETECTRON2, "resnet"): of_detectron2() | resnet_of_detectron2(),
    (MMDET, "resnet"): of_mmdet() | resnet_of_mmdet(),
}


def foreign(model: nn.Module, key: str, backbone: str) -> dict[str, Tensor]:
    """The model's tensors as other code saves them. torch's own attention packs query, key and
    value in this order."""
    _, heads, backbones = LAYOUTS[key]
    found: dict[str, Tensor] = {}
    packed: dict[str, dict[int, Tensor]] = {}
    for name, value in model.state_dict().items():
        inside = name.startswith(BACKBONE)
        source, third = _source(name, backbones[backbone] if inside else heads)
        if source is not None:
            full = f"backbone.{source}" if inside else source
            if third is None:
                found[full] = value.clone()
            else:
                packed.setdefault(full, {})[third] = value
    return found | {
        name: torch.cat([thirds[i] for i in range(3)]) for name, thirds in packed.items()
    }


def described(model: Any, folder: Path) -> Path:
    """What a user writes: the two configs, no weights."""
    model.config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.mark.parametrize(("key", "backbone"), CASES)
def test_a_state_dict_of_others_becomes_the_same_network(
    key: str, backbone: str, tmp_path: Path
) -> None:
    model = random_model(backbone)
    state = foreign(model, key, backbone)
    assert state.keys() == CASES[key, backbone]
    # Tensors that others save, and that the network makes itself.
    state["criterion.empty_weight"] = torch.zeros(CLASSES + 1)
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"model": state, "iteration": 7}, tmp_path / "model.pth")
    folder = described(model, tmp_path / "folder")
    own = model.state_dict()
    for file in ("model.safetensors", "model.pth"):
        loaded = mask2former.load(open_checkpoint(folder, tmp_path / file)).state_dict()
        unused = ("swin.layernorm", "criterion.", "num_batches_tracked")
        for name, value in own.items():
            if not any(part in name for part in unused):
                assert torch.equal(loaded[name], value), name


class Trap:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("swin")
    folder, file = described(model, tmp_path / "folder"), tmp_path / "other.safetensors"
    state = foreign(model, DETECTRON2, "swin")

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            mask2former.load(open_checkpoint(folder, file))

    lost = "sem_seg_head.pixel_decoder.layer_1.norm.bias"
    refused({k: v for k, v in state.items() if k != lost}, f"lacks {lost}")
    refused(state | {lost: torch.zeros(3)}, r"is \(3,\)")
    refused(state | {lost: state[lost].to(torch.int8)}, f"{lost} is of torch.int8: quantised")
    refused(state | {lost: state[lost] * torch.nan}, "has values that are no numbers")
    more = f"sem_seg_head.predictor.transformer_ffn_layers.{DECODER_LAYERS}.norm.bias"
    refused(state | {more: torch.zeros(3)}, f"has {more}, for which config.json has no place")
    refused({"weight": torch.zeros(3)}, "no Mask2Former that is known")
    refused({MMDET: torch.zeros(3)}, "of mmdetection, with the backbone swin")
    torch.save({"model": state, "code": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="as tensors alone"):
        mask2former.load(open_checkpoint(folder, tmp_path / "trap.pth"))
    assert "run" not in capsys.readouterr().out
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        mask2former.load(open_checkpoint(folder, tmp_path / "list.pth"))
    for content in (b"root:x:0:0:root:/root:/bin/bash\n", b"", b"(lp0\n"):
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"text\.pth cannot be read as tensors alone"):
            mask2former.load(open_checkpoint(folder, tmp_path / "text.pth"))
    with pytest.raises(CheckpointError, match="is no file"):
        open_checkpoint(folder, tmp_path / "none.pth")
