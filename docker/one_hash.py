"""Keep of each pin in a lock the hash of the one wheel that the images take: x86-64 Linux, Python
3.13.

    python docker/one_hash.py docker/requirements/cpu.txt ...

A lock with every file's hash is fifteen times as long. What has no such wheel keeps all its hashes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON, GLIBC = "3.13", 28
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]
NO_WHEEL = ("tensorrt-rtx", "tensorrt-rtx-cu13")  # empty packages that name others


def chosen(pins: list[str]) -> dict[str, str]:
    """Name of a package -> SHA-256 of its wheel, as pip chooses it."""
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        listed.write_text("\n".join(pins))
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--dry-run",
                "--no-deps",
                "--ignore-installed",
                "--ignore-requires-python",
                "--python-version",
                PYTHON,
                *platforms,
                "--only-binary",
                ":all:",
                "--target",
                folder,
                "--report",
                report,
                "--requirement",
                listed,
            ],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    return {
        plain(e["metadata"]["name"]): e["download_info"]["archive_info"]["hashes"]["sha256"]
        for e in found
    }


def plain(name: str) -> str:
    """A package's name as the index has it."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def main(files: list[str]) -> None:
    for file in map(Path, files):
        # A pin with the hashes below it, or a comment.
        blocks = re.split(r"(?m)^(?=\S)", file.read_text())
        pins = {plain(m[1]): m[0] for block in blocks if (m := re.match(r"([^\s=]+)==\S+", block))}
        wheels = chosen([pin for name, pin in pins.items() if name not in NO_WHEEL])
        lines = []
        for block in blocks:
            pin = re.match(r"([^\s=]+)==", block)
            digest = wheels.get(plain(pin[1])) if pin else None
            if digest is not None and digest not in block:
                raise SystemExit(
                    f"{file}: the wheel of {block.split()[0]} is none of those that were locked"
                )
            first = block.partition(" \\")[0]
            lines.append(f"{first} \\\n    --hash=sha256:{digest}\n" if digest else block)
        file.write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
