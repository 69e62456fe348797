"""Reading and writing a bundle's folder.

`load` verifies the sha256 of every file before anything is opened. `save` is for exporters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from service.bundle import schema2, schema3
from service.bundle.checks import check
from service.bundle.kernel import KernelFile
from service.bundle.manifest import SCHEMA, BundleFile, Manifest, Stage
from service.bundle.onnx_files import external_files
from service.bundle.texts import check_values, is_line
from service.bundle.typed_json import build
from service.errors import BundleError, shown

FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified folder. digest: sha256 of its manifest.json, in hex."""

    root: Path
    manifest: Manifest
    digest: str


def load(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises BundleError that names the file or key, and the command that makes the bundle again.
    """
    file = folder / FILE
    try:
        if file.exists() and not file.is_file():  # a pipe would never end
            raise BundleError(f"{FILE}: it is no file")
        content = file.read_bytes()
        manifest = _parse(json.loads(content, parse_constant=_no_constant))
        files: tuple[BundleFile | KernelFile, ...] = (*manifest.files, *manifest.kernels)
        for entry in files:
            _check_sha256(entry, _sha256(folder, entry.file))
        for stage in manifest.stages.values():
            graph = _path(folder, stage.file).read_bytes()
            _check_sha256(stage, hashlib.sha256(graph).hexdigest())
            _check_external(folder, manifest, stage, graph)
    except BundleError as error:
        raise remade(folder, error.detail) from error
    except FileNotFoundError as error:
        raise remade(
            folder,
            f"{error.filename}: {error.strerror} (the working directory is {Path.cwd()}). If "
            "another folder is meant, name that one; the service takes it by --bundle",
        ) from error
    except OSError as error:
        raise remade(folder, f"{error.filename}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise remade(folder, f"{FILE}: it is not valid JSON ({error})") from error
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def save(folder: Path, manifest: Manifest) -> Bundle:
    """Write manifest.json with the sha256 of each file, after the same checks as in `load`.

    Raises BundleError, and writes nothing, if `load` would refuse the result; OSError that names
    the file if writing fails.
    """
    value = dataclasses.asdict(manifest)
    for entry in [*value["stages"].values(), *value["files"], *value["kernels"]]:
        entry["sha256"] = _sha256(folder, entry["file"])
    for head in value["heads"]:
        for key in ("thresholds", "unit", "range"):
            if head[key] is None:
                del head[key]  # not of this task
    for canvas in value["input"]["canvases"]:
        if canvas["tiles"] is None:
            del canvas["tiles"]
    if not value["kernels"]:
        del value["kernels"]
    text = json.dumps({"schema": SCHEMA} | value, indent=1, allow_nan=False) + "\n"
    checked = _parse(json.loads(text))
    for stage in checked.stages.values():
        _check_external(folder, checked, stage, (folder / stage.file).read_bytes())
    partial = folder / (FILE + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / FILE)
    except OSError as error:  # of a full disk the system's own has no name
        raise OSError(error.errno, error.strerror, str(folder / FILE)) from error
    return Bundle(folder, checked, hashlib.sha256(text.encode()).hexdigest())


def _parse(value: Any) -> Manifest:
    """Check the content of manifest.json and build it. Raises BundleError that names the key."""
    if not isinstance(value, dict):
        raise BundleError(f"{FILE}: it must be a JSON object, with the key schema")
    check_values(value)
    if value.get("schema") == 2:
        value = schema2.upgraded(value)
    if value.get("schema") == 3:
        value = schema3.upgraded(value)
    if value.get("schema") != SCHEMA:
        raise BundleError(f"schema: {value.get('schema')!r}, but this service reads 2 to {SCHEMA}")
    value = {key: item for key, item in value.items() if key != "schema"}
    manifest = build(Manifest, value, "")
    check(manifest)
    return manifest


def remade(folder: Path, detail: str) -> BundleError:
    """An error with the command that makes the bundle again."""
    return BundleError(
        f"{folder}: {detail}. Make it again with: python -m model_export export RUN -o {folder}"
    )


def _no_constant(name: str) -> NoReturn:
    raise BundleError(f"{FILE}: {name} is not a number")


def _check_sha256(entry: Stage | BundleFile | KernelFile, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise BundleError(f"{entry.file}: its sha256 is not the one in the manifest")


def _check_external(folder: Path, manifest: Manifest, stage: Stage, graph: bytes) -> None:
    """Raises BundleError where a graph takes tensors from a file whose sha256 nobody checks."""
    listed = {(folder / entry.file).resolve() for entry in manifest.files}
    for name in external_files(graph):
        if not is_line(name) or (folder / name).resolve() not in listed:
            raise BundleError(
                f"{stage.file}: it takes tensors from {shown(name)}, which is not among files"
            )


def _path(folder: Path, name: str) -> Path:
    """Of a file of the bundle. Raises BundleError where it is none."""
    path = (folder / name).resolve()
    # It does with an absolute name, "..", or a link to elsewhere.
    if not name or not path.is_relative_to(folder.resolve()):
        raise BundleError(f"{name!r}: the name leaves the folder")
    if not path.is_file():
        raise BundleError(f"{name}: there is no such file")
    return path


def _sha256(folder: Path, name: str) -> str:
    with _path(folder, name).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
