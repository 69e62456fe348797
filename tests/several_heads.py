"""A bundle with several heads on one encoder, for the fake backend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.bundle import (
    ClassInfo,
    EncoderPlan,
    Head,
    HeadWorth,
    Manifest,
    Stage,
    TensorSpec,
    Thresholds,
)

QUERIES = 6
CARS = (ClassInfo("car", (0, 0, 142), True), ClassInfo("person", (220, 20, 60), True))
# GFLOPs and quality at the full plan of each head by its width.
WORTH = {
    "semantic-w50": (0.5, 0.70),
    "semantic": (1.0, 0.80),
    "boxes": (0.3, 0.60),
    "depth-w25": (0.2, 0.60),
    "depth": (0.8, 0.90),
}
SCORES = len(WORTH)


def worth(share: float) -> dict[str, HeadWorth]:
    """share: of the full plan's quality."""
    return {
        key: HeadWorth(gflops, share * quality, (share * quality,) * 5)
        for key, (gflops, quality) in WORTH.items()
    }


@pytest.fixture
def several_heads(canvases_manifest: Manifest) -> Manifest:
    """`canvases_manifest` with the heads semantic (widths 0.5 and 1), boxes and depth (0.25 and 1).

    Nobody who says nothing of heads gets boxes. Encoder plans: c32-d1 (1 GFLOP up to the heads),
    c64-d1 (2) and c64-d4 (5); up to 6 GFLOPs in all for semantic, 7.1 for everything.
    """
    base = canvases_manifest
    stages = {name: each for name, each in base.stages.items() if not name.startswith("decoder")}
    graphs = {}
    for shape, own in base.graphs.items():
        decoder = base.stages[own.heads["semantic"]]
        _, _, height, width = decoder.outputs[0].dims
        outputs = {
            "semantic": decoder.outputs,
            "boxes": (
                TensorSpec("class_logits", "float32", ("batch", QUERIES, len(CARS) + 1)),
                TensorSpec("boxes", "float32", ("batch", QUERIES, 4)),
            ),
            "depth": (TensorSpec("depth", "float32", ("batch", height, width)),),
        }
        heads = {key: f"{key}-{shape}" for key in WORTH}
        for key, name in heads.items():
            of_head = outputs[key.partition("-")[0]]
            stages[name] = Stage(f"{name}.onnx", "", decoder.inputs, of_head, 0.0)
        graphs[shape] = replace(own, heads=heads)
    quality = TensorSpec("quality", "float32", ("batch", 3 * SCORES))
    glance = stages["front-24x32"]
    stages["front-24x32"] = replace(glance, outputs=(*glance.outputs[:-1], quality))
    costs = {"c32-d1": (1.0, 0.6), "c64-d1": (2.0, 0.8), "c64-d4": (5.0, 1.0)}
    return replace(
        base,
        heads=(
            replace(base.head, widths=(0.5, 1.0)),
            Head("boxes", "detection", CARS, thresholds=Thresholds(0.5)),
            Head("depth", "depth", (), (0.25, 1.0), unit="m", range=(1.0, 50.0)),
        ),
        default_preference={"semantic": 0.5, "depth": 0.5},
        stages=stages,
        graphs=graphs,
        encoder_plans=tuple(
            EncoderPlan(
                plan.name,
                plan.depth,
                plan.keep,
                plan.width,
                costs[plan.name][0],
                worth(costs[plan.name][1]),
                plan.canvas,
            )
            for plan in base.encoder_plans
        ),
    )
