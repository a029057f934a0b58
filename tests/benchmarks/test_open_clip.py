"""The comparison with open_clip trains every way on the same batches and prints both tables."""

import re

import pytest
import torch

from benchmarks import open_clip as module
from data_recipes.toy import pretraining as toy
from onepeace_lightning.modalities.text import Text

pytest.importorskip("open_clip", reason="an extra: pip install onepeace-lightning[compare]")


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> module.Setting:
    folder = tmp_path_factory.mktemp("toy")
    toy.build(folder, toy.ToyConfig(pairs=16, singles=1, gallery=16, image_side=48))
    return module.Setting(str(folder), "tiny", 48, 2, 4, 1e-3, 0, "cpu", 16)


def test_every_way_is_trained_and_shown(setting, capsys, monkeypatch):
    monkeypatch.setattr(module, "fresh", lambda function, *arguments: function(*arguments))
    module.main([
        "--data", setting.data, "--side", "48", "--steps", "2", "--batch_size", "4", "--repetitions", "1",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    for way in module.WAYS:
        assert re.search(rf"^{way} +[\d,]+ +\d+\.\d +\d+\.\d +\d+\.\d +\d+ +\d+$", printed, re.MULTILINE), printed
    for name in module.MODALITIES:
        for model in ("open_clip", "onepeace"):
            assert re.search(rf"^{name}, {model} +\d+ +\d+\.\d +\d+\.\d$", printed, re.MULTILINE), printed
    assert re.search(r"^audio-text: open_clip [\d.]+ has (an|no) audio tower", printed, re.MULTILINE)


def test_sizes_and_flops_are_as_near_as_whole_layers_allow(setting):
    layers = module.layers_of_equal_size(setting)
    with torch.device("meta"):
        wanted = module._parameters(module.PretrainModel(setting.config(), denoise=False))

    def distance(more: int) -> int:
        sizes = {name: count + more for name, count in layers.items()}
        return abs(module._parameters(module.clip(setting, sizes)) - wanted)

    assert distance(0) <= min(distance(-1), distance(1))

    batch = next(iter(setting.module(masks=False).val_dataloader()["image-text"]))
    for models in module.speeds(setting, batch, 1).values():
        theirs, ours = models["open_clip"], models["onepeace"]
        assert abs(theirs.flops - ours.flops) <= 0.51 * theirs.flops / theirs.layers + 0.1 * ours.flops


def test_flops_are_those_of_the_products(setting):
    model = module.PretrainModel(setting.config(), denoise=False)
    batch = next(iter(setting.module(masks=False).val_dataloader()["image-text"]))
    tokens, width, inner, depth = 10, 128, 512, 4  # 3 × 3 patches and CLS
    images = len(batch)
    blocks = depth * (2 * tokens * (4 * width**2 + 3 * width * inner) + 4 * tokens**2 * width)
    counted = module.embedding_flops(model.embed, {"image": batch.inputs["image"]}) / images
    assert blocks < counted < 1.2 * blocks  # the stem and the projection come on top


def test_what_does_not_fit_is_refused(setting):
    with pytest.raises(ValueError, match="steps is 1; give 2 or more"):
        module.run(steps=1)
    model = module.clip(setting, {"image": 1, "text": 1})
    long = {"text": Text.pad([[5] * 17])}
    with pytest.raises(ValueError, match="context is 16, a caption has 17 token ids"):
        module.clip_embed(model, long)
