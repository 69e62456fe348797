"""The compiled deformable attention for CPUs: against the loop over single samples, with each set
of instructions, with threads, and inside of ONNX Runtime."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from model_export.network.deformable_attention import deformable_attention
from service.bundle import Bundle
from service.engines import onnxruntime as engine
from service.engines.compiled import Attention, Compiled, compiled
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.errors import BackendError
from service.native import build
from service.native import library as opening
from tests.needs import compiled_library
from tests.small_network import worst
from tests.test_deformable_attention import slow_deformable_attention

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("seed")


@pytest.fixture(scope="module")
def library() -> Compiled:
    compiled_library()
    found = compiled()
    assert found is not None
    return found


def random_call(
    shapes: list[tuple[int, int]], heads: int, width: int, points: int, per_image: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Inputs, and room for the result."""
    batch, queries, levels = 2, 37, len(shapes)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width)
    offsets = 2.5 * torch.randn(batch, queries, heads, levels, points, 2)
    offsets[:, ::5] = offsets[:, ::5].round()  # on pixel centres
    offsets[:, 3::7] *= 1e9  # far outside
    logits = 3 * torch.randn(batch, queries, heads, levels, points)
    reference = torch.rand(*((batch,) if per_image else ()), queries, 2)
    return [value, offsets, logits, reference], torch.full((batch, queries, heads * width), 7.0)


def call_of(inputs: list[Tensor], shapes: list[tuple[int, int]], out: Tensor) -> Attention:
    sizes = np.array(shapes, np.int32)
    call = Attention.of(*(each.numpy() for each in inputs), sizes, out.numpy())
    call.keep = sizes
    return call


SHAPES = [[(3, 5)], [(1, 3), (5, 2)], [(1, 1), (3, 2), (5, 7)]]


@pytest.mark.parametrize("shapes", SHAPES, ids=["1", "2", "3"])
@pytest.mark.parametrize(("heads", "width", "points"), [(2, 3, 3), (8, 16, 4), (3, 32, 4)])
def test_it_equals_the_loop_over_single_samples(
    library: Compiled, shapes: list[tuple[int, int]], heads: int, width: int, points: int
) -> None:
    (value, offsets, logits, reference), out = random_call(shapes, heads, width, points)
    some = [value, offsets[:, :6].contiguous(), logits[:, :6].contiguous(), reference[:6]]
    out = out[:, :6].contiguous()
    library.attend(call_of(some, shapes, out), threads=1)
    want, outside = slow_deformable_attention(*some, shapes)
    assert outside > 5
    assert worst(out, want) < 1e-5


@pytest.mark.parametrize("name", [f"sample_{level}" for level in build.INSTRUCTIONS])
@pytest.mark.parametrize("per_image", [False, True])
def test_every_set_of_instructions_computes_the_same(
    library: Compiled, name: str, per_image: bool
) -> None:
    known = ("sample_base", "sample_v3", "sample_v4")
    best = known[("baseline", "AVX2", "AVX-512").index(library.instructions)]
    if known.index(name) > known.index(best):
        pytest.skip(f"this processor has {library.instructions}")
    for shapes in SHAPES:
        for heads, width, points in ((8, 16, 4), (5, 7, 3)):
            inputs, out = random_call(shapes, heads, width, points, per_image)
            call = call_of(inputs, shapes, out)
            rows = ctypes.c_int64(call.batch * call.queries)
            getattr(library.library, name)(ctypes.byref(call), ctypes.c_int64(0), rows)
            want = deformable_attention(*(each.double() for each in inputs), shapes)
            assert worst(out.double(), want) < 1e-5


