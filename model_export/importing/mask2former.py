"""transformers' Mask2Former (arXiv 2112.01527) -> our network, which computes the same.

What the network has no place for is refused by the name of its field. The map of names stands in
`converted`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from model_export.importing import state_dicts
from model_export.importing.check_config import check_backbone, check_fields, check_found
from model_export.importing.checkpoint import (
    ARCHITECTURE,
    CONFIG,
    Checkpoint,
    CheckpointError,
)
from model_export.importing.state_dicts import BACKBONE
from model_export.network.config import IMPORTED, Config, ImportedBackbone
from model_export.network.segmenter import Segmenter
from model_export.network.transformers_backbone import transformers
from model_export.tasks import IMPORTED as IMPORTED_TASKS
from service.bundle import Canvas
from service.tasks.queries import MOST as MOST_QUERIES

STRIDES = (4, 8, 16, 32)
MOST_OF_PIXELS = 1e6  # in whatever unit
POINTS, LEVELS = 4, 3  # of the deformable attention; transformers has no field for them


def load(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint as transformers' own module, float32, in eval mode. Raises CheckpointError."""
    check_fields(checkpoint)
    package = transformers()
    check_backbone(checkpoint, package)
    load_as = _from_others if checkpoint.foreign else _from_folder
    try:
        model = load_as(checkpoint, package)
    except ImportError as error:
        said = " ".join(str(error).split())
        raise checkpoint.refuse("backbone_config", f"its backbone needs a package: {said}") from (
            error
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers has no error of its own for a config that is wrong
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(
            f"{checkpoint.folder / CONFIG}: transformers cannot make the network of it ({said})"
        ) from error
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{checkpoint.weights[0].parent}: of its weights {name} has values that are no "
                f"numbers: training went wrong, or the file is damaged"
            )
    return model.float().eval()


