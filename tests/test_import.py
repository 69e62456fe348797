"""`python -m model_export import`: a Mask2Former of transformers becomes a run that computes the
same, or is refused by the name of what stands in the way."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_export.__main__ import main
from model_export.importing.checkpoint import CheckpointError
from model_export.importing.import_checkpoint import things_of
from model_export.network.knobs import Knobs
from model_export.network.segmenter import semantic_probabilities
from model_export.training import runs
from model_export.training.bundle_weights import WEIGHTS
from model_export.training.runs import classes_of, load_model, read_config
from tests.checkpoints import BACKBONES, CLASSES, PROCESSOR, STAGES, random_model, saved

MOST = 1e-3  # of a logit
THINGS = {"panoptic": ["--things", "0-2"], "instance": [], "semantic": []}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random_model(), tmp_path_factory.mktemp("checkpoints") / "swin")


def imported(folder: Path, run: Path, task: str = "panoptic") -> Path:
    assert main(["import", str(folder), "--out", str(run), "--task", task, *THINGS[task]]) == 0
    return run


@pytest.mark.parametrize(
    ("backbone", "task"),
    [
        ("swin", "panoptic"),
        ("resnet", "instance"),
        ("convnext", "semantic"),
        ("swinv2", "panoptic"),
        ("pvt_v2", "instance"),
    ],
)
def test_the_full_plan_gives_the_checkpoints_logits(
    backbone: str, task: str, tmp_path: Path
) -> None:
    theirs = random_model(backbone)
    run = imported(saved(theirs, tmp_path / "checkpoint"), tmp_path / "run", task)
    (config, canvases, _), ours = read_config(run), load_model(run)
    assert (config.task, classes_of(run)) == (task, tuple(f"LABEL_{i}" for i in range(CLASSES)))
    assert [canvas.name for canvas in canvases] == ["c64", "c96", "c128"]
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), np.uint8))
    scaled = images.permute(0, 3, 1, 2) * PROCESSOR["rescale_factor"]
    mean, std = (torch.tensor(PROCESSOR[k])[:, None, None] for k in ("image_mean", "image_std"))
    with torch.no_grad():
        wanted = theirs(pixel_values=(scaled - mean) / std)
        (got,) = ours(images, Knobs(config.exits))
    assert (got.classes - wanted.class_queries_logits).abs().max() < MOST
    assert (got.masks - wanted.masks_queries_logits).abs().max() < MOST
    assert semantic_probabilities(got).shape == (2, CLASSES, 24, 32)


def test_a_full_disk_leaves_a_run_with_the_weights_and_names_that_belong_together(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, other = tmp_path / "run", random_model(num_labels=CLASSES + 1)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_file", full)
        assert main(["import", str(checkpoint), "--out", str(run), "--task", "semantic"]) == 1
    assert f"{run / WEIGHTS}: No space left on device" in capsys.readouterr().err
    imported(checkpoint, run, "semantic")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    newer = saved(other, tmp_path / "newer")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_file", full)
        assert main(["import", str(newer), "--out", str(run), "--task", "semantic"]) == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    imported(newer, run, "semantic")
    assert len(classes_of(run)) == CLASSES + 1


def test_shards_are_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model()
    folder = saved(model, tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    index = folder / "model.safetensors.index.json"
    imported(folder, tmp_path / "run")
    listed = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": listed["weight_map"]}))
    assert main(["import", str(folder), "--out", str(tmp_path / "other")]) == 1
    assert f"{index}: metadata is missing" in capsys.readouterr().err
    index.write_text(json.dumps(listed | {"metadata": {}}))  # what the message says
    imported(folder, tmp_path / "run")
    next(folder.glob("model-00002*")).unlink()
    assert main(["import", str(folder), "--out", str(tmp_path / "other")]) == 1


def test_files_of_earlier_versions_are_read(checkpoint: Path, tmp_path: Path) -> None:
    """transformers 4, in which the published ones were saved, stored the places in a window, and
    gave the backbone no norm of a classifier."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    file = folder / "model.safetensors"
    state = {name: v for name, v in load_file(file).items() if ".swin.layernorm." not in name}
    tables = [name for name in state if name.endswith("self.relative_position_bias_table")]
    assert len(state) + 2 == len(load_file(file))
    assert len(tables) == 5  # one a block
    for name in tables:
        places = name.replace("bias_table", "index")
        state[places] = torch.zeros(16, 16, dtype=torch.int64)
    save_file(state, file, metadata={"format": "pt"})
    run, other = imported(folder, tmp_path / "run"), imported(checkpoint, tmp_path / "other")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8))
    with torch.no_grad():
        (got,), (wanted,) = (load_model(path)(images, Knobs(3)) for path in (run, other))
    assert torch.equal(got.masks, wanted.masks)


