from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.contrastive import aligning_contrast
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss, weight
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.inputs import TokenMask
from tests.models.reference import literal_denoising
from tests.tiny import FIVE_TYPES, audios, batches, images, mask_rows, masks, texts, tiny_config, tiny_model

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
TERMS = {
    "image-text": {"contrast": 1.0, "text": 0.5, "image": 1.0, "fused_text": 0.5, "fused_image": 0.5},
    "audio-text": {"contrast": 1.0, "audio": 1.0, "fused_text": 0.5, "fused_audio": 0.5},
    "image": {"image": 1.0},
    "text": {"text": 0.5},
    "audio": {"audio": 1.0},
}
TEACHERS = {
    ("image-text", "text"): ("text",),
    ("image-text", "image"): ("image",),
    ("image-text", "fused_text"): ("image", "text"),
    ("image-text", "fused_image"): ("image", "text"),
    ("audio-text", "audio"): ("audio", "text"),
    ("audio-text", "fused_text"): ("audio", "text"),
    ("audio-text", "fused_audio"): ("audio", "text"),
    ("image", "image"): ("image",),
    ("text", "text"): ("text",),
    ("audio", "audio"): ("audio",),
}
"""Which modalities the teacher of a term sees."""


def of_term(term: str) -> str:
    return term.removeprefix("fused_")


@torch.no_grad()
def candidates(
    model: PretrainModel, batch: Batch, term: str, seen: tuple[str, ...], *, cls: bool = False, eos: bool = True
) -> tuple[Tensor, list[int]]:
    """The teacher's features that a term's hidden tokens are compared with, and the row of each hidden token's own."""
    name = of_term(term)
    mask = mask_rows((batch.fused_masks if term.startswith("fused_") else batch.masks)[name])
    padded, valid = model.backbone({key: batch.inputs[key] for key in seen})[name].padded()
    features, targets = [], []
    for sample, length in enumerate(valid.sum(1).tolist()):
        for position in range(0 if cls else 1, length if eos else length - 1):
            if mask[sample][position]:
                targets.append(len(features))
            features.append(padded[sample, position])
    return torch.stack(features), targets


@torch.no_grad()
def student(model: PretrainModel, batch: Batch, term: str) -> Tensor:
    """(M, D) what a term's student predicts, run by itself."""
    fused = term.startswith("fused_")
    names = tuple(batch.inputs) if fused else (of_term(term),)
    hidden = batch.fused_masks if fused else batch.masks
    tokens = model.backbone.embed({name: batch.inputs[name] for name in names})
    view = model.backbone.encode([model.backbone.view(tokens, hidden)])[0]
    return model.denoiser([view], [hidden])[0][of_term(term)]


@pytest.fixture(scope="module")
def model() -> PretrainModel:
    return tiny_model()


@pytest.fixture(scope="module")
def all_types(model) -> tuple[dict, object]:
    step = batches(model, *FIVE_TYPES)
    return step, pretraining_loss(model, step)


def test_every_data_type_has_its_terms_with_their_weights(all_types):
    _, result = all_types
    wanted = {f"{data_type}/{term}": value for data_type, terms in TERMS.items() for term, value in terms.items()}
    assert set(result.terms) == set(wanted)
    assert {name: weight(name) for name in result.terms} == wanted
    total = sum(wanted[name] * value for name, value in result.terms.items())
    torch.testing.assert_close(result.total, total)
    assert set(result.students) == {name for name in wanted if not name.endswith("contrast")}


@pytest.mark.parametrize(("data_type", "term"), list(TEACHERS))
def test_a_term_is_the_literal_loss_of_its_student_against_its_teacher(model, all_types, data_type, term):
    step, result = all_types
    batch, name = step[data_type], f"{data_type}/{term}"
    predicted = student(model, batch, term)
    torch.testing.assert_close(result.students[name].detach(), predicted, **CLOSE)
    wanted = literal_denoising(predicted, *candidates(model, batch, term, TEACHERS[data_type, term]))
    torch.testing.assert_close(result.terms[name].detach().double(), wanted, **CLOSE)


def test_eos_is_a_candidate_and_cls_is_not(model, all_types):
    """What the test above compares with would notice: either change moves the loss."""
    step, result = all_types
    value = result.terms["text/text"].item()
    predicted = student(model, step["text"], "text")
    for wrong in ({"cls": True}, {"eos": False}):
        other = literal_denoising(predicted, *candidates(model, step["text"], "text", ("text",), **wrong))
        assert abs(other.item() - value) > 1e-2


