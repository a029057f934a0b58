"""All kinds of original checkpoints, in and out, and what is refused."""

import logging
import zipfile
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.key_map import name_map, original_name, our_name
from onepeace_lightning.checkpoints.loading import load_pretrained
from onepeace_lightning.checkpoints.original import (
    config_from_original,
    head_from_original,
    load_original,
    model_from_original,
    read_original,
)
from onepeace_lightning.checkpoints.resize import resize_grid_table
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models import Backbone, ModelConfig, PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from tests.checkpoints import original_format
from tests.checkpoints.test_original import other_config
from tests.conftest import SHARED
from tests.tiny import audios, images, randomised, texts, tiny_config

INPUTS = {"text": texts(5, 3), "image": images(2), "audio": audios(4000, 2000)}
GOLDENS = SHARED / "goldens"
UNUSED = ("mask_embedding", "decoder_wrapper.text_adapter.cls_embedding")


def sizes(*modalities: str, **changes) -> ModelConfig:
    config = other_config(**changes)
    positions = {name: rows for name, rows in config.decoder.positions.items() if name in modalities}
    return replace(
        config,
        adapters={name: config.adapters[name] for name in modalities},
        decoder=replace(config.decoder, positions=positions),
    )


def classifier(config: ModelConfig, **head) -> ClassifyModel:
    return ClassifyModel(config, PoolingConfig(**{"outputs": 3, "pooled": (next(iter(config.adapters)),)} | head))


def two_images() -> ClassifyModel:
    config = sizes("text", "image", per_block_tables=True)
    adapters = {name: replace(adapter, type_embedding=True) for name, adapter in config.adapters.items()}
    return classifier(replace(config, adapters=adapters), images=2)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "pretraining": lambda: PretrainModel(sizes("text", "image", "audio")),
    "pretraining without audio": lambda: PretrainModel(sizes("text", "image")),
    "retrieval": lambda: PretrainModel(sizes("text", "image", "audio"), denoise=False),
    "retrieval of sounds": lambda: PretrainModel(sizes("text", "audio", per_block_tables=True), denoise=False),
    "image classification": lambda: classifier(sizes("image", per_block_tables=True)),
    "audio classification": lambda: classifier(sizes("audio", per_block_tables=True), expansion=3),
    "question answering": lambda: classifier(sizes("text", "image"), pooler=True),
    "grounding": lambda: classifier(sizes("text", "image"), pooled=("image",)),
    "two images": two_images,
    "the image branch": lambda: Backbone(sizes("image")),
    "one head": lambda: PretrainModel(
        sizes("text", "image", encoder=replace(other_config().encoder, heads=1)), denoise=False
    ),
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(4)
    return randomised(KINDS[kind]())


def saved(checkpoint: dict, folder) -> dict:
    torch.save(checkpoint, folder / "checkpoint.pt")
    return read_original(folder / "checkpoint.pt")


def comparable(config: ModelConfig, *, decoder: bool) -> ModelConfig:
    return config if decoder else replace(config, decoder=tiny_config().decoder)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_written_and_read_again_is_bit_for_bit_the_same(kind, tmp_path):
    model = made(kind)
    again, report = model_from_original(saved(to_original(model), tmp_path))
    assert type(again) is type(model)
    assert str(report) == "every tensor fits"
    wanted, loaded = model.state_dict(), again.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.items())
    decoder = getattr(model, "denoiser", None) is not None
    assert comparable(again.config, decoder=decoder) == comparable(model.config, decoder=decoder)
    if isinstance(model, ClassifyModel):
        assert again.head.config == model.head.config
    backbones = [m if isinstance(m, Backbone) else m.backbone for m in (model.eval(), again.eval())]
    inputs = {name: INPUTS[name] for name in model.config.adapters}
    for name, tokens in backbones[0](inputs).items():
        assert torch.equal(tokens.values_TD, backbones[1](inputs)[name].values_TD)


