"""What a machine lacks for the GPU benchmark, and what it is: chip, driver, versions. Imports torch
where it is."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from service.engines.cuda import Device, DriverError
from tests.bench.gpu_layers import OLDEST

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = "unknown"


def lacking() -> list[str]:
    """What must be mended before anything can be measured. The first CUDA calls are made here."""
    found = []
    try:
        # Not closed: torch uses the same context, which must not be destroyed while it is this
        # thread's.
        capability = Device().capability
        if capability < OLDEST:
            needed = "{}.{}".format(*OLDEST)
            found.append(
                "the GPU's compute capability is {}.{}, the kernels need {}".format(
                    *capability, needed
                )
            )
    except DriverError as error:
        found.append(f"there is no GPU to use ({error})")
    if importlib.util.find_spec("torch") is None:
        found.append("PyTorch is not installed: pip install '.[export]'")
    else:
        import torch

        if torch.version.cuda is None:
            found.append(f"PyTorch {torch.__version__} was built without CUDA")
        elif not found and not torch.cuda.is_available():
            found.append(f"PyTorch {torch.__version__} sees no GPU, though the driver does")
    return found


def describe() -> dict[str, str]:
    """The machine and the versions that the figures belong to. Needs a GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "memory": f"{gpu.total_memory / 2**30:.0f} GiB",
        "multiprocessors": str(gpu.multi_processor_count),
        "l2": f"{gpu.L2_cache_size / 2**20:.0f} MiB",
        "driver": words_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "onnxruntime": version_of("onnxruntime-gpu", "onnxruntime"),
        "tensorrt": version_of("tensorrt", "tensorrt-rtx"),
        "python": platform.python_version(),
        "cpu": f"{os.cpu_count()} cores, {platform.machine()}",
        "revision": words_of("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def version_of(*packages: str) -> str:
    """Of the first of them that is installed, with its name."""
    for package in packages:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def words_of(command: str, *arguments: str) -> str:
    """The first line that a command writes; "unknown" where it is missing or fails."""
    if shutil.which(command) is None:
        return UNKNOWN
    done = subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else UNKNOWN
