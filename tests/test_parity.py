"""The parity command itself: it passes on the published goldens and on others, and notices what is wrong."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.inputs import TokenMask
from tests import parity
from tests.checkpoints.original_format import to_original
from tests.checkpoints.test_original import other_config, other_model
from tests.parity import base
from tests.parity import model as model_parity
from tests.tiny import images, masks, texts

ROOT = Path(__file__).parents[1]
IN_REPOSITORY = ROOT / "tests" / "goldens"
GOLDENS = ROOT.parent / "shared" / "goldens"
published = pytest.mark.skipif(not GOLDENS.is_dir(), reason="the published goldens lie outside the repository")


@published
def test_the_published_goldens_pass(capsys):
    assert parity.main(GOLDENS) == 0
    printed = capsys.readouterr().out
    for name in model_parity.CHECKS:
        assert f"ok   {name}" in printed
    assert printed.rstrip().endswith("0 past it")


def test_the_goldens_of_the_repository_pass(capsys):
    """In a clone alone, too, the numbers are compared with the original's."""
    assert parity.main(IN_REPOSITORY) == 0
    printed = capsys.readouterr().out
    for path in IN_REPOSITORY.glob("*_io.pt"):
        assert f"ok   {path.name}" in printed
    assert " 0 past it" in printed
    assert sum(path.stat().st_size for path in IN_REPOSITORY.rglob("*.*")) < 6_000_000


def test_a_folder_without_goldens_is_an_error(tmp_path, capsys):
    assert parity.main(tmp_path) == 2
    assert "encode_io.pt" in capsys.readouterr().err
    assert parity.main(tmp_path / "nothing") == 2
    assert "no such folder" in capsys.readouterr().err


def test_what_cannot_be_compared_alone_is_named_as_skipped(copy, tmp_path, capsys, monkeypatch):
    """Without a vocabulary near it, and without the checkpoint whose weights the others need."""
    monkeypatch.setattr(base, "SHARED", tmp_path / "nowhere")
    shutil.copy(IN_REPOSITORY / "bpe.json", copy)
    assert parity.main(copy) == 0
    assert "skipped: bpe.json" in capsys.readouterr().out
    (copy / "pretrain.pt").unlink()
    assert parity.main(copy) == 2
    printed = capsys.readouterr().out
    for file in ("encode_io.pt", "vl_pretrain_io.pt", "al_pretrain_io.pt", "stage2_trainable.json"):
        assert f"skip {file}" in printed
    assert "0 within tolerance, 0 past it" in printed


def test_the_command_exits_with_the_result(tmp_path):
    command = [sys.executable, "-m", "tests.parity"]
    assert subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True).returncode == 2


@pytest.fixture(scope="module")
def goldens(tmp_path_factory) -> Path:
    """A folder in the goldens' format at other sizes, its outputs by this implementation."""
    folder = tmp_path_factory.mktemp("goldens")
    config = other_config()
    model = other_model(encoder=replace(config.encoder, drop_path=0.0))
    checkpoint = to_original(model)
    originals = {ours: name for name, ours in model_parity.name_map(checkpoint["model"]).items()}
    torch.save(checkpoint, folder / "pretrain.pt")
    torch.save(encoded(model.eval()), folder / "encode_io.pt")
    torch.save(vl_pretraining(model, originals), folder / "vl_pretrain_io.pt")
    torch.save(al_pretraining(model, originals), folder / "al_pretrain_io.pt")
    trained = model.trained_in_stage2(("audio",))
    stage2 = [name for ours, name in originals.items() if ours in trained]
    (folder / "stage2_trainable.json").write_text(json.dumps(stage2))
    return folder


@torch.no_grad()
def encoded(model: PretrainModel) -> dict:
    """Each sample run by itself, so that padding in the golden is not this implementation's."""
    text, image = texts(6, 4), images(2)
    waveforms = [3 + torch.randn(n) for n in (5000, 3000)]
    golden = {"tokens": text.ids_BL, "images": image.pixels, "waveforms": waveforms}
    parts: dict[str, list[Tensor]] = {}
    for sample in range(2):
        one = {
            "text": Text(text.ids_BL[sample : sample + 1, : int(text.lengths[sample])]),
            "image": Image(image.pixels[sample : sample + 1]),
            "audio": model_parity.normalised(waveforms[sample : sample + 1]),
        }
        for name in one:
            alone = model.backbone({name: one[name]})
            parts.setdefault(f"{name}_features", []).append(alone[name].values_TD)
            parts.setdefault(f"{name}_embedding", []).append(model.heads(name, alone)[0])
        for prefix, other in (("vl", "image"), ("al", "audio")):
            for name, tokens in model.backbone({"text": one["text"], other: one[other]}).items():
                parts.setdefault(f"{prefix}_{name}_features", []).append(tokens.values_TD)
    joined = {name: torch.stack(part) for name, part in parts.items() if name.endswith("embedding")}
    return golden | parts | joined


