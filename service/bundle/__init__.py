"""The bundle: a folder that the service can serve, and its contract, `manifest.json`.

Uses the standard library only.
"""

from service.bundle.folder import FILE, Bundle, load, remade, save
from service.bundle.kernel import KernelFile
from service.bundle.manifest import (
    SCHEMA,
    BundleFile,
    ClassInfo,
    InputSpec,
    Manifest,
    Stage,
    TensorSpec,
)

__all__ = [
    "FILE",
    "SCHEMA",
    "Bundle",
    "BundleFile",
    "ClassInfo",
    "InputSpec",
    "KernelFile",
    "Manifest",
    "Stage",
    "TensorSpec",
    "load",
    "remade",
    "save",
]
