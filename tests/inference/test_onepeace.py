import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from torch.nn import functional as F

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.pretrained import model_parts
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers import GPT2BPETokenizer, SentencePieceTokenizer
from onepeace_lightning.models import Backbone, ModelConfig, PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.patches import MEAN, STD
from onepeace_lightning.tasks import Optimization, PretrainTask
from tests.conftest import SHARED
from tests.modalities.test_tokenizers import write_tiny_bpe
from tests.tiny import IMAGE_SIZE, randomised, tiny_config

TEXT = ["a red cow", "a small dog that barks at the cow", "dog"]
PREPROCESSING = Preprocessing({"image": {"size": IMAGE_SIZE}, "audio": {"max_seconds": 2.0, "min_seconds": 0.1}})


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(TEXT, 300, max_length=20)


def config_for(vocab_size: int, **changes) -> ModelConfig:
    config = tiny_config(**changes)
    text = TextConfig(vocab_size=vocab_size, positions=80, buckets=8)
    return replace(config, adapters={**config.adapters, "text": text})


def built(config: ModelConfig, *, denoise: bool = False) -> PretrainModel:
    torch.manual_seed(0)
    return randomised(PretrainModel(config, denoise=denoise))


@pytest.fixture
def onepeace(tokenizer):
    return OnePeace(built(config_for(tokenizer.vocab_size)), tokenizer=tokenizer, preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 60), (48, 48), (90, 31)]]


@pytest.fixture(scope="module")
def sounds():
    rng = torch.Generator().manual_seed(0)
    return [
        (torch.randn(9000, generator=rng), 16000),
        (torch.randn(2, 8000, generator=rng), 8000),
        (torch.randn(4000, generator=rng), 22050),
    ]


@pytest.fixture
def everything(pictures, sounds):
    return {"text": TEXT, "image": pictures, "audio": sounds}


def save_training_checkpoint(path: Path, model: PretrainModel, tokenizer, preprocessing: Preprocessing | None) -> None:
    about = {"config": model.config.to_dict(), "parts": model_parts(model), "tokenizer": tokenizer.to_files()}
    if preprocessing is not None:
        about["preprocessing"] = preprocessing.to_dict()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights | {"recalls.0.count": torch.zeros(1)}, "onepeace": about, "epoch": 1}, path)


