"""What of a checkpoint the network cannot compute as transformers does, by its field's name."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from model_export.importing.checkpoint import INDEX, WEIGHTS, Checkpoint, CheckpointError

# What the network computes; a checkpoint that wants something else is refused.
FIXED: dict[str, object] = {
    "pre_norm": False,
    "enforce_input_projection": False,
    "activation_function": "relu",
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}


def check_fields(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError that names the field."""
    config = checkpoint.config
    if config.get("backbone") is not None and not config.get("backbone_config"):
        raise checkpoint.refuse(
            "backbone",
            f"{config['backbone']!r} is only a name, which would be looked up in the network: "
            f"backbone_config must describe it",
        )
    if config.get("quantization_config") is not None:
        raise checkpoint.refuse(
            "quantization_config",
            "quantised weights cannot be imported; where they are float32 or float16, delete it",
        )
    if config.get("transformers_weights") not in (None, WEIGHTS, INDEX):
        raise checkpoint.refuse(
            "transformers_weights",
            f"{config['transformers_weights']!r} is not looked at: name the weights {WEIGHTS}, and "
            f"delete it",
        )
    for field, value in FIXED.items():
        given = config.get(field, value)
        if (list(given) if isinstance(given, tuple) else given) != value:
            raise checkpoint.refuse(field, f"{given!r} cannot be served; it must be {value!r}")
    widths = {
        name: config.get(name, 256) for name in ("hidden_dim", "feature_size", "mask_feature_size")
    }
    width, heads = widths["hidden_dim"], config.get("num_attention_heads", 8)
    if any(other != width for other in widths.values()):
        raise checkpoint.refuse(", ".join(widths), f"{[*widths.values()]} must be equal")
    whole = type(width) is int and type(heads) is int and width > 0 and heads > 0
    if not whole or width % 32 or width % heads:
        raise checkpoint.refuse(
            "hidden_dim", f"{width!r} must be a multiple of 32 and of num_attention_heads {heads!r}"
        )
    for field, least in (("encoder_layers", 1), ("decoder_layers", 2), ("num_queries", 1)):
        given = config.get(field, least)
        if type(given) is not int or given < least:
            raise checkpoint.refuse(field, f"{given!r} must be at least {least}")


def check_backbone(checkpoint: Checkpoint, package: Any) -> None:
    """package: transformers. Raises CheckpointError where it does not know the backbone."""
    about = checkpoint.config.get("backbone_config")
    if about is None:
        return  # transformers' default, a Swin
    if not isinstance(about, dict):
        raise checkpoint.refuse("backbone_config", f"{about!r} must be an object")
    kind = about.get("model_type")
    if not isinstance(kind, str) or kind not in package.CONFIG_MAPPING:
        raise checkpoint.refuse(
            "backbone_config",
            f"model_type {kind!r} is unknown to transformers {package.__version__}",
        )
    if package.CONFIG_MAPPING[kind] not in package.MODEL_FOR_BACKBONE_MAPPING:
        raise checkpoint.refuse(
            "backbone_config",
            f"model_type {kind!r} is no backbone in transformers {package.__version__}",
        )
    if about.get("num_channels", 3) != 3:
        raise checkpoint.refuse(
            "backbone_config",
            f"num_channels: {about['num_channels']!r} cannot be served; images have 3",
        )


def check_found(checkpoint: Checkpoint, found: dict[str, Any], model: nn.Module) -> None:
    """found: what transformers says of the weights of `model`. It would start what is missing at
    random, and leave out what it does not know. Raises CheckpointError that names a tensor."""
    for what, why in (
        ("mismatched_keys", "another shape than config.json says"),
        ("missing_keys", "is missing"),
        ("unexpected_keys", "is not of this network"),
    ):
        unused = _unused(model, what)
        entries = sorted(
            (entry for entry in found.get(what, ()) if not re.search(unused, str(entry))), key=str
        )
        if entries:
            first = entries[0]
            name, shapes = (first[0], first[1:]) if isinstance(first, tuple) else (first, ())
            sizes = " instead of ".join(str(tuple(shape)) for shape in shapes)
            raise CheckpointError(
                f"{checkpoint.folder}: of its weights {name} {why}{f': {sizes}' if sizes else ''}"
                f"{f', and {len(entries) - 1} more' if len(entries) > 1 else ''}; the weights must "
                f"belong to config.json"
            )


def _unused(model: nn.Module, what: str) -> str:
    """A pattern of the names that other versions of transformers save, or do not, and that nothing
    depends on. transformers itself asks a network's own parts, but not as deep as the backbone."""
    of_part = f"_keys_to_ignore_on_load_{what.removesuffix('_keys')}"
    listed = {name for part in model.modules() for name in getattr(part, of_part, None) or ()}
    return "|".join([r"criterion\.", *sorted(listed)])
