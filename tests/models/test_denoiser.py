from dataclasses import replace

import numpy as np
import pytest
import torch

from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.config import AdapterConfig
from onepeace_lightning.models.denoiser import DecoderInput
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.patches import grid_positions
from tests.models import reference
from tests.tiny import mask_rows, masks, tiny_config, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = {"text": [7, 4, 9], "image": [10, 10, 10], "audio": [6, 12, 8]}


def student(names: tuple[str, ...], seed: int = 0) -> tuple[dict, dict]:
    """Features of the visible tokens of three samples, and what is hidden."""
    rng = torch.Generator().manual_seed(seed)
    hidden = {name: masks(LENGTHS[name], 0.5, last=name != "text", seed=seed) for name in names}
    view = {}
    for name in names:
        x_BLD = torch.randn(3, max(LENGTHS[name]), 24, generator=rng)
        view[name] = Tokens.of_padded(x_BLD, LENGTHS[name]).hide(hidden[name])
    return view, hidden


def nothing(*lengths: int) -> TokenMask:
    """A mask that hides no token."""
    return TokenMask.of([np.zeros(length, dtype=bool) for length in lengths])


def predict(model: PretrainModel, *views: tuple[dict, dict]) -> list[dict[str, torch.Tensor]]:
    return model.denoiser([view for view, _ in views], [hidden for _, hidden in views])


def literally(model: PretrainModel, view: dict, hidden: dict, sample: int) -> dict[str, torch.Tensor]:
    """The hidden tokens of one sample, predicted by the slow encoder."""
    denoiser, tokens = model.denoiser, {}
    for name in [name for name in ("text", "image", "audio") if name in view]:
        entry = denoiser.inputs[name]
        shown = iter(view[name].values_TD.split(view[name].lengths)[sample])
        filled = [entry.mask_token if gone else entry.project(next(shown)) for gone in mask_rows(hidden[name])[sample]]
        tokens[name] = torch.stack(filled) + entry.positions[: len(filled)]
    decoded = reference.encode(denoiser.decoder, tokens)
    return {
        name: reference.linear(denoiser.outputs[name], features[mask_rows(hidden[name])[sample]])
        for name, features in decoded.items()
    }


@torch.no_grad()
def test_all_students_in_one_pass_equal_the_slow_decoder_one_sample_at_a_time():
    model = tiny_model()
    views = [student(names, i) for i, names in enumerate([("text",), ("image", "text"), ("audio",), ("text", "audio")])]
    for (view, hidden), result in zip(views, predict(model, *views), strict=True):
        alone = [literally(model, view, hidden, sample) for sample in range(3)]
        assert set(result) == set(view)
        for name, features in result.items():
            wanted = torch.cat([part[name] for part in alone])
            torch.testing.assert_close(features.double(), wanted, **CLOSE)


@torch.no_grad()
def test_a_fused_student_is_decoded_as_one_sequence():
    model = tiny_model()
    view, hidden = student(("text", "image"))
    together = predict(model, (view, hidden))[0]
    alone = predict(model, ({"text": view["text"]}, {"text": hidden["text"]}))[0]
    assert (together["text"] - alone["text"]).abs().max() > 1e-3


def test_gradients_stay_within_the_sample():
    model = tiny_model()
    view, hidden = student(("audio",))
    values = view["audio"].values_TD.requires_grad_()
    count = int(mask_rows(hidden["audio"])[0].sum())
    predict(model, (view, hidden))[0]["audio"][:count].square().sum().backward()
    first = view["audio"].lengths[0]
    assert values.grad[:first].abs().sum(1).min() > 0
    assert not values.grad[first:].any()


def test_nothing_hidden_predicts_nothing_and_passes_a_gradient_of_zero():
    model = tiny_model()
    view = {"text": Tokens.of_padded(torch.randn(3, 9, 24), LENGTHS["text"])}
    features = predict(model, (view, {"text": nothing(*LENGTHS["text"])}))[0]["text"]
    assert features.shape == (0, 24)
    features.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.denoiser.parameters() if p.grad is not None)


def test_more_positions_than_the_decoder_has_are_refused():
    entry = DecoderInput(8, 4, 0.02, positions=5, adapter=tiny_config().adapters["text"])
    tokens = Tokens.of_padded(torch.randn(1, 6, 8), [6])
    with pytest.raises(ValueError, match="6 positions; the decoder has 5: shorten"):
        entry(tokens, nothing(6))
    assert entry(Tokens.of_padded(torch.randn(1, 5, 8), [5]), nothing(5)).lengths == [5]


def test_the_decoders_image_positions_follow_the_grid():
    config = tiny_config()
    model = PretrainModel(config)
    assert len(model.denoiser.inputs["image"].positions) == 10
    resized = replace(config, adapters=config.adapters | {"image": ImageConfig(image_size=48, position_grid=5)})
    entry = PretrainModel(resized).denoiser.inputs["image"]
    assert len(entry.positions) == 26
    visible = Tokens.of_padded(torch.randn(1, 10, 24), [10])
    wanted = entry.project(visible.values_TD) + grid_positions(entry.positions, 3)
    torch.testing.assert_close(entry(visible, nothing(10)).values_TD, wanted)


def test_a_modality_without_decoder_positions_is_named():
    class Silent(AdapterConfig):
        pass

    with pytest.raises(ValueError, match="positions does not say how many rows Silent needs"):
        Silent().decoder_rows()
