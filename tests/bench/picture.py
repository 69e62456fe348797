"""docs/fathom.png: two images that get different plans under one policy, as the running service
answers them, beside quality against latency of every plan on images of the same kind.

    python tests/bench/picture.py [--bundle trained_weights/nuclei-tiny]

The images are drawn (nuclei_fields.py), so their true objects are known. The first of each kind is
shown and written to docs/nuclei-*.jpg; quality is the mean over FIELDS of each. Prints a table and
ends in one JSON line.

docs/scene-clear.jpg and docs/scene-cluttered.jpg, which README.md and tests send to camvid-tiny,
are the generated streets of seed 411 with clutter 0 and of seed 428 with clutter 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.tasks.panoptic_quality import image_quality, match_counts  # noqa: E402
from tests.bench import nuclei_fields  # noqa: E402
from tests.bench.latency import only, post, used  # noqa: E402
from tests.bench.served import served  # noqa: E402

FIELDS = 20  # images of each kind
POLICY = "max-loss=0.01"  # the Compute-Budget of both images: a point may be lost on average
REPEATS, WARM_UP = 15, 3
TITLES = {"apart": "Nuclei apart", "crowded": "Crowded nuclei"}
ROOM = 8  # points of quality around the curves, whose axes are equal: so their slopes compare
# Okabe and Ito's colours, which colour-blind people can tell apart.
LINE, RING = "#0072B2", "#D55E00"
OBJECTS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00")


@dataclass(frozen=True)
class Answers:
    """What the service said of one kind of image.

    photo: the first image, a JPEG; objects: (H, W), what was found in it under POLICY,
    0 = background; used: its Compute-Used. chosen: per image, the number of the plan that the
    policy took; quality: (images, plans), panoptic quality, 0..1.
    """

    photo: bytes
    objects: NDArray[np.integer]
    used: dict[str, str]
    chosen: list[int]
    quality: NDArray[np.float64]


@dataclass(frozen=True)
class Times:
    """Medians over the requests of one image, in ms: under the policy, and per plan."""

    policy: float
    plans: list[float]


def field(kind: str, seed: int) -> tuple[bytes, NDArray[np.uint16]]:
    """A drawn field as JPEG, and its labels."""
    pixels, labels = nuclei_fields.draw(kind, seed)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue(), labels


def objects_in(response: httpx.Response) -> NDArray[np.integer]:
    """(H, W): 0 = background, k = object k."""
    image = Image.open(io.BytesIO(response.content))
    if image.mode != "I;16":
        raise SystemExit(f"the bundle answers {image.mode} pixels: it must find objects")
    return np.asarray(image)


def plan_of(response: httpx.Response, plans: list[dict[str, Any]]) -> int:
    """The number of the plan that ran."""
    gflops = float(used(response)["gflops"])
    return int(np.argmin([abs(plan["gflops"] - gflops) for plan in plans]))


def ask(client: httpx.Client, kind: str, plans: list[dict[str, Any]]) -> Answers:
    """The service's answers on FIELDS images: under the policy, and with every plan."""
    chosen, quality, answers = [], [], []
    for seed in range(FIELDS):
        photo, labels = field(kind, seed)
        answers.append((photo, post(client, photo, POLICY)[1]))
        chosen.append(plan_of(answers[-1][1], plans))
        masks = [objects_in(post(client, photo, only(plan))[1]) for plan in plans]
        quality.append([image_quality(match_counts(mask, labels)) for mask in masks])
    print(f"{kind}: {FIELDS} images answered", file=sys.stderr)
    photo, response = answers[0]
    return Answers(photo, objects_in(response), used(response), chosen, np.array(quality))


def time_plans(
    client: httpx.Client, photos: dict[str, bytes], plans: list[dict[str, Any]]
) -> dict[str, Times]:
    budgets = [POLICY, *(only(plan) for plan in plans)]
    rounds = [  # of all images and budgets, so that a drift of the machine hits all alike
        [[post(client, photo, budget)[0] for budget in budgets] for photo in photos.values()]
        for _ in range(WARM_UP + REPEATS)
    ]
    medians = np.median(rounds[WARM_UP:], 0).tolist()  # (photos, budgets)
    return {kind: Times(row[0], row[1:]) for kind, row in zip(photos, medians, strict=True)}


