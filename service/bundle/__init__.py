"""The bundle: a folder that the service can serve, and its contract, `manifest.json`.

Uses the standard library only.
"""

from service.bundle.canvases import Canvas, Shape, Tiles, is_larger, plain_of
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
from service.bundle.plans import complete_plans, open_to
from service.bundle.texts import is_line

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
    "Tiles",
    "complete_plans",
    "is_larger",
    "is_line",
    "load",
    "open_to",
    "plain_of",
    "remade",
    "save",
]
