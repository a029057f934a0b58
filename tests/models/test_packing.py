import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.layers import gather_padded, gather_rows, scatter_rows
from onepeace_lightning.models.packing import Tokens, pack


def some_tokens(*lengths: int, width: int = 3, start: float = 0.0) -> Tokens:
    """Values that name their own row, with garbage where there is padding."""
    count = sum(lengths)
    values = start + torch.arange(count * width, dtype=torch.float64).view(count, width)
    x_BLD = torch.full((len(lengths), max(lengths), width), torch.nan, dtype=torch.float64)
    for row, part in enumerate(values.split(list(lengths))):
        x_BLD[row, : len(part)] = part
    return Tokens.of_padded(x_BLD, list(lengths))


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_gathering_and_scattering_have_exact_first_and_second_gradients(shape):
    index = torch.tensor([4, 0, 3])
    x = torch.randn(6, *shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    for function, value in [(lambda x: gather_rows(x, index), x), (lambda y: scatter_rows(y, index, 6), y)]:
        assert gradcheck(function, (value,))
        assert gradgradcheck(function, (value,))


def test_padded_gathering_has_the_gradient_of_the_rows_that_matter():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 0, 2])
    source = torch.zeros(5, dtype=torch.long)
    source[index] = torch.arange(3)
    assert torch.equal(gather_rows(gather_padded(x, source, index), index), x)
    assert gradcheck(lambda x: gather_rows(gather_padded(x, source, index), index).sin(), (x,))
    # what happens to the other rows is ignored
    gather_padded(x, source, index).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_gathering_gives_the_rows_and_scattering_is_its_transpose():
    index, x, y = torch.tensor([4, 0, 3]), torch.randn(6, 2), torch.randn(3, 2)
    torch.testing.assert_close(gather_rows(x, index), torch.stack([x[4], x[0], x[3]]))
    placed = scatter_rows(y, index, 6)
    torch.testing.assert_close(placed[index], y)
    assert not placed[[1, 2, 5]].any()
    torch.testing.assert_close((gather_rows(x, index) * y).sum(), (x * placed).sum())


def test_no_padding_survives_of_padded_and_padded_restores_the_batch():
    tokens = some_tokens(3, 1, 4)
    assert not tokens.values_TD.isnan().any()
    assert tokens.positions_T.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    x_BLD, valid_BL = tokens.padded()
    assert valid_BL.sum(1).tolist() == [3, 1, 4]
    torch.testing.assert_close(x_BLD[valid_BL], tokens.values_TD)
    assert not x_BLD[~valid_BL].any()


@pytest.mark.parametrize("lengths", [(3, 3), (2, 5, 1)])
def test_cls_is_the_first_token_of_every_sample(lengths):
    tokens = some_tokens(*lengths)
    torch.testing.assert_close(tokens.cls, tokens.padded()[0][:, 0])


def test_padding_and_packing_pass_the_gradient_to_each_token_once():
    x_BLD = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, 2, dtype=torch.float64)
    (Tokens.of_padded(x_BLD, [2, 4, 1]).padded()[0] * weights).sum().backward()
    valid = torch.arange(4) < torch.tensor([2, 4, 1])[:, None]
    torch.testing.assert_close(x_BLD.grad, weights * valid[..., None])


def test_hiding_keeps_the_others_in_order_at_their_positions():
    tokens = some_tokens(4, 3)
    mask = TokenMask.of([np.array([0, 1, 1, 0], dtype=bool), np.array([0, 0, 1], dtype=bool)])
    seen = tokens.hide(mask)
    assert seen.lengths == [2, 2]
    assert seen.positions_T.tolist() == [0, 3, 0, 1]
    torch.testing.assert_close(seen.values_TD, tokens.values_TD[[0, 3, 4, 5]])
    assert tokens.full
    assert not seen.full


def test_a_mask_of_other_lengths_is_refused():
    mask = TokenMask.of([np.zeros(3, dtype=bool), np.zeros(4, dtype=bool)])
    with pytest.raises(ValueError, match=r"\[3, 4\] tokens for samples of \[4, 3\]"):
        some_tokens(4, 3).hide(mask)


def test_the_indices_of_a_mask_are_those_of_tokens_laid_end_to_end():
    mask = TokenMask.of([np.array([0, 1, 1, 0], dtype=bool), np.zeros(1, dtype=bool), np.array([0, 0, 1], dtype=bool)])
    assert mask.hidden_M.tolist() == [1, 2, 7]
    assert mask.visible_N.tolist() == [0, 3, 4, 5, 6]
    assert mask.samples_M.tolist() == [0, 0, 2]
    assert mask.positions_N.tolist() == [0, 3, 0, 0, 1]
    assert (mask.lengths, mask.visible_lengths) == ([4, 1, 3], [2, 1, 2])
    # among the tokens without CLS, 0 1 2 of the first sample and 3 4 of the last
    assert mask.targets_M.tolist() == [0, 1, 4]
    assert some_tokens(4, 1, 3).without_cls().tolist() == some_tokens(4, 1, 3).values_TD[[1, 2, 3, 6, 7]].tolist()


def test_cls_cannot_be_hidden():
    with pytest.raises(ValueError, match=r"position 0 .CLS. is masked"):
        TokenMask.of([np.array([0, 1, 0], dtype=bool), np.array([1, 0, 0], dtype=bool)])


@pytest.mark.parametrize("multiple", [1, 4])
def test_packing_groups_by_modality_and_keeps_every_token_once(multiple):
    views = [
        {"image": some_tokens(2, 2, start=100.0), "text": some_tokens(3, 1)},
        {"text": some_tokens(2, start=50.0)},
    ]
    packed = pack(views, ("text", "image", "audio"), multiple)
    text = 6 if multiple == 1 else 8
    assert packed.sizes == {"text": text, "image": 4}
    assert packed.parts == [{"text": slice(0, 4), "image": slice(text, text + 4)}, {"text": slice(4, 6)}]
    for view, part in zip(views, packed.parts, strict=True):
        for name, tokens in view.items():
            torch.testing.assert_close(packed.values_TD[part[name]], tokens.values_TD)
    assert not packed.values_TD[6:text].any()
    # the padding is a sequence of its own
    assert packed.num_sequences == 3 + (multiple > 1)
    assert packed.sequence_T.tolist() == [0, 0, 0, 1, 2, 2, *[3] * (text - 6), 0, 0, 1, 1]
    assert [part.shape for part in packed.by_modality(packed.values_TD).values()] == [(text, 3), (4, 3)]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="no view"):
        pack([], ("text",))
    with pytest.raises(ValueError, match=r"same number of samples.*'text': 2, 'image': 1"):
        pack([{"text": some_tokens(2, 2), "image": some_tokens(2)}], ("text", "image"))
    with pytest.raises(ValueError, match=r"out of .'text'.*'smell'"):
        pack([{"smell": some_tokens(2)}], ("text",))
    with pytest.raises(ValueError, match="out of"):
        pack([{}], ("text",))
