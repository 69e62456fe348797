"""What a benchmark of serving sends, and how good the answers are that come back."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.bench.open_loop import Answer

ROOT = Path(__file__).resolve().parents[2]
IGNORED = 255
MOST = 20  # photos of a folder, so that every load sends each of them several times


@dataclass(frozen=True)
class Photos:
    """paths: of JPEGs. masks: of their labels, in the same order; none if they have no labels."""

    paths: Sequence[str]
    masks: Sequence[str] = ()

    @classmethod
    def of(cls, data: Path | None) -> Photos:
        """data: a labelled folder (docs/training.md), whose part `val` is sent; None: the two
        pictures of the documentation. Raises FileNotFoundError."""
        if data is None:
            return cls(
                [str(ROOT / "docs" / f"scene-{name}.jpg") for name in ("clear", "cluttered")]
            )
        found = sorted((data / "images" / "val").glob("*.jpg"))
        if not found:
            raise FileNotFoundError(f"{data}: it has no images/val/*.jpg")
        chosen = found[:: max(1, len(found) // MOST)][:MOST]
        masks = [data / "masks" / "val" / f"{path.stem}.png" for path in chosen]
        return cls([str(path) for path in chosen], [str(mask) for mask in masks])

    def miou(self, answers: Sequence[Answer]) -> float:
        """The mean over the classes of the intersection over the union, of the answers that came
        back: PNGs of classes. Each photo counts the same, however often it was answered.

        NaN without labels or answers.
        """
        bodies: dict[int, list[bytes]] = defaultdict(list)
        for answer in answers:
            if answer.status == 200:
                bodies[answer.photo].append(answer.body)
        if not self.masks or not bodies:
            return float("nan")
        known: dict[tuple[int, bytes], NDArray[np.float64]] = {}
        total = np.zeros((256, 256))
        for photo, own in bodies.items():
            truth = _labels(Path(self.masks[photo]).read_bytes())
            for body in own:
                if (photo, body) not in known:
                    pairs = (256 * truth + _labels(body))[truth != IGNORED]
                    counted = np.bincount(pairs, minlength=65536).reshape(256, 256)
                    known[photo, body] = counted / len(own)
                total += known[photo, body]
        union = total.sum(0) + total.sum(1) - total.diagonal()
        occurring = total.sum(1) > 0
        return float((total.diagonal()[occurring] / union[occurring]).mean())


def _labels(png: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.int64)