def same_weights(one: OnePeace, other: OnePeace) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_an_embedding_does_not_depend_on_what_it_is_batched_with(onepeace, everything, modality):
    items = everything[modality]
    together = onepeace.embed(**{modality: items})
    assert together.shape == (3, onepeace.config.encoder.width)
    assert (together.dtype, together.device.type, together.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    assert (together[0] - together[1]).abs().max() > 1e-3
    alone = torch.cat([onepeace.embed(**{modality: [item]}) for item in items])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(onepeace.embed(**{modality: items}, batch_size=2), together, atol=1e-5, rtol=0)
    shuffled = onepeace.embed(**{modality: items[::-1]})
    torch.testing.assert_close(shuffled.flip(0), together, atol=1e-5, rtol=0)


def test_files_give_what_their_content_gives(onepeace, pictures, sounds, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "picture.png")
    waveform = sounds[0][0] / 10
    soundfile.write(tmp_path / "sound.wav", waveform.numpy(), 16000, subtype="FLOAT")
    forms = [tmp_path / "picture.png", Image.fromarray(pictures[0]), torch.from_numpy(pictures[0]).permute(2, 0, 1)]
    for form in forms:
        assert torch.equal(onepeace.embed(image=[form]), onepeace.embed(image=pictures[:1]))
    assert torch.equal(onepeace.embed(audio=[str(tmp_path / "sound.wav")]), onepeace.embed(audio=[(waveform, 16000)]))


def test_embeddings_can_train_a_head(onepeace):
    head = torch.nn.Linear(onepeace.config.encoder.width, 2)
    head(onepeace.embed(text=TEXT)).sum().backward()
    assert head.weight.grad is not None
    assert all(parameter.grad is None for parameter in onepeace.model.parameters())


def test_no_items_give_no_embeddings(onepeace):
    assert onepeace.embed(text=[]).shape == (0, onepeace.config.encoder.width)


def test_the_model_is_put_in_evaluation_mode(tokenizer):
    config = config_for(tokenizer.vocab_size)
    model = built(replace(config, encoder=replace(config.encoder, drop_path=0.9))).train()
    onepeace = OnePeace(model, tokenizer=tokenizer)
    assert torch.equal(onepeace.embed(text=TEXT), onepeace.embed(text=TEXT))


def test_similarity_is_the_cosine_and_the_first_modality_gives_the_rows(onepeace, everything):
    found = onepeace.similarity(image=everything["image"][:2], text=TEXT, batch_size=1)
    expected = onepeace.embed(image=everything["image"][:2]) @ onepeace.embed(text=TEXT).T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(onepeace.similarity(text=TEXT, image=everything["image"][:2]), expected.T)
    assert onepeace.similarity(audio=everything["audio"], text=TEXT[:1]).shape == (3, 1)


def test_encode_gives_fused_features_of_every_token(onepeace, pictures):
    features = onepeace.encode(text=TEXT, image=pictures, batch_size=2)
    tokens = [len(onepeace.tokenizer.encode(text).ids) + 1 for text in TEXT]
    values, mask = features["text"]
    assert values.shape == (3, max(tokens), onepeace.config.encoder.width)
    assert mask.sum(1).tolist() == tokens
    assert (values[~mask] == 0).all()
    assert features["image"][0].shape[1] == 1 + (IMAGE_SIZE // 16) ** 2
    assert features["image"][1].all()

    for index in range(3):
        alone = onepeace.encode(text=TEXT[index : index + 1], image=pictures[index : index + 1])
        torch.testing.assert_close(alone["text"][0][0], values[index, : tokens[index]], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone["image"][0][0], features["image"][0][index], atol=1e-5, rtol=0)
    unfused, _ = onepeace.encode(text=TEXT)["text"]
    assert (unfused - values).abs().max() > 1e-3
    head = onepeace.model.heads.projections["text"]
    torch.testing.assert_close(F.normalize(head(unfused[:, 0]), dim=1), onepeace.embed(text=TEXT), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: model.embed(), "nothing is given"),
        (lambda model: model.embed(text=["a"], image=["a.png"]), "one modality, not text, image"),
        (lambda model: model.embed(text="a cow"), r"text is a single str; give a list"),
        (lambda model: model.embed(text=["a cow"], batch_size=0), "batch_size is 0"),
        (lambda model: model.embed(text=["a cow", "?"], batch_size=1), r"text 1: caption '\?'"),
        (lambda model: model.embed(image=["no.png"]), r"image 0 \(no\.png\)"),
        (lambda model: model.encode(), "nothing is given"),
        (lambda model: model.encode(text=TEXT, image=["a.png"]), r"\{'text': 3, 'image': 1\}"),
        (lambda model: model.encode(text=[]), r"at least 1.*\{'text': 0\}"),
        (lambda model: model.similarity(text=TEXT), "two of text, image, audio, not text"),
        (lambda model: model.similarity(text=TEXT, video=TEXT), "not text, video"),
        (lambda model: model.set_image_size(50), "image_size is 50"),
    ],
)
def test_wrong_calls_say_what_is_right(onepeace, call, says):
    with pytest.raises(ValueError, match=says):
        call(onepeace)


def test_a_modality_that_the_model_lacks_is_named(tokenizer):
    config = config_for(tokenizer.vocab_size)
    config = replace(config, adapters={name: config.adapters[name] for name in ("text", "image")})
    with pytest.raises(ValueError, match="no 'audio' modality; it has text, image"):
        OnePeace(built(config), tokenizer=tokenizer).embed(audio=["a.wav"])


# ---------------------------------------------------------------- types and devices


@pytest.mark.parametrize(
    ("names", "dtype", "tolerance"),
    [
        (["float32", "fp32", torch.float32, None], torch.float32, 0.0),
        (["bfloat16", "bf16", torch.bfloat16], torch.bfloat16, 0.1),
        (["float16", "fp16", torch.float16], torch.float16, 0.02),
    ],
)
def test_every_type_really_computes(onepeace, everything, tmp_path, names, dtype, tolerance):
    onepeace.save_pretrained(tmp_path)
    seen = []
    for name in names:
        loaded = OnePeace.from_pretrained(tmp_path, dtype=name, device="cpu")
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
        hook = loaded.backbone.encoder.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        for modality, items in everything.items():
            embeddings = loaded.embed(**{modality: items})
            assert embeddings.dtype == torch.float32
            torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
            torch.testing.assert_close(embeddings, onepeace.embed(**{modality: items}), atol=tolerance, rtol=0)
        hook.remove()
        assert loaded.encode(text=TEXT, audio=everything["audio"])["audio"][0].dtype == torch.float32
    assert set(seen) == {dtype}