@pytest.mark.parametrize("threads", [2, 3, 1, 5])
def test_threads_share_the_queries(library: Compiled, threads: int) -> None:
    shapes = [(13, 17), (26, 34)]
    batch, queries = 3, 26 * 34
    value = torch.randn(batch, 13 * 17 + queries, 8, 16)
    offsets, logits = torch.randn(batch, queries, 8, 2, 4, 2), torch.randn(batch, queries, 8, 2, 4)
    inputs, alone = [value, offsets, logits, torch.rand(queries, 2)], torch.empty(3, queries, 128)
    library.attend(call_of(inputs, shapes, alone), threads=1)
    for _ in range(20):
        out = torch.zeros(batch, queries, 128)
        library.attend(call_of(inputs, shapes, out), threads)
        assert torch.equal(out, alone)


def test_what_is_not_a_number_stays_inside_of_the_tensors(library: Compiled) -> None:
    inputs, out = random_call([(3, 5)], 8, 16, 4)
    inputs[1][0, 0, 0] = float("nan")
    inputs[2][0, 1, 0] = float("nan")
    inputs[1][0, 2, 0] = float("inf")
    library.attend(call_of(inputs, [(3, 5)], out), threads=1)
    assert out[1].isfinite().all()


def test_arrays_that_do_not_fit_are_refused(library: Compiled) -> None:
    shapes = [(3, 5)]
    inputs, out = random_call(shapes, 2, 4, 3)
    with pytest.raises(ValueError, match=r"value is float32 .*\(2, 16, 2, 4\)"):
        call_of(inputs, [(4, 4)], out)
    with pytest.raises(ValueError, match="out is float32"):
        call_of(inputs, shapes, out[:, 1:])
    with pytest.raises(ValueError, match="offsets is float64"):
        call_of([inputs[0], inputs[1].double(), *inputs[2:]], shapes, out)
    wide, out = random_call(shapes, 500, 1, 3)
    with pytest.raises(ValueError, match="1500 points"):
        library.attend(call_of(wide, shapes, out), threads=1)


def test_a_library_from_other_sources_is_refused(
    library: Compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opening, "digest", lambda: "0" * 64)
    with pytest.raises(BackendError, match=r"other sources: .*native\.build"):
        compiled()
    broken = tmp_path / "libfathom.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(opening, "LIBRARY", broken)
    with pytest.raises(BackendError, match="cannot be opened"):
        compiled()
    monkeypatch.setattr(opening, "LIBRARY", tmp_path / "none")
    assert compiled() is None


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    command = [sys.executable, "-m", "service.native.build"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "no C compiler (no-such-compiler" in run.stderr
    monkeypatch.setenv("CC", "cc --no-such-flag")
    with pytest.raises(build.BuildError, match="cc failed"):
        build.build()


def test_the_log_says_where_the_attention_is_computed(
    library: Compiled,
    onnx_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    OnnxRuntimeBackend(onnx_bundle, threads=1)
    assert f"attention compiled for {library.instructions}" in caplog.text
    OnnxRuntimeBackend(onnx_bundle, threads=1, decomposed=True)
    assert "own operators (as asked)" in caplog.text
    monkeypatch.setattr(engine, "compiled", lambda: None)
    OnnxRuntimeBackend(onnx_bundle, threads=1)
    assert "own operators (none compiled; with a C compiler: pip install" in caplog.text


@pytest.mark.parametrize("name", ["encoder-192x256-d1-w25", "encoder-192x256-d6-k25-w25"])
def test_onnxruntime_runs_it_in_place_of_the_nodes_body(
    library: Compiled, name: str, tmp_path: Path
) -> None:
    graph = ROOT / "trained_weights" / "camvid-tiny" / f"{name}.onnx"
    plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library.path)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    ours = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        feeds = {
            each.name: np.random.default_rng(batch)
            .standard_normal([batch, *each.shape[1:]])
            .astype(np.float32)
            for each in plain.get_inputs()
        }
        for got, want in zip(ours.run(None, feeds), plain.run(None, feeds), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
    profile = Path(ours.end_profiling()).read_text("utf-8")
    assert '"MsDeformAttn"' in profile
    assert "GridSample" not in profile
