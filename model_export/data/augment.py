"""Training crops (random scale, crop, flip, colour, weather) and the placement on a canvas, by the
service's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.datasets import VOID, Dataset, Sample
from service.bundle import Canvas, InputSpec, plain_of
from service.core import Frame, Frames
from service.pixels.canvas import to_canvases

# about the mean of the backbone's normalisation, so padding is near zero inside the network
PAD = 127


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of a canvas or crop. Raises ValueError that shows the form."""
    height, _, width = text.partition("x")
    if (
        not (height.isdigit() and width.isdigit())
        or int(height) % 32
        or int(width) % 32
        or not int(height) * int(width)
    ):
        raise ValueError(f"size {text!r} must be HEIGHTxWIDTH in multiples of 32, e.g. 384x480")
    return int(height), int(width)


def random_crop(
    sample: Sample,
    rng: np.random.Generator,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.6, 1.6),
    canvas: tuple[int, int] | None = None,
    turn: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(h, w, 3) uint8 and (h, w) uint8 of `size`. One resampling does scale and crop; outside is
    padding and void.

    scale: range of the zoom, relative to the size that the image has on `canvas`, or to its own
    size without one. turn: also turn by right angles, where up and down mean nothing. Labels that
    lie to the right of what the image shows do so in mirrored crops, too: a network learns where
    labels are expected, and shifts to both sides would blur what is a pixel wide.
    """
    if turn:
        quarters = int(rng.integers(4))
        turned = {
            "image": np.rot90(sample.image, quarters),
            "mask": np.rot90(sample.mask, quarters),
        }
        sample = replace(sample, **turned, labels_right=0.0)
    height, width = sample.mask.shape
    factor = np.exp(rng.uniform(*np.log(scale)))
    if canvas is not None:
        factor *= min(canvas[0] / height, canvas[1] / width)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    view_h, view_w = size[0] / factor, size[1] / (factor * stretch)  # of the source, in its pixels
    # where the view is larger than the source, the source lies somewhere inside it
    top = rng.uniform(min(0, height - view_h), max(0, height - view_h))
    left = rng.uniform(min(0, width - view_w), max(0, width - view_w))
    mirrored = rng.random() < 0.5
    right = 2 * sample.labels_right * mirrored
    image = Image.fromarray(sample.image)
    mask = Image.fromarray(
        np.pad(sample.mask, ((0, 0), (0, math.ceil(right))), constant_values=VOID)
    )
    box = (max(left, 0), max(top, 0), min(left + view_w, width), min(top + view_h, height))
    to = [
        round((v - o) * s / view)
        for v, o, s, view in zip(
            box, (left, top) * 2, (size[1], size[0]) * 2, (view_w, view_h) * 2, strict=True
        )
    ]
    x0, y0, x1, y1 = to
    out_image = np.full((*size, 3), PAD, np.uint8)
    out_mask = np.full(size, VOID, np.uint8)
    if x1 > x0 and y1 > y0:
        out_image[y0:y1, x0:x1] = np.asarray(
            image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=box)
        )
        box = (box[0] + right, box[1], box[2] + right, box[3])
        out_mask[y0:y1, x0:x1] = np.asarray(
            mask.resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST, box=box)
        )
    if mirrored:
        out_image, out_mask = out_image[:, ::-1], out_mask[:, ::-1]
    return jitter(out_image, rng), np.ascontiguousarray(out_mask)


def jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gamma, gain, colour cast and saturation: one look-up table per channel and one blend with
    gray."""
    gamma = np.exp(rng.normal(0, 0.25))
    gain = np.exp(rng.normal(0, 0.15)) * np.exp(rng.normal(0, 0.05, 3))
    ramp = np.linspace(0, 1, 256)[:, None] ** gamma
    table = np.clip(255 * (0.5 + (ramp - 0.5) * np.exp(rng.normal(0, 0.15))) * gain, 0, 255)
    coloured = np.stack([table[image[..., c], c] for c in range(3)], -1).astype(np.float32)
    gray = coloured @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = np.float32(rng.uniform(0.6, 1.3))
    return np.clip(gray[..., None] + (coloured - gray[..., None]) * saturation, 0, 255).astype(
        np.uint8
    )


def weather(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 -> the same view in other light or weather: one of haze, dusk, glare, uneven
    light and blur.

    Haze follows a depth that grows upwards (a road scene's); dusk adds the noise of a sensor.
    """
    height, width, _ = image.shape
    kind = rng.integers(5)
    if kind == 4:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.6)), np.uint8)
    values = image.astype(np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    if kind == 0:
        thickness = rng.uniform(0.2, 0.7) * (1 - 0.7 * down)
        values += (rng.uniform(150, 235) - values) * thickness
    elif kind == 1:
        values *= rng.uniform(0.25, 0.6) * (1 + rng.uniform(-0.1, 0.15, 3).astype(np.float32))
        values += rng.normal(0, rng.uniform(2, 9), image.shape)
    else:
        across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
        x, y, reach = rng.uniform(0, 1), rng.uniform(0, 0.8), rng.uniform(0.2, 0.7)
        spot = np.exp(-((across - x) ** 2 + (down - y) ** 2) / reach**2)
        if kind == 2:
            values += (255 - values) * spot * rng.uniform(0.3, 0.8)
        else:
            values *= rng.uniform(0.35, 0.7) + spot * rng.uniform(0.3, 0.7)
    return values.clip(0, 255).astype(np.uint8)


def frames_by_shape(
    samples: Dataset, canvases: Sequence[Canvas], count: int
) -> dict[str, list[Frame]]:
    """The first images on every shape that has graphs, also on those that another one would fit
    better. Where there are fewer than `count`, they come again."""
    return {
        shape.name: [
            on_canvases(samples[i % len(samples)], [Canvas(canvas.name, (shape,))])[canvas.name]
            for i in range(count)
        ]
        for canvas in plain_of(canvases)
        for shape in canvas.shapes
    }


def on_canvases(sample: Sample, canvases: Sequence[Canvas]) -> Frames:
    """The image on every canvas, as the service places it there."""
    return to_canvases(Image.fromarray(sample.image), InputSpec.of(canvases, (PAD,) * 3))
