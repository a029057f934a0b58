import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.preprocessing import config_from_dict
from onepeace_lightning.modalities.presets import PRESETS, Preset, preset_config
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers.base import PAD
from onepeace_lightning.models import ModelConfig, PretrainModel, TransformerConfig
from onepeace_lightning.models.config import DecoderConfig
from tests.tiny import tiny_config


def count(model: nn.Module, *, without: Iterable[str] = ()) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in without))


def test_4b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = PretrainModel(preset_config("4b"))
    assert count(model) == pytest.approx(3.9e9, rel=0.05)
    others = ("adapters.text", "adapters.audio", "ffns.text", "ffns.audio", "norms.text", "norms.audio")
    assert count(model.backbone, without=others) == pytest.approx(1.5e9, rel=0.03)
    with torch.device("meta"):
        image = PretrainModel(preset_config("4b", modalities=("image",)), denoise=False)
    assert count(image.backbone) == count(model.backbone, without=others)


def test_4b_has_the_published_sizes():
    config = preset_config("4b")
    assert config.encoder.init_std == config.decoder.transformer.init_std == 0.02
    assert config.encoder == TransformerConfig(width=1536, depth=40, heads=24, ffn_width=6144, layer_scale=1e-6)
    assert config.decoder.transformer == TransformerConfig(
        width=768, depth=2, heads=12, ffn_width=2048, layer_scale=None
    )
    assert config.adapters == {"text": TextConfig(), "image": ImageConfig(), "audio": AudioConfig()}
    with torch.device("meta"):
        model = PretrainModel(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["backbone.adapters.text.embedding.weight"] == (50264, 1536)
    assert shapes["backbone.adapters.text.positions"] == (514, 1536)
    assert shapes["backbone.adapters.text.bias_tables.0"] == (514, 24)
    assert shapes["backbone.adapters.image.positions"] == (257, 1536)
    assert shapes["backbone.adapters.image.bias_tables.0"] == (31 * 31 + 3, 24)
    assert shapes["backbone.adapters.audio.bias_tables.0"] == (1026, 24)
    assert shapes["backbone.adapters.audio.position_convs.4.weight"] == (1536, 96, 19)
    assert shapes["denoiser.inputs.text.positions"] == (514, 768)
    assert shapes["denoiser.inputs.image.positions"] == (257, 768)
    assert shapes["denoiser.inputs.audio.positions"] == (1026, 768)
    assert shapes["heads.logit_scale"] == (1,)


@pytest.mark.parametrize("name", get_args(Preset))
def test_every_preset_builds_and_survives_json(name):
    config = preset_config(name, drop_path=0.2)
    with torch.device("meta"):
        PretrainModel(config)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_grow():
    sizes = []
    for config in PRESETS.values():
        with torch.device("meta"):
            sizes.append(count(PretrainModel(config)))
    assert sizes == sorted(sizes)


def test_a_preset_takes_the_sizes_of_the_data():
    config = preset_config(
        "tiny",
        modalities=("text", "image"),
        drop_path=0.3,
        sizes={"text": {"vocab_size": 99}, "image": {"image_size": 64}},
    )
    assert list(config.adapters) == ["text", "image"]
    assert config.adapters["text"].vocab_size == 99
    assert config.adapters["image"].image_size == 64
    assert config.encoder.drop_path == 0.3
    assert PRESETS["tiny"].adapters["text"].vocab_size == 50264
    audio = preset_config(
        "tiny", modalities=("audio",), sizes={"text": {"vocab_size": 99}, "image": {"image_size": 64}}
    )
    assert audio.adapters == {"audio": PRESETS["tiny"].adapters["audio"]}


def test_everything_that_differs_from_the_defaults_survives_json():
    config = tiny_config(per_block_tables=True)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert list(config_from_dict(config.to_dict()).adapters) == list(config.adapters)


@pytest.mark.parametrize(
    ("make", "problems"),
    [
        (
            lambda: TransformerConfig(width=0, depth=-1, heads=0, ffn_width=0, drop_path=1.0),
            ["width is 0", "depth is -1", "heads is 0", "ffn_width is 0", "drop_path is 1.0, must be in [0, 1)"],
        ),
        (
            lambda: TransformerConfig(width=10, depth=1, heads=4, ffn_width=8, drop_path=-0.1),
            ["width 10 is not a multiple of heads 4", "drop_path is -0.1"],
        ),
        (
            lambda: TextConfig(vocab_size=4, positions=1, buckets=3),
            ["vocab_size is 4", "positions is 1, must be at least 2", "buckets is 3, must be at least 4"],
        ),
        (lambda: ImageConfig(image_size=100), ["image_size is 100, must be a multiple of 16"]),
        (lambda: ImageConfig(image_size=0), ["image_size is 0"]),
        (
            lambda: AudioConfig(channels=0, position_depth=0, position_kernel=0, position_groups=0, buckets=0),
            ["channels is 0", "position_depth is 0", "position_kernel is 0", "position_groups is 0", "buckets is 0"],
        ),
        (
            lambda: replace(tiny_config(), encoder=replace(tiny_config().encoder, width=18)),
            ["width 18 is not a multiple of position_groups 4", "width 18 is not a multiple of 4"],
        ),
        (lambda: tiny_config(adapters={}), ["no modality"]),
        (lambda: preset_config("huge"), ["no preset 'huge'", "tiny, small, base, large, 4b"]),
        (lambda: preset_config("tiny", modalities=("text", "smell")), ["no modality 'smell'", "text, image, audio"]),
        (
            lambda: config_from_dict(tiny_config().to_dict() | {"adapters": {"smell": {}}}),
            ["no modality 'smell'", "text, image, audio"],
        ),
    ],
)
def test_every_problem_is_named_at_once(make, problems):
    with pytest.raises(ValueError, match=r".") as error:
        make()
    for problem in problems:
        assert problem in str(error.value)


def materialised(config: ModelConfig) -> PretrainModel:
    """Built on the meta device and initialised module by module, parents before children, as sharded training does."""
    with torch.device("meta"):
        model = PretrainModel(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    for module in model.modules():
        owns = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if owns and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model


def moments(parameter: torch.Tensor) -> tuple[float, float]:
    parameter = parameter.detach()
    return float(parameter.mean()), float(parameter.std(unbiased=False))


def test_a_model_from_the_meta_device_is_initialised_like_one_built_here():
    config = preset_config("tiny", sizes={"text": {"vocab_size": 300}})
    torch.manual_seed(0)
    model = materialised(config)
    torch.manual_seed(1)
    built = dict(PretrainModel(config).named_parameters())
    wrong = []
    for name, parameter in model.named_parameters():
        (mean, deviation), (wanted_mean, wanted) = moments(parameter), moments(built[name])
        # what n draws give varies with 1 / sqrt(n); constants (zeros, ones, γ) must be equal
        noise = wanted / parameter.numel() ** 0.5
        if not (abs(mean - wanted_mean) <= 8 * noise + 1e-9 and abs(deviation - wanted) <= 5 * noise + 1e-9):
            wrong.append(f"{name}: {mean:.3g} ± {deviation:.3g} instead of {wanted_mean:.3g} ± {wanted:.3g}")
    assert not wrong


def test_the_padding_embedding_from_the_meta_device_is_zero():
    assert not materialised(tiny_config()).backbone.adapters["text"].embedding.weight[PAD].any()


def test_every_owner_of_parameters_can_reset_them():
    modules = PretrainModel(tiny_config()).modules()
    owners = {type(m) for m in modules if [*m.parameters(recurse=False), *m.buffers(recurse=False)]}
    assert {owner.__name__ for owner in owners if not hasattr(owner, "reset_parameters")} == set()


def test_a_model_starts_as_published():
    torch.manual_seed(0)
    model = PretrainModel(preset_config("tiny", sizes={"text": {"vocab_size": 300}}))
    drawn = re.compile(r"(cls_token|mask_token|positions|cls_position|embedding.weight)$")
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            assert not module.bias.any(), module_name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), module_name
            assert not module.bias.any(), module_name
            assert module.eps == 1e-5
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if name in linear or drawn.search(name):
            # a normal truncated at one deviation keeps 0.54 of it
            stack = model.config.decoder.transformer if name.startswith("denoiser.") else model.config.encoder
            assert parameter.abs().max() <= stack.init_std, name
            assert moments(parameter)[1] == pytest.approx(0.54 * stack.init_std, rel=0.35), name
        if "bias_tables" in name:
            assert not parameter.any(), name
        if "gamma" in name:
            assert (parameter == model.config.encoder.layer_scale).all(), name
    audio = model.backbone.adapters["audio"]
    assert not model.backbone.adapters["text"].embedding.weight[PAD].any()
    for index, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        conv, inputs = audio.features[index][0], kernel * (audio.config.channels if index else 1)
        assert conv.bias is None
        assert conv.kernel_size == (kernel,)
        assert moments(conv.weight)[1] == pytest.approx((2 / inputs) ** 0.5, rel=0.15)
    assert model.heads.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert model.heads.scale.item() == pytest.approx(1 / 0.07)


def test_the_temperature_is_clamped():
    heads = PretrainModel(tiny_config()).heads
    for value, scale in ((-1.0, 1.0), (0.5, 2.718281828**0.5), (9.0, 100.0)):
        with torch.no_grad():
            heads.logit_scale.fill_(value)
        assert heads.scale.item() == pytest.approx(scale, rel=1e-5)
        heads.logit_scale.grad = None
        heads.scale.sum().backward()
        assert heads.logit_scale.grad.item() == pytest.approx(scale, rel=1e-5)  # beyond a bound too
        assert heads.logit_scale.exp().item() == pytest.approx(scale, rel=1e-5)


def test_a_model_without_a_denoiser_has_no_decoder_parameters():
    names = [name for name, _ in PretrainModel(tiny_config(), denoise=False).named_parameters()]
    assert not [name for name in names if "denoiser" in name]


def test_decoder_positions_are_those_of_the_config():
    decoder = DecoderConfig(
        transformer=tiny_config().decoder.transformer, positions={"text": 7, "image": 5, "audio": 9}
    )
    model = PretrainModel(tiny_config(decoder=decoder))
    assert {name: len(entry.positions) for name, entry in model.denoiser.inputs.items()} == decoder.positions