def test_ids_are_never_cast(tokenizer, tmp_path):
    """In 16 bits, large ids would run into their neighbours."""
    onepeace = OnePeace(built(config_for(tokenizer.vocab_size)), tokenizer=tokenizer)
    onepeace.save_pretrained(tmp_path)
    loaded = OnePeace.from_pretrained(tmp_path, dtype="bf16")
    seen = []
    loaded.backbone.adapters["text"].embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loaded.embed(text=TEXT)
    assert seen[0].dtype == torch.int64
    assert seen[0][1].tolist() == tokenizer.encode(TEXT[1]).ids


def test_weights_of_several_types_are_brought_to_one(onepeace, tmp_path):
    onepeace.model.half().heads.float()
    onepeace.save_pretrained(tmp_path)
    assert OnePeace.from_pretrained(tmp_path).dtype == torch.float32
    onepeace.model.half()
    onepeace.save_pretrained(tmp_path)
    assert OnePeace.from_pretrained(tmp_path).dtype == torch.float16


@pytest.mark.parametrize("dtype", ["fp8", "half", "Float32", torch.float64, torch.int8, 16])
def test_an_unknown_type_is_refused_with_the_list(onepeace, tmp_path, dtype):
    onepeace.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"accepted are float32, fp32, bfloat16, bf16, float16, fp16"):
        OnePeace.from_pretrained(tmp_path, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu0", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(onepeace, tmp_path, device):
    onepeace.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"device is '{device}', which is not available"):
        OnePeace.from_pretrained(tmp_path, device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 0.1), ("fp16", 0.02)])
def test_a_gpu_gives_what_the_cpu_gives(onepeace, everything, tmp_path, dtype, tolerance):
    onepeace.save_pretrained(tmp_path)
    loaded = OnePeace.from_pretrained(tmp_path, device="cuda", dtype=dtype)
    assert loaded.device.type == "cuda"
    for modality, items in everything.items():
        embeddings = loaded.embed(**{modality: items})
        assert embeddings.device.type == "cpu"
        torch.testing.assert_close(embeddings, onepeace.embed(**{modality: items}), atol=tolerance, rtol=0)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("per_block_tables", [False, True])
@pytest.mark.parametrize("denoise", [False, True])
def test_a_saved_folder_gives_everything_back_bit_for_bit(tokenizer, everything, tmp_path, denoise, per_block_tables):
    config = config_for(tokenizer.vocab_size, per_block_tables=per_block_tables)
    onepeace = OnePeace(built(config, denoise=denoise), tokenizer=tokenizer, preprocessing=PREPROCESSING)
    onepeace.save_pretrained(tmp_path / "new" / "folder")
    loaded = OnePeace.from_pretrained(str(tmp_path / "new" / "folder"))
    same_weights(loaded, onepeace)
    assert loaded.config == config
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.tokenizer.fingerprint() == tokenizer.fingerprint()
    for modality, items in everything.items():
        assert torch.equal(loaded.embed(**{modality: items}), onepeace.embed(**{modality: items}))
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_model_can_be_saved_over_the_files_that_it_is_mapped_from(onepeace, tmp_path):
    onepeace.save_pretrained(tmp_path)
    loaded = OnePeace.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    same_weights(loaded, onepeace)
    same_weights(OnePeace.from_pretrained(tmp_path), onepeace)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("denoise", [False, True])
