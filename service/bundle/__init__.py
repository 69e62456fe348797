"""The bundle: a folder that the service can serve, and its contract, `manifest.json`.

Uses the standard library only.
"""

from service.bundle.canvases import Canvas, Shape
from service.bundle.folder import FILE, Bundle, load, remade, save
from service.bundle.kernel import KernelFile
from service.bundle.manifest import (
    SCHEMA,
    SIZE,
    BundleFile,
    ClassInfo,
    Graphs,
    InputSpec,
    Manifest,
    Stage,
    TensorSpec,
    Thresholds,
)

__all__ = [
    "FILE",
    "SCHEMA",
    "SIZE",
    "Bundle",
    "BundleFile",
    "Canvas",
    "ClassInfo",
    "Graphs",
    "InputSpec",
    "KernelFile",
    "Manifest",
    "Shape",
    "Stage",
    "TensorSpec",
    "Thresholds",
    "load",
    "remade",
    "save",
]
