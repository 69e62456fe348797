"""Kernel, models and service on a GPU: parity first, then times against three others, the roofline
and the bars.

    python tests/bench/gpu.py [--only kernel models service] [--out results.json] [--minutes 8]

Prints tables and ends in one JSON line. --out keeps every step as soon as it is done; a later run
goes on from there. Where there is no GPU it does what needs none (what must move is counted, every
variant of the kernel compiled), says what is missing, and ends with status 1. So it does when a
kernel or an engine is wrong, or a step fails; a bar that is missed or a package that is not there
does not change the status. Status 2: wrong arguments.

How it is timed: gpu_clock.py and gpu_kernel.py beside this file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from model_export.kernels import nvrtc  # noqa: E402
from service import bundle  # noqa: E402
from service.bundle import Bundle  # noqa: E402
from service.errors import BundleError, FathomError  # noqa: E402
from tests.bench import gpu_layers, gpu_machine, gpu_report  # noqa: E402

Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """modules: their `steps` are its steps. share: of --minutes, by whose end it begins no further
    one."""

    modules: tuple[str, ...]
    share: float


PARTS = {
    "kernel": Part(("gpu_kernel",), 0.4),
    "models": Part(("gpu_encoder", "gpu_models"), 0.85),
    "service": Part(("gpu_service",), 1.0),
}


class ArgumentError(ValueError):
    """A wrong argument; the message says which and why."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    add(
        "--bundle",
        type=Path,
        default=ROOT / "trained_weights/camvid-tiny",
        help="for models and service",
    )
    add(
        "--engine-cache",
        type=Path,
        default=ROOT / ".cache/engines",
        help="folder of TensorRT engines; where it has none that fit, they are built",
    )
    add(
        "--out",
        type=Path,
        help="file for the results, as JSON; what it holds already is not measured again",
    )
    add(
        "--again",
        action="store_true",
        help="measure the parts of this run again, whatever --out holds",
    )
    add("--minutes", type=minutes, default=8.0, help="no step is begun after so long; 0.1 to 120")
    return made


def minutes(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 120:  # nan is not, either
        raise argparse.ArgumentTypeError(f"{text} is not from 0.1 to 120")
    return value


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    parts = [part for part in PARTS if part in args.only]
    try:
        served, held = load(args.bundle), read(args.out)
        print(gpu_report.accounting(gpu_layers.layers()), flush=True)
        lacking = gpu_machine.lacking()
        # With a GPU, the parity step compiles every variant.
        if missing := [*uncompiled(parts, every=bool(lacking)), *lacking]:
            sys.stderr.write(f"nothing was measured: {'; '.join(missing)}\n")
            return 1
        about = gpu_machine.describe() | {"bundle": f"{served.manifest.name}@{served.digest[:12]}"}
        results = resumed(held, about, parts, again=args.again)
    except ArgumentError as error:
        sys.stderr.write(f"gpu.py: error: {error}\n")
        return 2

    from tests.bench.gpu_clock import CudaClock

    run(CudaClock(), served, args, parts, results)
    for line in gpu_report.lines(results):
        print(line)
    print(json.dumps(results | {"bars": gpu_report.bars(results)}, allow_nan=False))
    troubles = list(gpu_report.troubles(results))
    sys.stderr.writelines(f"{trouble}\n" for trouble in troubles)
    return 1 if troubles else 0


# -------------------------------------------------------------------------------------------------
# before any figures


def load(folder: Path) -> Bundle:
    try:
        return bundle.load(folder)
    except BundleError as error:
        raise ArgumentError(f"--bundle: {error.detail}") from error


def uncompiled(parts: Sequence[str], *, every: bool) -> list[str]:
    """Why the kernels cannot be compiled here; nothing if they can. The service takes those of its
    bundle.

    every: compile all variants now."""
    if parts == ["service"]:
        return []
    try:
        begun, version = time.monotonic(), nvrtc.version()
        if every and "kernel" in parts:
            count = gpu_layers.compile_all()
            print(
                f"NVRTC {version}: {count} kernels compiled to PTX, {time.monotonic() - begun:.0f} "
                f"s",
                flush=True,
            )
    except nvrtc.NvrtcError as error:
        return [str(error)]
    return []


# ------------------------------------------------------------------------------------------------
# what --out remembers


def read(path: Path | None) -> Json:
    """What a run before this one left; empty if there was none. Raises ArgumentError."""
    if path is None:
        return {}
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentError(f"--out: {path} cannot be written")
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--out: {path} cannot be read ({error}): name another file") from error
    if not isinstance(held, dict) or not isinstance(held.get("machine"), dict):
        raise ArgumentError(f"--out: {path} holds no results of this benchmark: name another file")
    return held


def resumed(held: Json, about: Mapping[str, str], parts: Sequence[str], *, again: bool) -> Json:
    """Results to go on with: what is held, but for `parts` if they are measured again.

    Raises ArgumentError for results of another machine, other versions or another bundle: they
    belong into another table. With `again` they are dropped.
    """
    was = held.get("machine", about)
    differing = [name for name in about if was.get(name) != about[name]]
    if differing and not again:
        changes = "; ".join(f"{name} was {was.get(name)}, is {about[name]}" for name in differing)
        raise ArgumentError(
            f"--out holds other results ({changes}): name another file, or --again to drop them"
        )
    kept = [part for part in PARTS if not differing and not (again and part in parts)]
    return {"machine": dict(about)} | {part: held[part] for part in kept if part in held}


def save(path: Path | None, results: Json) -> None:
    if path is not None:
        unfinished = path.with_name(f"{path.name}.partial")
        unfinished.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, path)


