from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import kind_of
from onepeace_lightning.cli import main
from onepeace_lightning.tasks import ClassificationTask
from onepeace_lightning.tasks.saved import save_task
from tests.inference.conftest import CAPTIONS, save_original, tiny_onepeace


def convert(*words):
    main(["convert", *map(str, words)])


def fails(*words, says):
    with pytest.raises(SystemExit, match=says) as stop:
        convert(*words)
    assert str(stop.value).startswith("onepeace convert: ")


def weights(source, **options):
    return OnePeace.from_pretrained(source, **options).model.state_dict()


def same(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_originals_checkpoint_becomes_a_folder_with_its_vocabulary(here, capsys):
    path, model = save_original(here)
    convert(path, "--bpe-dir", here / "bpe", "--out", "new/folder")
    printed = capsys.readouterr().out
    assert "every tensor fits" in printed
    assert "PretrainModel: width 24, 3 blocks, 2 heads, text, image, audio" in printed
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"parameters: {total / 1e6:.1f} M in float32 (backbone" in printed
    assert "images 48×48" in printed
    assert "token ids (GPT2BPETokenizer)" in printed
    assert f"{Path('new/folder/model.safetensors')}: " in printed
    same(weights("new/folder"), model.state_dict())
    expected = OnePeace.from_pretrained(path, bpe_dir=here / "bpe").embed(text=CAPTIONS)
    assert torch.equal(OnePeace.from_pretrained("new/folder").embed(text=CAPTIONS), expected)


def test_there_and_back_is_bit_exact(here, capsys):
    path, model = save_original(here)
    convert(path, "--bpe-dir", here / "bpe", "--out", "folder")
    convert("folder", "--to", "original", "--pretraining", "--out", "back/one-peace.pt")
    assert "holds no vocabulary" in capsys.readouterr().out
    first, second = (torch.load(name, weights_only=True) for name in (path, "back/one-peace.pt"))
    assert first["cfg"] == second["cfg"]
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert abs(Path(path).stat().st_size - Path("back/one-peace.pt").stat().st_size) < 10_000
    same(weights("back/one-peace.pt"), model.state_dict())


def test_an_exported_pretrained_model_has_what_every_task_of_the_original_takes(here):
    path, _ = save_original(here)
    convert(path, "--bpe-dir", here / "bpe", "--out", "folder")
    convert("folder", "--out", "back/one-peace.pt")
    content = torch.load("back/one-peace.pt", weights_only=True)
    names, whole = set(content["model"]), set(torch.load(path, weights_only=True)["model"])
    parts = ("_mask_token", "_mask_head")
    left_out = {name for name in whole if name.startswith("decoder_") or name.split(".")[0].endswith(parts)}
    assert whole - names == left_out | {"logit_scale"}
    assert content["cfg"]["model"]["_name"] == "one_peace_retrieval"
    again = OnePeace.from_pretrained("back/one-peace.pt", bpe_dir=here / "bpe")
    assert torch.equal(again.embed(text=CAPTIONS), OnePeace.from_pretrained("folder").embed(text=CAPTIONS))


def test_the_image_branch_alone_is_written_for_the_originals_vision_tasks(here, model_folder):
    convert(model_folder, "--out", "vision.pkl")
    file = ReleasedFile.read("vision.pkl")
    assert kind_of(file).name == "vision-branch"
    assert {"__author__", "matching_heuristics", "model"} == set(file.content)
    assert file.content["model"]["image_adapter.rp_bucket"].shape[0] == len(file.tensors["image_adapter.pos_embed"])
    photos = sorted((here / "photos").rglob("*.*g"))
    branch, whole = OnePeace.from_pretrained("vision.pkl"), OnePeace.from_pretrained(model_folder)
    normed = F.layer_norm(
        branch.encode(image=photos)["image"][0], (24,), *whole.backbone.encoder.norms["image"].parameters()
    )
    torch.testing.assert_close(normed, whole.encode(image=photos)["image"][0])


def test_another_type_and_side(here, model_folder, capsys):
    convert(model_folder, "--out", "half", "--dtype", "bf16", "--image-size", "80")
    printed = capsys.readouterr().out
    assert "in bfloat16" in printed
    assert "images 80×80" in printed
    converted = OnePeace.from_pretrained("half")
    assert converted.dtype == torch.bfloat16
    assert converted.preprocessing["image"].size == 80
    expected = OnePeace.from_pretrained(model_folder)
    expected.set_image_size(80)
    photos = sorted((here / "photos").rglob("*.*g"))
    torch.testing.assert_close(converted.embed(image=photos), expected.embed(image=photos), atol=0.1, rtol=0)
    assert Path("half/model.safetensors").stat().st_size < 0.6 * (model_folder / "model.safetensors").stat().st_size


def test_what_does_not_fit_is_listed(here, capsys):
    path, model = save_original(here)
    content = to_original(model)
    content["model"] |= {f"encoder_wrapper.extra.{index}": torch.zeros(1) for index in range(30)}
    torch.save(content, path)
    convert(path, "--out", "folder")
    printed = capsys.readouterr().out
    assert "30 tensors unexpected, not used:" in printed
    assert "and 10 more" in printed
    assert "vocabulary: none" in printed


def test_a_target_in_use_is_replaced_only_when_asked(here, model_folder, other_folder):
    convert(model_folder, "--out", "folder")
    fails(other_folder, "--out", "folder", says="folder is there already; choose another --out, or .* --overwrite")
    same(weights("folder"), weights(model_folder))
    convert(other_folder, "--out", "folder", "--overwrite")
    same(weights("folder"), weights(other_folder))
    convert("folder", "--out", "folder", "--dtype=fp16", "--overwrite")
    assert OnePeace.from_pretrained("folder").dtype == torch.float16
    Path("a.pt").write_text("mine")
    fails(model_folder, "--out", "a.pt", "--to=original", says="is there already")
    assert Path("a.pt").read_text() == "mine"


def test_what_cannot_be_converted_is_said_in_one_line(here, model_folder):
    path, _ = save_original(here)
    fails("nowhere", "--out", "folder", says="there is no nowhere; accepted is a folder written by")
    fails(model_folder, "--out", "folder.pt", "--to=folder", says="a folder has no such name")
    fails(model_folder, "--out", "folder", "--to=original", says=r"files with the extension \.pt")
    fails(model_folder, "--out", "folder", "--dtype=int4", says="dtype is 'int4'; accepted are float32")
    save_task(ClassificationTask(tiny_onepeace(), modalities=["image"], num_classes=2), "task.ckpt")
    fails("task.ckpt", "--out", "other.ckpt", "--dtype=int4", says="dtype is 'int4'; accepted are float32")
    fails(model_folder, "--out", "folder", "--image-size=50", says="size is 50")
    fails(model_folder, "--out", "folder", "--bpe-dir", here / "bpe", says="has a tokenizer of its own")
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    fails(path, "--out", "folder", says="cut short")
    (here / "bpe" / "dict.txt").unlink()
    Path(path).write_bytes(data)
    fails(path, "--bpe-dir", here / "bpe", "--out", "folder", says=r"lacks dict\.txt")
    assert not Path("folder").exists()


def test_options_are_explained_and_unknown_ones_named(capsys):
    with pytest.raises(SystemExit) as stop:
        convert("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "side of the images in pixels" in printed
    with pytest.raises(SystemExit) as stop:
        convert("a", "--out", "b", "--size", "4")
    assert stop.value.code == 2
    assert "size" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        convert("a", "--out", "b", "--to", "onnx")
    assert stop.value.code == 2
    assert "onnx" in capsys.readouterr().err