def _from_folder(checkpoint: Checkpoint, package: Any) -> nn.Module:
    """Of the folder's own weights."""
    kind, loading = getattr(package, ARCHITECTURE), logging.getLogger("transformers")
    level = loading.level
    loading.setLevel(logging.ERROR)  # what it warns of is an error below
    try:
        model, found = kind.from_pretrained(
            checkpoint.folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        loading.setLevel(level)
    check_found(checkpoint, found, model)
    loaded: nn.Module = model
    return loaded


def _from_others(checkpoint: Checkpoint, package: Any) -> nn.Module:
    """Of a state dict that has other names."""
    (path,) = checkpoint.weights
    given = state_dicts.read_tensors(path)
    config = package.Mask2FormerConfig.from_dict(checkpoint.config)
    model: nn.Module = getattr(package, ARCHITECTURE)(config)
    backbone = config.backbone_config.model_type
    model.load_state_dict(state_dicts.renamed(path, given, model.state_dict(), backbone))
    return model


def config_of(
    checkpoint: Checkpoint,
    model: nn.Module,
    task: Literal["semantic", "instance", "panoptic"],
    things: tuple[bool, ...],
    thresholds: tuple[float, float, float],
) -> Config:
    """Our network's. things: of each class. Raises CheckpointError."""
    theirs = model.config
    mean, std = normalisation(checkpoint)
    # The answer of a backbone as a tuple does not say what of it are the maps.
    fixed = {"use_pretrained_backbone": False, "return_dict": True}
    about = theirs.backbone_config.to_dict() | fixed
    if theirs.backbone_config.model_type != "timm_backbone":
        del about["use_pretrained_backbone"]
    queries, _ = IMPORTED_TASKS[task]
    if queries and theirs.num_queries > MOST_QUERIES:
        raise checkpoint.refuse(
            "num_queries", f"{theirs.num_queries} are too many for {task}: at most {MOST_QUERIES}"
        )
    maps = len(model.get_submodule(BACKBONE.removesuffix(".")).channels)
    if maps != len(STRIDES):
        raise checkpoint.refuse(
            "backbone_config", f"out_features: it gives {maps}; there must be {len(STRIDES)} maps"
        )
    return Config(
        name="imported",
        task=task,
        classes=theirs.num_labels,
        queries=theirs.num_queries,
        backbone=IMPORTED,
        channels=theirs.hidden_dim,
        heads=theirs.num_attention_heads,
        points=POINTS,
        schedule=(LEVELS,) * theirs.encoder_layers,
        encoder_ffn=theirs.encoder_feedforward_dim,
        pixel_embedding="conv",
        decoder_layers=theirs.decoder_layers - 1,  # it counts the head before the first layer
        decoder_ffn=theirs.dim_feedforward,
        matching="hungarian",
        head="queries" if queries else "dense",
        things=things if queries else (),
        thresholds=thresholds,
        imported=ImportedBackbone(plain(about), mean, std),
        front_head=False,
    )


def plain(value: Any) -> Any:
    """A configuration's dictionary as JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def build(model: nn.Module, config: Config) -> Segmenter:
    """Our network with the checkpoint's weights, in eval mode."""
    network = Segmenter(config)
    network.load_state_dict(converted(model.state_dict(), config))
    return network.eval()


class SizeError(CheckpointError):
    """A backbone that takes no images of a size, e.g. since it has learned positions."""


@torch.inference_mode()
def check_maps(checkpoint: Checkpoint, network: Segmenter, canvas: Canvas) -> None:
    """Raises SizeError where the backbone takes no image of one of the shapes, and CheckpointError
    where it does not give maps at strides 4, 8, 16 and 32, with the channels that it promises, or
    where they hold NaN or infinity: finite weights can do that, as a variance below 0."""
    for shape in canvas.shapes:
        height, width = shape.height, shape.width
        try:
            maps = network.backbone(torch.zeros(1, 3, height, width))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise SizeError(
                f"{checkpoint.folder / CONFIG}: backbone_config: the backbone cannot take an "
                f"image of {height}x{width} ({error}); name other sizes by --canvases"
            ) from error
        sizes = [tuple(m.shape[-2:]) for m in maps]
        if sizes != [(height // stride, width // stride) for stride in STRIDES]:
            raise checkpoint.refuse(
                "backbone_config",
                f"its maps of a {height}x{width} image are {sizes}; there must be four, at strides "
                f"{', '.join(map(str, STRIDES))}",
            )
        channels = tuple(m.shape[1] for m in maps)
        if channels != network.backbone.channels:
            raise checkpoint.refuse(
                "backbone_config",
                f"its maps have {channels} channels, but it promises {network.backbone.channels}",
            )
        if not all(m.isfinite().all() for m in maps):
            raise CheckpointError(
                f"{checkpoint.weights[0].parent}: its backbone computes NaN or infinity: training "
                f"went wrong, or the file is damaged"
            )


def normalisation(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values 0..255. Raises CheckpointError."""
    about = checkpoint.processor
    for field in ("do_rescale", "do_normalize"):
        if type(about.get(field, True)) is not bool:
            raise checkpoint.refuse_pixels(field, "must be true or false")
    scale = about.get("rescale_factor", 1 / 255) if about.get("do_rescale", True) else 1.0
    if not _is_number(scale) or scale <= 0:
        raise checkpoint.refuse_pixels("rescale_factor", "must be a positive number")
    if not about.get("do_normalize", True):
        return (0.0,) * 3, (1 / scale,) * 3
    values = []
    for field in ("image_mean", "image_std"):
        given = about.get(field)
        given = [given] * 3 if _is_number(given) else given  # as transformers takes it
        listed = isinstance(given, list) and len(given) == 3 and all(map(_is_number, given))
        if not listed or (field == "image_std" and min(given) <= 0):
            raise checkpoint.refuse_pixels(field, "must be three numbers, of red, green and blue")
        values.append(tuple(float(v) / scale for v in given))
    return values[0], values[1]


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is one that mean and deviation of pixels can be."""
    return type(value) in (int, float) and abs(value) <= MOST_OF_PIXELS  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------
# names


def converted(theirs: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """transformers' weights under our names."""
    ours = {
        f"backbone.model.{name.removeprefix(BACKBONE)}": value
        for name, value in theirs.items()
        if name.startswith(BACKBONE)
    }
    for target, source in _names(config):
        ours[target] = theirs[source]
    ours |= _attention_inputs(theirs, config)
    return ours


_PIXEL, _TRANSFORMER = "model.pixel_level_module.decoder", "model.transformer_module"
_BOTH = ("weight", "bias")


def _names(config: Config) -> Iterator[tuple[str, str]]:
    """Our name and theirs of each tensor that is taken as it is."""
    for target, source, parts in _modules(config):
        yield from ((f"{target}.{part}", f"{source}.{part}") for part in parts)
    yield "encoder.level_embedding", f"{_PIXEL}.level_embed"
    yield "decoder.queries", f"{_TRANSFORMER}.queries_features.weight"
    yield "decoder.query_positions", f"{_TRANSFORMER}.queries_embedder.weight"
    yield "decoder.level_embedding", f"{_TRANSFORMER}.level_embed.weight"


def _modules(config: Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield "lateral.0", f"{_PIXEL}.adapter_1.0", ("weight",)
    yield "lateral.1", f"{_PIXEL}.adapter_1.1", _BOTH
    for scale in range(LEVELS):
        for part in range(2):
            yield f"project.{scale}.{part}", f"{_PIXEL}.input_projections.{scale}.{part}", _BOTH
    for i in range(config.exits):
        for ours, theirs in (
            ("attention.offsets", "self_attn.sampling_offsets"),
            ("attention.logits", "self_attn.attention_weights"),
            ("attention.value", "self_attn.value_proj"),
            ("attention.output", "self_attn.output_proj"),
            ("norm1", "self_attn_layer_norm"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm2", "final_layer_norm"),
        ):
            yield f"encoder.layers.{i}.{ours}", f"{_PIXEL}.encoder.layers.{i}.{theirs}", _BOTH
    yield "decoder.pixel_embedding.smooth.0", f"{_PIXEL}.layer_1.0", ("weight",)
    yield "decoder.pixel_embedding.smooth.1", f"{_PIXEL}.layer_1.1", _BOTH
    yield "decoder.pixel_embedding.project", f"{_PIXEL}.mask_projection", _BOTH
    for i in range(config.decoder_layers):
        for ours, theirs in (
            ("cross.output", "cross_attn.out_proj"),
            ("self_attention.query", "self_attn.q_proj"),
            ("self_attention.key", "self_attn.k_proj"),
            ("self_attention.value", "self_attn.v_proj"),
            ("self_attention.output", "self_attn.out_proj"),
            ("norm1", "cross_attn_layer_norm"),
            ("norm2", "self_attn_layer_norm"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm3", "final_layer_norm"),
        ):
            yield f"decoder.layers.{i}.{ours}", f"{_TRANSFORMER}.decoder.layers.{i}.{theirs}", _BOTH
    yield "decoder.norm", f"{_TRANSFORMER}.decoder.layernorm", _BOTH
    yield "decoder.classify", "class_predictor", _BOTH
    for i in range(3):
        embedder = f"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder"
        yield f"decoder.embed_mask.{2 * i}", f"{embedder}.{i}.0", _BOTH


def _attention_inputs(theirs: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """torch packs the three input projections of the cross-attention into one matrix."""
    ours = {}
    for i in range(config.decoder_layers):
        source = f"{_TRANSFORMER}.decoder.layers.{i}.cross_attn.in_proj"
        for part in _BOTH:
            packed = theirs[f"{source}_{part}"].chunk(3)
            for name, piece in zip(("query", "key", "value"), packed, strict=True):
                ours[f"decoder.layers.{i}.cross.{name}.{part}"] = piece
    return ours
