import re

import pytest
import torch
from torch import nn

from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.layers import modality_parameters
from onepeace_lightning.training.param_groups import parameter_groups, parameter_rules
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def model() -> PretrainModel:
    """Three blocks."""
    return PretrainModel(tiny_config(per_block_tables=True))


@pytest.fixture(scope="module")
def names(model) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    return {name: rule[0] for name, rule in parameter_rules(model, weight_decay=0, layer_decay=layer_decay).items()}


def test_the_learning_rate_falls_from_the_heads_to_the_adapters(model, names):
    def exponent(name: str) -> int:
        """Blocks + 1 - id."""
        if found := re.search(
            r"^backbone\.(?:encoder\.blocks|adapters\.(?:text|image|audio)\.bias_tables)\.(\d)", name
        ):
            return 3 - int(found[1])
        return 4 if name.startswith("backbone.adapters.") else 0

    found = scales(model, 0.5)
    assert found == {name: 0.5 ** exponent(name) for name in names}
    assert set(found.values()) == {1.0, 0.5, 0.25, 0.125, 0.0625}
    for name, scale in {
        "backbone.adapters.text.embedding.weight": 0.0625,
        "backbone.adapters.audio.position_convs.1.weight": 0.0625,
        "backbone.adapters.image.bias_tables.0": 0.125,
        "backbone.encoder.blocks.0.ffns.text.gate.weight": 0.125,
        "backbone.adapters.audio.bias_tables.2": 0.5,
        "backbone.encoder.blocks.2.gamma_1": 0.5,
        "backbone.encoder.norms.image.weight": 1.0,
        "heads.logit_scale": 1.0,
        "denoiser.decoder.blocks.0.attention.query.weight": 1.0,
    }.items():
        assert found[name] == scale, name


def test_without_layer_decay_all_learn_alike(model):
    assert set(scales(model, 1.0).values()) == {1.0}


def test_a_shared_table_learns_as_the_first_block_does():
    found = scales(PretrainModel(tiny_config()), 0.5)
    assert found["backbone.adapters.image.bias_tables.0"] == found["backbone.encoder.blocks.0.gamma_1"] == 0.125


def test_the_outermost_rule_decides_and_may_leave_the_rest_to_what_is_inside():
    class Recipe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PretrainModel(tiny_config())
            self.extra = nn.Linear(2, 2)

        def lr_scale(self, name: str, layer_decay: float) -> float | None:
            return 0.1 if name.startswith("extra.") else None

        def no_weight_decay(self) -> set[str]:
            return {"inner.backbone.adapters.text.embedding.weight"}

    rules = parameter_rules(Recipe(), weight_decay=0.05, layer_decay=0.5)
    assert rules["extra.bias"] == (0.1, 0.05)
    assert rules["inner.backbone.adapters.text.embedding.weight"] == (0.0625, 0.0)
    assert rules["inner.backbone.adapters.text.cls_token"] == (0.0625, 0.05)
    assert rules["inner.heads.logit_scale"] == (1.0, 0.05)


def test_only_the_published_parameters_decay(model):
    decays = {name: rule[1] for name, rule in parameter_rules(model, weight_decay=0.05).items()}
    assert set(decays.values()) == {0.0, 0.05}
    vectors = ("bias", "gamma_1", "gamma_2", "logit_scale", "cls_token", "adapters.text.positions")
    for name, parameter in model.named_parameters():
        if name.endswith(vectors) or "norm" in name or name == "backbone.adapters.image.positions":
            assert decays[name] == 0, name
        elif name.endswith(("mask_token", "cls_position")) or "bias_tables" in name:
            assert decays[name] == 0.05, name
        else:
            assert name.endswith(".positions") or parameter.dim() == 1 or decays[name] == 0.05, name
    # a missing comma in the published list: of the decoder's positions those of images alone decay
    assert {name: decays[f"denoiser.inputs.{name}.positions"] for name in ("text", "image", "audio")} == {
        "text": 0.0,
        "image": 0.05,
        "audio": 0.0,
    }
    assert decays["backbone.adapters.audio.features.0.1.weight"] == 0


def test_a_modality_owns_its_adapter_ffns_norms_and_ways_in_and_out_of_heads_and_decoder(model, names):
    audio = modality_parameters(model, ("audio",))
    owned = (
        r"backbone\.adapters\.audio\.",
        r"(backbone\.encoder|denoiser\.decoder)\.blocks\.\d\.ffns\.audio\.",
        r"(backbone\.encoder|denoiser\.decoder)\.norms\.audio\.",
        r"(heads\.projections|denoiser\.inputs|denoiser\.outputs)\.audio\.",
    )
    assert audio == {name for name in names if any(re.match(pattern, name) for pattern in owned)}
    assert modality_parameters(model, ("audio", "text")) > audio
    assert not modality_parameters(model, ())


def test_stage_2_trains_what_is_new_the_denoiser_the_temperature_and_the_image_projection(model, names):
    trained = model.trained_in_stage2(("audio",))
    new = modality_parameters(model, ("audio",))
    shared = {name for name in names if name.startswith(("denoiser.", "heads.logit_scale", "heads.projections.image."))}
    assert trained == new | shared
    assert not [name for name in trained if name.startswith("backbone.") and ".audio." not in name]
    both = model.trained_in_stage2(("audio", "image"))
    assert "backbone.adapters.image.cls_token" in both - trained


def rates(model: PretrainModel, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Name to learning rate and weight decay; every parameter of a group must be the model's, and in one group only."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    members = [known[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    return {known[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_groups_hold_every_trainable_parameter_once_with_its_own_rates(layer_decay):
    model = PretrainModel(tiny_config())
    trained = model.trained_in_stage2(("audio",))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(model, lr=2e-3, weight_decay=0.05, layer_decay=layer_decay)
    rules = parameter_rules(model, weight_decay=0.05, layer_decay=layer_decay)
    assert set(rules) == set(trainable)
    assert rates(model, groups) == {name: (2e-3 * scale, decay) for name, (scale, decay) in rules.items()}
    # as few groups as there are pairs of rates
    assert len(groups) == len(set(rates(model, groups).values()))
    torch.optim.AdamW(groups, lr=1.0).step()


def test_depth_counts_frozen_blocks_too():
    """A parameter's rate does not depend on what else trains."""
    model = PretrainModel(tiny_config())
    everything = rates(model, parameter_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "blocks.0." in name
    part = rates(model, parameter_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5))
    assert part == {name: everything[name] for name in part}
    assert part["backbone.encoder.blocks.0.gamma_1"][0] == 0.125
