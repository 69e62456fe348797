"""The whole recipe at toy size, on generated scenes: run once a session, by the commands that
people type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from service.bundle import Canvas, Shape

if TYPE_CHECKING:  # torch takes seconds to import, and most tests need none of this
    from model_export.data.datasets import Sample
    from model_export.network.config import Config

Words = tuple[object, ...]
CANVASES = (Canvas.of([Shape(32, 64)]), Canvas.of([Shape(64, 96)]))
PLANS = ("c64-d1-w50", "c96-d2", "c96-d3-k50", "c96-d3")
STAGES = (
    *("front-32x64", "encoder-32x64-d1-w50", "decoder-32x64"),
    *("front-64x96", "encoder-64x96-d2", "encoder-64x96-d3-k50", "encoder-64x96-d3"),
    "decoder-64x96",
)
TRAIN = (
    *("train-exits", "--train", "scenes:4", "--dev", "scenes:1:1", "--steps", "3"),
    *(
        "--batch",
        "2",
        "--canvases",
        "32x64",
        "64x96",
        "--crop",
        "64x96",
        "--points",
        "64",
        "--check-every",
        "1",
    ),
)


def toy(classes: int = 11, layers: int = 3) -> Config:
    """A quarter of `tiny`'s channels and half of its encoder, all three knobs; the backbone stays
    the real one."""
    from model_export.network.config import tiny

    sizes = {"channels": 32, "heads": 4, "encoder_ffn": 32, "decoder_layers": 1, "decoder_ffn": 32}
    return replace(
        tiny(classes),
        schedule=(1, 2, 3)[-layers:],
        pause_after=layers - 1,
        widths=(0.5, 1.0),
        **sizes,
    )


class Stripes:
    """A data set of somebody else: four attributes, two methods, and nothing to register."""

    classes, palette = ("left", "right"), ((255, 0, 0), (0, 0, 255))
    task, channels = "semantic", 2

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        from model_export.data.datasets import Sample

        mask = np.zeros((40, 60), np.uint8)
        mask[:, 20 + 20 * index :] = 1
        return Sample(f"stripe-{index}", np.uint8(self.palette)[mask], mask)


def command(*words: object) -> int:
    """`python -m model_export WORDS`, in this process: its exit code."""
    from model_export.__main__ import main

    try:
        return main([str(word) for word in words])
    except SystemExit as left:  # argparse, for what is no command line of ours
        return int(str(left.code))


def last_json(text: str) -> dict[str, object]:
    """What a command said in its last line. Strict: NaN and Infinity are no JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    found = json.loads(text.strip().splitlines()[-1], parse_constant=refuse)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Sums of one thread have one order, and a machine that is shared has no second core to
    give."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy_config(one_thread: None, traced_once: None) -> Iterator[None]:
    """`--config tiny` means the toy size while tests train."""
    from model_export.network.config import CONFIGS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "tiny", toy)
        yield


@pytest.fixture(scope="session")
def train_words(tmp_path_factory: pytest.TempPathFactory, toy_config: None) -> Words:
    """The command of step A but for `--out`, with a backbone whose random weights keep the scale of
    what they see."""
    from model_export.network.backbone import MobileNetV1

    rng, width, arrays = np.random.default_rng(0), 32, {}

    def layer(kernel: str, norm: str, shape: tuple[int, ...], inputs: int, outputs: int) -> None:
        arrays[kernel] = rng.normal(0, (2 / inputs) ** 0.5, shape).astype(np.float32)
        for name, value in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)):
            arrays[f"{norm}/{name}"] = np.full(outputs, value, np.float32)

    layer("conv1/kernel", "conv1_bn", (3, 3, 3, width), 27, width)
    for i, (out, _) in enumerate(MobileNetV1.layout, 1):
        layer(f"conv_dw_{i}/depthwise_kernel", f"conv_dw_{i}_bn", (3, 3, width, 1), 9, width)
        layer(f"conv_pw_{i}/kernel", f"conv_pw_{i}_bn", (1, 1, width, out), width, out)
        width = out
    path = tmp_path_factory.mktemp("backbone") / "random.npz"
    np.savez(path, **arrays)
    return (*TRAIN, "--backbone-weights", path)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, train_words: Words) -> Path:
    """A run's folder after step A: three exits, three steps. Copy it before you change it."""
    run = tmp_path_factory.mktemp("toy") / "trained"
    assert command(*train_words, "--out", run) == 0
    return run


@pytest.fixture(scope="session")
def toy_run(trained_run: Path) -> Path:
    """After steps B and C, too, with plans that cut every knob. Copy it before you change it."""
    from model_export.network.knobs import Knobs
    from model_export.training.runs import write_plans

    run = trained_run.with_name("gated")
    shutil.copytree(trained_run, run)
    costs = [{"plan": name, "gflops": 1.0 + i} for i, name in enumerate(PLANS)]
    write_plans(run, [Knobs.parse(name) for name in PLANS], {"search": costs})
    assert (
        command("derive-targets", run, "--fit", "scenes:3:3", "scenes:2:4", "--held", "scenes:4:5")
        == 0
    )
    assert command("train-gate", run) == 0
    return run


@pytest.fixture(scope="session")
def toy_bundle(toy_run: Path) -> Path:
    """The folder that `export` wrote of `toy_run`."""
    folder = toy_run.with_name("bundle")
    assert command("export", toy_run, "--out", folder) == 0
    return folder
