"""Build an image from the real Dockerfile and run it as a container runtime would, without a Docker
daemon.

The base is made by mmdebstrap from Debian's packages, the image by buildah with chroot isolation;
then its root file system runs in namespaces of its own: read-only, as the image's user, without
capabilities, with a /tmp in memory. Prints what was checked as a table, and a line of JSON last.
Exit status 0: everything holds.

Needs root, Debian's packages buildah and mmdebstrap, the extra `test`, and the network for
packages.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from container import USER, container, end, first
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "docs" / "scene-clear.jpg"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TARGETS = ("cpu", "gpu", "export")
LARGEST = {"cpu": 250e6}  # bytes that an image may add to its base
UNWANTED = {
    "cpu": ("torch", "model_export", "tensorrt_rtx"),
    "gpu": ("torch", "model_export"),
    "export": (),
}


class Buildah:
    """buildah with a storage of its own, in a folder that can be thrown away."""

    def __init__(self, folder: Path) -> None:
        config = folder / "storage.conf"
        config.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        self._environ = os.environ | {"CONTAINERS_STORAGE_CONF": str(config), "TMPDIR": str(folder)}

    def __call__(self, *words: str, show: bool = False) -> str:
        """Standard output of `buildah WORDS`. Raises CalledProcessError."""
        run = subprocess.run(
            ["buildah", *words],
            env=self._environ,
            stdout=None if show else subprocess.PIPE,
            text=True,
            check=True,
        )
        return (run.stdout or "").strip()

    def mount(self, image: str) -> Path:
        """The root file system of an image, as a folder that may be written."""
        return Path(self("mount", self("from", image)))


def make_base(archive: Path) -> None:
    """What stands in for python:3.13-slim-trixie: the same Debian, the same minor release of
    Python."""
    packages = "ca-certificates,python3,python3-venv"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={packages}", "trixie", str(archive)],
        check=True,
    )


def build(buildah: Buildah, archive: Path, target: str) -> None:
    """Images `base` and `fathom`. The machine's certificates are lent to the build, for networks
    with a proxy."""
    empty = buildah("from", "scratch")
    buildah("add", "--quiet", empty, str(archive), "/")
    buildah("commit", "--quiet", "--rm", empty, "base")
    lent = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.exists() else []
    arguments = ["--build-arg", "BASE=localhost/base", "--build-arg", "REVISION=proof"]
    options = [
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--file",
        "docker/Dockerfile",
        "--target",
        target,
    ]
    buildah("build", *options, *lent, *arguments, "--tag", "fathom", str(ROOT), show=True)


def size(root: Path) -> int:
    """Bytes of all files below a folder, hard links counted once."""
    return int(
        subprocess.run(
            ["du", "-sb", str(root)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )


def check_config(config: Mapping[str, Any]) -> None:
    """Raises AssertionError where the image's configuration is not what orchestrators count on."""
    assert config["User"] == f"{USER}:{USER}", config["User"]
    assert config["Entrypoint"][:2] == ["tini", "--"], config["Entrypoint"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "proof"


def check_files(root: Path, target: str) -> int:
    """No compiler, no pip, no cache; the bills of materials name what is locked. Returns their
    number of components."""
    packages = next(root.glob("opt/fathom/venv/lib/python3*/site-packages"))
    unwanted = [
        *(f"usr/bin/{tool}" for tool in ("cc", "gcc", "c++", "ld")),
        "root/.cache",
        "tools",
        "build",
    ]
    found = [name for name in unwanted if (root / name).exists()]
    for name in ("pip", *UNWANTED[target]):
        found += [
            name for folder in (packages, root / "opt/fathom/app") if (folder / name).exists()
        ]
    assert not found, f"not wanted in the image: {found}"
    python, debian = (
        {
            each["name"].replace("_", "-").lower() + "==" + each["version"]
            for each in json.loads((root / path).read_text())["components"]
        }
        for path in ("usr/share/fathom/sbom.cdx.json", "usr/share/fathom/sbom-debian.cdx.json")
    )
    locked = re.findall(
        r"^\S+==\S+", (ROOT / f"docker/requirements/{target}.txt").read_text(), re.MULTILINE
    )
    assert set(locked) == python, f"the lock and the bill differ: {set(locked) ^ python}"
    assert {"tini", "libc6"} <= {name.split("==")[0] for name in debian}
    return len(python) + len(debian)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> float:
    """Seconds until /readyz says 200. Raises RuntimeError when the container ends, TimeoutError
    after two minutes."""
    start = time.monotonic()
    while time.monotonic() < start + 120:
        if process.poll() is not None:
            raise RuntimeError(f"the container ended with status {process.returncode}")
        with contextlib.suppress(ConnectionRefusedError):
            if ask(port, "GET", "/readyz")[0] == 200:
                return time.monotonic() - start
        time.sleep(0.1)
    raise TimeoutError("the service did not become ready")


def check_rights(init: psutil.Process) -> None:
    """Raises AssertionError if the service could do more than it needs."""
    service = init.children()[0]
    for process in (init, service):
        assert set(process.uids()) == set(process.gids()) == {USER}, process
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE), status
        assert re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE), status
    mounts = [line.split() for line in Path(f"/proc/{service.pid}/mounts").read_text().splitlines()]
    writable = {line[1] for line in mounts if "rw" in line[3].split(",")}
    assert "/" not in writable, mounts
    assert writable <= {"/tmp", "/proc", "/dev"}, writable


