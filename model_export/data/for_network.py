"""Data sets for a network that is there: of its task and of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_export.data.class_names import refuse_other_classes
from model_export.data.datasets import Dataset, Scenes, open_dataset
from model_export.data.sample import DataError
from model_export.data.unlabelled import PHOTOS, photos_in, without_labels
from model_export.network.config import Config

IMAGES = 3  # that a data set needs, as many as an export compares with torch


def open_samples(
    flag: str, spec: str, root: Path | None, config: Config, classes: Sequence[str]
) -> Dataset:
    """The data set that an option names: one of SPECS, or `photos`, the images in `root`. A
    checkpoint that was imported sees scenes, too, without their labels. classes: the network's.

    Raises DataError where the data set has too few images or does not fit the network."""
    samples: Dataset
    if spec == PHOTOS:
        if root is None:
            raise DataError(f"{flag} {PHOTOS} needs --data FOLDER, a folder of images")
        samples = photos_in(root, config, classes)
    else:
        samples = open_dataset(spec, root, segments=config.head == "queries")
        if config.imported is not None and isinstance(samples, Scenes):
            samples = without_labels(samples, config, classes)
        refuse_misfit(f"{flag} {spec}", samples, config, classes)
    if len(samples) < IMAGES:
        raise DataError(f"{flag} {spec} has {len(samples)} images; {IMAGES} are needed")
    return samples


def refuse_misfit(what: str, data: Dataset, config: Config, classes: Sequence[str]) -> None:
    """Raises DataError where data are of another task or of other classes than a network.

    what: the data, as they were named. classes: the network's.
    """
    if (data.task, data.channels) != (config.task, config.classes):
        raise DataError(
            f"{what} is of the {data.task} task with {data.channels} channels, the network of the "
            f"{config.task} task with {config.classes}: name data like those that it was trained on"
        )
    refuse_other_classes(
        what, data.classes, classes, "the network", "name data of the same classes"
    )
