from dataclasses import dataclass, replace

import pytest
import torch

from onepeace_lightning.modalities.audio import Audio, AudioConfig
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.models.config import AdapterConfig
from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.training.flops import denoiser_flops, encoder_flops
from tests.counted import counted, forward_backward
from tests.tiny import audios, images, masks, texts, tiny_config, tiny_model

RAW = {"text": texts(7, 7, 7), "image": images(3), "audio": audios(*[320 * 9 + 80] * 3)}
"""Samples of equal lengths: nothing is padded."""


def ungrouped(**changes):
    """The counter takes the weight gradient of a grouped convolution for that of an ungrouped one."""
    adapters = tiny_config().adapters
    return tiny_model(adapters={**adapters, "audio": replace(adapters["audio"], position_groups=1)}, **changes)


@pytest.fixture(scope="module")
def model():
    return ungrouped()


def all_features(views) -> torch.Tensor:
    return sum(part.values_TD.square().sum() for view in views for part in view.values())


def as_pair(flops: Flops) -> tuple[int, int]:
    return flops.forward, flops.backward


@pytest.mark.parametrize("name", RAW)
def test_lengths_are_those_of_the_adapters_tokens(model, name):
    ragged = {"text": texts(7, 3, 5), "image": images(2), "audio": audios(3000, 400, 1700)}
    for inputs in (RAW[name], ragged[name]):
        assert inputs.token_lengths == model.backbone.embed({name: inputs})[name].lengths


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", RAW)
def test_adapters(model, name, learns):
    """What is computed once and what is computed for a view; frozen, there is no backward pass."""
    adapter = model.backbone.adapters[name].requires_grad_(learns)
    raw, width = RAW[name], model.config.encoder.width
    lengths = raw.token_lengths
    wanted = adapter.config.embed_flops(raw, width, learns=learns) + adapter.config.view_flops(
        lengths, width, learns=learns
    )
    compute = lambda: adapter.view(adapter.embed(raw)).values_TD.square()  # noqa: E731
    try:
        assert as_pair(wanted) == (forward_backward(compute) if learns else (counted(compute)[0], 0))
    finally:
        adapter.requires_grad_(True)


def test_grouped_convolutions_cost_their_share():
    """Their forward pass; its two gradients are as large, whatever the counter says."""
    adapter = tiny_model().backbone.adapters["audio"]
    assert adapter.config.position_groups == 4
    raw, width = RAW["audio"], tiny_config().encoder.width
    tokens = adapter.embed(raw)
    flops = adapter.config.view_flops(tokens.lengths, width)
    assert counted(lambda: adapter.view(tokens)) == [flops.forward]
    assert flops.backward == 2 * flops.forward


@pytest.mark.parametrize("names", [["text"], ["image"], ["audio"], ["text", "image"], ["text", "image", "audio"]])
@pytest.mark.parametrize("per_block_tables", [False, True])
def test_one_view_of_single_and_joined_modalities(names, per_block_tables):
    model = ungrouped(per_block_tables=per_block_tables)
    raw = {name: RAW[name] for name in names}
    width, lengths = model.config.encoder.width, {name: part.token_lengths for name, part in raw.items()}
    wanted = encoder_flops(model.config.encoder, [lengths])
    for name, inputs in raw.items():
        sizes = model.config.adapters[name]
        wanted += sizes.embed_flops(inputs, width) + sizes.view_flops(lengths[name], width)
    assert as_pair(wanted) == forward_backward(lambda: all_features([model.backbone(raw)]))


def test_views_of_masked_and_whole_samples_in_one_pass(model):
    backbone = model.backbone
    tokens = {name: part.with_values(part.values_TD.detach()) for name, part in backbone.embed(RAW).items()}
    hide = {name: masks(tokens[name].lengths, 0.4, last=True, seed=1) for name in ("text", "image")}
    views = [
        {"text": tokens["text"]},
        backbone.view({"text": tokens["text"]}, hide),
        backbone.view({name: tokens[name] for name in ("text", "image")}, hide),
    ]
    lengths = [{name: part.lengths for name, part in view.items()} for view in views]
    assert lengths[1]["text"] != lengths[0]["text"]
    # masked tokens get their gradient from nowhere, so one is asked for
    for view in views:
        for part in view.values():
            part.values_TD.requires_grad_()
    wanted = as_pair(encoder_flops(model.config.encoder, lengths))
    assert wanted == forward_backward(lambda: all_features(backbone.encode(views)))


