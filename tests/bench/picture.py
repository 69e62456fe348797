"""docs/fathom.png: a clear and a cluttered scene, as the running service answers them, beside
quality against latency.

    python tests/bench/picture.py [--bundle trained_weights/camvid-tiny]

The scenes come from the project's own generator; docs/scene-clear.jpg and docs/scene-cluttered.jpg
are written first.
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

from model_export.data import scenes  # noqa: E402
from tests.bench.latency import only, post, used  # noqa: E402
from tests.bench.served import served  # noqa: E402

SCENES = {"clear": (411, 0.0), "cluttered": (428, 1.0)}  # name -> seed and clutter
REPEATS, WARM_UP = 15, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default=str(ROOT / "trained_weights/camvid-tiny"))
    parser.add_argument(
        "--budget", default="", help="Compute-Budget to send with both; default: the gate decides"
    )
    args = parser.parse_args()
    figure = plt.figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.55, 1))
    rows, right = [figure.add_subplot(grid[i, 0]) for i in range(2)], figure.add_subplot(grid[:, 1])
    with served(args.bundle) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        plans = client.get("/plans").json()["plans"]
        for axes, (name, (seed, clutter)) in zip(rows, SCENES.items(), strict=True):
            path = ROOT / "docs" / f"scene-{name}.jpg"
            photo = Image.fromarray(scenes.render(seed, clutter=clutter)[0])
            photo.save(path, quality=90)
            answers = [
                post(client, path.read_bytes(), args.budget) for _ in range(WARM_UP + REPEATS)
            ]
            taken = float(np.median([milliseconds for milliseconds, _ in answers[WARM_UP:]]))
            response = answers[-1][1]
            colours = np.asarray(
                Image.open(io.BytesIO(response.content)).convert("RGB"), np.float32
            )
            blend = 0.45 * np.asarray(photo, np.float32) + 0.55 * colours
            axes.imshow(np.concatenate((np.asarray(photo), blend.astype(np.uint8)), axis=1))
            spent = used(response)
            paused = (
                f", {100 * (1 - float(spent['keep'])):.0f} % of it paused"
                if "keep" in spent
                else ""
            )
            layer = f"layer {spent['depth']} of {spent['of']}{paused}"
            axes.set_title(f"{name}: {layer}, {taken:.0f} ms ({spent['reason']})")
            axes.axis("off")
        photo_bytes = (ROOT / "docs" / "scene-clear.jpg").read_bytes()
        rounds = [  # of all plans, so that a drift of the machine hits all alike
            [post(client, photo_bytes, only(plan))[0] for plan in plans]
            for _ in range(WARM_UP + REPEATS)
        ]
    taken_ms = np.median(rounds[WARM_UP:], 0)
    right.plot(taken_ms, [100 * plan["quality"] for plan in plans], "o-", color="#0b6e99")
    for plan, x in zip(plans, taken_ms, strict=True):
        right.annotate(
            plan["name"], (x, 100 * plan["quality"]), xytext=(4, -12), textcoords="offset points"
        )
    right.set(
        xlabel="p50 of a request, ms (2 CPU cores)",
        ylabel="mean quality of held-out images, %",
        title="per plan",
    )
    right.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    # A palette: a quarter of the size, and no eye sees it.
    Image.open(drawn).convert("RGB").quantize(256).save(ROOT / "docs" / "fathom.png", optimize=True)
    print(f"wrote {ROOT / 'docs' / 'fathom.png'}")


if __name__ == "__main__":
    main()
