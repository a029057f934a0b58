"""The pretraining task as a LightningModule."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.tasks import Optimization, PretrainTask
from tests.tiny import IMAGE_SIZE, batches


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTokenizer.train(["a few words to learn from"], 300).save(folder)
    return str(folder)


def built(tokenizer: str, **settings) -> PretrainTask:
    torch.manual_seed(0)
    task = PretrainTask(
        tokenizer,
        Optimization(total_steps=10, warmup_steps=1),
        preprocessing={"image": {"size": IMAGE_SIZE}},
        **settings,
    )
    task.configure_model()
    task.log = lambda *args, **kwargs: None
    task.log_dict = lambda *args, **kwargs: None
    return task


@pytest.mark.parametrize(
    ("data_types", "settings"),
    [
        (["image-text"], {}),
        (["audio-text"], {}),
        (["image"], {}),
        (["text", "audio"], {}),
        (["image-text", "audio-text", "image", "audio", "text"], {}),
        (["image-text", "audio-text"], {"objectives": Objectives(denoise=False)}),
        (["audio-text"], {"trainable": ["audio"]}),
    ],
)
def test_exactly_the_parameters_that_a_step_reaches_train(tokenizer, data_types, settings):
    """With others among them, DDP would wait for gradients that never come."""
    task = built(tokenizer, data_types=data_types, **settings)
    task.training_step(batches(task.model, *data_types), 0).backward()
    for name, parameter in task.model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_stage_2_leaves_text_and_pictures_without_gradient(tokenizer):
    task = built(tokenizer, data_types=["audio-text"], trainable=["audio"])
    training = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert "backbone.adapters.audio.project.weight" in training
    assert "backbone.encoder.blocks.0.ffns.audio.gate.weight" in training
    assert "denoiser.inputs.text.mask_token" in training
    assert "heads.logit_scale" in training
    own = ("adapters.audio.", "ffns.audio.", "norms.audio.", "projections.audio.", "denoiser.", "heads.logit_scale")
    assert all(any(part in name for part in own) for name in training - {"heads.projections.image.weight"})


def test_wrong_settings_are_all_reported_at_once(tokenizer):
    with pytest.raises(ValueError, match="'smell' is no modality") as error:
        built(tokenizer, data_types=["smell-text", "image-label"])
    assert "'image-label' has an answer" in str(error.value)
    with pytest.raises(ValueError, match="'audio-text' needs a modality out of") as error:
        built(tokenizer, data_types=["audio-text"], modalities=["text", "image"], trainable=["audio"])
    assert "trainable names 'audio'" in str(error.value)
    with pytest.raises(ValueError, match="'image' teaches nothing without denoising"):
        built(tokenizer, data_types=["image", "image-text"], objectives=Objectives(denoise=False))


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(tokenizer):
    task = built(tokenizer, data_types=["image-text"]).eval()
    inputs = batches(task.model, "image-text")["image-text"].inputs
    whole = task.model.embed(inputs)
    assert set(whole) == {"image", "text"}
    torch.testing.assert_close(whole["image"].norm(dim=1), torch.ones(3))
    alone = task.model.embed({"image": type(inputs["image"])(inputs["image"].pixels[:1])})
    torch.testing.assert_close(alone["image"], whole["image"][:1], atol=1e-5, rtol=0)


def test_a_checkpoint_opens_with_the_arguments_it_was_made_with(tokenizer, tmp_path):
    task = built(tokenizer, data_types=["image-text"])
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([batches(task.model, "image-text")], batch_size=None))
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    again = PretrainTask.load_from_checkpoint(
        tmp_path / "task.ckpt", tokenizer=tokenizer, optimization=Optimization(total_steps=1, warmup_steps=0),
        preprocessing={"image": {"size": task.config.adapters["image"].image_size}},
    )  # fmt: skip
    for name, tensor in task.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    of_a_task = {"onepeace": {"task": {"name": "RetrievalTask"}}}
    for foreign, named in (({}, "something else"), (of_a_task, "RetrievalTask")):
        with pytest.raises(ValueError, match=f"the checkpoint is of {named}, not of PretrainTask"):
            task.on_load_checkpoint(foreign)


def test_the_choice_of_attention_reaches_encoder_and_decoder(tokenizer):
    task = built(tokenizer, attention="flex")
    assert task.model.backbone.encoder.attention == task.model.denoiser.decoder.attention == "flex"
    assert built(tokenizer).model.backbone.encoder.attention == "auto"
    with pytest.raises(ValueError, match="attention is 'fast'; choose one of auto, padded, cpu, flex"):
        built(tokenizer, attention="fast")
