"""Outcome -> label map at the image's own size -> PNG or COCO segments, and the map of what was
paused.

Semantic: a class per pixel, and one segment per class. Instance: an object per pixel, and one
segment per object.

The probabilities cover the whole canvas, the image its top left part. A pixel of the image takes
the probabilities by bilinear interpolation between the centres of the decoder's cells, as
`interpolate(align_corners=False)` does in torch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from service.bundle import ClassInfo, InputSpec, Manifest
from service.core import Outcome
from service.tasks.objects import Instance, instance_map

BAND_PIXELS = 1 << 19  # image pixels per band of rows: bounds the memory that a large image takes

Segment = dict[str, object]
Rle = dict[str, Any]
_Axis = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]


class _Band(NamedTuple):
    """Rows [top, bottom) of the image; rows and columns: the cells around each pixel and the weight
    of the second."""

    top: int
    bottom: int
    rows: _Axis
    columns: _Axis


def to_segments(outcome: Outcome, manifest: Manifest) -> list[Segment]:
    """What the image shows, for the JSON answer.

    score, 0..1: semantic: mean probability of the class over the segment's pixels; instance: as
    `instances` has it. box: [x, y, width, height] in pixels. rle: COCO's compressed run lengths. An
    object's id is its value in the PNG.
    """
    if manifest.task == "instance":
        return objects(*_instances(outcome, manifest), manifest)
    return segments(label_map(outcome, manifest.input), outcome, manifest)


def to_png(outcome: Outcome, manifest: Manifest) -> bytes:
    """Semantic: a palette PNG of class ids. Instance: a 16-bit grayscale PNG of object ids, 0 =
    background."""
    if manifest.task == "instance":
        return _png(Image.fromarray(_instances(outcome, manifest)[0]))
    return index_png(label_map(outcome, manifest.input), manifest.classes)


def paused_area(outcome: Outcome, canvas: InputSpec) -> dict[str, object] | None:
    """The part of the image whose tokens were paused, for the JSON answer: its share of the pixels
    and its run lengths.

    None where the plan pauses none. A pixel belongs to the token that covers its centre.
    """
    if outcome.paused is None:
        return None
    geometry, (rows, columns) = outcome.geometry, outcome.paused.shape
    y = (
        (np.arange(geometry.height) + 0.5)
        * (geometry.scaled_height / geometry.height)
        * (rows / canvas.height)
    )
    x = (
        (np.arange(geometry.width) + 0.5)
        * (geometry.scaled_width / geometry.width)
        * (columns / canvas.width)
    )
    mask = outcome.paused[y.astype(np.intp)][:, x.astype(np.intp)]  # (height, width)
    return {
        "share": round(float(mask.mean()), 4),
        "rle": _json(_run_lengths(mask, np.array([1]))[0]),
    }


def label_map(outcome: Outcome, canvas: InputSpec) -> NDArray[np.uint8]:
    """The most probable class of each pixel: (height, width) uint8 at the image's own size. Ties go
    to the lower id.

    Where the four cells around a pixel agree on a class, so does every mixture of them: only the
    pixels on borders between classes are interpolated. The result is the same as from interpolating
    all of them.
    """
    probabilities = outcome.probabilities  # (C, h, w)
    cells = probabilities.argmax(axis=0).astype(np.uint8)  # (h, w)
    right, below = np.roll(cells, -1, axis=1), np.roll(cells, -1, axis=0)
    agree = (
        (cells == right) & (cells == below) & (cells == np.roll(below, -1, axis=1))
    )  # of a cell and the next ones
    flat = np.ascontiguousarray(probabilities.transpose(1, 2, 0)).reshape(
        -1, len(probabilities)
    )  # (h * w, C)
    labels = np.empty((outcome.geometry.height, outcome.geometry.width), np.uint8)
    for band in _bands(outcome, canvas):
        (y0, y1, fy), (x0, x1, fx) = band.rows, band.columns
        part = labels[band.top : band.bottom]
        part[:] = cells[y0][:, x0]
        # The last row and column have no next one; there, roll compares with the first, which can
        # only cost time.
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
    return _png(image)


def segments(labels: NDArray[np.uint8], outcome: Outcome, manifest: Manifest) -> list[Segment]:
    """One segment per class that occurs, by class id."""
    areas, sums = _areas_and_confidence(labels, outcome, manifest.input)
    occurring = np.flatnonzero(areas)
    found = [Instance(i, k, float(sums[k] / areas[k])) for i, k in enumerate(occurring.tolist(), 1)]
    return _described(labels, occurring, found, manifest)


def objects(
    labels: NDArray[np.uint16], found: Sequence[Instance], manifest: Manifest
) -> list[Segment]:
    """One segment per object, by its id, which is its value in `labels`."""
    return _described(labels, np.array([each.id for each in found], np.intp), found, manifest)


def _described(
    labels: NDArray[np.unsignedinteger],
    values: NDArray[np.intp],
    found: Sequence[Instance],
    manifest: Manifest,
) -> list[Segment]:
    """values: what stands in `labels` for each of `found`."""
    return [
        {
            "id": each.id,
            "class_id": each.class_id,
            "label": manifest.classes[each.class_id].name,
            "score": round(each.score, 4),
            "area": int(
                coco.area(rle)
            ),  # one by one: with numpy 2 a list of more than 255 overflows in there
            "box": [int(value) for value in coco.toBbox(rle)],
            "rle": _json(rle),
        }
        for each, rle in zip(found, _run_lengths(labels, values), strict=True)
    ]


def _run_lengths(labels: NDArray[np.unsignedinteger], values: NDArray[np.intp]) -> list[Rle]:
    """COCO's run lengths of the pixels of each value: what `coco.encode(labels == value)` gives,
    for all in one pass.

    That alone would read the whole image once per object: six seconds for 400 objects in 1.4
    megapixels.
    """
    pixels = labels.T.ravel()  # COCO counts down the columns
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts, ends = np.r_[0, changes], np.r_[changes, pixels.size]  # of every run of one value
    order = np.argsort(pixels[starts], kind="stable")  # the runs, value by value
    sorted_values = pixels[starts[order]]
    found: list[Rle] = []
    for first, last in zip(
        *(np.searchsorted(sorted_values, values, side) for side in ("left", "right")), strict=True
    ):
        own = order[first:last]
        edges = np.zeros(2 * own.size + 2, np.intp)  # outside, inside, outside, ..., in turns
        edges[1:-1:2], edges[2:-1:2], edges[-1] = starts[own], ends[own], pixels.size
        runs = np.diff(edges)
        runs = runs if runs[-1] else runs[:-1]  # an empty last one is left out
        found.append(coco.frPyObjects({"size": labels.shape, "counts": runs}, *labels.shape))
    return found


def _json(rle: Rle) -> Rle:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _instances(outcome: Outcome, manifest: Manifest) -> tuple[NDArray[np.uint16], list[Instance]]:
    canvas = (manifest.input.height, manifest.input.width)
    return instance_map(outcome.probabilities, outcome.geometry, canvas)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


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
        sums += np.bincount(
            part.ravel(), _mix(above, under, fy[:, None]).ravel(), minlength=classes
        )
    return areas, sums


def _mix(
    a: NDArray[np.float32], b: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
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
    """For each of `size` pixels along an axis: the two cells whose centres are around it, and the
    second's weight.

    The image's pixels cover `scaled` of the `canvas` pixels; those cover all the cells.
    """
    centre = (np.arange(size) + 0.5) * (scaled / size) * (cells / canvas) - 0.5
    centre = centre.clip(0, cells - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), (centre - first).astype(np.float32)
