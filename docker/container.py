"""The image's root file system run as a container runtime would: namespaces, read-only, without
rights or a daemon."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

USER = 10001
# Everything read-only but /tmp; then no rights, no variables but the image's, and its entry point
# as process 1.
CONTAINER = """
set -e
root=$1 folder=$2; shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev,noexec tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o size=1m,mode=755,nosuid tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 444 "$root/dev/urandom" c 1 9
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups \\
  --bounding-set=-all --inh-caps=-all --no-new-privs env --ignore-environment --chdir "$folder" "$@"
"""


@contextlib.contextmanager
def container(
    root: Path, config: Mapping[str, Any], environ: Mapping[str, str], arguments: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """The image's entry point in namespaces of its own; gone at the end, with everything that it
    started."""
    variables = {**dict(entry.split("=", 1) for entry in config["Env"]), **environ}
    words = [
        *(f"{name}={value}" for name, value in variables.items()),
        *config["Entrypoint"],
        *arguments,
    ]
    isolate = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    process = subprocess.Popen(
        [*isolate, "sh", "-c", CONTAINER, "sh", str(root), config["WorkingDir"], *words]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def first(process: subprocess.Popen[bytes]) -> psutil.Process:
    """Process 1 of the container, once it is the init process. Raises TimeoutError."""
    for _ in range(300):
        for child in psutil.Process(process.pid).children():
            if child.name() == "tini":
                return child
        time.sleep(0.02)
    raise TimeoutError("the container has no init process")


def end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit status after SIGTERM to process 1, and the seconds it took."""
    start = time.monotonic()
    first(process).send_signal(signal.SIGTERM)
    return process.wait(60), time.monotonic() - start
