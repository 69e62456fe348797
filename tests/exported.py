"""What tests of an exported bundle share."""

from __future__ import annotations

import numpy as np

from model_export.data.augment import on_canvas
from model_export.data.datasets import Scenes
from tests.toy import CANVAS

CPU = ["CPUExecutionProvider"]


def scene_images(count: int, seed: int = 9) -> np.ndarray:
    scenes = Scenes(count, seed)
    return np.stack([on_canvas(scenes[i], CANVAS)[0] for i in range(count)])