def test_the_writer_agrees_with_one_written_out_by_hand():
    model = made("pretraining")
    ours, by_hand = to_original(model)["model"], original_format.to_original(model)["model"]
    buffers = {name for name in by_hand if name.endswith(("rp_bucket", "version"))}
    assert ours.keys() == by_hand.keys() - buffers
    for name, tensor in ours.items():
        if our_name(name) is None:
            assert not tensor.any()
        else:
            assert tensor.shape == by_hand[name].shape, name
            assert torch.equal(tensor, by_hand[name]), name


def test_heads_and_type_embeddings_have_their_published_names_and_shapes():
    tensors = to_original(two_images())["model"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["encoder_wrapper.text_adapter.type_embedding"] == (1, 1, 32)
    assert shapes["encoder_wrapper.image_adapter.type_embedding"] == (1, 1, 32)
    assert shapes["encoder_wrapper.image_adapter.type_embedding_2"] == (1, 1, 32)
    assert shapes["classify_head.attn_pooling_func.q"] == (1, 1, 2, 16)
    assert shapes["classify_head.attn_pooling_func.out_proj.bias"] == (32,)
    assert shapes["classify_head.classifier.0.weight"] == (64, 64)
    assert shapes["classify_head.classifier.3.weight"] == (3, 64)
    assert "classify_head.pooler.1.weight" in to_original(made("question answering"))["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_translate_both_ways(kind):
    for name in to_original(made(kind))["model"]:
        ours = our_name(name)
        assert ours is None or original_name(ours) == name


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="the published goldens lie outside the repository")
@pytest.mark.parametrize("file", sorted(path.name for path in GOLDENS.glob("*.pt") if not path.name.endswith("_io.pt")))
def test_published_checkpoints_come_back_bit_for_bit(file):
    checkpoint = read_original(GOLDENS / file)
    model, report = model_from_original(checkpoint)
    assert str(report) == "every tensor fits"
    written = to_original(model)
    assert written["model"].keys() == checkpoint["model"].keys()
    for name, tensor in checkpoint["model"].items():
        assert written["model"][name].shape == tensor.shape
        assert our_name(name) is None or torch.equal(written["model"][name], tensor), name
    assert config_from_original(written) == config_from_original(checkpoint)
    assert head_from_original(written) == head_from_original(checkpoint)
    wanted = checkpoint["cfg"]["model"]
    for key, value in written["cfg"]["model"].items():
        if isinstance(value, dict):
            for inner, part in value.items():
                theirs = wanted[key][inner]
                same = part == theirs if not isinstance(part, dict) else part.items() <= theirs.items()
                # which FFNs a decoder has is said by the encoder
                assert same or inner.startswith("use_"), (key, inner)
        else:
            assert key not in wanted or wanted[key] == value


def test_the_older_spelling_of_a_shared_table():
    model = made("pretraining")
    checkpoint = to_original(model)
    tensors = checkpoint["model"]
    for name in list(tensors):
        if name.endswith("rel_pos_table_list.0.weight"):
            tensors[name.replace("rel_pos_table_list.0", "rel_pos_table")] = tensors.pop(name)
    assert sum("rel_pos_table.weight" in name for name in tensors) == 3
    again, report = model_from_original(checkpoint)
    assert str(report) == "every tensor fits"
    assert torch.equal(again.backbone.adapters["image"].bias_tables[0], model.backbone.adapters["image"].bias_tables[0])


def test_two_spellings_of_one_table_are_refused():
    tensors = to_original(made("pretraining"))["model"]
    tensors["encoder_wrapper.text_adapter.rel_pos_table.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"rel_pos_table_list.0.weight and .*rel_pos_table.weight are the same"):
        name_map(tensors)


def test_sizes_that_cfg_lacks_come_from_the_tensors():
    model = made("question answering")
    checkpoint = to_original(model)
    checkpoint["cfg"]["model"] = {"encoder": {}}
    again, _ = model_from_original(checkpoint)
    layer_scale = replace(again.config.encoder, drop_path=0.25, layer_scale=1e-3)
    assert replace(again.config, encoder=layer_scale).adapters == model.config.adapters
    assert layer_scale == model.config.encoder
    sound = made("audio classification")
    checkpoint = to_original(sound)
    checkpoint["cfg"]["model"]["encoder"]["audio_adapter"] = {}
    assert config_from_original(checkpoint).adapters == sound.config.adapters


def test_only_the_modalities_asked_for():
    model = made("pretraining")
    image, report = model_from_original(to_original(model), modalities=["image"])
    assert list(image.backbone.adapters) == list(image.heads.projections) == ["image"]
    assert "backbone.adapters.text.embedding.weight" in report.unexpected
    assert not [name for name in report.unexpected if ".image." in name]
    assert not report.missing
    with torch.no_grad():
        features = [m.eval().backbone({"image": INPUTS["image"]})["image"].values_TD for m in (model, image)]
    torch.testing.assert_close(*features, atol=0, rtol=0)


def test_a_modality_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="the checkpoint has no audio; it has text, image"):
        model_from_original(to_original(made("grounding")), modalities=["audio", "text"])


def test_larger_images_and_tables_for_every_block():
    model = made("retrieval")
    again, report = model_from_original(to_original(model), image_size=96, per_block_tables=True)
    table = resize_grid_table(model.backbone.adapters["image"].bias_tables[0], 6)
    assert all(torch.equal(own, table) for own in again.backbone.adapters["image"].bias_tables)
    assert len(again.backbone.adapters["text"].bias_tables) == 4
    assert len([line for line in report.resized if "is resized from 28 to 124 rows" in line]) == 4
    assert again.config.adapters["image"] == ImageConfig(image_size=96, position_grid=3)
    # a larger image alone leaves the tables shared
    shared, _ = model_from_original(to_original(model), image_size=96)
    assert len(shared.backbone.adapters["image"].bias_tables) == 1


def test_missing_tensors_raise_unless_they_are_named(caplog):
    checkpoint = to_original(made("pretraining"))
    del checkpoint["model"]["audio_proj.weight"]
    del checkpoint["model"]["encoder_wrapper.image_adapter.cls_embedding"]
    with pytest.raises(ValueError, match=r"missing backbone.adapters.image.cls_token; missing heads.projections.audio"):
        model_from_original(checkpoint)
    named = {"heads.projections.audio.weight", "backbone.adapters.image.cls_token"}
    with caplog.at_level(logging.WARNING):
        again, report = model_from_original(checkpoint, may_miss=lambda name: name in named)
    assert set(report.missing) == named
    assert "with their initial values" in caplog.text
    weights, cls = again.heads.projections["audio"].weight, again.backbone.adapters["image"].cls_token
    for initial in (weights, cls):
        assert 0 < initial.abs().max() <= 0.02
    # what lies beside a missing tensor is the checkpoint's
    positions = checkpoint["model"]["encoder_wrapper.image_adapter.pos_embed"]
    assert torch.equal(again.backbone.adapters["image"].positions, positions)
    assert not any(parameter.is_meta for parameter in again.parameters())


def test_what_has_no_place_is_reported(caplog):
    checkpoint = to_original(made("retrieval"))
    checkpoint["model"]["ema_decay"] = torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        _, report = model_from_original(checkpoint)
    assert report.unexpected == ["ema_decay"]
    assert "1 tensors not used: ema_decay" in caplog.text


def test_a_model_on_the_meta_device_takes_the_files_own_tensors(tmp_path):
    """No second copy in memory, whatever the type; the file stays as it is when they are trained."""
    model = made("retrieval").half()
    checkpoint = saved(to_original(model), tmp_path)
    again, _ = model_from_original(checkpoint)
    name = "encoder_wrapper.fusion_model.layers.0.text_ffn.3.weight"
    taken = again.backbone.encoder.blocks[0].ffns["text"].down.weight
    assert taken.data_ptr() == checkpoint["model"][name].data_ptr()
    assert taken.dtype == torch.float16
    assert taken.requires_grad
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        taken.zero_()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_fourth_modality_cannot_be_written():
    model = made("the image branch")
    model.adapters["depth"] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"it has no name for backbone.adapters.depth.weight"):
        to_original(model)


