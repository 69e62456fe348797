"""Segment an archive on Ray: a folder, a bucket, or a list of a million files.

    pip install '.[batch]'
    python examples/ray_batch.py trained_weights/camvid-tiny PHOTOS RESULTS --workers 2

PHOTOS is a folder or a bucket's URI (s3://bucket/photos), whose images are taken, or a text file
(.txt) with a path or URI in each line. RESULTS gets Parquet files with a row for each image: its
`path`; `error`, or the plan that ran, its GFLOPs, the quality that the gate expects, and `answer`,
the JSON of /segment; with --png also the label map. An image that cannot be read or segmented fails
alone: it is a row with an error.

The same command goes on where it was stopped: images with a row are left out. Each worker opens the
bundle once and has --threads for its engine; give it as many workers as fit into the cores. Nothing
waits in an archive, so plans follow the budget alone and no load. RAY_ADDRESS names a cluster whose
machines have Fathom installed and see the same paths; without it, Ray runs on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, parquet
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from service.api.json_answer import segmentation
from service.errors import FathomError
from service.segmenting import open_bundle

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".heic", ".heif")
# A long queue and an objective far away: neither makes plans cheaper, however many images wait.
NO_HURRY = {"queue_size": 1000, "target_ms": 600_000}
BATCH = 16  # images that a worker gets at once; few, so that all end at about the same time
AT_ONCE = 3  # images of a worker: one is decoded and one answered while one is in the engine


class Segment:
    """A worker: an open bundle, and what it makes of a batch of paths."""

    def __init__(self, bundle: str, threads: int, budget: dict[str, float], png: bool) -> None:
        self._segmenter = open_bundle(
            bundle, threads=threads, image_threads=1, max_batch=1, **NO_HURRY
        )
        self._budget, self._png = budget, png
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        rows = list(self._pool.map(self._row, map(str, batch["path"])))
        return {name: [row.get(name) for row in rows] for name in self._columns()}

    def _columns(self) -> Sequence[str]:
        told = ("path", "error", "plan", "gflops", "predicted_quality", "width", "height", "answer")
        return (*told, "png") if self._png else told

    def _row(self, path: str) -> dict[str, Any]:
        try:
            answer = self._segmenter.segment(read(path), **self._budget)
            decision, geometry = answer.decision, answer.geometry
            text, _ = segmentation(answer, list(answer.heads), frozenset())
            found = {
                "plan": decision.plan.name,
                "gflops": decision.plan.gflops,
                "predicted_quality": decision.predicted_quality,
                "width": geometry.width,
                "height": geometry.height,
                "answer": text.decode(),
            }
            return {"path": path} | found | ({"png": answer.png()} if self._png else {})
        except FathomError as error:
            return {"path": path, "error": f"{type(error).__name__}: {error.detail}"}
        except OSError as error:
            return {"path": path, "error": f"{type(error).__name__}: {error}"}


def read(path: str) -> bytes:
    """The bytes of a local file, or of one behind a URI. Raises OSError."""
    if "://" not in path:
        return Path(path).read_bytes()
    files, name = place(path)
    with files.open_input_file(name) as file:
        return bytes(file.read())


def place(path: str) -> tuple[FileSystem, str]:
    """Where a path or URI is: a file system, and the path in it. Raises OSError, ValueError."""
    if "://" not in path:
        return LocalFileSystem(), str(Path(path).absolute())
    found: tuple[FileSystem, str] = FileSystem.from_uri(path)
    return found


def listed(source: str) -> list[str]:
    """The images of a folder or bucket, sorted, or the lines of a list. Raises OSError."""
    if source.endswith(".txt"):
        return [line.strip() for line in read(source).decode().splitlines() if line.strip()]
    files, root = place(source)
    scheme = source.partition("://")[0] + "://" if "://" in source else ""
    return sorted(
        scheme + entry.path
        for entry in files.get_file_info(FileSelector(root, recursive=True))
        if entry.type == FileType.File and entry.path.lower().endswith(SUFFIXES)
    )


def done(results: str) -> set[str]:
    """The images with a row in the results. A file that was not written to its end, as when a
    machine was switched off, is deleted. Raises OSError."""
    files, root = place(results)
    files.create_dir(root, recursive=True)
    found: set[str] = set()
    for entry in files.get_file_info(FileSelector(root)):
        if not entry.path.endswith(".parquet"):
            continue
        try:
            table = parquet.read_table(entry.path, columns=["path"], filesystem=files)
        except ArrowInvalid:
            files.delete_file(entry.path)
            print(f"{entry.path} was cut: its images run again")
            continue
        found.update(table["path"].to_pylist())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("bundle", help="folder of the bundle")
    add("photos", help="a folder, a bucket's URI, or a .txt file with a path or URI in each line")
    add("results", help="folder or URI of the Parquet files; made if it is not there")
    add("--workers", type=int, default=1, help="processes, each with the bundle open [%(default)s]")
    add("--threads", type=int, default=1, help="of each worker's engine [%(default)s]")
    add("--depth", type=int, help="most encoder layers for an image")
    add("--gflops", type=float, help="most compute for an image")
    add("--max-loss", type=float, help="accepted loss of quality; default: the service's")
    add("--png", action="store_true", help="the label map, too")
    add(
        "--rows",
        type=int,
        default=1000,
        help="of a file of results: what an end can lose [%(default)s]",
    )
    asked = parser.parse_args()
    budget = {
        name: value
        for name in ("depth", "gflops", "max_loss")
        if (value := getattr(asked, name)) is not None
    }
    try:
        photos, before = listed(asked.photos), done(asked.results)
    except (OSError, ValueError) as error:  # nothing there, or no URI
        parser.error(str(error))
    todo = [path for path in dict.fromkeys(photos) if path not in before]
    print(f"{len(photos)} images, {len(photos) - len(todo)} of them done before")
    if not todo:
        return

    ray.init(include_dashboard=False, log_to_driver=False)
    files, root = place(asked.results)
    began, blocks = time.perf_counter(), max(asked.workers, len(todo) // BATCH)
    (
        ray.data.from_items([{"path": path} for path in todo], override_num_blocks=blocks)
        .map_batches(
            Segment,
            fn_constructor_args=(asked.bundle, asked.threads, budget, asked.png),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=asked.workers),
            num_cpus=asked.threads,
        )
        .write_parquet(
            root,
            filesystem=files,
            min_rows_per_file=asked.rows,
            ray_remote_args={"num_cpus": 0},  # the workers may have taken all of them
        )
    )
    taken = time.perf_counter() - began
    print(f"{len(todo)} images in {taken:.0f} s, with the start of the workers")


if __name__ == "__main__":
    main()
