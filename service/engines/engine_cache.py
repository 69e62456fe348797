"""Engines on disk: a folder for each bundle, TensorRT, chip, precision and set of batches.

    CACHE/<flavour>-<version>-<capability>-<precision>-<key>/engines.json and a plan for each stage

`build-trt` writes them and the backend reads them. Nothing here touches a GPU.
OpenVINO keeps its compiled models beside them, in a folder for each bundle.
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
ANY = "any"  # the capability of an engine for every chip that its TensorRT supports


@dataclass(frozen=True, slots=True)
class EngineSet:
    """The content of engines.json.

    content: the bundle's, see `content_of`.
    flavour, version: of TensorRT.
    capability: the chip's compute capability, e.g. "9.0", or "any".
    batches: the batch sizes that the engines have a profile for, ascending.
    checked: whether every plan and batch size was compared with ONNX Runtime on a GPU.
    parity: plan -> the largest difference in that comparison.
    files: stage -> its TensorRT plan.
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
        """The folder's name: readable, and with a hash of all that the engines depend on."""
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
    """A hash of all that engines are built from: graphs, weights, kernels and the canvases."""
    parts = [(name, stage.sha256) for name, stage in manifest.stages.items()]
    parts += [(entry.file, entry.sha256) for entry in manifest.files]
    parts = sorted(parts + [(kernel.file, kernel.sha256) for kernel in manifest.kernels])
    text = json.dumps([parts, sorted(manifest.graphs)])
    return hashlib.sha256(text.encode()).hexdigest()


def openvino_folder(cache: Path, manifest: Manifest) -> Path:
    """Where OpenVINO keeps its compiled models of a bundle. It knows its own versions and chips."""
    return cache / f"openvino-{content_of(manifest)[:16]}"


def save(cache: Path, about: EngineSet, plans: Mapping[str, bytes]) -> EngineSet:
    """Write the plans and, last, engines.json. Returns the set with its files."""
    folder = cache / about.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)  # without it, the folder does not count as a build
    files = {}
    for stage, plan in plans.items():
        (folder / f"{stage}.plan").write_bytes(plan)
        files[stage] = BundleFile(f"{stage}.plan", hashlib.sha256(plan).hexdigest())
    return describe(cache, dataclasses.replace(about, files=files))


def describe(cache: Path, about: EngineSet) -> EngineSet:
    """Write engines.json, e.g. once the engines have been checked."""
    folder = cache / about.folder
    partial = folder / f"{FILE}.partial"
    partial.write_text(
        json.dumps({"schema": SCHEMA} | dataclasses.asdict(about), indent=1) + "\n",
        encoding="utf-8",
    )
    os.replace(partial, folder / FILE)
    return about


def holds(cache: Path, content: str) -> bool:
    """Whether there are engines for a bundle, even if they do not fit this machine.

    Raises BackendError for a file that cannot be read.
    """
    return any(engines.content == content for engines in _sets(cache))


def find(
    cache: Path,
    content: str,
    installed: Sequence[tuple[str, str]],
    capability: str,
    *,
    build_command: str,
) -> EngineSet:
    """The engines for a bundle on this machine.

    Half precision comes first, then the order of `installed`. Engines that were not compared with
    ONNX Runtime are never taken.

    installed: (flavour, version) of each TensorRT here.
    capability: the compute capability of the GPU here.
    build_command: the command that builds engines.
    Raises BackendError that says what does not fit, and `build_command`.
    """
    ours = [engines for engines in _sets(cache) if engines.content == content]
    if not ours:
        raise BackendError(
            f"{cache}: no TensorRT engines for this bundle. Build them with: {build_command}"
        )
    fitting = [
        engines
        for engines in ours
        if (engines.flavour, engines.version) in installed
        and engines.capability in (ANY, capability)
    ]
    if not fitting:
        built = "; ".join(
            f"{e.flavour} {e.version}, compute capability {e.capability}" for e in ours
        )
        here = " or ".join(f"{flavour} {version}" for flavour, version in installed)
        raise BackendError(
            f"{cache}: the engines of this bundle are for {built}; this machine has {here}, "
            f"compute capability {capability}. Rebuild them with: {build_command}"
        )
    checked = [engines for engines in fitting if engines.checked]
    if not checked:
        raise BackendError(
            f"{cache}: the engines were built without a GPU and never compared with ONNX Runtime. "
            f"Build them on this machine with: {build_command}"
        )
    preferred = ("fp16", "bf16", "fp32")
    return min(
        checked,
        key=lambda e: (preferred.index(e.precision), installed.index((e.flavour, e.version))),
    )


def read(cache: Path, about: EngineSet, stage: str, *, build_command: str) -> bytes:
    """A stage's TensorRT plan, verified. Raises BackendError."""
    entry = about.files.get(stage)
    if entry is None:
        raise BackendError(
            f"{cache / about.folder}: there is no engine for {stage}. "
            f"Rebuild them with: {build_command}"
        )
    path = cache / about.folder / entry.file
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BackendError(
            f"{path}: {error.strerror}. Rebuild the engines with: {build_command}"
        ) from error
    if hashlib.sha256(plan).hexdigest() != entry.sha256:
        raise BackendError(
            f"{path}: its sha256 is not the one in {FILE}. "
            f"Rebuild the engines with: {build_command}"
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
