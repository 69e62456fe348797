"""Small labelled folders on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model_export.data.datasets import VOID


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(root: Path) -> Path:
    """Three images of 8 x 12, in three formats, with masks."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "c.webp"):
        save_image(root / "images" / name, rng.integers(0, 256, (8, 12, 3), np.uint8))
        mask = rng.choice(np.uint8([0, 3, 10, VOID]), (8, 12))
        save_image(root / "masks" / f"{name[0]}.png", mask)
    return root
