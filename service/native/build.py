"""Build the library from the sources in this folder: `python -m service.native.build`.

An installation does the same (hatch_build.py). It needs a C compiler, GCC or Clang, but no
headers of an engine. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "libfathom.so"
FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-pthread", "-Wall", "-Wno-psabi"),
    # Without them, compilers may not turn the loops over lanes into vector instructions.
    *("-fno-math-errno", "-fno-trapping-math"),
)
# Source -> its function and flags. There is one build of each for each set of instructions; the
# processor's is chosen at run time. Labels do not depend on whether a processor multiplies and adds
# in one instruction.
VARIED: dict[str, tuple[str, tuple[str, ...]]] = {
    "sampling.c": ("sample", ()),
    "labels.c": ("label", ("-ffp-contract=off",)),
    "scale.c": ("scale", ()),
}
INSTRUCTIONS: dict[str, tuple[str, ...]] = {"base": ()}
if platform.machine() in {"x86_64", "AMD64"}:
    INSTRUCTIONS |= {
        "v3": ("-march=x86-64-v3",),
        "v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    }


class BuildError(Exception):
    """There is no C compiler, or it failed; the message says which."""


def digest() -> str:
    """The sha256 of the sources. The library keeps it, so that no other one is used with them."""
    sources = sorted((*FOLDER.glob("*.c"), *FOLDER.glob("*.h")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def build() -> Path:
    """Compile and link. The compiler: $CC, else cc. Raises BuildError."""
    if os.name != "posix":
        raise BuildError(f"it is built on Linux and macOS only, not on {platform.system()}")
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for source, (function, own) in VARIED.items():
            for level, flags in INSTRUCTIONS.items():
                name = f"{function}_{level}"
                objects.append(f"{folder}/{name}.o")
                _compile(*flags, *own, f"-DNAME={name}", "-c", source, "-o", objects[-1])
        made = f"{folder}/{LIBRARY.name}"
        once = sorted({path.name for path in FOLDER.glob("*.c")} - VARIED.keys())
        sources = f'-DFATHOM_SOURCES="{digest()}"'
        _compile("-shared", "-o", made, sources, *once, *objects)
        # Beside the old one and then over it: a running service keeps what it has opened.
        unfinished = LIBRARY.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(Path(made).read_bytes())
        unfinished.replace(LIBRARY)
    return LIBRARY


def _compile(*arguments: str) -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    try:
        run = subprocess.run(
            [*compiler, *FLAGS, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"no C compiler ({compiler[0]}: {error.strerror})") from error
    if run.returncode:
        raise BuildError(f"{compiler[0]} failed: {run.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        sys.exit(f"the library cannot be compiled: {error}")
