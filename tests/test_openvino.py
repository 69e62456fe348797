"""OpenVINO computes what the graphs say, keeps its compiled models, and is taken by `auto` where
they are."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from service import bundle
from service.bundle import Bundle, Manifest
from service.engines import choice, engine_cache, openvino
from service.engines.base import rows_of
from service.engines.choice import choose_backend, open_named
from service.engines.compiled import Compiled, compiled
from service.engines.cuda import DriverError
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.engines.openvino import OpenVinoBackend
from service.errors import BackendError
from service.settings import Settings
from tests.small_graphs import check_backend, check_canvases, check_paused, pausing, write_graphs

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.skipif(compiled() is None, reason="no C compiler"),
    # OpenVINO's own, while it is imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_it_runs_what_the_graphs_say_for_every_plan_and_batch(
    onnx_bundle: Bundle, tmp_path: Path
) -> None:
    backend = OpenVinoBackend(onnx_bundle, threads=1, cache=tmp_path, precision="f32")
    check_backend(backend, onnx_bundle, (1, 2, 4))
    backend.close()
    backend.close()


def test_it_tells_paused_tokens_and_runs_several_canvases(
    tmp_path: Path, instance_manifest: Manifest, canvases_manifest: Manifest
) -> None:
    for name, manifest in (("a", pausing(instance_manifest)), ("b", canvases_manifest)):
        folder = tmp_path / name
        folder.mkdir()
        write_graphs(folder, manifest)
        served = bundle.save(folder, manifest)
        check = check_paused if name == "a" else check_canvases
        check(OpenVinoBackend(served, threads=2, cache=folder, precision="f32"), manifest)


@pytest.mark.parametrize(("precision", "most"), [("f32", 2e-3), ("bf16", 0.05)])
def test_a_shipped_bundle_s_cheapest_canvas_is_onnxruntimes(
    tmp_path: Path, precision: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16: where the processor lacks it, OpenVINO computes in float32."""
    shipped = bundle.load(ROOT / "trained_weights" / "camvid-tiny")
    graphs = shipped.manifest.graphs["192x256"]
    names = {graphs.front, *graphs.heads.values(), *graphs.encoders.values()}
    some = {name: stage for name, stage in shipped.manifest.stages.items() if name in names}
    for backend in (openvino, choice):
        monkeypatch.setattr(backend, "_log", logging.getLogger("test"))
    manifest = bundle.Manifest(
        **{
            field: some if field == "stages" else getattr(shipped.manifest, field)
            for field in bundle.Manifest.__dataclass_fields__
        }
    )
    served = Bundle(shipped.root, manifest, shipped.digest)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 192, 256, 3), np.uint8)
    pixels[0, :, :128] //= 4
    inputs = {"image": pixels, "size": np.array([[360, 480], [90, 120]], np.float32)}
    ours = OpenVinoBackend(served, threads=2, cache=tmp_path, precision=precision)
    again = OpenVinoBackend(served, threads=2, cache=tmp_path, precision=precision)
    theirs = OnnxRuntimeBackend(served, threads=2)
    assert len([*tmp_path.glob("*.blob")]) == len(some)
    features = theirs.run(graphs.front, inputs)
    for backend in (ours, again):
        seen = backend.run(graphs.front, inputs)
        np.testing.assert_allclose(seen["quality"], features["quality"], atol=most / 10)
        for name in graphs.encoders.values():
            got, want = (
                each.run(name, rows_of(features.arrays, [1, 0])) for each in (backend, theirs)
            )
            # Rounding may pause other tokens of almost the same entropy.
            assert np.abs(got["e8"] - want["e8"]).mean() < most / 10
            masks = (
                backend.run(next(iter(graphs.heads.values())), got),
                theirs.run(next(iter(graphs.heads.values())), want),
            )
            gap = np.abs(masks[0]["probabilities"] - masks[1]["probabilities"])
            assert gap.mean() < most / 10


def test_auto_takes_it_where_its_models_are_and_the_processor_is_made_for_it(
    onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> str:
        raise DriverError("no driver")

    there = {"onnxruntime", "openvino"}
    monkeypatch.setattr(choice, "installed", lambda name: name in there)
    library = compiled()
    assert library is not None

    def found(bfloat16: bool) -> tuple[str, str]:
        here = Compiled(library.library, library.path, library.instructions, bfloat16)
        monkeypatch.setattr(choice, "compiled", lambda: here)
        settings = Settings(engine_cache=tmp_path)
        chosen = choose_backend(settings, onnx_bundle, gpu=no_gpu)
        assert chosen.reason == "no-gpu"
        return chosen.backend, chosen.why

    assert found(True)[0] == "onnxruntime"
    assert "--backend openvino makes them" in found(True)[1]
    open_named("openvino", onnx_bundle, threads=1, max_batch=4, engine_cache=tmp_path).close()
    assert found(True)[0] == "openvino"
    assert str(engine_cache.openvino_folder(tmp_path, onnx_bundle.manifest)) in found(True)[1]
    assert found(False)[0] == "onnxruntime"
    there.remove("openvino")
    assert found(True) == (
        "onnxruntime",
        "there is no GPU to use (no driver), and OpenVINO is not installed",
    )
    with pytest.raises(BackendError, match=r"pip install '\.\[cpu,openvino\]'"):
        open_named("openvino", onnx_bundle, threads=1, max_batch=4, engine_cache=tmp_path)


def test_what_is_missing_or_broken_is_named(
    onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="another folder with --engine-cache"):
        OpenVinoBackend(onnx_bundle, threads=1, cache=tmp_path / "file" / "cache")
    graph = next(iter(onnx_bundle.manifest.stages.values())).file
    (onnx_bundle.root / graph).write_bytes(b"no graph")
    with pytest.raises(BackendError, match=f"{graph}: OpenVINO .* cannot open it"):
        OpenVinoBackend(onnx_bundle, threads=1, cache=tmp_path)
    monkeypatch.setattr(openvino, "compiled", lambda: None)
    with pytest.raises(BackendError, match=r"needs the compiled .*native\.build"):
        OpenVinoBackend(onnx_bundle, threads=1, cache=tmp_path)
