"""Compile the kernels with NVRTC, NVIDIA's compiler as a library: no toolkit and no driver is
needed.

Install it with `pip install nvidia-cuda-nvrtc`; PyTorch for CUDA brings it along. Its C interface
is a handful of functions, so ctypes is enough. The version matters for PTX only: a driver refuses
PTX from a newer CUDA.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import metadata
from pathlib import Path

from model_export.kernels.launch import Launch

FOLDER = Path(__file__).parent
PACKAGE = "nvidia-cuda-nvrtc"


class NvrtcError(RuntimeError):
    """NVRTC is missing, or refused the source: then the message has the compiler's log."""


def compile_kernel(launch: Launch, arch: str) -> bytes:
    """PTX for arch "compute_90" (any chip from there on), a cubin for "sm_90" (chips of this
    generation)."""
    return compile_source(launch.source, tuple(f"-D{define}" for define in launch.defines), arch)


def compile_source(source: str, options: tuple[str, ...], arch: str) -> bytes:
    """Compile one of this folder's files; options as on the command line."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    text = (FOLDER / source).read_bytes()
    _check(
        nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None)
    )
    try:
        flags = [f"--gpu-architecture={arch}", "--std=c++17", f"--include-path={FOLDER}", *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        if status:
            log = _read(nvrtc, "ProgramLog", program).decode(errors="replace").rstrip("\0")
            raise NvrtcError(
                f"{source} for {arch} does not compile: {log or _message(nvrtc, status)}"
            )
        return _read(nvrtc, "PTX" if arch.startswith("compute_") else "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> str:
    """As "13.0"."""
    nvrtc, major, minor = _library(), ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


@cache
def _library() -> ctypes.CDLL:
    """From the Python package, else what the system's loader has (a toolkit)."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    paths = [
        str(f.locate()) for f in files if f.name.startswith("libnvrtc") and ".alt." not in f.name
    ]
    if paths:
        # The builtins first (they sort first): libnvrtc asks for them by their bare name.
        return _declared([ctypes.CDLL(path) for path in sorted(paths)][-1])
    for name in ("libnvrtc.so.13", "libnvrtc.so"):
        try:
            return _declared(ctypes.CDLL(name))
        except OSError:
            continue
    raise NvrtcError("NVRTC was not found: pip install '.[kernels]'")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    library.nvrtcCompileProgram.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return library


def _read(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(nvrtc, nvrtc[f"nvrtcGet{what}"](program, text))
    return text.raw


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        raise NvrtcError(_message(nvrtc, status))


def _message(nvrtc: ctypes.CDLL, status: int) -> str:
    text: bytes = nvrtc.nvrtcGetErrorString(status)
    return text.decode()