@pytest.mark.parametrize("gradient", [True, False])
def test_denoiser(model, gradient):
    backbone, names = model.backbone, ("image", "text")
    tokens = backbone.embed({name: RAW[name] for name in names})
    hide = [{name: masks(tokens[name].lengths, 0.4, last=True, seed=seed) for name in names} for seed in (1, 2)]
    with torch.no_grad():
        views = backbone.encode([backbone.view(tokens, masked) for masked in hide])
    for view in views:
        for part in view.values():
            part.values_TD.requires_grad_(gradient)
    visible = [{name: part.lengths for name, part in view.items()} for view in views]
    whole = [{name: part.lengths for name, part in tokens.items()}] * 2

    def compute() -> torch.Tensor:
        return sum(part.square().sum() for view in model.denoiser(views, hide) for part in view.values())

    assert as_pair(denoiser_flops(model.config, visible, whole, gradient=gradient)) == forward_backward(compute)


def test_padding_is_left_out_and_only_attention_may_compute_it(model):
    """The dense path computes at most attention to the longest sequence's columns above the model's FLOPs."""
    raw, config = {"text": texts(9, 2, 5), "image": images(3)}, model.config.encoder
    tokens = {name: part.with_values(part.values_TD.detach()) for name, part in model.backbone.embed(raw).items()}
    lengths = {name: inputs.token_lengths for name, inputs in raw.items()}
    (computed,) = counted(lambda: model.backbone.encode([tokens]))
    real = encoder_flops(config, [lengths]).forward
    longest = sum(max(part) for part in lengths.values())
    squares = 3 * longest**2 - sum((text + image) ** 2 for text, image in zip(*lengths.values(), strict=True))
    assert 0 <= computed - real <= config.depth * 4 * config.width * squares
    assert squares > 0


def test_clips_are_counted_without_their_padding(model):
    adapter, width = model.backbone.adapters["audio"], model.config.encoder.width
    clips = audios(320 * 14 + 80, 320 * 3 + 80)
    alone = [Audio(clips.waveforms_BN[i : i + 1, :n], clips.lengths[i : i + 1]) for i, n in enumerate((4560, 1040))]
    (computed,) = counted(lambda: adapter.embed(clips))
    real = adapter.config.embed_flops(clips, width).forward
    assert real == sum(counted(*(lambda clip=clip: adapter.embed(clip) for clip in alone)))
    assert real < computed <= 2 * adapter.config.embed_flops(alone[0], width).forward


def test_frozen_weights_cost_no_gradient():
    config, views = tiny_config().encoder, [{"text": [5, 4], "audio": [7, 3]}]
    whole, frozen, none = (
        encoder_flops(config, views, **options) for options in ({}, {"trainable": ["audio"]}, {"gradient": False})
    )
    assert whole.forward == frozen.forward == none.forward
    assert none.backward == 0
    assert whole.backward == 2 * whole.forward
    weights = config.depth * (product(19, 24, 4 * 24, gradients=1) + product(9, 24, 3 * 40, gradients=1)).forward
    assert whole.backward - frozen.backward == weights


def test_a_new_modality_says_its_own_lengths_and_cost():
    @dataclass(frozen=True, kw_only=True)
    class DepthConfig(AdapterConfig):
        modality = "depth"

    with pytest.raises(NotImplementedError, match=r"DepthConfig does not say what it computes.*embed_flops"):
        DepthConfig().embed_flops(None, 24)
    assert DepthConfig().view_flops([4], 24) == Flops()


def test_the_published_size_costs_what_its_parameters_say():
    """Two operations for each weight and token in the forward pass, plus attention."""

    config = preset_config("4b")
    picture = Image(torch.empty(1, 3, 256, 256)).token_lengths
    assert picture == [257]
    width, ffn = 1536, 6144
    weights = 40 * (4 * width**2 + 3 * width * ffn)
    attention = 40 * 4 * 257**2 * width
    assert encoder_flops(config.encoder, [{"image": picture}]).forward == 2 * 257 * weights + attention
    # a third of the 4 billion parameters is met by a picture: attention and one of three feed-forward networks
    assert 1.4e9 < weights < 1.6e9
    assert isinstance(config.adapters["audio"], AudioConfig)
