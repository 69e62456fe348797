"""A checkpoint's folder as transformers saves it: config.json, preprocessor_config.json and weights
as safetensors.

Everything is read before anything is built. Nothing of the folder is executed: pickled weights are
refused, and so is code of its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
PROCESSORS, IMAGES = "processor_config.json", "image_processor"  # a file, and its field
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURE = "Mask2FormerForUniversalSegmentation"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32")  # integers: counts and places


class CheckpointError(ValueError):
    """A checkpoint that cannot be imported. The message names the file or the field, and what to
    do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """config, processor: the content of the two JSON files. processor_file: the second one's name.
    weights: the files with tensors. foreign: whether those are a state dict of other code, with
    other names."""

    folder: Path
    config: dict[str, Any]
    processor: dict[str, Any]
    processor_file: Path
    weights: tuple[Path, ...]
    foreign: bool = False

    def refuse(self, field: str, why: str) -> CheckpointError:
        """An error about a field of config.json."""
        return CheckpointError(f"{self.folder / CONFIG}: {field}: {why}")

    def refuse_pixels(self, field: str, why: str) -> CheckpointError:
        """An error about a field of the image processor's file."""
        return CheckpointError(f"{self.processor_file}: {field}: {why}")


def open_checkpoint(folder: Path, foreign: Path | None = None) -> Checkpoint:
    """Read the folder and the header of every weights file. foreign: a state dict of other code, in
    place of the folder's own weights. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder: download the checkpoint first, with config.json, "
            f"preprocessor_config.json and its safetensors"
        )
    config = read_json(folder / CONFIG)
    check_kind(folder / CONFIG, config)
    processor_file, processor = read_processor(folder)
    for path, content in ((folder / CONFIG, config), (processor_file, processor)):
        if "auto_map" in content:
            raise CheckpointError(f"{path}: auto_map: code of a checkpoint's own is never run")
    if foreign is not None:
        if not foreign.is_file():
            raise CheckpointError(f"{foreign} is no file: --weights names a state dict")
        return Checkpoint(folder, config, processor, processor_file, (foreign,), foreign=True)
    weights = weights_in(folder)
    for path in weights:
        check_tensors(path)
    return Checkpoint(folder, config, processor, processor_file, weights)


def check_kind(path: Path, config: dict[str, Any]) -> None:
    """Before anything else is asked for: nobody should look for the rest of another network. Raises
    CheckpointError."""
    if config.get("model_type") != "mask2former":
        raise CheckpointError(
            f"{path}: model_type: {config.get('model_type')!r} cannot be served; mask2former can"
        )
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list):
        raise CheckpointError(f"{path}: architectures: {kinds!r} must be a list of names")
    if kinds and ARCHITECTURE not in kinds:
        raise CheckpointError(
            f"{path}: architectures: {kinds} cannot be served: its heads are others, or it has "
            f"none; {ARCHITECTURE} can"
        )


def read_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(file, what it says of pixels). As transformers reads them: a file about all processors goes
    before that of images alone, where it has them. Raises CheckpointError."""
    path = folder / PROCESSORS
    within = read_json(path) if path.is_file() else {}
    if IMAGES not in within:
        return folder / PROCESSOR, read_json(folder / PROCESSOR)
    if not isinstance(within[IMAGES], dict):
        raise CheckpointError(f"{path}: {IMAGES}: {within[IMAGES]!r} must be an object")
    return path, within[IMAGES]


def missing(path: Path, why: str) -> CheckpointError:
    """An error about a file that is not there. Copies of a cache of downloads can be links alone,
    which have lost what they point to."""
    if path.is_symlink():
        return CheckpointError(
            f"{path} is a link to {os.readlink(path)}, which is not there: copy the files, not the "
            f"links to them (cp -rL)"
        )
    return CheckpointError(f"{path} is missing{why}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise missing(
            path,
            ": a checkpoint needs it; save_pretrained of the model and of its image processor "
            "write both JSON files",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must be a JSON object")
    return content


def weights_in(folder: Path) -> tuple[Path, ...]:
    """One file, or the shards that an index lists. Raises CheckpointError."""
    if (folder / WEIGHTS).exists():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).exists():
        pickled = sorted(path.name for form in PICKLED for path in folder.glob(form))
        if pickled:
            raise CheckpointError(
                f"{folder} has its weights as {pickled[0]} only: pickled files can run code when "
                f"they are opened. Where you trust it, load it in transformers and save it again "
                f"with save_pretrained, which writes {WEIGHTS}"
            )
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        linked = (folder / INDEX).is_symlink()
        raise missing(
            folder / (INDEX if linked else WEIGHTS),
            f", and so is {INDEX}"
            + (f"; if {others[0]} is the whole network, rename it" if others else ""),
        )
    index = read_json(folder / INDEX)
    listed = index.get("weight_map")
    named = isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())
    if not listed or not named:
        raise CheckpointError(f"{folder / INDEX}: weight_map must name the file of each tensor")
    shards = sorted(set(listed.values()))
    for name in shards:
        if Path(name).name != name or not (folder / name).is_file():
            raise missing(folder / name, f", which {INDEX} lists: download it again")
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(
            f"{folder / INDEX}: metadata is missing, and transformers reads no index without it: "
            f'add "metadata": {{}}'
        )
    return tuple(folder / name for name in shards)


def check_tensors(path: Path) -> None:
    """Raises CheckpointError where the header cannot be read or the file is not as long as it
    says."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is damaged or was not downloaded to its end ({size} bytes; {error}): "
            f"download it again"
        ) from error
    if not names:
        raise CheckpointError(f"{path} holds no tensor: download it again")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise quantised(path, name, kind)


def quantised(path: Path, name: str, kind: str) -> CheckpointError:
    """An error about a tensor whose values mean nothing without scales."""
    return CheckpointError(
        f"{path}: {name} is of {kind}: quantised weights cannot be imported; save the checkpoint "
        f"in float32 or float16"
    )