# --------------------------------------------------------------------------------------------------
# the measuring


def run(
    clock: Any, served: Bundle, args: argparse.Namespace, parts: Sequence[str], results: Json
) -> None:
    """Every step that is not among the results; each is saved when it is done."""
    from tests.bench.gpu_clock import Pace, Setting

    begun = time.monotonic()
    for part in parts:
        left = countdown(
            begun + 60 * args.minutes * (1.0 if part == parts[-1] else PARTS[part].share)
        )
        done = results.setdefault(part, {})
        for name, step in steps_of(
            part, Setting(clock, Pace(), served, args.engine_cache, left)
        ).items():
            if finished(done.get(name)):
                continue
            started = time.monotonic()
            done[name] = attempt(step) if left() > 0 else {"not_measured": gpu_layers.NO_TIME}
            clock.free()
            save(args.out, results)
            print(f"{part}: {name}: {time.monotonic() - started:.0f} s", flush=True)


def countdown(end: float) -> Callable[[], float]:
    """Seconds until then, of time.monotonic."""
    return lambda: end - time.monotonic()


def finished(step: Json | None) -> bool:
    """Whether there is nothing more to find out: not what failed, or lacked something, or the
    time."""
    if step is None or gpu_report.why_not(step) is not None:
        return False
    return not any(
        each.get("not_measured") == gpu_layers.NO_TIME for each in step.get("plans", {}).values()
    )


def attempt(step: Callable[[], Json]) -> Json:
    from tests.bench.gpu_clock import ERRORS, reason

    try:
        return step()
    except (*ERRORS, FathomError) as error:
        return {"failed": reason(error)}


def steps_of(part: str, setting: Any) -> dict[str, Callable[[], Json]]:
    """Modules are imported here: what one needs may be missing, and the others run all the same."""
    from tests.bench.gpu_clock import reason

    found: dict[str, Callable[[], Json]] = {}
    for module in PARTS[part].modules:
        try:
            found |= importlib.import_module(f"tests.bench.{module}").steps(setting)
        except ImportError as error:
            found[module] = partial(dict, not_measured=reason(error))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