def test_two_classes_without_names_are_those_of_transformers(tmp_path: Path) -> None:
    folder = saved(random_model("resnet", num_labels=2), tmp_path / "checkpoint")
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    run = imported(folder, tmp_path / "run", "semantic")
    assert classes_of(run) == ("LABEL_0", "LABEL_1")


def test_a_backbone_that_answers_by_tuples_is_made_to_name_its_maps(tmp_path: Path) -> None:
    folder = saved(random_model("resnet"), tmp_path / "checkpoint")
    about = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit(folder / "config.json", backbone_config=about | {"return_dict": False})
    images = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    _, maps = load_model(imported(folder, tmp_path / "run", "semantic")).features(images)
    assert [tuple(m.shape[2:]) for m in maps] == [(2, 2), (4, 4), (8, 8)]


def test_pixels_that_are_not_normalised_are_told_of(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many a recipe normalises before the processor, which it saves with do_normalize false."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    imported(folder, tmp_path / "run")
    assert "do_normalize" not in capsys.readouterr().err
    edit(folder / "preprocessor_config.json", do_normalize=False, do_rescale=False)
    config, _, _ = read_config(imported(folder, tmp_path / "run"))
    assert config.imported is not None
    assert (config.imported.mean, config.imported.std) == ((0, 0, 0), (1, 1, 1))
    assert "do_normalize is false" in capsys.readouterr().err


def test_one_number_normalises_all_three_channels(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    edit(folder / "preprocessor_config.json", image_mean=0.5, image_std=0.25, rescale_factor=0.004)
    config, _, _ = read_config(imported(folder, tmp_path / "run"))
    assert config.imported is not None
    assert (config.imported.mean, config.imported.std) == ((125,) * 3, (62.5,) * 3)


def test_a_file_about_all_processors_is_read_as_transformers_reads_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    """It goes before that of images, or stands for it, where it says something of images."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    both = folder / "processor_config.json"
    for content, size in (
        ({"processor_class": "Other"}, "96x128"),
        ({"image_processor": PROCESSOR | {"size": {"height": 64, "width": 160}}}, "64x160"),
    ):
        both.write_text(json.dumps(content))
        _, canvases, _ = read_config(imported(folder, tmp_path / "run"))
        assert [shape.name for shape in canvases[-1].shapes] == [size]
    (folder / "preprocessor_config.json").unlink()
    imported(folder, tmp_path / "run")


def test_things_are_named_also_where_names_have_commas() -> None:
    names = ["car", "car, parked", "bus, red", "sky"]
    for given, things in (
        ("car,sky", (True, False, False, True)),
        ("car, parked,bus, red", (False, True, True, False)),
        ("car,car, parked", (True, True, False, False)),
    ):
        assert things_of(given, names, "panoptic") == things
    with pytest.raises(CheckpointError, match="no class is named 'bus'"):
        things_of("car,bus", names, "panoptic")


def test_thresholds_names_and_things_come_from_the_files(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "mask2former-panoptic")
    names = ["person", "car", "dog", "sky", "road"]
    edit(folder / "config.json", id2label=dict(enumerate(names)), threshold=0.25)
    edit(folder / "preprocessor_config.json", size={"shortest_edge": 96, "longest_edge": 120})
    categories = [{"name": name, "isthing": int(name in names[:3])} for name in names]
    (tmp_path / "coco.json").write_text(json.dumps({"categories": categories}))
    run = tmp_path / "run"
    ask = ["import", str(folder), "--out", str(run), "--things", str(tmp_path / "coco.json")]
    assert main([*ask, "--overlap-threshold", "0.5"]) == 0
    config, canvases, _ = read_config(run)
    assert (config.task, config.head) == ("panoptic", "queries")
    assert config.things == (True, True, True, False, False)
    assert config.thresholds == (0.25, 0.5, 0.5)
    assert classes_of(run) == tuple(names)
    assert [shape.name for shape in canvases[-1].shapes] == ["96x128", "128x96"]


# --------------------------------------------------------------------------------------------------
# refusals


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def no_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def linked(name: str) -> Callable[[Path], None]:
    """A link whose file stayed behind, as in a copy of a cache of downloads."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path("../../blobs") / name)

    return change


def linked_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    linked("model.safetensors.index.json")(folder)


def linked_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    linked("b.safetensors")(folder)


def without(*words: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        kept = {
            name: value
            for name, value in load_file(file).items()
            if not any(word in name for word in words)
        }
        save_file(kept, file, metadata={"format": "pt"})

    return change


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Of one tensor."""

    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        state = load_file(file)
        state["class_predictor.bias"] = change(state["class_predictor.bias"])
        save_file(state, file, metadata={"format": "pt"})

    return write


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def processor(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "preprocessor_config.json", **changes)


def named(name: object) -> Callable[[Path], None]:
    return config(id2label={str(i): str(i) if i else name for i in range(CLASSES)})


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no processor": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        "preprocessor_config.json is missing",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "pickled": (pickled, "pytorch_model.bin only"),
    "half": (lambda f: cut(f / "model.safetensors"), "not downloaded to its end"),
    "pointer": (lambda f: (f / "model.safetensors").write_text("version"), "download it again"),
    "no shards": (no_shards, "index.json: weight_map must name the file of each tensor"),
    "config left behind": (linked("config.json"), "config.json is a link to ../../blobs/config.js"),
    "processor left behind": (
        linked("preprocessor_config.json"),
        "preprocessor_config.json is a link to ../../blobs/preprocessor_config.json, which is not",
    ),
    "weights left behind": (
        linked("model.safetensors"),
        "model.safetensors is a link to ../../blobs/model.safetensors, which is not there: copy",
    ),
    "index left behind": (linked_index, "model.safetensors.index.json is a link to ../../blobs/"),
    "shard left behind": (linked_shard, "b.safetensors is a link to ../../blobs/b.safetensors, "),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "must be a JSON object"),
    "code": (config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "a variant": (
        lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"),
        "if model.fp16.safetensors is the whole network, rename it",
    ),
    "another model": (config(model_type="oneformer"), "model_type: 'oneformer'"),
    "no heads": (config(architectures=["Mask2FormerModel"]), "architectures"),
    "video": (
        config(architectures=["Mask2FormerForVideoSegmentation"]),
        "architectures: ['Mask2FormerForVideoSegmentation'] cannot be served: its heads are others",
    ),
    "pre-norm": (config(pre_norm=True), "pre_norm"),
    "quantised": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "quantization_config: quantised weights",
    ),
    "other weights": (config(transformers_weights="b.safetensors"), "transformers_weights: 'b.saf"),
    "projection": (config(enforce_input_projection=True), "enforce_input_projection"),
    "activation": (config(activation_function="gelu"), "activation_function: 'gelu'"),
    "stride": (config(common_stride=8), "common_stride"),
    "strides": (config(feature_strides=[8, 16, 32, 64]), "feature_strides"),
    "widths": (config(mask_feature_size=32), "mask_feature_size"),
    "heads": (config(num_attention_heads=5), "num_attention_heads"),
    "layers": (config(encoder_layers=0), "encoder_layers"),
    "a name": (config(backbone="microsoft/swin", backbone_config=None), "backbone: 'microsoft"),
    "names": (config(id2label=None), "id2label: must name the classes"),
    "classes": (config(id2label={"0": "a", "2": "b"}), "every class from 0 on; 1 lacks one"),
    "fewer classes": (
        config(id2label={"0": "a", "1": "b"}, num_labels=CLASSES),
        "id2label: names 2 classes, and the network has 5",
    ),
    "many classes": (config(id2label={str(i): str(i) for i in range(256)}), "256 classes; at most"),
    "other queries": (config(num_queries=9), "queries_embedder.weight another shape"),
    "fewer tensors": (without("class_predictor"), "class_predictor.bias is missing"),
    "more layers": (config(encoder_layers=4), "is missing"),
    "fewer layers": (config(encoder_layers=2), "is not of this network"),
    "mean": (processor(image_mean=[0.5]), "image_mean"),
    "std": (processor(image_std=[0.5, 0, 0.5]), "image_std"),
    "images": (
        lambda f: (f / "processor_config.json").write_text('{"image_processor": 5}'),
        "processor_config.json: image_processor: 5 must be an object",
    ),
    "mean of images": (
        lambda f: (f / "processor_config.json").write_text('{"image_processor": {}}'),
        "processor_config.json: size: None names no size",
    ),
    "size": (processor(size={"max_height": 5}), "--canvases"),
    "a list as size": (processor(size=[64, 96]), "size: [64, 96] names no size"),
    "threshold": (processor(threshold=2), "threshold: 2"),
    "threshold true": (processor(threshold=True), "threshold: True"),
    "mean NaN": (processor(image_mean=[math.nan, 0, 0]), "image_mean: must be three numbers"),
    "mean large": (processor(image_mean=[1e308, 0, 0]), "image_mean: must be three numbers"),
    "std infinite": (processor(image_std=[math.inf, 1, 1]), "image_std: must be three numbers"),
    "scale NaN": (processor(rescale_factor=math.nan), "rescale_factor: must be a positive"),
    "scale true": (processor(rescale_factor=True), "rescale_factor: must be a positive"),
    "rescale text": (processor(do_rescale="false"), "do_rescale: must be true or false"),
    "normalize text": (processor(do_normalize="false"), "do_normalize: must be true or false"),
    "NaN": (changed(lambda bias: bias * math.nan), "class_predictor.bias has values that are no"),
    "int8": (changed(lambda bias: bias.to(torch.int8)), "class_predictor.bias is of I8: quantised"),
    "float8": (changed(lambda bias: bias.to(torch.float8_e4m3fn)), "is of F8_E4M3: quantised"),
    "nested": (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read"),
    "no head": (config(num_attention_heads=0), "num_attention_heads 0"),
    "no width": (
        config(hidden_dim=0, feature_size=0, mask_feature_size=0),
        "hidden_dim: 0 must be a multiple of 32",
    ),
    "listed widths": (config(mask_feature_size=[64]), "mask_feature_size: [64, 64, [64]] must"),
    "kinds": (config(architectures=5), "architectures: 5 must be a list"),
    "backbone 5": (config(backbone_config=5), "backbone_config: 5 must be an object"),
    "gray": (
        config(backbone_config={"model_type": "swin", "num_channels": 1}),
        "backbone_config: num_channels: 1 cannot be served",
    ),
    "backbone nope": (config(backbone_config={"model_type": "nope"}), "model_type 'nope' is unk"),
    "no backbone": (
        config(backbone_config={"model_type": "segformer"}),
        "backbone_config: model_type 'segformer' is no backbone in transformers",
    ),
    "depths": (
        config(backbone_config={"model_type": "swin", "depths": "abc"}),
        "config.json: transformers cannot make the network of it",
    ),
    "text": (
        config(encoder_feedforward_dim="96"),
        "config.json: transformers cannot make the network of it",
    ),
    "dropout": (config(dropout="x"), "config.json: transformers cannot make the network of it"),
    "surrogate": (named("\ud800"), r"id2label: 0: '\ud800' must be one line of text"),
    "line break": (named("a\nb"), r"id2label: 0: 'a\nb' must be one line of text"),
    "no name": (named(""), "id2label: 0: '' must be one line of text"),
    "null": (named(None), "id2label: 0: None must be one line of text"),
    "a list of names": (named(["a"]), "id2label: 0: ['a'] must be one line of text"),
    "twice": (named("1"), "id2label: two classes are named '1'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(
    case: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    change, words = REFUSED[case]
    change(folder)
    ask = ["import", str(folder), "--out", str(tmp_path / "run"), "--task", "panoptic"]
    assert main([*ask, "--things", "0-1"]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "what it was trained for"),
        (["--task", "panoptic"], "--things"),
        (["--task", "panoptic", "--things", "0-9"], "the classes are 0 to 4"),
        (["--task", "panoptic", "--things", "cat"], "no class is named 'cat'"),
        (["--task", "panoptic", "--things", ","], "--things ,: it names no class"),
        (["--task", "panoptic", "--things", "no.json"], "--things no.json: there is no such file"),
        (["--task", "semantic", "--things", "0-1"], "--things is for a panoptic"),
        (["--task", "semantic", "--canvases", "100x100"], "100x100"),
    ],
)
def test_what_the_checkpoint_does_not_say_is_asked_for(
    more: list[str],
    words: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["import", str(checkpoint), "--out", str(tmp_path), *more]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "architecture", "words"),
    [
        ("maskformer", "MaskFormerForInstanceSegmentation", "model_type: 'maskformer'"),
        ("mask2former", "Mask2FormerModel", "['Mask2FormerModel'] cannot be served"),
    ],
)
def test_another_network_is_refused_before_anything_else_is_asked_for(
    kind: str, architecture: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for a task nor for files, which others name otherwise."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    about = {"model_type": kind, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(about))
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 1
    assert words in capsys.readouterr().err


def test_a_backbone_that_makes_no_numbers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of weights that are all numbers: export would tell, minutes later."""
    model = random_model("resnet")
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.neg_()
    folder = saved(model, tmp_path / "checkpoint")
    ask = ["import", str(folder), "--out", str(tmp_path / "run"), "--task", "semantic"]
    assert main(ask) == 1
    assert "its backbone computes NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_small_sizes_share_a_canvas(checkpoint: Path, tmp_path: Path) -> None:
    """Three quarters of one can have the longest side of the whole, once rounded up to 32."""
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    edit(folder / "preprocessor_config.json", size={"height": 70, "width": 90})
    _, canvases, _ = read_config(imported(folder, tmp_path / "run"))
    assert [shape.name for canvas in canvases for shape in canvas.shapes] == ["64x64", "96x96"]


def test_a_backbone_with_other_strides_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(random_model("dinov2"), tmp_path / "checkpoint")
    assert main(["import", str(folder), "--out", str(tmp_path), "--task", "semantic"]) == 1
    assert "backbone_config: its maps of a 64x64 image" in capsys.readouterr().err


def test_a_backbone_of_more_maps_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers takes it: its encoder then has four scales."""
    made = BACKBONES["resnet"]
    stages = {"out_features": ["stem", *STAGES], "out_indices": [*range(5)]}
    monkeypatch.setitem(BACKBONES, "resnet", lambda: type(made())(**made().to_dict() | stages))
    folder = saved(random_model("resnet"), tmp_path / "checkpoint")
    assert main(["import", str(folder), "--out", str(tmp_path), "--task", "semantic"]) == 1
    assert "backbone_config: out_features: it gives 5; there must be 4 maps" in (
        capsys.readouterr().err
    )


def test_more_queries_than_answers_can_have_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(random_model("resnet", num_queries=256), tmp_path / "checkpoint")
    ask = ["import", str(folder), "--out", str(tmp_path / "run"), "--task"]
    assert main([*ask, "instance"]) == 1
    assert "num_queries: 256 are too many for instance: at most 255" in capsys.readouterr().err
    assert main([*ask, "semantic"]) == 0  # whose answers have no queries


def test_sizes_that_a_backbone_with_learned_positions_cannot_take_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(random_model("hiera"), tmp_path / "checkpoint")
    ask = ["import", str(folder), "--out", str(tmp_path / "run"), "--task", "semantic"]
    assert main(ask) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["canvases"] == [[[96, 128]]]
    assert "left out" in said.err
    assert "64x64" in said.err
    assert main([*ask, "--canvases", "64x64", "96x128"]) == 1  # who names one wants it
    assert "cannot take an image of 64x64" in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert f"{tmp_path / 'none'} is no folder" in capsys.readouterr().err