def results(model: PretrainModel, originals: dict[str, str], file: str, batch: Batch, inputs: dict) -> dict:
    """What ``pretraining_loss`` gives for a batch, under the goldens' names."""
    other, prefix = ("image", "vl") if file.startswith("vl") else ("audio", "al")
    frozen = ("text",) if other == "audio" else ()
    model.zero_grad()
    result = pretraining_loss(model, {f"{other}-text": batch}, Objectives(keys="detached"), frozen)
    result.total.backward()
    students = {}
    for name, rows in result.students.items():
        key = name.partition("/")[2].replace("fused_", f"{prefix}_")
        mask = inputs[f"{key}_mask_indices"]
        students[key] = torch.zeros(*mask.shape, rows.shape[1]).masked_scatter(mask[..., None], rows.detach())
    log = {key: result.terms[f"{other}-text/{term}"].detach() for key, term in model_parity.TERMS[file].items()}
    grads = {originals[n]: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {
        "inputs": inputs,
        "log": log | {"loss": result.total.detach()},
        "student_features": students,
        "grads": grads,
        "grad_norms": {name: float(grad.norm()) for name, grad in grads.items()},
    }


def padded(mask: TokenMask) -> torch.Tensor:
    """(B, P) as goldens have it."""
    return pad_sequence(mask.is_hidden_T.split(mask.lengths), batch_first=True)


def vl_pretraining(model: PretrainModel, originals: dict[str, str]) -> dict:
    text, image = texts(6, 6, 6), images(3)
    alone = {"text": masks([7] * 3, 0.3, last=False, seed=0), "image": masks([10] * 3, 0.7, last=True, seed=1)}
    fused = {"text": masks([7] * 3, 0.5, last=False, seed=2), "image": masks([10] * 3, 0.6, last=True, seed=3)}
    inputs = {"src_tokens": text.ids_BL, "src_images": image.pixels}
    inputs |= {f"{name}_mask_indices": padded(mask) for name, mask in alone.items()}
    inputs |= {f"vl_{name}_mask_indices": padded(mask) for name, mask in fused.items()}
    batch = Batch(["a", "b", "c"], {"image": image, "text": text}, alone, fused)
    return results(model, originals, "vl_pretrain_io.pt", batch, inputs)


def al_pretraining(model: PretrainModel, originals: dict[str, str]) -> dict:
    """Two clips, the second shorter and filled up."""
    text, waveforms = texts(5, 5), torch.randn(2, 320 * 9 + 80)
    lengths = [320 * 9 + 80, 320 * 6 + 80]
    sounds = model_parity.normalised([clip[:n] for clip, n in zip(waveforms, lengths, strict=True)])
    alone = {"audio": masks([10, 7], 0.5, last=True, seed=0)}
    fused = {"text": masks([6] * 2, 0.5, last=False, seed=2), "audio": masks([10, 7], 0.4, last=True, seed=3)}
    padding = torch.arange(10) >= torch.tensor([10, 7])[:, None]
    inputs = {"src_tokens": text.ids_BL, "src_audios": waveforms, "audio_padding_masks": padding}
    inputs |= {"audio_mask_indices": padded(alone["audio"])}
    inputs |= {f"al_{name}_mask_indices": padded(mask) for name, mask in fused.items()}
    batch = Batch(["a", "b"], {"audio": sounds, "text": text}, alone, fused)
    return results(model, originals, "al_pretrain_io.pt", batch, inputs)


def test_goldens_of_other_sizes_pass(goldens, capsys):
    assert parity.main(goldens) == 0
    printed = capsys.readouterr().out
    for quantity in ("text+audio: audio features", "image embedding", "itc_loss", "atc_loss", "student vl_text"):
        assert quantity in printed


@pytest.fixture
def copy(goldens, tmp_path) -> Path:
    return Path(shutil.copytree(goldens, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("file", "path", "printed"),
    [
        ("encode_io.pt", ("audio_embedding",), "audio embedding"),
        ("encode_io.pt", ("vl_text_features", 1), "text+image: text features"),
        ("vl_pretrain_io.pt", ("log", "dcl_vl_image_loss"), "dcl_vl_image_loss"),
        ("vl_pretrain_io.pt", ("student_features", "vl_text"), "student vl_text"),
        ("al_pretrain_io.pt", ("grads", "logit_scale"), "gradient logit_scale"),
        ("pretrain.pt", ("model", "audio_mask_token"), "dcl_audio_loss"),
    ],
)
def test_a_changed_value_is_noticed_and_named(copy, capsys, file, path, printed):
    golden = torch.load(copy / file, weights_only=True)
    value = golden
    for key in path:
        value = value[key]
    value += 1e-2 if file != "pretrain.pt" else torch.randn_like(value)
    torch.save(golden, copy / file)
    assert parity.main(copy) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line for line in failed if printed in line]
    assert file == "pretrain.pt" or len(failed) == 1


def test_a_changed_gradient_norm_is_noticed(copy):
    golden = torch.load(copy / "vl_pretrain_io.pt", weights_only=True)
    golden["grad_norms"]["text_proj.weight"] += 1e-2
    torch.save(golden, copy / "vl_pretrain_io.pt")
    assert parity.main(copy) == 1


def test_a_missing_name_is_noticed(copy):
    names = json.loads((copy / "stage2_trainable.json").read_text())
    (copy / "stage2_trainable.json").write_text(json.dumps(names[1:]))
    assert parity.main(copy) == 1


def test_gradients_that_the_golden_lacks_are_noticed(copy):
    """A parameter without a golden gradient must get none from this implementation."""
    golden = torch.load(copy / "vl_pretrain_io.pt", weights_only=True)
    for kind in ("grads", "grad_norms"):
        del golden[kind]["text_proj.weight"]
    torch.save(golden, copy / "vl_pretrain_io.pt")
    assert parity.main(copy) == 1


def test_goldens_may_come_one_at_a_time(copy):
    (copy / "vl_pretrain_io.pt").unlink()
    (copy / "al_pretrain_io.pt").unlink()
    assert parity.main(copy) == 0


def test_shapes_that_differ_are_infinitely_far_apart():
    assert base.gap(torch.zeros(2, 3), torch.zeros(3, 2)) == float("inf")
    assert base.gap(torch.zeros(2, 1), torch.tensor([[0.0], [0.5]])) == 0.5
    assert not base.Check("file", "quantity", float("nan")).ok
