"""Folders and files of runs and bundles.

A command never writes over what it has not made itself, a file is there as a whole or not at all,
and whoever reads a damaged one is told its name and what to do.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from model_export.files import replacing
from service import bundle
from service.errors import FathomError

RUN, PLANS, CHECKPOINT, WEIGHTS = "run.json", "plans.json", "checkpoint.pt", "model.safetensors"
# What run.json says of a run that was not trained -> the command that makes such runs.
MAKERS = {"averaged": "average", "imported": "import"}
TRAIN = "train"
# What libraries raise for a file whose content is not what it should be.
DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, UnpicklingError, SafetensorError, FathomError),
)


class RunError(ValueError):
    """A run's folder that lacks what a step needs. The message names the step that makes it."""


def maker_of(arguments: Mapping[str, Any]) -> str:
    """The kind of command that made a run with these arguments."""
    return next((maker for name, maker in MAKERS.items() if name in arguments), TRAIN)


# --------------------------------------------------------------------------------------------------
# folders


def refuse_unwritable(out: Path) -> None:
    """Raises RunError, before hours of work, where no folder of this name can be written."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RunError(f"{out} cannot be a folder: {there} is a file; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{out} cannot be written: {there} belongs to somebody else")


def refuse_full(out: Path) -> None:
    """Raises RunError if something is in the folder that shall be written, or if none can take its
    place."""
    refuse_unwritable(out)
    if out.is_mount():
        raise RunError(f"{out}: a volume is mounted there; choose a folder in it: {out / 'bundle'}")
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose another --out or delete it")


def refuse_other(out: Path, maker: str) -> None:
    """Raises RunError where the run that is to be written would replace anything but a run of the
    same kind of command."""
    refuse_unwritable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if (out / bundle.FILE).exists():
        raise RunError(f"{out} holds a bundle; choose another --out")
    if not (out / RUN).exists():
        raise RunError(f"{out} is not empty and holds no run; choose another --out")
    found = maker_of(read_json(out / RUN, "delete the folder, or choose another").get("arguments"))
    if maker != TRAIN and (found == TRAIN or (out / CHECKPOINT).exists()):
        raise RunError(f"{out} holds a run that was trained; choose another --out")
    if found != maker:
        raise RunError(f"{out} holds a run of `{found}`; choose another --out")


def refuse_finished(out: Path) -> None:
    """Raises RunError where a training would begin anew over weights that it cannot go on from."""
    if (out / WEIGHTS).exists() and not (out / CHECKPOINT).exists():
        raise RunError(
            f"{out} has weights and no {CHECKPOINT} to go on from; choose another --out, and name "
            f"this one in --start-from to train it further"
        )


def refuse_no_bundle(out: Path) -> None:
    """Raises RunError where the bundle that is to be written would replace anything but a bundle,
    or what an export left that failed."""
    refuse_unwritable(out)
    names = {file.name for file in out.iterdir()} if out.exists() else set[str]()
    for name in (RUN, CHECKPOINT):
        if name in names:
            raise RunError(f"{out} holds a run ({name}); choose another --out for the bundle")
    left = {WEIGHTS, f"{bundle.FILE}.partial", *(file.name for file in graphs_in(out))}
    if names and bundle.FILE not in names and not (WEIGHTS in names and names <= left):
        raise RunError(f"{out} is not empty and holds no bundle; choose another --out")


def graphs_in(folder: Path) -> list[Path]:
    """The graphs and kernels that an export has written there, by their names."""
    graphs = (file for file in folder.glob("*.onnx") if re.match(r"\w+-\d+x\d+", file.name))
    return [*graphs, *folder.glob("*.ptx.gz")]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place `out` when all of it is there; what was not finished
    is removed, so that the same command can be repeated."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        folder = Path(place) / out.name
        folder.mkdir()
        yield folder
        folder.replace(out)


# --------------------------------------------------------------------------------------------------
# files


@contextmanager
def reading(path: Path, again: str) -> Iterator[None]:
    """Raises RunError that names the file where it is missing or damaged. again: what to do about
    it."""
    try:
        yield
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {again}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise RunError(f"{path} is damaged: {error}; {again}") from error
    except DAMAGE as error:
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        raise RunError(f"{path} is damaged: {lacks}{error}; {again}") from error


def read_json(path: Path, again: str) -> dict[str, Any]:
    """An object of JSON. Raises RunError as `reading` does."""
    with reading(path, again):
        document = json.loads(path.read_text("utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it holds no object")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        text = json.dumps(document, indent=1, default=str) + "\n"
        temporary.write_text(text, encoding="utf-8")
