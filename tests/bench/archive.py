"""An archive on Ray against the bare engine: images a second of examples/ray_batch.py, by two
workers with a thread each, beside two processes that only run the same plan's stages.

    make bench-archive [BUNDLE=...]

Each side is measured as the difference of two runs, one of them with three times as many images, so
that its start does not count; before them comes a short one, since the first start is slower. In
turns; ends in one JSON line. Bar: at least 0.9 of the engine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.bare import bare_stages  # noqa: E402

WORKERS = 2
PHOTO = ROOT / "docs/scene-cluttered.jpg"


def engine(folder: str, images: int) -> None:
    """What one worker does."""
    run = bare_stages(folder, PHOTO, threads=1)
    for _ in range(images):
        run()


def engines(folder: str, images: int) -> None:
    spawned = multiprocessing.get_context("spawn")
    workers = [
        spawned.Process(target=engine, args=(folder, images // WORKERS)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(worker.exitcode)


def job(folder: str, images: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work, "photos")
        photos.mkdir()
        for i in range(images):
            shutil.copyfile(PHOTO, photos / f"{i}.jpg")
        words = (folder, photos, Path(work, "results"), "--workers", WORKERS, "--max-loss", "0")
        subprocess.run(
            [sys.executable, ROOT / "examples/ray_batch.py", *map(str, words)],
            env=os.environ | {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="trained_weights/camvid-tiny")
    parser.add_argument("--images", type=int, default=128, help="of the shorter run")
    asked = parser.parse_args()
    folder, images = str(Path(asked.bundle).absolute()), asked.images
    taken: dict[tuple[str, int], float] = {}
    for count in (WORKERS, images, 3 * images):
        for run in (engines, job):
            began = time.perf_counter()
            run(folder, count)
            taken[run.__name__, count] = time.perf_counter() - began
    rates = {
        name: 2 * images / (taken[name, 3 * images] - taken[name, images])
        for name in ("engines", "job")
    }
    print(f"bare engines {rates['engines']:.2f} images/s, the job {rates['job']:.2f}")
    print(json.dumps(rates | {"ratio": round(rates["job"] / rates["engines"], 3)}))


if __name__ == "__main__":
    main()
