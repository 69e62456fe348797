"""docker/ agrees with the service, the project and k8s/. That the image builds and runs,
docker/prove.py shows."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.command_line import load
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {
    "cpu": ("cpu", "tracing"),
    "gpu": ("gpu", "tensorrt-rtx", "tracing"),
    "export": ("cpu", "export", "kernels", "tensorrt-rtx"),
}


def instructions() -> list[tuple[str, str, str]]:
    """(stage, instruction, arguments) of the Dockerfile, in order; continued lines joined, comments
    left out."""
    text = re.sub(
        r"^\s*#.*\n", "", (ROOT / "docker" / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE
    )
    stage, found = "", []
    for line in text.replace("\\\n", "").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        if word:
            found.append((stage, word, rest.strip()))
    return found


def of(word: str, *stages: str) -> list[str]:
    """Arguments of every such instruction, of these stages or of all."""
    return [
        rest
        for stage, each, rest in instructions()
        if each == word and (not stages or stage in stages)
    ]


def variables(*stages: str) -> dict[str, str]:
    pairs = " ".join(of("ENV", *stages)).split()
    return dict(pair.split("=", 1) for pair in pairs)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build; the last line that matches decides."""
    place = PurePosixPath(path)
    verdict = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        for part in (place, *place.parents[:-1]):
            name = part.name if pattern.startswith("**/") else str(part)
            if fnmatch(name, pattern.removeprefix("**/")):
                verdict = not line.startswith("!")
    return verdict


def copied() -> set[str]:
    """What the Dockerfile copies from the repository."""
    lines = [rest.split() for rest in of("COPY") if not rest.startswith("--from")]
    return {source for words in lines for source in words[:-1]}


def test_what_is_copied_exists_and_nothing_else_reaches_the_build() -> None:
    assert {"service", "pyproject.toml", "trained_weights/camvid-tiny"} <= copied()
    for source in copied():
        files = [path for path in (ROOT / source).rglob("*") if path.is_file()] or [ROOT / source]
        seen = [path for path in files if "__pycache__" not in path.parts]
        assert seen, source
        for path in seen:
            assert path.is_file(), source
            assert not ignored(str(path.relative_to(ROOT))), path
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    assert [
        pattern for pattern in allowed if not any(fnmatch(source, pattern) for source in copied())
    ] == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".git/config",
            ".venv/bin/python",
            "runs/mine/model.pt",
            "tests/test_docker.py",
            "docs/fathom.png",
            ".env",
        ),
        *(
            "service/__pycache__/core.cpython-313.pyc",
            "trained_weights/README.md",
            "docker/Dockerfile",
        ),
    ],
)
def test_what_the_build_does_not_need_is_ignored(path: str) -> None:
    assert ignored(path)


def test_the_images_start_the_service_with_settings_that_it_knows() -> None:
    (entry,) = of("ENTRYPOINT", "serving")
    assert json.loads(entry) == ["tini", "--", "python", "-m", "service"]
    settings = load([], variables("base", "runtime", "serving", "gpu"))
    assert (settings.host, settings.port) == ("0.0.0.0", Settings().port)
    assert of("EXPOSE") == [str(Settings().port)]
    # Into the folder that it runs in.
    assert f"{Settings().bundle} {Settings().bundle}" in of("COPY", "runtime")
    assert of("WORKDIR", "base") == ["/opt/fathom"]


def test_every_image_runs_as_the_user_of_the_manifests_and_names_its_version() -> None:
    pod = yaml.safe_load((ROOT / "k8s/base/deployment.yaml").read_text("utf-8"))["spec"][
        "template"
    ]["spec"]
    user = pod["securityContext"]
    for target in EXTRAS:
        assert of("USER", target) == [f"{user['runAsUser']}:{user['runAsGroup']}"]
    assert f"VERSION={PROJECT['version']}" in of("ARG", "runtime")
    (labels,) = of("LABEL")
    for name in ("version", "revision", "source", "licenses", "title", "description"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_the_tags_of_the_manifests_are_targets() -> None:
    for overlay in ("cpu", "gpu"):
        images = yaml.safe_load(
            (ROOT / f"k8s/overlays/{overlay}/kustomization.yaml").read_text("utf-8")
        )["images"]
        assert {image["newTag"] for image in images} <= set(EXTRAS)
    assert instructions()[-1][0] == "cpu"  # a build without --target


class _Ready(http.server.BaseHTTPRequestHandler):
    """Answers /readyz with the server's status, everything else with 404."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/readyz" else 404)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server that is ready (200) or not (503)."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Ready) as server:
        server.status = status  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def healthy(port: int) -> bool:
    (text,) = of("HEALTHCHECK")
    python, *words = json.loads(text.split("CMD", 1)[1])
    assert python == "python"
    run = subprocess.run(
        [sys.executable, *words], env={"FATHOM_PORT": str(port)}, capture_output=True, check=False
    )
    return run.returncode == 0


def test_the_health_check_asks_whether_the_service_is_ready() -> None:
    with answering(200) as port:
        assert healthy(port)
    with answering(503) as port:
        assert not healthy(port)
    assert not healthy(port)  # nobody listens there any more


@pytest.mark.parametrize("target", EXTRAS)
def test_the_lock_satisfies_the_project_and_has_hashes(target: str) -> None:
    text = (ROOT / "docker" / "requirements" / f"{target}.txt").read_text("utf-8")
    pins = dict(re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE))
    wanted = PROJECT["dependencies"] + [
        each for extra in EXTRAS[target] for each in PROJECT["optional-dependencies"][extra]
    ]
    here = {
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "python_version": "3.13",
        "extra": "",
    }
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, (
                f"{requirement}: docker/lock.sh"
            )
    assert ("torch" in pins) is (target == "export")
    assert f"lock {target} pyproject.toml" + "".join(
        f" --extra {each}" for each in EXTRAS[target]
    ) in ((ROOT / "docker" / "lock.sh").read_text("utf-8"))


def test_base_lock_and_proof_mean_the_same_python_and_debian() -> None:
    (base,) = (rest for stage, word, rest in instructions() if (stage, word) == ("", "ARG"))
    python, debian = re.fullmatch(
        r"BASE=docker\.io/library/python:(3\.\d+)-slim-([a-z]+)", base
    ).groups()
    assert f"--python-version {python} " in (ROOT / "docker" / "lock.sh").read_text("utf-8")
    assert f'"{debian}"' in (ROOT / "docker" / "prove.py").read_text("utf-8")
