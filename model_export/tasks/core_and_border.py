"""Objects -> background, core and border: the channels by which a network that classifies pixels
can tell objects apart that touch.

An object's core is its pixels that are farther from its outline than a share of its radius; its
border is the rest. So every object has a core, and cores do not touch where objects do (but for
objects of a pixel or two, which are all core). A border of fixed width would leave small objects
without a core, and large ones without a gap that a coarse map can show. The service undoes it
(service/tasks/instance_objects.py).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Of the radius. Perfect maps at stride 4 of a 384 x 384 canvas give the nuclei of val back with a
# mean PQ of 0.865, 0.884, 0.884 and 0.877 at shares of 0.2, 0.3, 0.4 and 0.5; blurred and noisy
# ones with 0.702, 0.710 and 0.693 at shares of 0.3, 0.4 and 0.5.
BORDER_SHARE = 0.4
CHANNELS = 3  # background, core, border
BACKGROUND, CORE, BORDER = range(CHANNELS)


def core_and_border(
    instances: NDArray[np.uint16], share: float = BORDER_SHARE
) -> NDArray[np.uint8]:
    """(H, W) ids, 0 = background -> (H, W) of BACKGROUND, CORE, BORDER. Every object has a core.

    An object's radius is the greatest distance of its pixels from its outline. The edge of
    the image is no outline: what it cuts off goes on behind it.
    """
    depth = _depth(instances)
    radius = np.zeros(int(instances.max()) + 1, np.float32)
    np.maximum.at(radius, instances.ravel(), depth.ravel())
    return np.where(
        instances == 0, BACKGROUND, np.where(depth > share * radius[instances], CORE, BORDER)
    ).astype(np.uint8)


def gaps(mask: NDArray[np.uint8], reach: int = 1) -> NDArray[np.bool_]:
    """(H, W) of BACKGROUND, CORE, BORDER -> where the borders of two objects meet, `reach`
    pixels to either side.

    These few pixels decide whether two objects are told apart.
    """
    outside = (mask != CORE).view(np.uint8)
    if outside.all():
        return np.zeros(mask.shape, np.bool_)
    _, nearest = cv2.distanceTransformWithLabels(
        outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    border = mask == BORDER
    meet = np.zeros(mask.shape, np.uint8)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (nearest[a] != nearest[b]) & border[a] & border[b]
        meet[a] |= differ
        meet[b] |= differ
    grown = cv2.dilate(meet, np.ones((2 * reach + 1,) * 2, np.uint8)) if reach else meet
    return (grown > 0) & border


def _depth(instances: NDArray[np.uint16]) -> NDArray[np.float32]:
    """(H, W): from each pixel's centre to the nearest border between pixels of different ids, in
    pixels, at least 0.5.

    On a grid of half the spacing those borders are points of their own, so that one transform
    serves all objects.
    """
    height, width = instances.shape
    same = np.ones((2 * height - 1, 2 * width - 1), np.uint8)
    same[1::2, ::2] = instances[1:] == instances[:-1]
    same[::2, 1::2] = instances[:, 1:] == instances[:, :-1]
    same[1::2, 1::2] = same[1::2, :-1:2] & same[1::2, 2::2] & same[:-1:2, 1::2] & same[2::2, 1::2]
    return cv2.distanceTransform(same, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[::2, ::2] / 2