def test_a_sound_is_taught_by_the_fused_pass_and_a_picture_by_itself(model, all_types):
    step, result = all_types
    for data_type, term, wrong in (
        ("audio-text", "audio", ("audio",)),
        ("image-text", "image", ("image", "text")),
        ("image-text", "text", ("image", "text")),
        ("image-text", "fused_text", ("text",)),
        ("image-text", "fused_image", ("image",)),
    ):
        batch = step[data_type]
        other = literal_denoising(student(model, batch, term), *candidates(model, batch, term, wrong))
        assert abs(other.item() - result.terms[f"{data_type}/{term}"].item()) > 1e-4, term


@pytest.mark.parametrize("keys", ["differentiable", "detached"])
@pytest.mark.parametrize("pair", ["image-text", "audio-text"])
def test_contrast_compares_each_modality_seen_alone(model, pair, keys):
    batch = batches(model, pair)[pair]
    sides = [model.heads(name, model.backbone({name: batch.inputs[name]})) for name in pair.split("-")]
    wanted = aligning_contrast(*sides, model.heads.scale, keys)
    term = pretraining_loss(model, {pair: batch}, Objectives(keys=keys)).terms[f"{pair}/contrast"]
    torch.testing.assert_close(term, wanted, **CLOSE)
    queries = [p for n, p in model.named_parameters() if n.endswith("query.weight") and "encoder" in n]
    for ours, literal in zip(torch.autograd.grad(term, queries), torch.autograd.grad(wanted, queries), strict=True):
        torch.testing.assert_close(ours, literal, **CLOSE)


def test_data_types_together_give_what_each_gives_alone(model, all_types):
    step, result = all_types
    for data_type, batch in step.items():
        for name, value in pretraining_loss(model, {data_type: batch}).terms.items():
            torch.testing.assert_close(value, result.terms[name], **CLOSE)


def test_streams_may_differ_in_batch_size(model):
    step = batches(model, "image-text", count=3) | batches(model, "audio", count=2) | batches(model, "text", count=1)
    result = pretraining_loss(model, step)
    for data_type, batch in step.items():
        for name, value in pretraining_loss(model, {data_type: batch}).terms.items():
            torch.testing.assert_close(value, result.terms[name], **CLOSE)


def test_smoothing_is_passed_on(model):
    batch = batches(model, "text")["text"]
    value = pretraining_loss(model, {"text": batch}, Objectives(smoothing=0.3)).terms["text/text"]
    wanted = literal_denoising(student(model, batch, "text"), *candidates(model, batch, "text", ("text",)), 0.3)
    torch.testing.assert_close(value.detach().double(), wanted, **CLOSE)


