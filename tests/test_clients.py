"""The programs of docs/clients.md run as they stand there, against a service on loopback: only its
address, the photo's path and the budget are replaced."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from service.bundle import Manifest
from tests.api.server import Server, running
from tests.browser import chromium
from tests.openapi.test_generated_client import generate
from tests.processes import ROOT

DOCUMENT = ROOT / "docs" / "clients.md"
ADDRESS, PHOTO, BUDGET = "http://127.0.0.1:8000", "docs/scene-cluttered.jpg", "gflops=6.5"
LIMIT_S = 100
REFUSED_S = 1.0  # at first: the program has started by then


def blocks(section: str, language: str) -> list[str]:
    """The fenced blocks of a language below a heading, in their order."""
    text = DOCUMENT.read_text("utf-8")
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, section
    return re.findall(rf"^```{language}\n(.*?)^```", found[1], re.M | re.S)


@dataclass(frozen=True)
class Recipe:
    """A program of the document. command: runs it in the folder where its files lie; a file is
    called as its first line says, `name` if there is no such line. needs: programs of the
    system. after_close: whether it retries when a connection closes without an answer."""

    section: str
    language: str
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after_close: bool = True

    def write(self, folder: Path, url: str, budget: str) -> None:
        for text in blocks(self.section, self.language):
            assert ADDRESS in text or "import { segment }" in text
            changed = text.replace(ADDRESS, url).replace(BUDGET, budget)
            changed = changed.replace("docs/scene", f"{ROOT}/docs/scene")
            named = re.match(r"// (\S+)\n", text)
            (folder / (named[1] if named else self.name)).write_text(changed, "utf-8")


RECIPES = (
    Recipe("curl", "sh", "segment.sh", ("bash", "segment.sh"), ("bash", "curl"), after_close=False),
    Recipe("Python", "python", "segment.py", (sys.executable, "-W", "error", "segment.py")),
    Recipe("JavaScript", "js", "main.mjs", ("node", "main.mjs"), ("node",)),
    Recipe("Java", "java", "Segment.java", ("java", "Segment.java"), ("java", "javac")),
    Recipe("Go", "go", "segment.go", ("go", "run", "segment.go"), ("go",)),
)


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.section)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    if missing := [program for program in found.needs if shutil.which(program) is None]:
        pytest.skip(f"{' and '.join(missing)} of the recipe in {found.section} not installed")
    return found


@pytest.fixture
def starting(fake_manifest: Manifest) -> Iterator[Server]:
    """A service whose engine is not ready before its gate opens."""
    with running(fake_manifest, closed=True) as server:
        yield server


def started(recipe: Recipe, folder: Path, url: str, budget: str) -> subprocess.Popen[str]:
    recipe.write(folder, url, budget)
    # Go keeps what it compiled below HOME, and asks a proxy for modules: the program needs none.
    environment = {**os.environ, "HOME": str(folder), "GOPROXY": "off", "GO111MODULE": "off"}
    return subprocess.Popen(
        recipe.command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str], folder: Path) -> str:
    """What it wrote, on its standard outputs and as an answer in a file."""
    written, _ = process.communicate(timeout=LIMIT_S)
    answer = folder / "answer.json"
    return written + (answer.read_text("utf-8") if answer.exists() else "")


def test_a_recipe_waits_until_the_service_is_ready_and_reads_the_answer(
    recipe: Recipe, starting: Server, tmp_path: Path
) -> None:
    process = started(recipe, tmp_path, starting.url, "gflops=3.5")
    try:
        end = time.monotonic() + LIMIT_S
        while not starting.value("fathom_requests_total", outcome="not-ready"):
            assert process.poll() is None, output_of(process, tmp_path)
            assert time.monotonic() < end
            time.sleep(0.05)
        starting.gate.set()
        output = output_of(process, tmp_path)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "d2" in output or "depth=2" in output  # the most expensive plan that the budget allows
    assert all(label in output for label in ("Road", "Building", "Car"))


def test_a_recipe_outlasts_a_restart_and_a_proxy_with_its_own_answers(
    recipe: Recipe, starting: Server, tmp_path: Path
) -> None:
    starting.gate.set()
    photo = (ROOT / PHOTO).read_bytes()
    fields = {"Content-Type": "image/jpeg", "Compute-Budget": "gflops=3.5"}
    Restarting.answer = httpx.post(f"{starting.url}/segment", content=photo, headers=fields)
    Restarting.closes, Restarting.busy = recipe.after_close, True
    with ThreadingHTTPServer(("127.0.0.1", 0), Restarting, bind_and_activate=False) as server:
        server.server_bind()  # connections are refused as long as it does not listen
        process = started(recipe, tmp_path, f"http://127.0.0.1:{server.server_port}", "gflops=3.5")
        time.sleep(REFUSED_S)
        server.server_activate()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            output = output_of(process, tmp_path)
        finally:
            process.kill()
            server.shutdown()
            thread.join()
    assert process.returncode == 0, output
    assert "d2" in output
    assert (Restarting.closes, Restarting.busy) == (False, False)


class Restarting(BaseHTTPRequestHandler):
    """Closes a connection without an answer, then answers as a busy proxy, then with `answer`."""

    answer: ClassVar[httpx.Response]
    closes: ClassVar[bool]
    busy: ClassVar[bool]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if Restarting.closes:
            Restarting.closes = False
            self.close_connection = True
        elif Restarting.busy:
            Restarting.busy = False
            date = formatdate(time.time() + 1, usegmt=True)
            self._reply(503, "text/html", b"<h1>Busy</h1>", {"Retry-After": date})
        else:
            used = {"Compute-Used": self.answer.headers["Compute-Used"]}
            self._reply(200, "application/json", self.answer.content, used)

    def _reply(self, status: int, kind: str, body: bytes, fields: dict[str, str]) -> None:
        self.send_response(status)
        sized = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (sized | fields).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Nothing: a test reads what the service says."""


