"""One image with its labels, and the error of data that cannot be used."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.tasks.base import Labels
from service.errors import FathomError
from service.pixels.decode import Limits, decode_full

# The service's limits guard it against strangers. Whoever trains chose the files.
UNLIMITED = Limits(max_pixels=1 << 40, max_side=1 << 20, min_side=1)


class DataError(ValueError):
    """A data folder that cannot be used. The message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """image: (H, W, 3) uint8 RGB. mask: (H, W) uint8, each pixel's channel of the network, 255 =
    void.

    Semantic: the mask has the classes. Instance: it has background, core and border of objects
    (tasks/core_and_border.py), and instances are (H, W) uint16, 0 = background, k = object k.
    depth: (H, W) float32 in metres, 0 = not known. boxes: (N, 5) float32, class, left, top, width,
    height in pixels. Both None where the data set does not tell.
    group: the same for images that are alike, e.g. frames of one video. labels_right: how many
    pixels the labels lie to the right of what the image shows. labelled: False of an image without
    labels, whose mask is 0.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint16] | None = None
    group: str = ""
    labels_right: float = 0.0
    labelled: bool = True
    depth: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None

    @property
    def truth(self) -> Labels:
        """(H, W) labels that an answer is compared with."""
        return self.mask if self.instances is None else self.instances

    @property
    def size(self) -> int:
        """Bytes in memory."""
        planes = (self.image, self.mask, self.instances, self.depth, self.boxes)
        return sum(plane.nbytes for plane in planes if plane is not None)


def same_form(name: str) -> str:
    """A name by which images, labels and groups find each other: macOS writes an accent as a
    character of its own (NFD), others write it with its letter (NFC), and both look alike."""
    return unicodedata.normalize("NFC", name)


def read_image(file: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, as the service decodes the file. Raises DataError that names it."""
    try:
        frame = decode_full(file.read_bytes(), UNLIMITED)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except FathomError as error:
        raise DataError(f"{file} is no readable image: {error.detail}") from error
    if frame.geometry.damaged:  # the service shows what is left; nobody should learn from it
        raise DataError(f"{file} is no readable image: its pixels are damaged or end too early")
    return frame.pixels
