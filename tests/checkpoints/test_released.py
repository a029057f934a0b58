"""Kinds of released files: recognised by their tensors, opened as tasks, written so that the original reads them."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import KINDS, kind_of
from onepeace_lightning.checkpoints.released.labels import read_labels
from onepeace_lightning.models import Backbone, PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.tasks import load_task
from onepeace_lightning.tasks.saved import save_task
from tests.tiny import images, randomised, tiny_config


def sizes(*modalities, two_images=False):
    config = tiny_config()
    adapters = {name: config.adapters[name] for name in modalities}
    if two_images:
        adapters = {name: replace(adapter, type_embedding=True) for name, adapter in adapters.items()}
    return replace(config, adapters=adapters, per_block_tables=True)


def head(config, modality, outputs, **options):
    return ClassifyModel(config, PoolingConfig(outputs=outputs, pooled=(modality,), **options))


MODELS = {
    "pretrained": lambda: PretrainModel(sizes("text", "image", "audio"), denoise=False),
    "image-text-retrieval": lambda: PretrainModel(sizes("text", "image"), denoise=False),
    "audio-text-retrieval": lambda: PretrainModel(sizes("text", "audio"), denoise=False),
    "grounding": lambda: head(sizes("text", "image"), "image", 4),
    "vqa": lambda: head(sizes("text", "image"), "text", 7, pooler=True),
    "nlvr2": lambda: head(sizes("text", "image", two_images=True), "text", 2, images=2),
    "avqa": lambda: head(sizes("text", "audio"), "text", 1),
    "audio-classification": lambda: head(sizes("audio"), "audio", 5),
    "pooled-image-classification": lambda: head(sizes("image"), "image", 3),
}
HEAD_TYPES = {
    "pretrained": "val",
    "audio-text-retrieval": "al",
    "avqa": "al",
    "audio-classification": "audio",
    "pooled-image-classification": "image",
}


def written(name, folder, **options):
    torch.manual_seed(3)
    model = randomised(MODELS[name]())
    torch.save(to_original(model, **options), folder / f"{name}.pt")
    return folder / f"{name}.pt", model


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_is_recognised_and_opens_as_it_was(name, tmp_path):
    path, model = written(name, tmp_path)
    file = ReleasedFile.read(path)
    assert [kind.name for kind in KINDS if kind.recognise(file)] == [name]
    opened = kind_of(file).open(file, None)
    assert list(opened.config.adapters) == list(model.config.adapters)
    prefix = "" if not isinstance(model, Backbone) else "backbone."
    wanted = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    assert list(opened.weights) == list(wanted)
    assert all(torch.equal(opened.weights[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_is_one_that_fairseq_reads(name, tmp_path):
    path, model = written(name, tmp_path, audio_seconds=20.0)
    content = torch.load(path, weights_only=True)
    task, image = content["cfg"]["task"], model.config.adapters.get("image")
    assert task["_name"]
    assert task["bpe_dir"]
    assert task["head_type"] == HEAD_TYPES.get(name, "vl")
    assert task["patch_image_size"] == (image.image_size if image else 256)
    assert task["max_duration"] == 20
    assert task["num_classes"] == (model.head.config.outputs if isinstance(model, ClassifyModel) else None)
    assert task["use_two_images"] == (name == "nlvr2")
    assert all(isinstance(content["cfg"][group], dict) for group in ("common", "checkpoint", "criterion", "model"))
    assert content["args"] is None
    assert content["optimizer_history"][-1]["criterion_name"]
    assert content["extra_state"]["train_iterator"]["epoch"]


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("pretrained", "pooled"))])
def test_a_task_opens_saves_and_opens_again(name, tmp_path):
    path, model = written(name, tmp_path)
    task = load_task(path)
    assert type(task).__name__ == kind_of(ReleasedFile.read(path)).task
    save_task(task, tmp_path / "task.ckpt")
    again = load_task(tmp_path / "task.ckpt")
    assert again.config == task.config
    assert again.settings() == task.settings()
    assert again.preprocessing == task.preprocessing
    for opened in (task, again):
        assert all(torch.equal(opened.model.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in task.model.parameters())


def test_a_task_takes_options_of_the_user(tmp_path):
    path, _ = written("grounding", tmp_path)
    assert load_task(path).pooled == "image"
    task = load_task(path, pooled="text", trainable="head", drop_path=0.3)
    assert task.pooled == "text"
    assert task.model.head.config.pooled == ("text",)
    assert task.config.encoder.drop_path == 0.3
    assert {name.split(".")[0] for name, p in task.model.named_parameters() if p.requires_grad} == {"head"}


def test_labels_name_the_outputs(tmp_path):
    path, _ = written("vqa", tmp_path)
    (tmp_path / "answers.txt").write_text("\n".join("abcdefg"))
    assert load_task(path).names == list("0123456")
    assert load_task(path, labels=tmp_path / "answers.txt").names == list("abcdefg")
    (tmp_path / "answers.txt").write_text("\n".join("abc"))
    with pytest.raises(ValueError, match=r"vqa\.pt has 7 classes, the labels are 3; give one name for each"):
        load_task(path, labels=tmp_path / "answers.txt")
    path, _ = written("grounding", tmp_path)
    with pytest.raises(ValueError, match="has no labels; leave labels="):
        load_task(path, labels=tmp_path / "answers.txt")


def test_what_a_file_is_not_is_said(tmp_path):
    path, _ = written("pretrained", tmp_path)
    with pytest.raises(ValueError, match="answers nothing by itself: open it with OnePeace"):
        load_task(path)
    path, _ = written("audio-classification", tmp_path)
    with pytest.raises(ValueError, match="reads no text; leave bpe_dir="):
        load_task(path, bpe_dir=tmp_path)
    torch.save({"model": {"visual.proj": torch.zeros(1)}}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip\.pt is no released model of ONE-PEACE: .*visual\.proj"):
        load_task(tmp_path / "clip.pt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\ndog\n\nred cow\n"),
        ("a.json", '["cat", "dog", "red cow"]'),
        ("a.json", '{"1": ["dog", "hound"], "0": ["cat"], "2": ["red cow"]}'),
        ("a.json", '{"dog": 1, "cat": 0, "red cow": 2}'),
        ("a.csv", "0,cat,/m/1\n1,dog,/m/2\n2,red cow,/m/3\n"),
        ("a.csv", "\ufeffindex,name\n2,dog\n1,cat\n3,red cow\n"),
        ("a.tsv", "0\tcat\n1\tdog\n2\tred cow\n"),
    ],
)
def test_labels_in_the_forms_that_data_sets_have(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == ["cat", "dog", "red cow"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "cat\ncat\n", "names 'cat' twice"),
        ("a.txt", "", "names nothing"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"0": "cat", "2": "dog"}', "without a gap"),
        ("a.json", "[1, 2]", "no file of labels"),
        ("a.csv", "0\n1\n", "a row without a name"),
        ("a.csv", "0,cat\n0,dog\n", "stands twice"),
        ("a.pkl", "x", "no file of labels"),
    ],
)
def test_files_that_are_no_labels_say_so(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name)


def test_without_a_temperature_it_starts_at_its_initial_value(tmp_path):
    path, _ = written("pretrained", tmp_path)
    content = torch.load(path, weights_only=True)
    del content["model"]["logit_scale"]
    torch.save(content, path)
    opened = OnePeace.from_pretrained(path)
    assert opened.model.heads.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert opened.report.missing == ["heads.logit_scale"]


def test_flat_arguments_overrule_the_configuration(tmp_path):
    path, _ = written("audio-text-retrieval", tmp_path)
    content = torch.load(path, weights_only=True)
    content["args"] = argparse.Namespace(task="audio_text_retrieval", max_duration=12, arch="one_peace_retrieval")
    torch.save(content, path)
    file = ReleasedFile.read(path)
    assert file.found == ("argparse.Namespace",)
    assert kind_of(file).open(file, None).preprocessing["audio"] == {"max_seconds": 12.0}


@pytest.mark.parametrize(
    ("said", "where", "pooled"),
    [
        (True, "refcocog", "image"),
        (False, "refcoco", "text"),
        (None, "refcocog", "text"),
        (None, "refcoco+", "image"),
        (None, "refcoco", "image"),
        (None, "", "image"),
    ],
)
def test_what_grounding_pools_is_said_or_follows_from_the_data_set(said, where, pooled, tmp_path):
    path, _ = written("grounding", tmp_path)
    content = torch.load(path, weights_only=True)
    content["cfg"]["task"]["data"] = f"dataset/{where}/train.tsv"
    content["cfg"]["task"]["_name"] = None
    content["cfg"]["model"].pop("use_image_features")
    if said is not None:
        content["cfg"]["model"]["use_image_features"] = said
    torch.save(content, path)
    assert load_task(path).pooled == pooled


@torch.no_grad()
def test_the_image_branch_gives_what_the_last_block_gives(tmp_path):
    torch.manual_seed(5)
    whole = randomised(Backbone(sizes("image"))).eval()
    tensors = {
        name.removeprefix("encoder_wrapper.").replace("fusion_model.", "encoder."): tensor
        for name, tensor in to_original(whole)["model"].items()
        if "image_layer_norm" not in name
    }
    tensors["image_adapter.rp_bucket"] = torch.zeros(10, 10, dtype=torch.int64)
    torch.save({"model": tensors, "__author__": "ofa", "matching_heuristics": True}, tmp_path / "branch.pt")
    branch = OnePeace.from_pretrained(tmp_path / "branch.pt")
    inputs = {"image": images(2)}
    features, _ = branch.model(inputs)["image"].padded()
    normed, _ = whole(inputs)["image"].padded()
    torch.testing.assert_close(whole.encoder.norms["image"](features), normed)
    branch.save_pretrained(tmp_path / "folder")
    again, _ = OnePeace.from_pretrained(tmp_path / "folder").model(inputs)["image"].padded()
    assert torch.equal(again, features)


def test_labels_of_two_forms_are_the_same(tmp_path):
    names = [f"class {number}" for number in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(names))
    (tmp_path / "b.json").write_text(json.dumps({name: number for number, name in reversed(list(enumerate(names)))}))
    assert read_labels(tmp_path / "a.json") == read_labels(tmp_path / "b.json") == names
