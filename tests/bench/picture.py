"""docs/fathom.png: an easy and a hard scene, as the running service answers them, beside quality against latency.

    python tests/bench/picture.py [--bundle trained_weights/camvid-tiny]

The two scenes come from the project's own generator; docs/scene-easy.jpg and docs/scene-hard.jpg are written first.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import httpx
import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.recipe import scenes  # noqa: E402
from tests.bench.latency import post  # noqa: E402
from tests.bench.served import served  # noqa: E402

SCENES = {"easy": (411, 0.0), "hard": (428, 1.0)}  # name -> seed and clutter
REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=str(ROOT / "trained_weights/camvid-tiny"))
    parser.add_argument("--budget", default="", help="Compute-Budget to send with both; default: the gate decides")
    args = parser.parse_args()
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.7), layout="constrained", width_ratios=(1.25, 1.25, 1)
    )
    with served(args.bundle) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        plans = client.get("/plans").json()["plans"]
        for axes, (name, (seed, clutter)) in zip((left, middle), SCENES.items(), strict=True):
            path = ROOT / "docs" / f"scene-{name}.jpg"
            photo = Image.fromarray(scenes.render(seed, clutter=clutter)[0])
            photo.save(path, quality=90)
            answers = [post(client, path.read_bytes(), args.budget) for _ in range(REPEATS)]
            taken = float(np.median([milliseconds for milliseconds, _ in answers[3:]]))
            response = answers[-1][1]
            colours = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"), np.float32)
            blend = 0.45 * np.asarray(photo, np.float32) + 0.55 * colours
            axes.imshow(np.concatenate((np.asarray(photo), blend.astype(np.uint8)), axis=1))
            used = dict(part.strip().split("=") for part in response.headers["compute-used"].split(","))
            axes.set_title(
                f"{name}: left after layer {used['depth']} of {used['of']}, {taken:.0f} ms ({used['reason']})"
            )
            axes.axis("off")
    right.plot([plan["ms"] for plan in plans], [100 * plan["quality"] for plan in plans], "o-", color="#0b6e99")
    for plan in plans:
        right.annotate(
            str(plan["depth"]), (plan["ms"], 100 * plan["quality"]), xytext=(4, -12), textcoords="offset points"
        )
    right.set(
        xlabel="engine time, ms (2 CPU cores)", ylabel="quality on held-out images, %", title="one point per exit depth"
    )
    right.grid(alpha=0.3)
    figure.savefig(ROOT / "docs" / "fathom.png", dpi=100)
    print(f"wrote {ROOT / 'docs' / 'fathom.png'}")


if __name__ == "__main__":
    main()
