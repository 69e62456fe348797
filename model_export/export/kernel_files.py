"""The compiled kernels of a bundle: one file for each distinct problem of its graphs and each type
of storage.

They are PTX for compute capability 8.0, which the driver of any newer chip compiles for itself; to
build engines nothing else is needed. Without NVRTC the bundle is still written, for ONNX Runtime.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import onnx

from model_export.export.attention import Form, forms_of
from model_export.files import naming
from model_export.kernels import nvrtc
from model_export.kernels.launch import DTYPES, LaunchError, Problem, describe
from service.bundle import KernelFile

ARCHITECTURE = "compute_80"


def problem_of(form: Form, dtype: str) -> Problem:
    return Problem(
        tuple(form.shapes),
        form.heads,
        form.points,
        form.width,
        dtype,
        dense=form.dense,
        reference_per_image=form.per_image,
    )


def problems_of(graphs: Iterable[Path]) -> list[Problem]:
    """The distinct problems of all graphs, in every type of storage."""
    forms = [
        form for path in graphs for _, form in forms_of(onnx.load(path, load_external_data=False))
    ]
    return list(dict.fromkeys(problem_of(form, dtype) for form in forms for dtype in DTYPES))


def file_name(problem: Problem) -> str:
    """E.g. "ms_deform_attn-12x15.24x30-float16.ptx.gz"; "-some" before the type stands for a
    subset of the queries, "-per-image" for reference points of each image."""
    levels = ".".join(f"{h}x{w}" for h, w in problem.shapes)
    some = ("" if problem.dense else "-some") + (
        "-per-image" if problem.reference_per_image else ""
    )
    return f"ms_deform_attn-{levels}{some}-{problem.dtype}.ptx.gz"


def write_kernels(folder: Path, graphs: Iterable[Path]) -> tuple[KernelFile, ...]:
    """Write the files, and return what manifest.json says about them. Prints what is missing, and
    why."""
    problems = problems_of(graphs)
    try:
        nvrtc.version()
    except nvrtc.NvrtcError as error:
        print(f"the bundle has no CUDA kernels, so that build-trt cannot use it: {error}")
        return ()
    files = []
    for problem in problems:
        try:
            launch = describe(problem)
        except LaunchError as error:
            print(f"no CUDA kernel {file_name(problem)}: {error}")
            continue
        ptx = nvrtc.compile_kernel(launch, ARCHITECTURE)
        # A sixth of the size, and the same bytes each time.
        file = folder / file_name(problem)
        with naming(file):
            file.write_bytes(gzip.compress(ptx, mtime=0))
        files.append(KernelFile(file_name(problem), "", problem, launch))
    return tuple(files)