def check_health(init: psutil.Process, config: Mapping[str, Any], port: int) -> None:
    """The image's own HEALTHCHECK, run where Docker would run it: fails for a port where nobody
    listens."""
    enter = [
        "nsenter",
        f"--target={init.pid}",
        "--mount",
        "--pid",
        "--root",
        "--wd",
        "--setuid",
        str(USER),
    ]
    kind, *command = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    for number, healthy in ((port, True), (1, False)):
        variables = [*config["Env"], f"FATHOM_PORT={number}"]
        run = subprocess.run(
            [*enter, "env", "--ignore-environment", *variables, *command],
            capture_output=True,
            check=False,
        )
        assert (run.returncode == 0) is healthy, run.stderr.decode()


def check_mask(port: int) -> str:
    """A photo in, its mask out. Returns what the mask is like."""
    status, body = ask(
        port, "POST", "/segment", PHOTO.read_bytes(), Content_Type="image/jpeg", Accept="image/png"
    )
    assert status == 200, body
    with Image.open(io.BytesIO(body)) as mask, Image.open(PHOTO) as photo:
        classes = len(mask.getcolors(256) or [])
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", photo.size)
        assert classes > 1, "the mask is empty"
        return f"{mask.width}x{mask.height}, {classes} classes"


def serve(root: Path, config: Mapping[str, Any]) -> dict[str, object]:
    """The service in a container: from its start to a mask, and two ways to its end. Figures by
    name."""
    assert "FATHOM_HOST=0.0.0.0" in config["Env"], config["Env"]
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local = {"FATHOM_HOST": "127.0.0.1", "FATHOM_PORT": str(port)}
    with container(root, config, local) as process:
        ready = wait_until_ready(process, port)
        check_rights(first(process))
        check_health(first(process), config, port)
        mask = check_mask(port)
        status, drained = end(process)
        assert status == 0, f"exit status {status} after SIGTERM"
    with container(root, config, local) as process:
        first(process)
        time.sleep(0.2)  # Python imports, and has no handler yet
        early, seconds = end(process)
        assert (early, seconds < 5) == (128 + signal.SIGTERM, True), (
            f"status {early} after {seconds:.1f} s"
        )
    return {
        "ready, s": round(ready, 1),
        "mask": mask,
        "SIGTERM: status, s": f"{status}, {drained:.1f}",
        "SIGTERM while it starts: status, s": f"{early}, {seconds:.1f}",
    }


def command(root: Path, config: Mapping[str, Any]) -> dict[str, object]:
    """An image that is a command: it says what it can do. Figures by name."""
    with container(root, config, {}, ["--help"]) as process:
        status = process.wait(120)
    assert status == 0, f"exit status {status}"
    return {"--help: status": status}


def prove(folder: Path, base: Path, target: str) -> dict[str, object]:
    """Build and run. Figures by name."""
    buildah, began = Buildah(folder), time.monotonic()
    if not base.exists():
        make_base(base)
    based = time.monotonic()
    build(buildah, base, target)
    built = time.monotonic()
    config = json.loads(buildah("inspect", "--type", "image", "fathom"))["Docker"]["config"]
    root = buildah.mount("fathom")
    added = size(root) - size(buildah.mount("localhost/base"))
    assert added <= LARGEST.get(target, float("inf")), (
        f"the image adds {added / 1e6:.0f} MB to its base"
    )
    check_config(config)
    return {
        "target": target,
        "base, s": round(based - began),
        "build, s": round(built - based),
        "added to the base, MB": round(added / 1e6),
        "components in the bills of materials": check_files(root, target),
        **(command(root, config) if target == "export" else serve(root, config)),
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, default="cpu")
    parser.add_argument(
        "--base",
        type=Path,
        help="archive of the base; made if it is not there. None: made, thrown away",
    )
    arguments = parser.parse_args(argv)
    missing = [
        tool
        for tool in ("buildah", "mmdebstrap", "unshare", "nsenter")
        if shutil.which(tool) is None
    ]
    if missing or os.geteuid() != 0:
        parser.error(f"needs {', '.join(missing) or 'root'}")
    with tempfile.TemporaryDirectory(prefix="fathom-image-") as name:
        folder = Path(name)
        figures = prove(folder, arguments.base or folder / "base.tar", arguments.target)
    width = max(map(len, figures))
    sys.stdout.write("".join(f"{key:{width}}  {value}\n" for key, value in figures.items()))
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
