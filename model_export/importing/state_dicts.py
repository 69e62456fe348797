"""State dicts of the original Mask2Former (detectron2) and of mmdetection, by transformers' names.

Files are safetensors, or of torch.save, read as tensors only (weights_only): nothing of them is
executed. A row of a table is a pattern of transformers' names and what stands for it elsewhere;
where other code packs query, key and value into one tensor, a row names the third that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model_export.importing.checkpoint import CheckpointError, quantised

Row = tuple[str, str | Callable[[re.Match[str]], str] | None]
BACKBONE = "model.pixel_level_module.encoder."
PIXEL, TRANSFORMER = r"model\.pixel_level_module\.decoder\.", r"model\.transformer_module\."
_BACKBONE = re.escape(BACKBONE)
THIRDS = {"q": 0, "k": 1, "v": 2}
OWN = None  # of a row: the tensor is not in use, or counts batches

DETECTRON2_HEADS: Sequence[Row] = (
    (PIXEL + r"level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (PIXEL + r"input_projections\.(.+)", r"sem_seg_head.pixel_decoder.input_proj.\1"),
    *(
        (
            PIXEL + rf"encoder\.layers\.(\d+)\.{theirs}\.(.+)",
            rf"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.{name}.\2",
        )
        for theirs, name in (
            ("self_attn", "self_attn"),
            ("self_attn_layer_norm", "norm1"),
            ("fc1", "linear1"),
            ("fc2", "linear2"),
            ("final_layer_norm", "norm2"),
        )
    ),
    (PIXEL + r"(adapter_1|layer_1)\.0\.weight", r"sem_seg_head.pixel_decoder.\1.weight"),
    (PIXEL + r"(adapter_1|layer_1)\.1\.(.+)", r"sem_seg_head.pixel_decoder.\1.norm.\2"),
    (PIXEL + r"mask_projection\.(.+)", r"sem_seg_head.pixel_decoder.mask_features.\1"),
    (TRANSFORMER + r"queries_features\.weight", "sem_seg_head.predictor.query_feat.weight"),
    (TRANSFORMER + r"queries_embedder\.weight", "sem_seg_head.predictor.query_embed.weight"),
    (TRANSFORMER + r"level_embed\.weight", "sem_seg_head.predictor.level_embed.weight"),
    *(
        (
            TRANSFORMER + rf"decoder\.layers\.(\d+)\.{theirs}",
            rf"sem_seg_head.predictor.transformer_{name}",
        )
        for theirs, name in (
            (r"cross_attn\.(.+)", r"cross_attention_layers.\1.multihead_attn.\2"),
            (r"cross_attn_layer_norm\.(.+)", r"cross_attention_layers.\1.norm.\2"),
            (
                r"self_attn\.(?P<third>[qkv])_proj\.(.+)",
                r"self_attention_layers.\1.self_attn.in_proj_\3",
            ),
            (r"self_attn\.out_proj\.(.+)", r"self_attention_layers.\1.self_attn.out_proj.\2"),
            (r"self_attn_layer_norm\.(.+)", r"self_attention_layers.\1.norm.\2"),
            (r"fc(\d)\.(.+)", r"ffn_layers.\1.linear\2.\3"),
            (r"final_layer_norm\.(.+)", r"ffn_layers.\1.norm.\2"),
        )
    ),
    (TRANSFORMER + r"decoder\.layernorm\.(.+)", r"sem_seg_head.predictor.decoder_norm.\1"),
    (
        TRANSFORMER + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        r"sem_seg_head.predictor.mask_embed.layers.\1.\2",
    ),
    (r"class_predictor\.(.+)", r"sem_seg_head.predictor.class_embed.\1"),
    (r"criterion\..+", OWN),
)

MMDET_HEADS: Sequence[Row] = (
    (PIXEL + r"level_embed", "panoptic_head.pixel_decoder.level_encoding.weight"),
    (
        PIXEL + r"input_projections\.(\d)\.0\.(.+)",
        r"panoptic_head.pixel_decoder.input_convs.\1.conv.\2",
    ),
    (
        PIXEL + r"input_projections\.(\d)\.1\.(.+)",
        r"panoptic_head.pixel_decoder.input_convs.\1.gn.\2",
    ),
    *(
        (
            PIXEL + rf"encoder\.layers\.(\d+)\.{theirs}\.(.+)",
            rf"panoptic_head.pixel_decoder.encoder.layers.\1.{name}.\2",
        )
        for theirs, name in (
            ("self_attn", "self_attn"),
            ("self_attn_layer_norm", "norms.0"),
            ("fc1", "ffn.layers.0.0"),
            ("fc2", "ffn.layers.1"),
            ("final_layer_norm", "norms.1"),
        )
    ),
    *(
        (PIXEL + rf"{theirs}\.{place}\.(.+)", rf"panoptic_head.pixel_decoder.{name}.0.{part}.\1")
        for theirs, name in (("adapter_1", "lateral_convs"), ("layer_1", "output_convs"))
        for place, part in ((0, "conv"), (1, "gn"))
    ),
    (PIXEL + r"mask_projection\.(.+)", r"panoptic_head.pixel_decoder.mask_feature.\1"),
    (TRANSFORMER + r"queries_features\.weight", "panoptic_head.query_feat.weight"),
    (TRANSFORMER + r"queries_embedder\.weight", "panoptic_head.query_embed.weight"),
    (TRANSFORMER + r"level_embed\.weight", "panoptic_head.level_embed.weight"),
    *(
        (
            TRANSFORMER + rf"decoder\.layers\.(\d+)\.{theirs}",
            rf"panoptic_head.transformer_decoder.layers.\1.{name}",
        )
        for theirs, name in (
            (r"cross_attn\.(.+)", r"cross_attn.attn.\2"),
            (r"cross_attn_layer_norm\.(.+)", r"norms.0.\2"),
            (r"self_attn\.(?P<third>[qkv])_proj\.(.+)", r"self_attn.attn.in_proj_\3"),
            (r"self_attn\.out_proj\.(.+)", r"self_attn.attn.out_proj.\2"),
            (r"self_attn_layer_norm\.(.+)", r"norms.1.\2"),
            (r"fc1\.(.+)", r"ffn.layers.0.0.\2"),
            (r"fc2\.(.+)", r"ffn.layers.1.\2"),
            (r"final_layer_norm\.(.+)", r"norms.2.\2"),
        )
    ),
    (
        TRANSFORMER + r"decoder\.layernorm\.(.+)",
        r"panoptic_head.transformer_decoder.post_norm.\1",
    ),
    (
        TRANSFORMER + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        lambda found: f"panoptic_head.mask_embed.{2 * int(found[1])}.{found[2]}",
    ),
    (r"class_predictor\.(.+)", r"panoptic_head.cls_embed.\1"),
    (r"criterion\..+", OWN),
)

_BLOCK = _BACKBONE + r"swin\.encoder\.layers\.(\d)\.blocks\.(\d+)\."
SWIN: Sequence[Row] = (
    (_BACKBONE + r"swin\.embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (_BACKBONE + r"swin\.embeddings\.norm\.(.+)", r"patch_embed.norm.\1"),
    (
        _BLOCK + r"attention\.(?P<third>[qkv])_proj\.(.+)",
        r"layers.\1.blocks.\2.attn.qkv.\4",
    ),
    (_BLOCK + r"attention\.o_proj\.(.+)", r"layers.\1.blocks.\2.attn.proj.\3"),
    (
        _BLOCK + r"attention\.relative_position_bias\.(.+)",
        r"layers.\1.blocks.\2.attn.\3",
    ),
    (_BLOCK + r"layernorm_before\.(.+)", r"layers.\1.blocks.\2.norm1.\3"),
    (_BLOCK + r"layernorm_after\.(.+)", r"layers.\1.blocks.\2.norm2.\3"),
    (_BLOCK + r"(mlp\..+)", r"layers.\1.blocks.\2.\3"),
    (_BACKBONE + r"swin\.encoder\.layers\.(\d)\.(downsample\..+)", r"layers.\1.\2"),
    (_BACKBONE + r"swin\.layernorm\..+", OWN),  # of the classifier
    (
        _BACKBONE + r"hidden_states_norms\.stage(\d)\.(.+)",
        lambda found: f"norm{int(found[1]) - 1}.{found[2]}",
    ),
)

_LAYER = _BACKBONE + r"encoder\.stages\.(\d)\.layers\.(\d+)\."
_COUNT: Row = (_BACKBONE + r".+\.num_batches_tracked", OWN)
DETECTRON2_RESNET: Sequence[Row] = (
    _COUNT,
    (_BACKBONE + r"embedder\.embedder\.convolution\.weight", "stem.conv1.weight"),
    (_BACKBONE + r"embedder\.embedder\.normalization\.(.+)", r"stem.conv1.norm.\1"),
    (
        _LAYER + r"layer\.(\d)\.(convolution|normalization)\.(.+)",
        lambda found: (
            f"res{int(found[1]) + 2}.{found[2]}.conv{int(found[3]) + 1}."
            f"{'norm.' * (found[4] == 'normalization')}{found[5]}"
        ),
    ),
    (
        _LAYER + r"shortcut\.(convolution|normalization)\.(.+)",
        lambda found: (
            f"res{int(found[1]) + 2}.{found[2]}.shortcut."
            f"{'norm.' * (found[3] == 'normalization')}{found[4]}"
        ),
    ),
)
MMDET_RESNET: Sequence[Row] = (
    _COUNT,
    (_BACKBONE + r"embedder\.embedder\.convolution\.weight", "conv1.weight"),
    (_BACKBONE + r"embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
    (
        _LAYER + r"layer\.(\d)\.(convolution|normalization)\.(.+)",
        lambda found: (
            f"layer{int(found[1]) + 1}.{found[2]}."
            f"{'conv' if found[4] == 'convolution' else 'bn'}{int(found[3]) + 1}.{found[5]}"
        ),
    ),
    (
        _LAYER + r"shortcut\.(convolution|normalization)\.(.+)",
        lambda found: (
            f"layer{int(found[1]) + 1}.{found[2]}.downsample."
            f"{int(found[3] == 'normalization')}.{found[4]}"
        ),
    ),
)

# A tensor that only such a file has -> whose it is, its heads, its backbones by their model_type.
LAYOUTS: Mapping[str, tuple[str, Sequence[Row], Mapping[str, Sequence[Row]]]] = {
    "sem_seg_head.predictor.query_feat.weight": (
        "detectron2",
        DETECTRON2_HEADS,
        {"swin": SWIN, "resnet": DETECTRON2_RESNET},
    ),
    # mmdetection's Swin orders what its patch merging gets in another way.
    "panoptic_head.query_feat.weight": ("mmdetection", MMDET_HEADS, {"resnet": MMDET_RESNET}),
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError where the file holds anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise anything where a file is no such file
        said = str(error).strip().splitlines()[:1]
        raise CheckpointError(
            f"{path} cannot be read as tensors alone ({' '.join(said)}): download it again, or, "
            f"where you trust it, save its state dict as safetensors"
        ) from error
    for part in ("model", "state_dict"):
        content = content.get(part, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict: tensors by their names")
    return content


def renamed(
    path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], backbone: str
) -> dict[str, Tensor]:
    """The tensors by transformers' names. wanted: the state of transformers' own network; backbone:
    its model_type. Raises CheckpointError that names a tensor."""
    layouts = [layout for key, layout in LAYOUTS.items() if key in given]
    if not layouts:
        raise CheckpointError(
            f"{path} has the tensors of no Mask2Former that is known: none of {', '.join(LAYOUTS)}"
        )
    whose, heads, backbones = layouts[0]
    if backbone not in backbones:
        raise CheckpointError(
            f"{path} is of {whose}, with the backbone {backbone}; of that only the tensors of "
            f"{', '.join(backbones)} are known"
        )
    state, used = {}, set[str]()
    for name, like in wanted.items():
        inside = name.startswith(BACKBONE)
        source, third = _source(name, backbones[backbone] if inside else heads)
        if source is None:
            state[name] = like
            continue
        source = f"backbone.{source}" if inside else source
        if source not in given:
            raise CheckpointError(f"{path} lacks {source}, which config.json asks for")
        if given[source].dtype.itemsize < 2:
            raise quantised(path, source, str(given[source].dtype))
        used.add(source)
        value = given[source].float()
        state[name] = value if third is None else value.chunk(3)[third]
        if state[name].shape != like.shape:
            raise CheckpointError(
                f"{path}: {source} is {tuple(value.shape)}; as config.json says, it would give "
                f"{tuple(like.shape)}"
            )
    kinds = {_numberless(name) for name in used}
    left = sorted(name for name in given.keys() - used if _numberless(name) in kinds)
    if left:
        raise CheckpointError(
            f"{path} has {left[0]}, for which config.json has no place: it must describe all "
            f"layers; decoder_layers counts one more than there are"
        )
    return state


def _numberless(name: str) -> str:
    """The same of every layer."""
    return re.sub(r"\d+", "#", name)


def _source(name: str, rows: Sequence[Row]) -> tuple[str | None, int | None]:
    """The other name of a tensor, None if its own value will do, and which third of it."""
    for pattern, target in rows:
        found = re.fullmatch(pattern, name)
        if found is None:
            continue
        third = THIRDS.get(found.groupdict().get("third", ""))
        if target is None:
            return None, None
        return found.expand(target) if isinstance(target, str) else target(found), third
    raise CheckpointError(f"{name} has no counterpart in state dicts of others")
