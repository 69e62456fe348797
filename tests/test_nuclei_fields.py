"""The drawn fields of nuclei, and the promise of the README's picture: one policy, two plans."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bench import nuclei_fields, picture
from tests.bench.served import served

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("kind", nuclei_fields.KINDS)
def test_every_drawn_nucleus_has_a_label_and_light(kind: str) -> None:
    pixels, labels = nuclei_fields.draw(kind, 3)
    count = nuclei_fields.KINDS[kind].count
    assert pixels.shape == (*labels.shape, 3) == (512, 640, 3)
    assert np.unique(labels).tolist() == list(range(count + 1))
    gray = pixels[..., 0].astype(float)
    assert gray[labels > 0].mean() > 2 * gray[labels == 0].mean()


def test_a_field_follows_its_seed_alone() -> None:
    first, again, other = (nuclei_fields.draw("apart", seed) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("kind", nuclei_fields.KINDS)
def test_the_image_in_docs_is_the_first_of_its_kind(kind: str) -> None:
    with Image.open(ROOT / "docs" / f"nuclei-{kind}.jpg") as shipped:
        shown = np.asarray(shipped.convert("RGB"), float)
    drawn = Image.open(io.BytesIO(picture.field(kind, 0)[0])).convert("RGB")
    assert np.abs(shown - np.asarray(drawn, float)).mean() < 0.5  # of 255: versions round apart


def test_one_policy_gives_the_two_images_different_depths() -> None:
    photos = {kind: (ROOT / "docs" / f"nuclei-{kind}.jpg").read_bytes() for kind in picture.TITLES}
    bundle = str(ROOT / "trained_weights" / "nuclei-tiny")
    with served(bundle) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        answers = {
            kind: picture.used(picture.post(client, photo, picture.POLICY)[1])
            for kind, photo in photos.items()
        }
    assert [used["reason"] for used in answers.values()] == ["gate", "gate"]
    assert int(answers["apart"]["depth"]) < int(answers["crowded"]["depth"])
    assert float(answers["crowded"]["gflops"]) > 1.5 * float(answers["apart"]["gflops"])