def gradients(model: PretrainModel, loss: Tensor) -> dict[str, Tensor]:
    """The gradients that are not zero: one pass for all views has a zero where a term does not reach."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {
        name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None and gradient.any()
    }


@pytest.mark.parametrize("per_block_tables", [False, True])
def test_every_parameter_learns_from_the_five_data_types_together(per_block_tables):
    model = tiny_model(per_block_tables=per_block_tables)
    found = gradients(model, pretraining_loss(model, batches(model, *FIVE_TYPES)).total)
    assert {name for name, _ in model.named_parameters()} - set(found) == set()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_teacher_passes_no_gradient():
    """A term reaches what its student uses, even where its teacher learns from another term."""
    model = tiny_model()
    terms = pretraining_loss(model, batches(model, "audio-text", "image-text")).terms
    audio = gradients(model, terms["audio-text/audio"])
    assert not [name for name in audio if ".text." in name or ".image." in name]
    text = gradients(model, terms["image-text/text"])
    assert not [name for name in text if ".audio." in name or ".image." in name]
    batch = batches(model, "text")["text"]
    alone = gradients(model, pretraining_loss(model, {"text": batch}).terms["text/text"])
    assert alone.keys() == text.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(text[name], gradient, **CLOSE)


@pytest.mark.parametrize("keys", ["differentiable", "detached"])
def test_contrasted_embeddings_without_gradient_leave_their_modality_alone(keys):
    model = tiny_model()
    step = batches(model, "audio-text")
    result = pretraining_loss(model, step, Objectives(keys=keys), without_gradient=("text",))
    plain = pretraining_loss(model, step, Objectives(keys=keys))
    for name, value in plain.terms.items():
        torch.testing.assert_close(result.terms[name], value, **CLOSE)
    backbone = {name for name in gradients(model, result.terms["audio-text/contrast"]) if name.startswith("backbone.")}
    assert backbone
    assert not [name for name in backbone if ".text." in name]
    assert [name for name in gradients(model, plain.terms["audio-text/contrast"]) if "adapters.text." in name]
    # the fused student still passes a gradient through its text tokens
    assert [name for name in gradients(model, result.terms["audio-text/fused_audio"]) if "adapters.text." in name]


def test_contrasted_embeddings_without_gradient_leave_their_projection_alone():
    model = tiny_model()
    contrast = pretraining_loss(model, batches(model, "audio-text"), without_gradient=("text",)).terms[
        "audio-text/contrast"
    ]
    assert not [name for name in gradients(model, contrast) if name.startswith("heads.projections.text.")]


def test_contrast_only_needs_neither_masks_nor_denoiser():
    torch.manual_seed(0)
    model = PretrainModel(tiny_config(), denoise=False)
    batch = Batch(["a", "b"], {"image": images(2), "text": texts(4, 6)})
    result = pretraining_loss(model, {"image-text": batch}, Objectives(denoise=False))
    assert set(result.terms) == {"image-text/contrast"}
    assert result.students == {}
    with pytest.raises(ValueError, match="built with denoise=False"):
        pretraining_loss(model, {"image-text": batch})


@pytest.mark.parametrize(("step", "objectives"), [({}, Objectives()), ({"image": 2}, Objectives(denoise=False))])
def test_nothing_to_learn_is_refused(model, step, objectives):
    given = {name: Batch(["a", "b"], {"image": images(count)}) for name, count in step.items()}
    with pytest.raises(ValueError, match="nothing to learn"):
        pretraining_loss(model, given, objectives)


def test_a_batch_with_nothing_hidden_costs_nothing(model):
    batch = Batch(["a", "b"], {"text": texts(2, 1)}, {"text": TokenMask.of([np.zeros(3, bool), np.zeros(2, bool)])})
    result = pretraining_loss(model, {"text": batch})
    assert result.terms["text/text"] == 0
    found = gradients(model, result.total)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_one_sample_with_something_hidden_is_enough(model):
    sounds = audios(2000, 480)
    mask = TokenMask.of([*mask_rows(masks([7], 0.5, last=True, seed=0)), np.zeros(2, bool)])
    batch = Batch(["long", "one frame"], {"audio": sounds}, {"audio": mask})
    value = pretraining_loss(model, {"audio": batch}).terms["audio/audio"]
    wanted = literal_denoising(student(model, batch, "audio"), *candidates(model, batch, "audio", ("audio",)))
    torch.testing.assert_close(value.detach().double(), wanted, **CLOSE)


def test_views_are_dropped_independently_in_training():
    """Two students of one batch with the same mask: without drop path equal, with it not."""
    config = tiny_config()
    for rate, same in ((0.0, True), (0.5, False)):
        model = tiny_model(encoder=replace(config.encoder, drop_path=rate)).train()
        batch = batches(model, "text")["text"]
        torch.manual_seed(0)
        one, two = pretraining_loss(model, {"text": batch, "also text": batch}).students.values()
        assert torch.equal(one, two) or not same
        assert not torch.equal(one, two) or same


def test_a_step_under_bfloat16_autocast_stays_close_and_finite(model, all_types):
    step, exact = all_types
    with torch.autocast("cpu", torch.bfloat16):
        result = pretraining_loss(model, step)
    found = gradients(model, result.total)
    assert all(gradient.isfinite().all() for gradient in found.values())
    for name, value in result.terms.items():
        torch.testing.assert_close(value.float(), exact.terms[name], atol=0.08, rtol=0.05)


def test_the_encoder_runs_once_for_all_that_learns_and_once_for_the_teachers(model):
    runs = Counter()
    handle = model.backbone.encoder.register_forward_hook(lambda *_: runs.update([torch.is_grad_enabled()]))
    pretraining_loss(model, batches(model, *FIVE_TYPES))
    handle.remove()
    assert runs == {True: 1, False: 1}