def test_a_training_checkpoint_brings_its_tokenizer_and_preprocessing(tokenizer, everything, tmp_path, denoise):
    model = built(config_for(tokenizer.vocab_size), denoise=denoise)
    save_training_checkpoint(tmp_path / "last.ckpt", model, tokenizer, PREPROCESSING)
    loaded = OnePeace.from_pretrained(tmp_path / "last.ckpt")
    onepeace = OnePeace(model, tokenizer=tokenizer, preprocessing=PREPROCESSING)
    same_weights(loaded, onepeace)
    assert loaded.preprocessing == PREPROCESSING
    for modality, items in everything.items():
        assert torch.equal(loaded.embed(**{modality: items}), onepeace.embed(**{modality: items}))
    loaded.save_pretrained(tmp_path / "folder")
    same_weights(OnePeace.from_pretrained(tmp_path / "folder"), onepeace)


def test_what_a_training_run_writes_can_be_used(tokenizer, everything, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    task = PretrainTask(
        str(tmp_path / "tokenizer"),
        Optimization(total_steps=1),
        data_types=["image-text"],
        preprocessing=PREPROCESSING.to_dict(),
    )
    task.configure_model()
    task.trainer = SimpleNamespace(
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    loaded = OnePeace.from_pretrained(tmp_path / "last.ckpt")
    same_weights(loaded, OnePeace(task.model))
    for name in loaded.config.adapters:
        assert loaded.preprocessing[name] == PREPROCESSING[name]
    assert loaded.similarity(text=TEXT, image=everything["image"]).shape == (3, 3)


def test_an_older_training_checkpoint_has_the_published_preprocessing(tokenizer, tmp_path):
    save_training_checkpoint(tmp_path / "old.ckpt", built(config_for(tokenizer.vocab_size)), tokenizer, None)
    loaded = OnePeace.from_pretrained(tmp_path / "old.ckpt")
    assert loaded.preprocessing == Preprocessing({"image": {"size": IMAGE_SIZE}})


def save_original(folder: Path) -> tuple[Path, PretrainModel, GPT2BPETokenizer]:
    (folder / "bpe").mkdir()
    write_tiny_bpe(folder / "bpe")
    tokenizer = GPT2BPETokenizer.from_files({path.name: path.read_bytes() for path in (folder / "bpe").iterdir()})
    model = built(config_for(tokenizer.vocab_size), denoise=True)
    torch.save(to_original(model), folder / "one-peace.pt")
    return folder / "one-peace.pt", model, tokenizer


def test_the_originals_checkpoint_with_its_vocabulary(everything, tmp_path):
    path, model, tokenizer = save_original(tmp_path)
    loaded = OnePeace.from_pretrained(path, bpe_dir=tmp_path / "bpe")
    # The hub's own text rule is that text is lower-cased, and nothing else.
    preprocessing = Preprocessing().fitting(model.config).changed(text={"cleaning": "lower"})
    expected = OnePeace(model, tokenizer=tokenizer, preprocessing=preprocessing)
    same_weights(loaded, expected)
    for name in ("text", "image", "audio"):
        assert loaded.preprocessing[name] == preprocessing[name]
    for modality, items in everything.items():
        assert torch.equal(loaded.embed(**{modality: items}), expected.embed(**{modality: items}))
    loaded.save_pretrained(tmp_path / "folder")
    again = OnePeace.from_pretrained(tmp_path / "folder")
    same_weights(again, expected)
    assert torch.equal(again.embed(text=TEXT), expected.embed(text=TEXT))


def test_without_a_vocabulary_only_text_is_refused(everything, tmp_path):
    path, model, _ = save_original(tmp_path)
    OnePeace.from_pretrained(path).save_pretrained(tmp_path / "folder")
    for source in (path, tmp_path / "folder"):
        loaded = OnePeace.from_pretrained(source)
        assert torch.equal(loaded.embed(image=everything["image"]), OnePeace(model).embed(image=everything["image"]))
        for call in (loaded.embed, loaded.encode):
            with pytest.raises(ValueError, match=r"bpe_dir=, a folder with dict\.txt, encoder\.json, vocab\.bpe"):
                call(text=TEXT)
        assert OnePeace.from_pretrained(source, bpe_dir=tmp_path / "bpe").embed(text=TEXT).shape[0] == 3


def test_an_incomplete_or_foreign_vocabulary_is_refused(onepeace, tmp_path):
    path, _, _ = save_original(tmp_path)
    dictionary = (tmp_path / "bpe" / "dict.txt").read_text()
    (tmp_path / "bpe" / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks dict\.txt"):
        OnePeace.from_pretrained(path, bpe_dir=tmp_path / "bpe")
    (tmp_path / "bpe" / "dict.txt").write_text(dictionary + "madeupword0000 0\n")
    with pytest.raises(ValueError, match=r"tokenizer has \d+ ids, the model of .* do not belong together"):
        OnePeace.from_pretrained(path, bpe_dir=tmp_path / "bpe")
    onepeace.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="has a tokenizer of its own; leave bpe_dir="):
        OnePeace.from_pretrained(tmp_path / "folder", bpe_dir=tmp_path / "bpe")


def test_models_without_contrastive_heads_encode_and_survive_saving(tokenizer, pictures, tmp_path):
    config = config_for(tokenizer.vocab_size)
    torch.manual_seed(0)
    head = PoolingConfig(outputs=5, pooled=("text",), pooler=True)
    for name, model in {"classify": ClassifyModel(config, head), "backbone": Backbone(config)}.items():
        onepeace = OnePeace(randomised(model), tokenizer=tokenizer)
        with pytest.raises(ValueError, match=f"{type(model).__name__} has no contrastive heads"):
            onepeace.embed(text=TEXT)
        onepeace.save_pretrained(tmp_path / name)
        loaded = OnePeace.from_pretrained(tmp_path / name)
        assert type(loaded.model) is type(model)
        same_weights(loaded, onepeace)
        assert torch.equal(loaded.encode(image=pictures)["image"][0], onepeace.encode(image=pictures)["image"][0])
    assert OnePeace.from_pretrained(tmp_path / "classify").model.head.config == head


def test_another_image_size_travels_with_the_model(tokenizer, pictures, tmp_path):
    onepeace = OnePeace(built(config_for(tokenizer.vocab_size), denoise=True), tokenizer=tokenizer)
    before = onepeace.embed(image=pictures)
    onepeace.set_image_size(80)
    assert onepeace.encode(image=pictures)["image"][0].shape[1] == 26
    after = onepeace.embed(image=pictures)
    assert (after - before).abs().max() > 1e-3
    onepeace.save_pretrained(tmp_path)
    loaded = OnePeace.from_pretrained(tmp_path)
    assert loaded.preprocessing["image"].size == loaded.config.adapters["image"].image_size == 80
    assert torch.equal(loaded.embed(image=pictures), after)


def test_a_failed_resize_changes_nothing(onepeace, pictures):
    before = onepeace.embed(image=pictures)
    with pytest.raises(ValueError, match="multiple of 16"):
        onepeace.set_image_size(50)
    assert torch.equal(onepeace.embed(image=pictures), before)


# ---------------------------------------------------------------- what is refused


def test_a_mistyped_path_is_a_missing_file_and_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "best.ckpt").touch()
    for source in ("runs/bset.ckpt", "runs/toy", "run/best.ckpt"):
        with pytest.raises(FileNotFoundError, match=rf"there is no {source}") as caught:
            OnePeace.from_pretrained(source)
        assert ("runs has best.ckpt" in str(caught.value)) == source.startswith("runs/")


def test_a_model_says_what_it_is_in_a_few_lines(onepeace):
    lines = repr(onepeace).splitlines()
    assert len(lines) == 1 + len(onepeace.config.adapters)
    assert "M parameters, float32 on cpu" in lines[0]
    assert f"vocabulary of {onepeace.tokenizer.vocab_size:,}" in repr(onepeace)


def test_an_unknown_source_names_what_is_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", "nowhere", tmp_path / "empty", "a/b/c"):
        with pytest.raises(
            (ValueError, FileNotFoundError),
            match=r"accepted is a folder written by save_pretrained .*\.ckpt.*\.pt.*owner/name",
        ):
            OnePeace.from_pretrained(source)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds weights, and neither 'model' nor 'state_dict'"):
        OnePeace.from_pretrained(tmp_path / "other.pt")


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "absent"}))


