"""A setting of the knobs that a network has at run time. With a cost and a quality it becomes a
plan."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Knobs:
    """depth: encoder layers, 1..K. keep: share of the stride-8 tokens that are still updated
    after pausing has started. width: share of the encoder's FFN channels. canvas: the name of the
    canvas, c640, or t1024 of a tiled one; "" for what has none."""

    depth: int
    keep: float = 1.0
    width: float = 1.0
    canvas: str = ""

    @property
    def name(self) -> str:
        """c640-d6, d6-k50, d6-k25-w50: keep and width only where they are not 1, in percent."""
        return f"{self.canvas}-{self.encoder}" if self.canvas else self.encoder

    @property
    def tiled(self) -> bool:
        """Whether its canvas is."""
        return self.canvas.startswith("t")

    @property
    def encoder(self) -> str:
        """The name without the canvas."""
        parts = [f"d{self.depth}"]
        parts += [
            f"{letter}{100 * v:.3g}"
            for letter, v in (("k", self.keep), ("w", self.width))
            if v != 1
        ]
        return "-".join(parts)

    @classmethod
    def parse(cls, text: str) -> Knobs:
        """The reverse of `name`. Raises ValueError that shows the form."""
        match = re.fullmatch(
            r"(?:([ct]\d+)-)?d([1-9]\d*)(?:-k(\d+(?:\.\d+)?))?(?:-w(\d+(?:\.\d+)?))?", text
        )
        # Rounded, since 18.1 / 100 is not the float 0.181.
        shares = (
            [round(float(v) / 100, 9) if v else 1.0 for v in match.groups()[2:]] if match else [0.0]
        )
        if match is None or not all(0 < share <= 1 for share in shares):
            raise ValueError(
                f"plan {text!r} must be like c640-d6, c640-d6-k50 or d6-k25-w50: canvas, depth, "
                f"keep and width in percent"
            )
        return cls(int(match[2]), *shares, match[1] or "")
