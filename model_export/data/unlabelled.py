"""Images without labels: a folder of photos, or any data set whose labels are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.data.cache import SampleCache
from model_export.data.datasets import Dataset
from model_export.data.folders import OBJECT, SUFFIXES, images_below
from model_export.data.labelled import Colours
from model_export.data.meta_json import colour_map
from model_export.data.sample import DataError, Sample, read_image
from model_export.network.config import Config
from model_export.tasks import TASKS

PHOTOS = "photos"  # the spec of a folder of images


class Unlabelled:
    """A Dataset for a network that teaches itself: the full plan's answer stands for the labels.

    names: of the images. read: (H, W, 3) uint8 RGB of one of them.
    """

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        names: Sequence[str],
        read: Callable[[int], NDArray[np.uint8]],
    ) -> None:
        self.task, self.channels = config.task, config.classes
        self.classes, self.palette = tuple(classes), colours_of(len(classes))
        self.names, self.read = names, read
        self.cache = SampleCache()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return self.cache.get(index, lambda: self._sample(index))

    def _sample(self, index: int) -> Sample:
        image = self.read(index)
        nothing = np.zeros(image.shape[:2], np.uint8)
        return Sample(self.names[index], image, nothing, labelled=False)

    def look(self, index: int) -> tuple[set[int], str]:
        """No values of labels, and what is wrong with the image, or ""."""
        try:
            self.read(index)
        except DataError as error:
            return set(), str(error)
        return set(), ""

    def part(self, places: Sequence[int]) -> Unlabelled:
        """Some of the images. It shares no cache."""
        other = Unlabelled.__new__(Unlabelled)
        other.__dict__ = {**self.__dict__, "cache": SampleCache()}
        other.names = [self.names[place] for place in places]
        other.read = lambda index: self.read(places[index])
        return other


def photos_in(folder: Path, config: Config, classes: Sequence[str]) -> Unlabelled:
    """The images of a folder and of its subfolders, each in order of their names. Raises
    DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images")
    labels = [kind.folder for kind in TASKS.values() if (folder / kind.folder).is_dir()]
    if labels and (folder / "images").is_dir():
        raise DataError(
            f"{folder} has labels, too, in {labels[0]}/: name its photos alone, {folder / 'images'}"
        )
    files = images_below(folder)
    if not files:
        raise DataError(f"{folder} lacks any image; it needs *{', *'.join(SUFFIXES)}")
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    return Unlabelled(config, classes, names, lambda index: read_image(files[index]))


def without_labels(data: Dataset, config: Config, classes: Sequence[str]) -> Unlabelled:
    """The images of any data set."""
    names = [str(index) for index in range(len(data))]
    return Unlabelled(config, classes, names, lambda index: data[index].image)


def colours_of(count: int) -> Colours:
    """Of as many classes, where nobody has chosen any."""
    return (OBJECT,) if count == 1 else colour_map(count)