def test_a_head_that_the_format_cannot_express_is_not_written():
    model = classifier(sizes("text", "audio"), pooled=("audio",))
    with pytest.raises(ValueError, match="can only pool 'image' or 'text'"):
        to_original(model)


def altered(section: str, key: str, value: object) -> dict:
    checkpoint = to_original(made("retrieval"))
    part = checkpoint["cfg"]["model"]["encoder"]
    (part if not section else part[section])[key] = value
    return checkpoint


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "embed_dim", 64),
        ("", "ffn_embed_dim", 60),
        ("", "layers", 3),
        ("", "layers", 5),
        ("", "attention_heads", 4),
        ("", "use_layer_scale", False),
        ("text_adapter", "bucket_size", 13),
        ("text_adapter", "add_type_embedding", True),
        ("image_adapter", "rel_bucket_size", 6),
        ("image_adapter", "bucket_size", 4),
        ("audio_adapter", "conv_pos_groups", 4),
        ("audio_adapter", "feature_encoder_spec", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"),
    ],
)
def test_sizes_are_the_tensors_whatever_cfg_says(section, key, value):
    """Released files have the cfg of pretraining beside the tensors of a fine-tuned model."""
    checkpoint = altered(section, key, value)
    model, report = model_from_original(checkpoint)
    assert model.config == model_from_original(to_original(made("retrieval")))[0].config
    assert not report.missing


