"""Several heads of one bundle on a real engine: graphs of a few ONNX nodes whose answers are
known."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service import bundle
from service.answer import Answer
from service.bundle import Manifest
from service.segmenting import Segmenter, open_bundle
from tests.small_graphs import GAINS, reference, write_graphs


@pytest.fixture
def segmenter(tmp_path: Path, several_heads: Manifest) -> Iterator[Segmenter]:
    write_graphs(tmp_path, several_heads)
    bundle.save(tmp_path, several_heads)
    options = {"backend": "onnxruntime", "threads": 1, "max_batch": 4, "batch_wait_ms": 30.0}
    with open_bundle(tmp_path, queue_size=64, **options) as opened:
        yield opened


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def cells(pixels: np.ndarray) -> np.ndarray:
    """The mean brightness of each 4 x 4 pixels, (12, 16)."""
    return pixels.astype(np.float32).mean(2).reshape(12, 4, 16, 4).mean((1, 3))


def check(answer: Answer, pixels: np.ndarray) -> None:
    """Each head says what its graph makes of these pixels."""
    for name, tensors in answer.outcome.heads.items():
        if name == "semantic":
            _, wanted = reference(pixels, answer.decision.plan.depth, 16)
            np.testing.assert_allclose(tensors["probabilities"], wanted, atol=1e-5)
        elif name == "depth":
            wanted = cells(pixels) * GAINS.mean() * 100
            np.testing.assert_allclose(tensors["depth"], wanted, rtol=1e-4)
        else:
            (box,) = answer.heads[name].detections
            assert (box.label, box.box) == ("car", (16.0, 6.0, 32.0, 12.0))


def test_the_heads_that_are_asked_for_answer_what_their_graphs_say(segmenter: Segmenter) -> None:
    for preference in (
        {"semantic": 1.0},
        {"boxes": 1.0},
        {"depth": 1.0},
        {"semantic": 0.2, "boxes": 0.3, "depth": 0.5},
    ):
        answer = segmenter.segment(photo(1), preference=preference, max_loss=0)
        assert set(answer.heads) == set(preference)
        check(answer, photo(1))


def test_images_of_a_batch_get_the_heads_of_their_own_callers(segmenter: Segmenter) -> None:
    asked = [{"semantic": 1.0}, {"depth": 1.0}, {"boxes": 0.5, "depth": 0.5}, None]

    def segment(number: int) -> Answer:
        # strict: what waits behind others would get a cheaper canvas than what it is compared with
        asks = {"preference": asked[number % 4], "max_loss": 0, "strict": True}
        return segmenter.segment(photo(number), **asks)

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(segment, range(24)))
    for number, answer in enumerate(answers):
        assert list(answer.heads) == list(asked[number % 4] or ("semantic", "depth"))
        check(answer, photo(number))


def test_depth_is_in_its_unit_at_the_images_size(segmenter: Segmenter) -> None:
    answer = segmenter.segment(photo(2), preference={"depth": 1}, max_loss=0)
    assert answer.values.values.shape == (48, 64)
    told = answer.values.statistics()
    wanted = np.clip(cells(photo(2)) * GAINS.mean() * 100, 1, 50)
    assert told.mean == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert told.most == pytest.approx(float(wanted.max()), rel=1e-4)
