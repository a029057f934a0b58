import io
from dataclasses import replace

import pytest
import torch

from onepeace_lightning.checkpoints.key_map import name_map, our_name
from onepeace_lightning.checkpoints.original import config_from_original, load_original, read_original
from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models import ModelConfig, PretrainModel
from onepeace_lightning.models.config import DecoderConfig, TransformerConfig
from tests.checkpoints.original_format import to_original
from tests.tiny import audios, images, randomised, texts


def other_config(**changes) -> ModelConfig:
    """Sizes of which none is another's."""
    config = ModelConfig(
        encoder=TransformerConfig(width=32, depth=4, heads=2, ffn_width=56, drop_path=0.25, layer_scale=1e-3),
        adapters={
            "text": TextConfig(vocab_size=41, positions=34, buckets=12),
            "image": ImageConfig(image_size=48, position_grid=3),
            "audio": AudioConfig(channels=16, position_depth=5, position_kernel=19, position_groups=8, buckets=14),
        },
        decoder=DecoderConfig(
            transformer=TransformerConfig(width=20, depth=3, heads=5, ffn_width=28, layer_scale=None),
            positions={"text": 35, "image": 10, "audio": 36},
        ),
    )
    return replace(config, **changes)


def other_model(**changes) -> PretrainModel:
    torch.manual_seed(3)
    return randomised(PretrainModel(other_config(**changes)))


INPUTS = {"text": texts(5, 3), "image": images(2), "audio": audios(4000, 2000)}


@pytest.mark.parametrize("per_block_tables", [False, True])
@torch.no_grad()
def test_a_checkpoint_of_any_sizes_gives_back_sizes_weights_and_features(tmp_path, per_block_tables):
    model = other_model(per_block_tables=per_block_tables)
    torch.save(to_original(model), tmp_path / "checkpoint.pt")

    checkpoint = read_original(tmp_path / "checkpoint.pt")
    config = config_from_original(checkpoint)
    assert config == model.config
    loaded = PretrainModel(config)
    load_original(loaded, checkpoint["model"])
    wanted = model.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    features = [m.eval().backbone(INPUTS) for m in (model, loaded)]
    for name in INPUTS:
        torch.testing.assert_close(features[0][name].values_TD, features[1][name].values_TD, atol=0, rtol=0)


def test_loaded_weights_are_copies():
    checkpoint = to_original(other_model())
    loaded = PretrainModel(other_config())
    load_original(loaded, checkpoint["model"])
    before = loaded.heads.logit_scale.item()
    checkpoint["model"]["logit_scale"].fill_(9)
    assert loaded.heads.logit_scale.item() == before


def test_a_position_grid_of_its_own_is_kept():
    model = other_model(adapters=other_config().adapters | {"image": ImageConfig(image_size=48, position_grid=4)})
    assert config_from_original(to_original(model)) == model.config


def test_names_and_parameters_correspond_one_to_one():
    model = other_model()
    translated = name_map(to_original(model)["model"])
    assert sorted(translated.values()) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "name",
    [
        "decoder_wrapper.text_adapter.cls_embedding",
        "encoder_wrapper.audio_adapter.mask_embedding",
        "decoder_wrapper.audio_adapter.mask_embedding",
        "encoder_wrapper.image_adapter.rp_bucket",
        "encoder_wrapper.text_adapter.position_idx",
        "encoder_wrapper.fusion_model.version",
    ],
)
def test_what_the_original_never_uses_has_no_name(name):
    assert our_name(name) is None


def test_the_encoders_cls_does_have_a_name():
    assert our_name("encoder_wrapper.text_adapter.cls_embedding") == "backbone.adapters.text.cls_token"


def test_every_misfit_is_listed_at_once_and_nothing_is_loaded():
    tensors = to_original(other_model())["model"]
    del tensors["text_proj.bias"]
    del tensors["encoder_wrapper.fusion_model.layers.3.gamma_1"]
    tensors["classify_head.weight"] = torch.zeros(2)
    tensors["encoder_wrapper.fusion_model.layers.4.gamma_1"] = torch.zeros(32)
    tensors["image_mask_token"] = torch.zeros(1, 21)
    model = PretrainModel(other_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_original(model, tensors)
    for problem in (
        "missing heads.projections.text.bias",
        "missing backbone.encoder.blocks.3.gamma_1",
        "unexpected classify_head.weight",
        "unexpected backbone.encoder.blocks.4.gamma_1",
        "denoiser.inputs.image.mask_token is (1, 21), the model has (20,)",
    ):
        assert problem in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_misshapen_tensor_is_not_also_called_missing():
    tensors = to_original(other_model())["model"]
    tensors["image_mask_token"] = torch.zeros(1, 21)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_original(PretrainModel(other_config()), tensors)
    assert "missing" not in str(error.value)


def test_a_transposed_matrix_is_refused():
    tensors = to_original(other_model())["model"]
    name = "encoder_wrapper.fusion_model.layers.0.text_ffn.3.weight"
    tensors[name] = tensors[name].T.contiguous()
    with pytest.raises(ValueError, match=r"ffns.text.down.weight is \(56, 32\), the model has \(32, 56\)"):
        load_original(PretrainModel(other_config()), tensors)


class Malice:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys):
    buffer = io.BytesIO()
    torch.save({"cfg": Malice(), "model": {}}, buffer)
    (tmp_path / "bad.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"refused: it holds builtins\.print"):
        read_original(tmp_path / "bad.pt")
    assert "executed" not in capsys.readouterr().out