def coloured(photo: NDArray[np.uint8], objects: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The image with each object in a colour."""
    table = 255 * np.array([to_rgb(colour) for colour in OBJECTS])
    blend = 0.35 * photo + 0.65 * table[objects % len(table)]
    return np.where((objects > 0)[..., None], blend, photo).astype(np.uint8)


def show(axes: Axes, answers: Answers) -> None:
    """The image and, beside it, what was found."""
    photo = np.asarray(Image.open(io.BytesIO(answers.photo)).convert("RGB"))
    gap = np.full((len(photo), 12, 3), 255, np.uint8)
    axes.imshow(np.hstack((photo, gap, coloured(photo, answers.objects))))
    axes.axis("off")


def curve(axes: Axes, plans: list[dict[str, Any]], answers: Answers, times: Times) -> None:
    """Quality against latency per plan, a ring around the plan that the image got."""
    x, y = np.array(times.plans), 100 * answers.quality.mean(0)
    own = answers.chosen[0]
    axes.plot(x, y, "o-", color=LINE, linewidth=2, markersize=6)
    axes.plot(x[own], y[own], "o", color=RING, markersize=15, fillstyle="none", markeredgewidth=2.5)
    sides = {0: "left", len(plans) - 1: "right"} | ({} if own == len(plans) - 1 else {own: "left"})
    for i, side in sides.items():
        axes.annotate(
            plans[i]["name"],
            (x[i], y[i]),
            xytext=(0, 12) if i == own else (0, -18),
            textcoords="offset points",
            ha=side,
            color=RING if i == own else "black",
            weight="bold" if i == own else "normal",
        )
    axes.set_ylabel("panoptic quality, %")
    axes.grid(alpha=0.3)


def draw(plans: list[dict[str, Any]], answers: dict[str, Answers], times: dict[str, Times]) -> None:
    plt.rcParams["font.size"] = 11
    figure = plt.figure(figsize=(10, 6.25))
    last = len(answers) - 1
    right_edge = 1.15 * max(time.plans[-1] for time in times.values())
    means = 100 * np.concatenate([said.quality.mean(0) for said in answers.values()])
    for i, (kind, said) in enumerate(answers.items()):
        plan, bottom = plans[said.chosen[0]], 0.095 + 0.435 * (last - i)
        left = figure.add_axes((0.01, bottom, 0.6, 0.38))
        left.set_anchor("W")
        show(left, said)
        title = (
            f"{TITLES[kind]}: {plan['name']}, {plan['gflops']:.1f} GFLOPs, "
            f"{times[kind].policy:.0f} ms"
        )
        left.set_title(title, loc="left", fontsize=11)
        right = figure.add_axes((0.69, bottom, 0.295, 0.38))
        curve(right, plans, said, times[kind])
        right.set_xlim(0, right_edge)
        right.set_ylim(means.min() - ROOM, min(100, means.max() + ROOM))
        if i == last:
            right.set_xlabel(f"median ms of a request, {os.cpu_count()} CPU cores")
        else:
            right.tick_params(labelbottom=False)
    for x, text in (
        (0.01, f"Two drawn images, one policy: {POLICY}"),
        (0.69, f"Every plan, {FIELDS} such images"),
    ):
        figure.text(x, 0.978, text, fontsize=11, weight="bold", va="center")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    # A palette: a quarter of the size, and no eye sees it.
    picture = Image.open(drawn).convert("RGB").quantize(256, kmeans=1)
    picture.save(ROOT / "docs" / "fathom.png", optimize=True)


def report(
    plans: list[dict[str, Any]], answers: dict[str, Answers], times: dict[str, Times]
) -> dict[str, Any]:
    """Prints the table; returns what the JSON line says."""
    result = {}
    print(f"{'image':<10}{'plan':<18}{'GFLOPs':>8}{'p50 ms':>9}{'PQ':>8}{'chosen':>9}")
    for kind, said in answers.items():
        counts, quality = Counter(said.chosen), said.quality.mean(0).tolist()
        for i, (plan, ms) in enumerate(zip(plans, times[kind].plans, strict=True)):
            print(
                f"{kind:<10}{plan['name']:<18}{plan['gflops']:>8.2f}{ms:>9.1f}"
                f"{quality[i]:>8.4f}{counts[i]:>6}/{FIELDS}"
            )
        gain = 100 * (said.quality[:, -1] - said.quality[:, 0])
        print(
            f"{kind}: {times[kind].policy:.1f} ms under {POLICY}, {said.used}; full "
            f"plan less cheapest: {gain.mean():.2f} points, {(gain > 0).sum()}/{FIELDS} better"
        )
        result[kind] = {
            "used": said.used,
            "p50_ms": times[kind].policy,
            "plans_p50_ms": times[kind].plans,
            "plans_pq": quality,
            "chosen": {plans[i]["name"]: n for i, n in sorted(counts.items())},
            "gain_points": gain.mean(),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default=str(ROOT / "trained_weights/nuclei-tiny"))
    args = parser.parse_args()
    with served(args.bundle) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        # Tiles are for larger images than these.
        plans = [plan for plan in client.get("/plans").json()["plans"] if not plan["tiled"]]
        photos = {kind: field(kind, 0)[0] for kind in nuclei_fields.KINDS}
        times = time_plans(client, photos, plans)
        answers = {kind: ask(client, kind, plans) for kind in photos}
    for kind, said in answers.items():
        (ROOT / "docs" / f"nuclei-{kind}.jpg").write_bytes(said.photo)
    draw(plans, answers, times)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    names = [plan["name"] for plan in plans]
    print(json.dumps({"machine": machine, "plans": names, **report(plans, answers, times)}))


if __name__ == "__main__":
    main()
