"""Files are there as a whole or not at all, and what the system says of one has its name. Of the
commands that write to one folder, one does so at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises OSError with the name of the file that is written: the system's own has none once the
    file is open, as where the disk is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def replacing(path: Path, mark: str = "new") -> Iterator[Path]:
    """A file to write, which takes the place of `path` when all of it is there. Raises OSError as
    `naming`. mark: of its name until then, another for each of several processes that may write it
    at once."""
    temporary = path.with_name(f"{path.stem}.{mark}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors hide the system's own
        raise OSError(errno.EIO, f"it cannot be written: {error}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder that is there, which no other process is at work in: two trainings would
    write one checkpoint in turns, and results would be of weights that are gone. Raises OSError
    that names the folder; the lock ends with the process, however that ends."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        why = "another command is at work in it: wait for its end, or stop it"
        raise OSError(error.errno, why, str(folder)) from error
    except OSError:
        pass  # a file system without locks, as some shares are
    try:
        yield
    finally:
        os.close(place)
