"""Outcome -> label map at the image's own size -> palette PNG or COCO segments.

The probabilities cover the whole canvas, the image its top left part. A pixel of the image takes the probabilities by
bilinear interpolation between the centres of the decoder's cells, as `interpolate(align_corners=False)` does in torch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.bundle import ClassInfo, InputSpec, Manifest
from service.core import Outcome

BAND_PIXELS = 1 << 19  # image pixels per band of rows: bounds the memory that a large image takes

Segment = dict[str, object]
_Axis = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


class _Band(NamedTuple):
    """Rows [top, bottom) of the image; rows and columns: the cells around each pixel and the weight of the second."""

    top: int
    bottom: int
    rows: _Axis
    columns: _Axis


def label_map(outcome: Outcome, canvas: InputSpec) -> NDArray[np.uint8]:
    """The most probable class of each pixel: (height, width) uint8 at the image's own size. Ties go to the lower id.

    Where the four cells around a pixel agree on a class, so does every mixture of them: only the pixels on borders
    between classes are interpolated. The result is the same as from interpolating all of them.
    """
    probabilities = outcome.probabilities  # (C, h, w)
    cells = probabilities.argmax(axis=0).astype(np.uint8)  # (h, w)
    right, below = np.roll(cells, -1, axis=1), np.roll(cells, -1, axis=0)
    agree = (cells == right) & (cells == below) & (cells == np.roll(below, -1, axis=1))  # of a cell and the next ones
    flat = np.ascontiguousarray(probabilities.transpose(1, 2, 0)).reshape(-1, len(probabilities))  # (h * w, C)
    labels = np.empty((outcome.geometry.height, outcome.geometry.width), np.uint8)
    for band in _bands(outcome, canvas):
        (y0, y1, fy), (x0, x1, fx) = band.rows, band.columns
        part = labels[band.top : band.bottom]
        part[:] = cells[y0][:, x0]
        # The last row and column have no next one; there, roll compares with the first, which can only cost time.
        y, x = np.nonzero(~agree[y0][:, x0])
        first, second = y0[y] * cells.shape[1], y1[y] * cells.shape[1]
        left, right_of = x0[x], x1[x]
        across, down = fx[x, None], fy[y, None]
        upper = _mix(flat.take(first + left, axis=0), flat.take(first + right_of, axis=0), across)
        lower = _mix(flat.take(second + left, axis=0), flat.take(second + right_of, axis=0), across)
        part[y, x] = _mix(upper, lower, down).argmax(axis=1)
    return labels


def index_png(labels: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> bytes:
    """A palette PNG whose pixel values are the class ids, shown in the classes' colours."""
    image = Image.fromarray(labels)
    image.putpalette(bytes(value for entry in classes for value in entry.color))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def segments(labels: NDArray[np.uint8], outcome: Outcome, manifest: Manifest) -> list[Segment]:
    """One segment per class that occurs, by class id: the JSON of the answer.

    score: mean probability of the class over the segment's pixels. box: [x, y, width, height] in pixels. rle: COCO's
    compressed run lengths.
    """
    areas, sums = _areas_and_confidence(labels, outcome, manifest.input)
    columns = np.ascontiguousarray(labels.T)  # COCO counts down the columns: each mask is then one without a copy
    found: list[Segment] = []
    for class_id in np.flatnonzero(areas).tolist():
        rle = coco.encode((columns == class_id).view(np.uint8).T)
        found.append(
            {
                "id": len(found) + 1,
                "class_id": class_id,
                "label": manifest.classes[class_id].name,
                "score": round(float(sums[class_id] / areas[class_id]), 4),
                "area": int(areas[class_id]),
                "box": [int(value) for value in coco.toBbox(rle)],
                "rle": {"size": list(labels.shape), "counts": rle["counts"].decode("ascii")},
            }
        )
    return found


def _areas_and_confidence(
    labels: NDArray[np.uint8], outcome: Outcome, canvas: InputSpec
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Per class, its pixels and the sum of its own probability over them, both (C,)."""
    classes, height, width = outcome.probabilities.shape
    flat = outcome.probabilities.reshape(-1)
    areas, sums = np.zeros(classes, np.intp), np.zeros(classes)
    for band in _bands(outcome, canvas):
        (y0, y1, fy), (x0, x1, fx) = band.rows, band.columns
        part = labels[band.top : band.bottom].astype(np.intp)
        plane = part * (height * width)
        upper, lower = plane + (y0 * width)[:, None], plane + (y1 * width)[:, None]
        above = _mix(flat.take(upper + x0), flat.take(upper + x1), fx)
        under = _mix(flat.take(lower + x0), flat.take(lower + x1), fx)
        areas += np.bincount(part.ravel(), minlength=classes)
        sums += np.bincount(part.ravel(), _mix(above, under, fy[:, None]).ravel(), minlength=classes)
    return areas, sums


def _mix(a: NDArray[np.float32], b: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """a + (b - a) * weight, in place of b."""
    b -= a
    b *= weight
    b += a
    return b


def _bands(outcome: Outcome, canvas: InputSpec) -> Iterator[_Band]:
    geometry, (_, height, width) = outcome.geometry, outcome.probabilities.shape
    y0, y1, fy = _axis(geometry.height, geometry.scaled_height, canvas.height, height)
    columns = _axis(geometry.width, geometry.scaled_width, canvas.width, width)
    step = max(1, BAND_PIXELS // geometry.width)
    for top in range(0, geometry.height, step):
        rows = slice(top, top + step)
        yield _Band(top, top + step, (y0[rows], y1[rows], fy[rows]), columns)


def _axis(size: int, scaled: int, canvas: int, cells: int) -> _Axis:
    """For each of `size` pixels along an axis: the two cells whose centres are around it, and the second's weight.

    The image's pixels cover `scaled` of the `canvas` pixels; those cover all the cells.
    """
    centre = (np.arange(size) + 0.5) * (scaled / size) * (cells / canvas) - 0.5
    centre = centre.clip(0, cells - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), (centre - first).astype(np.float32)
