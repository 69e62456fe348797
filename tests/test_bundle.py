"""A bundle: what is saved is loaded again, and a file that is not its own is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import GraphProto, SparseTensorProto, TensorProto, helper

from service import bundle
from service.bundle import Bundle, Manifest
from service.errors import BundleError
from tests.bundle_edits import change, put, refusal


def test_what_is_saved_is_loaded_again(fake_bundle: Bundle, fake_manifest: Manifest) -> None:
    loaded = bundle.load(fake_bundle.root)
    assert loaded == fake_bundle
    assert (
        loaded.digest
        == hashlib.sha256((fake_bundle.root / "manifest.json").read_bytes()).hexdigest()
    )
    assert loaded.manifest.encoder_plans == fake_manifest.encoder_plans
    assert loaded.manifest.graphs["48x64"].encoders["d3"] == "encoder-d3"
    assert loaded.manifest.layers == 4


def test_save_fills_in_the_sha256_of_every_file(fake_bundle: Bundle) -> None:
    entries = [*fake_bundle.manifest.stages.values(), *fake_bundle.manifest.files]
    assert len(entries) == 7
    for entry in entries:
        assert (
            entry.sha256 == hashlib.sha256((fake_bundle.root / entry.file).read_bytes()).hexdigest()
        )


def test_save_writes_nothing_that_load_would_refuse(fake_bundle: Bundle) -> None:
    before = (fake_bundle.root / "manifest.json").read_bytes()
    for wrong in (
        dataclasses.replace(
            fake_bundle.manifest, encoder_plans=fake_bundle.manifest.encoder_plans[::-1]
        ),
        dataclasses.replace(fake_bundle.manifest, graphs={}),
        dataclasses.replace(fake_bundle.manifest, files=(bundle.BundleFile("nothing.bin", ""),)),
    ):
        with pytest.raises(BundleError):
            bundle.save(fake_bundle.root, wrong)
    with pytest.raises(ValueError, match="Out of range float"):
        bundle.save(
            fake_bundle.root,
            dataclasses.replace(fake_bundle.manifest, calibration={"rho": float("nan")}),
        )
    assert (fake_bundle.root / "manifest.json").read_bytes() == before
    assert not list(fake_bundle.root.glob("*.partial"))


@pytest.mark.parametrize(
    "name", ["front.onnx", "encoder-d2.onnx", "decoder.onnx", "model.safetensors"]
)
def test_a_changed_or_missing_file_is_refused_by_name(fake_bundle: Bundle, name: str) -> None:
    path = fake_bundle.root / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert f"{name}: its sha256" in refusal(fake_bundle.root)
    path.unlink()
    assert f"{name}: there is no such file" in refusal(fake_bundle.root)


def test_a_missing_folder_or_manifest_is_refused_by_name(tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path / "nothing")
    assert "manifest.json" in refusal(tmp_path)
    assert "the service takes it by --bundle" in refusal(tmp_path / "nothing")
    assert str(Path.cwd()) in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_manifest_that_is_no_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json: it is no file\. Make it again"):
        bundle.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_manifest_that_is_no_object_is_told_what_it_must_be(
    fake_bundle: Bundle, content: str
) -> None:
    (fake_bundle.root / "manifest.json").write_text(content, encoding="utf-8")
    assert "manifest.json: it must be a JSON object" in refusal(fake_bundle.root)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b'{"schema": NaN}']
)
def test_a_manifest_that_is_no_manifest_is_refused(fake_bundle: Bundle, content: bytes) -> None:
    (fake_bundle.root / "manifest.json").write_bytes(content)
    refusal(fake_bundle.root)


@pytest.mark.parametrize(
    "name", ["../front.onnx", "/etc/hostname", "", ".", "sub/../../front.onnx"]
)
def test_a_name_that_leaves_the_folder_is_refused(fake_bundle: Bundle, name: str) -> None:
    (fake_bundle.root.parent / "front.onnx").write_bytes(b"front.onnx")
    change(fake_bundle.root, lambda value: value["stages"]["front"].update(file=name))
    assert repr(name) in refusal(fake_bundle.root) or "no such file" in refusal(fake_bundle.root)


def test_a_link_that_leaves_the_folder_is_refused(fake_bundle: Bundle) -> None:
    path = fake_bundle.root / "front.onnx"
    path.rename(fake_bundle.root.parent / "front.onnx")
    path.symlink_to(fake_bundle.root.parent / "front.onnx")
    assert "leaves the folder" in refusal(fake_bundle.root)


@pytest.mark.parametrize("where", ["initializer", "attribute", "sparse", "branch"])
def test_a_graph_may_take_tensors_from_listed_files_alone(fake_bundle: Bundle, where: str) -> None:
    def weights(location: str) -> TensorProto:
        tensor = TensorProto(name="w", dims=[1], data_location=TensorProto.EXTERNAL)
        # The order of a hand-made file: the value before the key is as good.
        tensor.external_data.add(value="0", key="offset")
        tensor.external_data.add(key="location", value=location)
        return tensor

    def graph_of(location: str) -> GraphProto:
        # "location" is a name like any other elsewhere.
        node = helper.make_node("Identity", ["location"], ["x"])
        info = helper.make_tensor_value_info("location", TensorProto.FLOAT, [1])
        graph = helper.make_graph([node], "g", [info], [], value_info=[info])
        if where == "initializer":
            graph.initializer.append(weights(location))
        elif where == "sparse":
            graph.sparse_initializer.append(SparseTensorProto(values=weights(location)))
        else:
            graph.node.append(helper.make_node("Constant", [], ["w"], value=weights(location)))
        if where == "branch":
            graph = helper.make_graph(
                [helper.make_node("If", ["w"], ["x"], then_branch=graph)], "g", [], []
            )
        return graph

    def put_graph(location: str) -> None:
        content = helper.make_model(graph_of(location)).SerializeToString()
        (fake_bundle.root / "decoder.onnx").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        change(fake_bundle.root, put(digest, "stages", "decoder", "sha256"))

    for good in ("model.safetensors", "./model.safetensors"):
        put_graph(good)
        assert bundle.load(fake_bundle.root).manifest
    (fake_bundle.root / "other.bin").write_bytes(b"0000")
    for bad in ("other.bin", "front.onnx", "../model.safetensors", "", "a\0b"):
        put_graph(bad)
        told = refusal(fake_bundle.root)
        assert f"decoder.onnx: it takes tensors from {bad!r}, which is not among files" in told
