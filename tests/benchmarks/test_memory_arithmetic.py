"""The arithmetic against what autograd really keeps, and against the tensors of real models."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks import memory_arithmetic as arithmetic
from benchmarks.memory_arithmetic import BF16_CPU, BF16_CUDA, FLOAT32
from onepeace_lightning.losses import chunks
from onepeace_lightning.losses.denoising import denoising_contrast
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.models import Tokens
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.encoder import Encoder
from tests.tiny import batches, images, tiny_config, tiny_model

CONFIG = TransformerConfig(width=128, depth=1, heads=2, ffn_width=384, layer_scale=0.5)


def kept(compute, *, half: bool, device: str = "cpu") -> int:
    """Bytes of all storages that autograd saves; a tensor that is saved twice counts once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(device, torch.bfloat16, enabled=half),
    ):
        result = compute()  # noqa: F841 (keeps the graph, so that no storage's address is used twice)
    return sum(storage.nbytes() for storage in storages.values())


def encoder_slope(config: TransformerConfig, *, half: bool, checkpointing: bool = False, device: str = "cpu") -> float:
    """Bytes for each further token of sequences so short that attention's logits do not matter."""
    encoder = Encoder(config, ["text"]).to(device).train()
    if checkpointing:
        for block in encoder.blocks:
            block.forward = lambda *args, forward=block.forward: checkpoint(forward, *args, use_reentrant=False)

    def run(sequences: int) -> int:
        x_TD = torch.randn(2 * sequences, config.width, device=device, requires_grad=True)
        positions = torch.arange(2, device=device).repeat(sequences)
        return kept(lambda: encoder([{"text": Tokens(x_TD, positions, [2] * sequences)}]), half=half, device=device)

    return (run(192) - run(64)) / 256


def block_slope(config: TransformerConfig, **options) -> float:
    """The same for one block, without what comes before and after the blocks."""
    deep, shallow = (encoder_slope(replace(config, depth=depth), **options) for depth in (3, 1))
    return (deep - shallow) / 2


