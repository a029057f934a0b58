"""The published ImageNet classifier."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from onepeace_lightning.models.vision.classifier import MeanClassifier
from onepeace_lightning.models.vision.trunk import Trunk
from onepeace_lightning.training.parallelize import materialise
from onepeace_lightning.training.param_groups import parameter_rules
from tests.tiny import images, randomised, tiny_config


def config():
    base = tiny_config()
    return replace(base, adapters={"image": base.adapters["image"]})


@torch.no_grad()
def test_the_mean_of_the_patches_is_classified_without_a_final_norm():
    torch.manual_seed(0)
    model = randomised(MeanClassifier(config(), 7)).eval()
    assert not any("encoder.norms" in name for name in model.state_dict())
    trunk = Trunk(config()).eval()
    trunk.load_state_dict(model.backbone.state_dict())
    mean = trunk(images(2))[:, 1:].mean(1)
    norm, classifier = model.head.norm, model.head.classifier
    wanted = F.linear(F.layer_norm(mean, mean.shape[-1:], norm.weight, norm.bias), classifier.weight, classifier.bias)
    torch.testing.assert_close(model({"image": images(2)}), wanted, atol=1e-5, rtol=1e-5)


def test_it_answers_next_to_nothing_at_first_and_is_drawn_from_the_meta_device():
    with torch.device("meta"):
        model = MeanClassifier(config(), 7)
    materialise(model, torch.device("cpu"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < model.head.classifier.weight.abs().max() < 1e-4


def test_its_bias_table_learns_as_slowly_as_its_adapter():
    rules = parameter_rules(MeanClassifier(config(), 7), weight_decay=0.05, layer_decay=0.5)
    assert rules["backbone.adapters.image.bias_tables.0"] == (0.5**4, 0.05)
    assert rules["backbone.adapters.image.positions"] == (0.5**4, 0.0)
    assert rules["backbone.encoder.blocks.2.attention.key.weight"] == (0.5, 0.05)
    assert rules["head.classifier.weight"] == (1.0, 0.05)