def test_tensors_that_contradict_each_other_are_refused():
    checkpoint = to_original(made("retrieval"))
    name = "encoder_wrapper.fusion_model.layers.1.text_ffn.3.weight"
    checkpoint["model"][name] = torch.zeros(32, 60)
    with pytest.raises(ValueError, match=r"contradict each other: .*blocks.1.ffns.text.down.weight is \(32, 60\)"):
        model_from_original(checkpoint)
    del checkpoint["model"][name]
    with pytest.raises(ValueError, match=r"missing backbone.encoder.blocks.1.ffns.text.down.weight"):
        model_from_original(checkpoint)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "activation_fn", "relu"),
        ("", "normalize_before", False),
        ("", "scale_heads", True),
        ("image_adapter", "vision_encoder_type", "mlp"),
        ("audio_adapter", "abs_pos_type", "fixed"),
        ("text_adapter", "layernorm_embedding", True),
    ],
)
def test_another_architecture_is_refused_even_if_the_shapes_fit(section, key, value):
    with pytest.raises(ValueError, match=f"{key} is {value!r}, only .* is known"):
        config_from_original(altered(section, key, value))


def test_a_long_list_of_problems_is_cut():
    checkpoint = to_original(made("retrieval"))
    checkpoint["model"]["encoder_wrapper.fusion_model.layers.0.self_attn_layer_norm.weight"] = torch.ones(64)
    with pytest.raises(ValueError, match=r"and \d+ more") as error:
        model_from_original(checkpoint)
    assert len(str(error.value)) < 4000


def test_a_truncated_file_is_one_clear_error(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(to_original(made("retrieval")), path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"checkpoint.pt (cannot be read|is refused)"):
            read_original(path)


def test_a_file_that_is_none_of_torchs_is_one_clear_error(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme", "nor this")
    for name in ("text.pt", "archive.pt"):
        with pytest.raises(ValueError, match=rf"{name} (cannot be read|is refused)"):
            read_original(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file"):
        read_original(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list; a checkpoint is a dictionary"),
        ({"state_dict": {"a": torch.zeros(1)}}, "another model: .* it has a"),
        ({"cfg": None, "model": {}}, "another model"),
        ({"cfg": {"model": {"encoder": {}}}, "model": {"a": 1}}, "neither 'model' nor 'state_dict' is a dictionary"),
        ({"cfg": {"model": {"encoder": {}}}, "model": {"visual.proj": torch.zeros(1)}}, "another model: .*visual.proj"),
    ],
)
def test_checkpoints_of_something_else_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        saved(content, tmp_path)


def test_an_original_checkpoint_is_no_training_checkpoint(tmp_path):
    model = made("retrieval")
    torch.save(to_original(model), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no training checkpoint: it has no 'state_dict'"):
        load_pretrained(model, tmp_path / "checkpoint.pt")


def test_a_bare_backbone_is_filled_from_any_kind():
    model = made("grounding")
    backbone = Backbone(model.config)
    report = load_original(backbone, to_original(model)["model"])
    assert all(name.startswith("head.") for name in report.unexpected)
    wanted = model.backbone.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in backbone.state_dict().items())
