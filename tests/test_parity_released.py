"""The parity command on a folder of released files of other sizes, and on what is wrong in such a folder."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.released.vision_names import our_name
from onepeace_lightning.checkpoints.released.writing import image_branch_content, released_content, save_released
from onepeace_lightning.modalities import Audio, Image, Text
from onepeace_lightning.modalities.audio import num_frames
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.modalities.tokenizers.base import TextRules
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.vision.classifier import MeanClassifier
from tests import parity
from tests.parity.released import prepared
from tests.tiny import IMAGE_SIZE, images, randomised, texts, tiny_config

DECAY = 0.8
RULES = {
    "training": TextRules(),
    "hub": TextRules(cleaning="lower"),
    "grounding": TextRules(max_words=70, truncate=False),
}


def adapters(*names: str):
    return {name: tiny_config().adapters[name] for name in names}


def save(folder: Path, name: str, inputs: dict, output: dict, **rest: object) -> None:
    torch.save({"inputs": inputs, "output": output, **rest}, folder / f"{name}_io.pt")


@torch.no_grad()
def released(folder: Path) -> None:
    """Checkpoints of five kinds with what this implementation gives."""
    text, image = texts(6, 4), images(2)
    clips = [3 + torch.randn(20_000), torch.randn(9_000)]
    sounds = Audio.pad([prepared(clip) for clip in clips])
    inputs = {"tokens": text.ids_BL, "images": image.pixels.half(), "waveforms": clips}
    parts = {"text": Text(text.ids_BL), "image": Image(inputs["images"].float()), "audio": sounds}

    model = randomised(PretrainModel(tiny_config(), denoise=False)).eval()
    save_released(to_original(model, training=False), folder / "one-peace.pt")
    embedded = {name: model.heads(name, model.backbone({name: part})) for name, part in parts.items()}
    save(folder, "one-peace", inputs, embedded)

    save_released(image_branch_content(model.backbone), folder / "one-peace-vision.pkl")
    norm, projection = model.backbone.encoder.norms["image"], model.heads.projections["image"]
    branch = randomised(PretrainModel(tiny_config(adapters=adapters("image")), denoise=False)).eval().backbone
    branch.load_state_dict({k: v for k, v in model.backbone.state_dict().items() if k in branch.state_dict()})
    branch.encoder.norms["image"] = torch.nn.Identity()
    features, _ = branch({"image": parts["image"]})["image"].padded()
    normed = norm(features)
    save(
        folder, "one-peace-vision", {"images": inputs["images"]},
        {"features": features, "features_normed": normed, "embedding": embedded["image"]},
        dropped={"image_layer_norm": dict(norm.named_parameters()), "image_proj": dict(projection.named_parameters())},
    )  # fmt: skip

    sound = randomised(
        ClassifyModel(tiny_config(adapters=adapters("audio")), PoolingConfig(outputs=5, pooled=("audio",)))
    ).eval()
    save_released(to_original(sound), folder / "finetune_audio_classification.pt")
    save(folder, "finetune_audio_classification", {"waveforms": clips}, {"logits": sound({"audio": sounds})})

    config = tiny_config(adapters=adapters("image"))
    classifier = randomised(MeanClassifier(config, 7)).eval()
    save_released(released_content(classifier), folder / "onepeace_ft_21kto1k.pth")
    logits = classifier({"image": parts["image"]})
    save(folder, "onepeace_ft_21kto1k", {"images": inputs["images"]}, {"logits": logits})


def decay(folder: Path) -> None:
    """Rates of the ImageNet classifier by the published rule, from the names in its file."""
    blocks, parameters = tiny_config().encoder.depth, {}
    for name, tensor in torch.load(folder / "onepeace_ft_21kto1k.pth", weights_only=True)["model"].items():
        if our_name("imagenet", name) is None:
            continue
        number = 1 + int(name.split(".")[2]) if name.startswith("encoder.layers.") else blocks + 1
        number = 0 if name.startswith("image_adapter.") else number
        exempt = tensor.dim() == 1 or name.endswith(("pos_embed", "cls_embedding"))
        parameters[name] = [DECAY ** (blocks + 1 - number), 0.0 if exempt else 0.1]
    content = {"layer_decay": DECAY, "weight_decay": 0.1, "parameters": parameters}
    (folder / "layer_decay_imagenet.json").write_text(json.dumps(content))


def rules(folder: Path) -> None:
    """Ids of another vocabulary, lengths of clips and learning rates, each written out anew."""
    tokenizer = SentencePieceTokenizer.train(["a dog barks", "this is a sound of a bell", "answer: what is it?"], 280)
    tokenizer.save(folder / "bpe")
    said = "...A Dog  barks"
    asked, label = {"question": "What is it?", "answer": "A  dog"}, "Bell"
    content = {
        "cases": [{"text": said} | {name: tokenizer.encode(said, rule).ids for name, rule in RULES.items()}],
        "avqa": [asked | {"ids": tokenizer.encode("What is it? answer: A  dog", TextRules("none", None, False)).ids}],
        "esc50": [{"label": label, "ids": tokenizer.encode(f"This is a sound of {label}").ids}],
    }
    (folder / "text.json").write_text(json.dumps(content))
    lr, low, total, warmup = 2e-4, 1e-6, 40, 8
    rates = [
        low + (lr - low) * step / warmup
        if step < warmup
        else low + (lr - low) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        for step in range(total)
    ]
    content = {
        "audio_lengths": [
            {"samples": samples, "most_seconds": 2, "kept": kept, "frames": num_frames(kept)}
            for samples, kept in ((100_000, 32_000), (20_000, 20_000), (5_000, 16_000))
        ],
        "finetuning": {"lr": lr, "min_lr": low, "total": total, "warmup_ratio": 0.2, "before_update": rates},
    }
    (folder / "recipes.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def goldens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(5)
    released(folder)
    decay(folder)
    rules(folder)
    return folder


def test_a_folder_of_other_sizes_passes(goldens, capsys):
    assert IMAGE_SIZE not in (64, 96)  # as the published goldens have
    assert parity.main(goldens) == 0
    printed = capsys.readouterr().out
    for quantity in (
        "audio embedding", "features normed", "logits", "weight decay of", "learning rate factor of", "ids, hub",
        "ids, AVQA", "ids, ESC-50", "samples kept", "frames of", "learning rate before each of 40 steps",
    ):  # fmt: skip
        assert f"{quantity}" in printed, quantity


@pytest.mark.parametrize(
    ("file", "path", "printed"),
    [
        ("text.json", ("cases", 0, "hub", 0), "ids, hub"),
        ("text.json", ("avqa", 0, "ids", 0), "ids, AVQA"),
        ("recipes.json", ("audio_lengths", 1, "kept"), "samples kept of 20000"),
        ("recipes.json", ("finetuning", "before_update", 9), "learning rate before each"),
        ("layer_decay_imagenet.json", ("parameters", "head.weight", 0), "learning rate factor"),
        ("layer_decay_imagenet.json", ("parameters", "fc_norm.bias", 1), "weight decay"),
    ],
)
def test_a_changed_number_is_noticed_and_named(goldens, tmp_path, capsys, file, path, printed):
    needed = [file, "bpe", "onepeace_ft_21kto1k.pth"]
    for name in needed:
        target = tmp_path / name
        shutil.copytree(goldens / name, target) if (goldens / name).is_dir() else shutil.copy(goldens / name, target)
    content = json.loads((tmp_path / file).read_text())
    *front, last = path
    place = content
    for key in front:
        place = place[key]
    place[last] = place[last] + (1 if isinstance(place[last], int) else 1e-5)
    (tmp_path / file).write_text(json.dumps(content))
    assert parity.main(tmp_path) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert printed in line


def test_a_changed_embedding_is_noticed(goldens, tmp_path, capsys):
    for name in ("one-peace.pt", "one-peace_io.pt"):
        shutil.copy(goldens / name, tmp_path)
    golden = torch.load(tmp_path / "one-peace_io.pt", weights_only=True)
    golden["output"]["audio"] = F.normalize(golden["output"]["audio"] + 0.01, dim=-1)
    torch.save(golden, tmp_path / "one-peace_io.pt")
    assert parity.main(tmp_path) == 1
    assert "FAIL one-peace.pt" in capsys.readouterr().out
