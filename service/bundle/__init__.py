"""The bundle: a folder that the service can serve, and its contract, `manifest.json`.

Uses the standard library only.
"""

from service.bundle.canvases import Canvas, Shape
from service.bundle.folder import FILE, Bundle, load, remade, save
from service.bundle.heads import ClassInfo, EncoderPlan, Head, HeadWorth, Thresholds
from service.bundle.kernel import KernelFile
from service.bundle.manifest import (
    SCHEMA,
    SIZE,
    BundleFile,
    Graphs,
    InputSpec,
    Manifest,
    Stage,
    TensorSpec,
)
from service.bundle.plans import complete_plans

__all__ = [
    "FILE",
    "SCHEMA",
    "SIZE",
    "Bundle",
    "BundleFile",
    "Canvas",
    "ClassInfo",
    "EncoderPlan",
    "Graphs",
    "Head",
    "HeadWorth",
    "InputSpec",
    "KernelFile",
    "Manifest",
    "Shape",
    "Stage",
    "TensorSpec",
    "Thresholds",
    "complete_plans",
    "load",
    "remade",
    "save",
]