@pytest.mark.parametrize("layer_scale", [0.5, None])
@pytest.mark.parametrize(("numbers", "half"), [(FLOAT32, False), (BF16_CPU, True)], ids=["float32", "bf16"])
def test_a_block_keeps_what_the_arithmetic_says(numbers, half, layer_scale):
    config = replace(CONFIG, layer_scale=layer_scale)
    assert arithmetic.block_bytes(config, numbers) == pytest.approx(block_slope(config, half=half), rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_block_on_a_gpu_keeps_what_the_arithmetic_says():
    measured = block_slope(CONFIG, half=True, device="cuda")
    assert arithmetic.block_bytes(CONFIG, BF16_CUDA) == pytest.approx(measured, rel=0.1)


def test_under_checkpointing_a_block_keeps_its_input():
    assert block_slope(CONFIG, half=True, checkpointing=True) == pytest.approx(4 * CONFIG.width, rel=0.05)
    deep = replace(CONFIG, depth=3)
    wanted = 3 * 4 * CONFIG.width + arithmetic.block_bytes(CONFIG)
    assert arithmetic.checkpointed_bytes(deep) == wanted


def test_the_stem_keeps_what_the_arithmetic_says():
    config = tiny_config(encoder=replace(tiny_config().encoder, width=64))
    model = tiny_model(encoder=config.encoder)
    adapter = model.backbone.adapters["image"]
    runs = [kept(lambda count=count: adapter.stem(images(count).pixels), half=False) for count in (2, 4)]
    pictures = 3 * 48 * 48 * 4
    wanted = arithmetic.stem_bytes(adapter.config, 64, FLOAT32) + pictures
    assert wanted == pytest.approx((runs[1] - runs[0]) / 2, rel=0.05)


@pytest.mark.parametrize("half", [True, False])
def test_the_denoising_contrast_keeps_four_bytes_for_each_pair(half):
    def run(hidden: int) -> int:
        student, teacher = torch.randn(hidden, 8, requires_grad=True), torch.randn(1000, 8)
        return kept(lambda: denoising_contrast(student, teacher, torch.arange(hidden)), half=half)

    assert (run(600) - run(200)) / (400 * 1000) == pytest.approx(4, rel=0.05)


def test_the_denoising_contrast_keeps_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS", 100_000)

    def run(hidden: int) -> int:
        student, teacher = torch.randn(hidden, 8, requires_grad=True), torch.randn(1000, 8)
        return kept(lambda: denoising_contrast(student, teacher, torch.arange(hidden)), half=False)

    assert run(100) > 4 * 100_000
    assert run(900) < 4 * 100_000


def test_parameters_are_those_of_a_real_model():
    model = tiny_model()
    sizes = arithmetic.parameters(model.config)
    assert sizes.total == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.encoder == sum(parameter.numel() for parameter in model.backbone.encoder.blocks.parameters())
    assert sizes.block == sum(parameter.numel() for parameter in model.backbone.encoder.blocks[0].parameters())
    assert sizes.decoder == sum(parameter.numel() for parameter in model.denoiser.decoder.blocks.parameters())


def test_the_state_is_that_of_a_trained_model():
    """Weights, gradients and moments of a step of AdamW, in bytes."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *moments]
    sizes = arithmetic.parameters(model.config)
    assert arithmetic.state_bytes(sizes, 1) == sum(tensor.nbytes for tensor in tensors)
    assert arithmetic.state_bytes(sizes, 8) == arithmetic.state_bytes(sizes, 1) / 8


def test_work_is_counted_from_the_masks():
    model = tiny_model()
    batch = batches(model, "image-text")
    step = arithmetic.work(batch, 3)
    (one,) = batch.values()
    text, image = np.array(one.inputs["text"].token_lengths), 10
    whole = int(text.sum()) + 3 * image
    hidden = {name: len(mask.hidden_M) for name, mask in one.masks.items()}
    fused = {name: len(mask.hidden_M) for name, mask in one.fused_masks.items()}
    assert (step.terms, step.with_grad_views, step.without_grad_views, step.decode_views) == (4, 5, 1, 3)
    # each alone, each masked, both masked
    assert 3 * step.with_grad == pytest.approx(3 * whole - sum(hidden.values()) - sum(fused.values()))
    assert 3 * step.decode == pytest.approx(2 * whole)
    candidates = {"text": int(text.sum()) - 3, "image": 3 * (image - 1)}
    pairs = sum((hidden[name] + fused[name]) * candidates[name] for name in candidates)
    assert 9 * step.pairs == pytest.approx(pairs)


def work(**counts: float) -> arithmetic.Work:
    """That of an image-text step."""
    return arithmetic.Work(**counts, terms=4, with_grad_views=5, without_grad_views=1, decode_views=3)


def test_the_packed_pass_gathers_blocks_three_times_and_view_by_view_for_every_view():
    sizes = arithmetic.Parameters(encoder=1000, decoder=100, rest=10, block=250)
    step = arithmetic.Work(
        with_grad=1, decode=1, pairs=1, terms=4, with_grad_views=5, without_grad_views=1, decode_views=3
    )
    assert arithmetic.gathered_bytes(sizes, step, packed=True) == 2 * (3 * 1000 + 2 * 100) + 4 * 10
    assert arithmetic.gathered_bytes(sizes, step, packed=False) == 2 * (11 * 1000 + 6 * 100) + 4 * 10


@pytest.mark.parametrize("pairs", [90_000, 90_000_000])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_largest_batch_fits_and_one_more_does_not(checkpointing, pairs):
    config = preset_config("4b")
    assert isinstance(config.adapters["image"], ImageConfig)
    step = arithmetic.Work(
        with_grad=450, decode=550, pairs=pairs, terms=4, with_grad_views=5, without_grad_views=1, decode_views=3
    )

    def needed(samples: int) -> float:
        kept = arithmetic.activation_bytes(config, step, samples, checkpointing=checkpointing)
        return kept + arithmetic.logits_bytes(step, samples)

    most = arithmetic.most_samples(config, step, 5e10, checkpointing=checkpointing)
    assert needed(most) <= 5e10 < needed(most + 1)
    assert arithmetic.most_samples(config, step, -1.0, checkpointing=checkpointing) == 0


def test_it_prints_its_tables(monkeypatch, capsys):
    monkeypatch.setattr(arithmetic, "SAMPLES", 4)
    arithmetic.main(["--preset", "tiny", "--samples", "2", "--gpus", "[1, 2]"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"ratio: \d\.\d\d \(bytes gathered view by view against packed\)", lines[-1])
    assert sum(line.lstrip().startswith(("1 ", "2 ")) for line in lines) == 2 + 2 * 2
    with pytest.raises(ValueError, match="image-text pairs: name both"):
        arithmetic.run("tiny", modalities=("image", "audio"))
