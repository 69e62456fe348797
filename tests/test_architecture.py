"""Imports point one way. The tables below are the architecture; a module or an arrow that is not in
them fails.

Found by walking the syntax tree, so that imports inside functions and under TYPE_CHECKING count,
too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = {"service": 315, "model_export": 400}

# service: module -> what it may import of the service
BASE = {"core", "errors", "settings"}
LOW = BASE | {"bundle", "metrics"}
LEAF = LOW | {"inference.scheduler"}
SERVICE: dict[str, set[str]] = {
    "core": set(),
    "errors": set(),
    "kernel": set(),
    "settings": {"core", "errors"},
    "manifest": BASE | {"kernel"},
    "bundle": BASE | {"kernel", "manifest"},
    "logs": set(),
    "metrics": BASE | {"logs"},
    "engines.base": LOW,
    "engines.fake": LOW | {"engines.base"},
    "engines.onnxruntime": LOW | {"engines.base"},
    "engines.onnxruntime_cuda": LOW | {"engines.base", "engines.cuda", "engines.onnxruntime"},
    "engines.cuda": set(),
    "engines.device_memory": {"errors", "engines.cuda"},
    "engines.engine_cache": LOW | {"manifest"},
    "engines.tensorrt_plugin": {"kernel", "engines.cuda"},
    "engines.tensorrt_runtime": LOW | {"engines.tensorrt_plugin"},
    "inference.router": {"core", "errors"},
    "inference.costs": LOW | {"engines.base"},
    "inference.pipeline": LOW | {"engines.base", "inference.costs", "inference.router"},
    "inference.scheduler": LOW
    | {"engines.base", "inference.costs", "inference.router", "inference.pipeline"},
    "api.budget": BASE,
    "api.image": LOW,
    "api.instances": LOW,
    "api.masks": LOW | {"api.instances"},
    "api.schemas": LOW,
    "api.node_budget": LEAF | {"api.budget", "api.watched"},
    "api.watched": {"errors"},
    "api.auth": {"errors", "settings", "api.watched"},
    "api.tracing": BASE,
    "api.middleware": LOW | {"api.budget"},
    "api.body": {"errors", "api.image"},
    "api.forms": LOW | {"api.budget", "api.masks", "api.schemas"},
    "api.openapi": {"errors", "api.body", "api.forms", "api.image", "api.schemas"},
    "api.operations": LEAF | {"api.openapi", "api.schemas"},
}
SERVICE["engines.tensorrt"] = LOW | {name for name in SERVICE if name.startswith("engines.")} - {
    "engines.fake",
    "engines.onnxruntime",
    "engines.onnxruntime_cuda",
}
SERVICE["engines.choice"] = LOW | {name for name in SERVICE if name.startswith("engines.")}
SERVICE["api.app"] = LEAF | {name for name in SERVICE if name.startswith("api.")}
SERVICE["__main__"] = set(SERVICE)

# service: third-party package -> the modules (or the packages, by prefix) that may import it
THIRD_PARTY: dict[str, set[str]] = {
    "numpy": {"core", "engines", "inference", "api"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "pydantic": {"api"},
    "http_sf": {"api.budget"},
    "opentelemetry": {"api.tracing"},
    "PIL": {"api.image", "api.masks"},
    "cv2": {"api.instances"},
    "pycocotools": {"api.masks"},
    "prometheus_client": {"metrics"},
    "onnxruntime": {"engines.choice", "engines.onnxruntime", "engines.onnxruntime_cuda"},
    "tensorrt": {"engines.tensorrt_runtime"},
    "tensorrt_rtx": {"engines.tensorrt_runtime"},
    "uvicorn": {"__main__"},
}

# model_export: package -> packages of model_export, then modules or packages of the service, that
# it may import
SHARED = {
    "bundle",
    "core",
    "errors",
    "kernel",
    "inference",
    "engines",
    "api.image",
    "api.instances",
    "api.masks",
}
EXPORT: dict[str, tuple[set[str], set[str]]] = {
    "network": (
        {"network", "export.kernels"},
        set(),
    ),  # on CUDA its deformable attention is our kernel
    "recipe": ({"network", "recipe"}, SHARED),
    "export.kernels": (
        {"export.kernels"},
        {"kernel", "engines.cuda"},
    ),  # a leaf; the service runs kernels, too
    "export": (
        {"network", "recipe", "export"},
        SHARED,
    ),  # it reads runs: their weights, targets and images
    "__main__": ({"network", "recipe", "export"}, SHARED),
}
RIM = {
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "http_sf",
    "prometheus_client",
}  # never in model_export


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file; a package has the name of its folder."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in paths
    }


SOURCES = {**modules("service"), **modules("model_export")}


def imported(name: str, source: str, is_package: bool = False) -> Iterator[str]:
    """Every module that `source`, being the module `name`, imports; `from package import module`
    names the module."""
    home = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*home[: len(home) + 1 - node.level], node.module or ""]).strip(".")
            module = base if node.level else node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in SOURCES else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in {"import_module", "__import__"}:
                yield str(node.args[0].value)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def forbidden(name: str, source: str, is_package: bool = False) -> list[str]:
    """The arrows out of this module that no table has, as "a -> b"."""
    package, _, inner = name.partition(".")
    found = []
    for target in imported(name, source, is_package):
        top, _, rest = target.partition(".")
        if top in sys.stdlib_module_names:
            continue
        if package == "service":
            right = (
                rest in SERVICE.get(inner, set())
                if top == "service"
                else within(inner, THIRD_PARTY.get(top, set()))
            )
        else:
            row = max((place for place in EXPORT if within(inner, {place})), key=len, default="")
            ours, service = EXPORT.get(row, (set(), set()))
            if top == "model_export":
                right = within(rest, ours)
            else:
                right = within(rest, service) if top == "service" else top not in RIM
        if not right:
            found.append(f"{name} -> {target}")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_module_imports_only_what_the_table_allows(name: str) -> None:
    path = SOURCES[name]
    assert forbidden(name, path.read_text("utf-8"), is_package=path.name == "__init__.py") == []


def test_every_service_module_has_a_row_in_the_table() -> None:
    plain = {
        name.removeprefix("service.")
        for name, path in modules("service").items()
        if path.name != "__init__.py"
    }
    assert plain - SERVICE.keys() == set()


def test_table_has_no_cycle() -> None:
    done: set[str] = set()
    while left := SERVICE.keys() - done:
        free = {name for name in left if SERVICE[name] <= done}
        assert free, f"these import each other: {sorted(left)}"
        done |= free


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.inference.router", "import torch"),
        ("service.inference.router", "from service.engines.base import Backend"),
        ("service.inference.pipeline", "import service.inference.scheduler"),
        ("service.inference.pipeline", "from ..engines import onnxruntime"),
        ("service.engines.onnxruntime", "from service.inference import pipeline"),
        ("service.engines.fake", "import onnxruntime as ort"),
        ("service.core", "from . import errors"),
        ("service.bundle", "import numpy"),
        ("service.api.app", "import uvicorn"),
        ("service.api.image", "from service.api.app import create_app"),
        ("service.inference.scheduler", "def f():\n    from fastapi import FastAPI"),
        ("service.settings", "from pydantic import BaseModel"),
        ("service.metrics", "from opentelemetry import trace"),
        ("service.api.app", "import importlib\nimportlib.import_module('model_export.network')"),
        ("service.not_in_the_table", "import service.core"),
        ("model_export.network.encoder", "from model_export.recipe import datasets"),
        ("model_export.network.encoder", "import service.core"),
        ("model_export.recipe.evaluate", "from service.api.app import create_app"),
        ("model_export.recipe.evaluate", "from service.settings import Settings"),
        ("model_export.recipe.runs", "from ..export import flops"),
        ("model_export.export.onnx", "import fastapi"),
        ("model_export.network.encoder", "from model_export.export import onnx"),
        ("model_export.export.kernels.launch", "from model_export.network import config"),
        ("model_export.export.kernels.launch", "import service.bundle"),
    ],
)
def test_forbidden_arrow_is_found(name: str, source: str) -> None:
    assert len(forbidden(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("service.inference.pipeline", "import time\nfrom service.inference.router import choose"),
        ("service.inference.pipeline", "from ..engines.base import Backend"),
        ("service.api.tracing", "from opentelemetry.sdk.trace import TracerProvider"),
        ("service.engines.onnxruntime", "import numpy as np\nimport onnxruntime"),
        ("service.__main__", "import uvicorn\nfrom service.api.app import create_app"),
        (
            "model_export.export.onnx",
            "import torch\nfrom model_export.network.config import tiny\nimport service.bundle",
        ),
        ("model_export.recipe.calibrate", "from service.engines.onnxruntime import OnnxBackend"),
        ("model_export.network.encoder", "from model_export.export.kernels import launch"),
    ],
)
def test_allowed_arrow_is_not_reported(name: str, source: str) -> None:
    assert forbidden(name, source) == []


@pytest.mark.parametrize("package", MAX_LINES)
def test_no_file_is_longer_than_its_limit(package: str) -> None:
    lengths = {
        name: len(path.read_text("utf-8").splitlines()) for name, path in modules(package).items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES[package]} == {}


def our_text_files() -> Iterator[Path]:
    """Every text file of the repository; caches, environments and training output are not in it."""
    ours = {".ci", ".gitattributes", ".gitignore", ".dockerignore", ".github"}
    texts = {
        "",
        ".py",
        ".md",
        ".toml",
        ".txt",
        ".yaml",
        ".yml",
        ".json",
        ".js",
        ".css",
        ".html",
        ".sh",
        ".cu",
        ".cuh",
        ".cpp",
        ".h",
    }
    for entry in ROOT.iterdir():
        if entry.name == "runs" or (entry.name.startswith(".") and entry.name not in ours):
            continue
        for path in [entry] if entry.is_file() else entry.rglob("*"):
            if path.is_file() and path.suffix in texts and "__pycache__" not in path.parts:
                yield path


def test_no_file_names_a_place_of_one_machine_or_a_package_registry() -> None:
    # Put together here, so that this file does not name them itself.
    words = ["/" + "work/", "/" + "root/", "py" + "pi.org", "python" + "hosted", "index" + "-url"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in our_text_files()
        for word in words
        if word in path.read_text("utf-8", errors="replace")
    ]
    assert found == []


def test_starting_the_service_loads_no_training_package() -> None:
    heavy = "{'torch', 'model_export', 'onnx', 'onnxscript', 'scipy', 'matplotlib', 'transformers'}"
    code = (
        "import sys, service.__main__, service.api.app; "
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "[]", "")
