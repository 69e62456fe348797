"""TensorRT engines on disk: a folder per build, valid for one bundle, TensorRT, chip, precision and
set of batches.

    CACHE/<flavour>-<version>-<capability>-<precision>-<key>/engines.json and a plan for each stage

`build-trt` writes it, the backend reads it. Nothing here touches a GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.bundle import BundleFile, Manifest
from service.bundle.typed_json import build
from service.errors import BackendError, BundleError

FILE, SCHEMA = "engines.json", 1
ANY = "any"  # an engine for every chip that its TensorRT knows


@dataclass(frozen=True, slots=True)
class EngineSet:
    """What engines.json says. content: of the bundle, see `content_of`. capability: "9.0", or
    "any".

    batches: sizes that the engines have a profile for, ascending. checked: whether every plan and
    batch was compared with ONNX Runtime on a GPU; parity: the largest difference of each. files: a
    plan for each stage.
    """

    content: str
    flavour: str
    version: str
    capability: str
    precision: str
    batches: tuple[int, ...]
    checked: bool
    parity: Mapping[str, float]
    files: Mapping[str, BundleFile]

    @property
    def folder(self) -> str:
        """Its name: readable, and with a key of all that the engines depend on."""
        parts = (
            self.content,
            self.flavour,
            self.version,
            self.capability,
            self.precision,
            list(self.batches),
        )
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return f"{self.flavour}-{self.version}-{self.capability}-{self.precision}-{key}"


def content_of(manifest: Manifest) -> str:
    """A hash of what engines are made of: graphs, weights and kernels, and the canvas."""
    parts = [(name, stage.sha256) for name, stage in manifest.stages.items()]
    parts += [(entry.file, entry.sha256) for entry in manifest.files]
    parts = sorted(parts + [(kernel.file, kernel.sha256) for kernel in manifest.kernels])
    text = json.dumps([parts, manifest.input.height, manifest.input.width])
    return hashlib.sha256(text.encode()).hexdigest()


def save(cache: Path, found: EngineSet, plans: Mapping[str, bytes]) -> EngineSet:
    """Write the plans and, last, engines.json. Returns the set with its files."""
    folder = cache / found.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)  # a folder without it is no build
    files = {}
    for stage, plan in plans.items():
        (folder / f"{stage}.plan").write_bytes(plan)
        files[stage] = BundleFile(f"{stage}.plan", hashlib.sha256(plan).hexdigest())
    return describe(cache, dataclasses.replace(found, files=files))


def describe(cache: Path, found: EngineSet) -> EngineSet:
    """Write engines.json, e.g. once the engines have been checked."""
    folder = cache / found.folder
    partial = folder / f"{FILE}.partial"
    partial.write_text(
        json.dumps({"schema": SCHEMA} | dataclasses.asdict(found), indent=1) + "\n",
        encoding="utf-8",
    )
    os.replace(partial, folder / FILE)
    return found


def holds(cache: Path, content: str) -> bool:
    """Whether there are engines for a bundle, fitting or not. Raises BackendError for what cannot
    be read."""
    return any(each.content == content for each in _sets(cache))


def find(
    cache: Path, content: str, installed: Sequence[tuple[str, str]], capability: str, *, mend: str
) -> EngineSet:
    """The engines for a bundle on this machine. installed: (flavour, version) of each TensorRT that
    there is.

    Of several the half-precision ones, in the order of `installed`; never engines that were not
    compared with ONNX Runtime. Raises BackendError that says what does not fit, and `mend`, the
    command that makes what does.
    """
    ours = [each for each in _sets(cache) if each.content == content]
    if not ours:
        raise BackendError(f"{cache}: no TensorRT engines for this bundle. Build them with: {mend}")
    fitting = [
        each
        for each in ours
        if (each.flavour, each.version) in installed and each.capability in (ANY, capability)
    ]
    if not fitting:
        there = "; ".join(
            f"{e.flavour} {e.version}, compute capability {e.capability}" for e in ours
        )
        here = " or ".join(f"{flavour} {version}" for flavour, version in installed)
        raise BackendError(
            f"{cache}: the engines of this bundle are for {there}; here is {here}, compute "
            f"capability {capability}. "
            f"Build them anew with: {mend}"
        )
    sure = [each for each in fitting if each.checked]
    if not sure:
        raise BackendError(
            f"{cache}: the engines were built without a GPU and never compared with ONNX Runtime. "
            f"Build them on this machine with: {mend}"
        )
    preferred = ("fp16", "bf16", "fp32")
    return min(
        sure, key=lambda e: (preferred.index(e.precision), installed.index((e.flavour, e.version)))
    )


def read(cache: Path, found: EngineSet, stage: str, *, mend: str) -> bytes:
    """A stage's plan, verified. Raises BackendError."""
    entry = found.files.get(stage)
    if entry is None:
        raise BackendError(
            f"{cache / found.folder}: there is no engine for {stage}. Build them anew with: {mend}"
        )
    path = cache / found.folder / entry.file
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BackendError(
            f"{path}: {error.strerror}. Build the engines anew with: {mend}"
        ) from error
    if hashlib.sha256(plan).hexdigest() != entry.sha256:
        raise BackendError(
            f"{path}: its sha256 is not that of {FILE}. Build the engines anew with: {mend}"
        )
    return plan


def _sets(cache: Path) -> Iterator[EngineSet]:
    """Every build of the cache that this version can read."""
    for path in sorted(cache.glob(f"*/{FILE}")):
        try:
            value = json.loads(path.read_bytes())
            if isinstance(value, dict) and value.pop("schema", None) == SCHEMA:
                yield build(EngineSet, value, path.name)
        except (BundleError, ValueError, OSError) as error:
            raise BackendError(
                f"{path}: it cannot be read ({error}). Delete {path.parent} and build again"
            ) from error
