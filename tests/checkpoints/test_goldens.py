"""The parity command on fine-tuned goldens of other sizes: it passes, and notices what is wrong."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.original import model_from_original
from onepeace_lightning.losses.answers import box_loss
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from tests import parity
from tests.checkpoints.test_kinds import KINDS, classifier, sizes
from tests.parity import model as model_parity
from tests.tiny import images, randomised, texts

WAVEFORMS = [320 * 9 + 80, 320 * 5 + 80, 4000]


def drawn(model):
    torch.manual_seed(11)
    return randomised(model).eval()


def sounds(count: int) -> list[torch.Tensor]:
    return [2 + torch.randn(n) for n in WAVEFORMS[:count]]


def padded(waveforms: list[torch.Tensor]) -> Audio:
    return Audio.pad([F.layer_norm(clip, clip.shape) for clip in waveforms])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Goldens of every kind, each sample run by itself so that padding in them is not the parity command's."""
    torch.manual_seed(10)

    def save(file: str, model, inputs: dict, output: dict) -> None:
        torch.save(to_original(model) | {"inputs": inputs, "output": output}, tmp_path / file)

    with torch.no_grad():
        tokens, pixels, waveforms = texts(6, 4).ids_BL, images(2).pixels, sounds(2)
        rows = texts(6, 4).lengths
        text = [Text(tokens[i : i + 1, :n]) for i, n in enumerate(rows)]
        image = [Image(pixels[i : i + 1]) for i in range(2)]
        audio = [padded([clip]) for clip in waveforms]
        raw = {"text": text, "image": image, "audio": audio}
        pair = {"tokens": tokens, "images": pixels}
        inputs = pair | {"waveforms": waveforms}

        source = drawn(KINDS["pretraining"]())
        torch.save(to_original(source), tmp_path / "pretrain.pt")
        zero_shot = drawn(KINDS["retrieval"]())
        output = {
            name: torch.cat([zero_shot.heads(name, zero_shot.backbone({name: one})) for one in ones])
            for name, ones in raw.items()
        }
        save("retrieval_val_zero_shot.pt", zero_shot, inputs, output)

        large = images(2, size=80).pixels
        hires, _ = model_from_original(
            to_original(source), modalities=["text", "image"], image_size=80, per_block_tables=True
        )
        bare = to_original(hires.eval())
        bare["model"] = {name: t for name, t in bare["model"].items() if not name.startswith("decoder")}
        output = {
            "text": torch.cat([hires.heads("text", hires.backbone({"text": one})) for one in text]),
            "image": hires.heads("image", hires.backbone({"image": Image(large)})),
        }
        golden = {"inputs": {"tokens": tokens, "images": large}, "output": output}
        torch.save(_without_denoiser(bare) | golden, tmp_path / "retrieval_vl_hires.pt")

        for file, kind, names in (
            ("image_classification.pt", "image classification", ["images"]),
            ("audio_classification.pt", "audio classification", ["waveforms"]),
        ):
            model = drawn(KINDS[kind]())
            [modality] = model.head.config.pooled
            logits = torch.cat([model({modality: one}) for one in raw[modality]])
            save(file, model, {name: inputs[name] for name in names}, {"logits": logits})

        model, target = drawn(KINDS["question answering"]()), torch.rand(2, 3)
        logits = torch.cat([model({"text": t, "image": i}) for t, i in zip(text, image, strict=True)])
        loss = F.binary_cross_entropy(logits.sigmoid(), target, reduction="sum")
        save("vqa.pt", model, pair | {"target": target}, {"logits": logits, "loss_sum": loss})

        model, target = drawn(classifier(sizes("text", "image"), pooled=("image",), outputs=4)), torch.rand(2, 4)
        logits = torch.cat([model({"text": t, "image": i}) for t, i in zip(text, image, strict=True)])
        save("grounding.pt", model, pair | {"target": target}, {"logits": logits, "loss": box_loss(logits, target)})

        model, second = drawn(KINDS["two images"]()), images(2, seed=5).pixels
        pairs = zip(text, image, second.split(1), strict=True)
        logits = torch.cat([model({"text": t, "image": i, "second_image": Image(s)}) for t, i, s in pairs])
        save("nlvr2.pt", model, pair | {"images_2": second}, {"logits": logits})

        model, answers = drawn(classifier(sizes("text", "audio"), outputs=1)), texts(5, 3, 6, 4, 2, 6)
        scores = [
            model({"text": Text(answers.ids_BL[i : i + 1, :n]), "audio": audio[i // 3]})
            for i, n in enumerate(answers.lengths)
        ]
        logits, target = torch.cat(scores).view(2, 3), torch.tensor([2, 0])
        hinge = sum((1 + logits[i] - logits[i, t]).clamp(min=0).sum() for i, t in enumerate(target))
        golden = {"tokens": answers.ids_BL, "waveforms": waveforms, "target": target}
        save("aqa.pt", model, golden, {"logits": logits, "hinge_loss_sum": hinge})
    return tmp_path


def _without_denoiser(checkpoint: dict) -> dict:
    unused = ("_mask_token", "_mask_head.weight", "_mask_head.bias", "_embed.weight", "_embed.bias")
    return {
        "cfg": checkpoint["cfg"],
        "model": {
            n: t for n, t in checkpoint["model"].items() if ("." in n and not n.endswith(unused)) or n == "logit_scale"
        },
    }


FILES = [
    name
    for name in model_parity.CHECKS
    if name.startswith("retrieval_") or name.removesuffix(".pt") in model_parity.CLASSIFICATION
]


def test_goldens_of_other_sizes_pass(folder, capsys):
    assert parity.main(folder) == 0
    printed = capsys.readouterr().out
    for file in FILES:
        assert f"ok   {file}" in printed
    for quantity in ("hinge loss", "audio embedding", "image.bias_tables.3 made from pretrain.pt", "made to fit"):
        assert quantity in printed


def test_every_changed_output_and_table_is_noticed(folder, capsys):
    wanted = set()
    for file in FILES:
        golden = torch.load(folder / file, weights_only=True)
        for name in golden["output"]:
            golden["output"][name] = golden["output"][name] + 1e-3
            wanted.add((file, name))
        torch.save(golden, folder / file)
    assert parity.main(folder) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == len(wanted) + 2  # the larger image's embeddings are compared twice
    assert {file for file, _ in wanted} == {line.split()[1] for line in failed}