def test_a_recipe_says_what_the_service_refused_and_why(
    recipe: Recipe, starting: Server, tmp_path: Path
) -> None:
    starting.gate.set()
    process = started(recipe, tmp_path, starting.url, "depth=x")
    output = output_of(process, tmp_path)
    assert process.returncode != 0, output
    assert "400" in output
    assert "the key 'depth' must be an Integer" in output


@pytest.mark.browser
def test_the_function_in_javascript_runs_in_a_browser(fake_manifest: Manifest) -> None:
    function = blocks("JavaScript", "js")[0].replace("export async", "async")
    photo = base64.b64encode((ROOT / PHOTO).read_bytes()).decode()
    with running(fake_manifest) as server, chromium() as browser:
        page = browser.new_page()
        page.goto(f"{server.url}/docs")
        answer = page.evaluate(
            f"""async ([photo, url]) => {{
              {function}
              const bytes = Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0));
              return segment(new File([bytes], "p.jpg", {{ type: "image/jpeg" }}), {{ url }});
            }}""",
            [photo, server.url],
        )
    assert answer["usage"]["plan"] == "d4"
    assert "Road" in {segment["label"] for segment in answer["segments"]}


@pytest.mark.browser
def test_the_function_in_javascript_runs_in_a_page_of_an_allowed_origin(
    fake_manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>A page</title>")
    script = blocks("JavaScript", "js")[0].replace(ADDRESS, "")
    (tmp_path / "segment.mjs").write_text(script, "utf-8")
    shutil.copy(ROOT / PHOTO, tmp_path / "photo.jpg")
    with (
        serving(tmp_path) as origin,
        chromium() as browser,
        running(fake_manifest, cors_origins=origin) as server,
    ):
        page = browser.new_page()
        page.goto(f"{origin}/index.html")
        answer = page.evaluate(
            """async (url) => {
              const { segment } = await import("./segment.mjs");
              const photo = await (await fetch("photo.jpg")).blob();
              return segment(photo, { url, budget: "gflops=3.5" });
            }""",
            server.url,
        )
    assert answer["usage"]["plan"] == "d2"
    assert "Road" in {segment["label"] for segment in answer["segments"]}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The origin of a server of a folder's files."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    extensions_map: ClassVar[dict[str, str]] = {
        ".html": "text/html",
        ".jpg": "image/jpeg",
        ".mjs": "text/javascript",
    }

    def log_message(self, *_words: object) -> None:
        """Nothing: a test reads what the service says."""


def test_the_generated_client_of_the_document_works(
    fake_manifest: Manifest, tmp_path: Path
) -> None:
    pytest.importorskip("openapi_python_client")
    (command,) = blocks("A client generated from OpenAPI", "sh")
    (program,) = blocks("A client generated from OpenAPI", "python")
    assert command.startswith("openapi-python-client generate --url")
    with running(fake_manifest) as server:
        generate(server.url, tmp_path, "fathom_client")
        changed = program.replace(ADDRESS, server.url).replace(PHOTO, str(ROOT / PHOTO))
        run = subprocess.run(
            [sys.executable, "-c", changed],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    assert "Road" in run.stdout
