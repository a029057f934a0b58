from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.flops import Flops
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops
from tests.counted import counted
from tests.tiny import FIVE_TYPES, audios, batches, images, masks, texts, tiny_config, tiny_model

STEPS = [["image-text"], ["audio-text"], ["image"], ["audio"], ["text"], list(FIVE_TYPES)]


@pytest.fixture
def model() -> PretrainModel:
    """The counter takes the weight gradient of a grouped convolution for that of an ungrouped one."""
    adapters = tiny_config().adapters
    return tiny_model(adapters={**adapters, "audio": replace(adapters["audio"], position_groups=1)})


def even_batches(*data_types: str) -> dict[str, Batch]:
    """Samples of equal lengths, of which equal numbers of tokens are hidden: nothing is padded."""
    raw = {"text": texts(8, 8, 8), "image": images(3), "audio": audios(*[320 * 9 + 80] * 3)}
    alone, fused = (
        {name: masks(part.token_lengths, share, last=name != "text", seed=seed) for name, part in raw.items()}
        for share, seed in ((0.4, 1), (0.6, 2))
    )
    out = {}
    for data_type in data_types:
        names = data_type.split("-")
        parts = [{name: part[name] for name in names} for part in (raw, alone, fused)]
        out[data_type] = Batch(["", "", ""], parts[0], parts[1], parts[2] if len(names) > 1 else {})
    return out


def measured(model: PretrainModel, step: dict[str, Batch], objectives: Objectives, frozen: set[str]) -> list[int]:
    """FLOPs of the forward and of the backward pass."""
    losses: list[torch.Tensor] = []
    return counted(
        lambda: losses.append(pretraining_loss(model, step, objectives, frozen).total), lambda: losses[0].backward()
    )


def by_pass(parts: dict[str, Flops]) -> list[int]:
    whole = sum(parts.values(), Flops())
    return [whole.forward, whole.backward]


@pytest.mark.parametrize(
    "objectives",
    [Objectives(), Objectives(keys="detached"), Objectives(denoise=False)],
    ids=["both", "detached", "one"],
)
@pytest.mark.parametrize("data_types", STEPS, ids=lambda names: "+".join(names))
def test_a_step_without_padding_is_counted_exactly(model, data_types, objectives):
    if not objectives.denoise and not (data_types := [name for name in data_types if "-" in name]):
        pytest.skip("single modalities are only denoised")
    step = even_batches(*data_types)
    assert by_pass(step_flops(model.config, step, objectives)) == measured(model, step, objectives, set())


@pytest.mark.parametrize("objectives", [Objectives(), Objectives(denoise=False)], ids=["both", "contrast"])
@pytest.mark.parametrize("data_types", [["audio-text"], ["audio-text", "audio"]], ids="+".join)
def test_frozen_parts_of_stage_2_have_no_weight_gradients(model, data_types, objectives):
    trained = model.trained_in_stage2(["audio"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    data_types = data_types if objectives.denoise else data_types[:1]
    step = even_batches(*data_types)
    parts = step_flops(model.config, step, objectives, trainable=["audio"])
    assert by_pass(parts) == measured(model, step, objectives, {"text", "image"})
    assert total_flops(parts) < total_flops(step_flops(model.config, step, objectives))


@pytest.mark.parametrize("name", FIVE_TYPES)
def test_padding_makes_what_is_computed_at_most_as_much_more_as_the_longest_sample_is_longer(model, name):
    step = batches(model, name)
    real = total_flops(step_flops(model.config, step))
    lengths = [inputs.token_lengths for inputs in step[name].inputs.values()]
    longer = max(max(part) * len(part) / sum(part) for part in lengths)
    computed = sum(measured(model, step, Objectives(), set()))
    # masks make pictures uneven too; the square of attention is a small part of the whole
    assert real <= computed < 1.1 * longer * real


def test_of_text_only_attention_may_be_padded(model):
    step = batches(model, "text")
    whole = step["text"].inputs["text"].token_lengths
    shown = step["text"].masks["text"].visible_lengths
    teacher, student = (len(part) * max(part) ** 2 - sum(n**2 for n in part) for part in (whole, shown))
    encoder, decoder = model.config.encoder, model.config.decoder.transformer
    # the teacher is only run forward, student and decoder forward and backward
    excess = encoder.depth * encoder.width * (teacher + 3 * student)
    excess += decoder.depth * decoder.width * 3 * teacher
    computed = sum(measured(model, step, Objectives(), set()))
    assert 0 <= computed - total_flops(step_flops(model.config, step)) <= 4 * excess
    assert excess > 0


def test_computing_activations_again_is_no_model_flop(model):
    step = even_batches("image-text")
    plain = measured(model, step, Objectives(), set())
    for block in model.backbone.encoder.blocks:
        block.forward = lambda *args, forward=block.forward: checkpoint(forward, *args, use_reentrant=False)
    again = measured(model, step, Objectives(), set())
    parts = step_flops(model.config, step)
    assert by_pass(parts) == plain
    # Recomputation stops once it has what was saved: before the last product of the block.
    extra = sum(again) - sum(plain)
    assert 0.7 * parts["with_grad"].forward < extra <= parts["with_grad"].forward


def test_more_ranks_contrast_with_more_samples(model):
    step = even_batches("image-text")
    one, four = (step_flops(model.config, step, ranks=ranks) for ranks in (1, 4))
    assert four.pop("contrast").total == 4 * one.pop("contrast").total
    assert one == four