def test_damaged_folders_are_refused(onepeace, tokenizer, tmp_path):
    def broken(damage, error, says):
        onepeace.save_pretrained(tmp_path)
        damage()
        with pytest.raises(error, match=says):
            OnePeace.from_pretrained(tmp_path)

    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    broken(lambda: weights.write_bytes(weights.read_bytes()[:5000]), ValueError, "model.safetensors cannot be read")
    broken(weights.unlink, FileNotFoundError, "model.safetensors")
    broken(lambda: config.write_text("{"), ValueError, "config.json is no JSON")
    broken(lambda: config.write_text("[]"), ValueError, "format_version None")
    broken(lambda: edit_config(tmp_path, format_version=2), ValueError, "format_version 2; this release reads 1")
    broken(lambda: edit_config(tmp_path, model="absent"), ValueError, r"damaged \(KeyError: 'model'\)")
    broken(lambda: edit_config(tmp_path, preprocessing={"size": 4}), ValueError, "no modality 'size'")
    broken(lambda: edit_config(tmp_path, denoiser=True), ValueError, "missing denoiser")
    other = SentencePieceTokenizer.train(["another caption"], 300)
    broken(lambda: other.save(tmp_path), ValueError, "is not the one that the model was saved with")
    broken((tmp_path / "sentencepiece.model").unlink, FileNotFoundError, "holds no tokenizer")


def test_missing_weights_in_a_training_checkpoint_are_listed(tokenizer, tmp_path):
    save_training_checkpoint(tmp_path / "last.ckpt", built(config_for(tokenizer.vocab_size)), tokenizer, None)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["state_dict"]["model.heads.logit_scale"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"missing heads\.logit_scale"):
        OnePeace.from_pretrained(tmp_path / "last.ckpt")


# ---------------------------------------------------------------- the hub


def test_a_name_on_the_hub_is_fetched(onepeace, tmp_path, monkeypatch):
    onepeace.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    same_weights(OnePeace.from_pretrained("owner/some-model_1.0"), onepeace)
    [(name, patterns)] = asked
    assert name == "owner/some-model_1.0"
    for_others = {"README.md", "modules.json"}
    assert {path.name for path in tmp_path.iterdir()} - for_others <= set(patterns)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network here"), ConnectionError("no network here")])
def test_without_a_network_a_name_on_the_hub_says_what_to_do(monkeypatch, error):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        ValueError, match=r"no folder or file owner/model here.*no network here.*hf download owner/model"
    ):
        OnePeace.from_pretrained("owner/model")


# ---------------------------------------------------------------- goldens and imports


@pytest.mark.skipif(not (SHARED / "goldens").is_dir(), reason="the goldens of the original's mathematics are not here")
def test_embeddings_are_those_of_the_original(caplog):
    goldens = SHARED / "goldens"
    golden = torch.load(goldens / "encode_io.pt", weights_only=True)
    with caplog.at_level(logging.WARNING):
        onepeace = OnePeace.from_pretrained(goldens / "pretrain.pt")
    assert not caplog.records
    assert str(onepeace.report) == "every tensor fits"
    audio = [(clip, 16000) for clip in golden["waveforms"]]
    onepeace.preprocessing = onepeace.preprocessing.changed(audio={"min_seconds": 0.1})
    torch.testing.assert_close(onepeace.embed(audio=audio), golden["audio_embedding"], atol=1e-4, rtol=0)

    class Ids:
        """Gives the golden's ids for the number of its row."""

        vocab_size, max_length = 120, 70

        def encode(self, text, rules):
            return type("Encoding", (), {"ids": [i for i in golden["tokens"][int(text)].tolist() if i != 1]})

    onepeace.tokenizer = Ids()
    torch.testing.assert_close(onepeace.embed(text=["0", "1", "2"]), golden["text_embedding"], atol=1e-4, rtol=0)
    features, mask = onepeace.encode(text=["0", "1", "2"])["text"]
    torch.testing.assert_close(features[mask], golden["text_features"][:, : mask.shape[1]][mask], atol=1e-4, rtol=0)


def test_pictures_reach_the_model_as_the_preprocessing_makes_them(onepeace):
    picture = torch.randint(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    seen = []
    onepeace.backbone.adapters["image"].stem.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    onepeace.embed(image=[picture])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(seen[0][0], (picture / 255 - mean) / std, atol=1e-5, rtol=0)


def test_the_package_imports_next_to_nothing():
    code = "import sys, onepeace_lightning; print([n for n in ('torch', 'lightning', 'PIL') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_name_in_the_package_is_an_attribute_error():
    with pytest.raises(ImportError, match="OnePiece"):
        from onepeace_lightning import OnePiece  # noqa: F401
