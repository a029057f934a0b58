"""The forms of attention against the formula, one sequence after the other, and against one another."""

import weakref

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from onepeace_lightning.models.attention import cpu
from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.attention.cpu import WORTHWHILE, CPUAttention, attend_on_cpu, groups_of_like_length
from onepeace_lightning.models.attention.padded import PaddedAttention, attend, pad_view, write_out
from onepeace_lightning.models.encoder import BACKENDS
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.packing import Tokens, View, pack
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows
from tests.tiny import images, masks, texts, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ORDER = ("text", "image", "audio")


def naive_attention(q, k, v, bias, valid):
    """One query at a time, keys that are padding left out."""
    batch, heads, length, width = q.shape
    out = torch.zeros_like(v)
    for b in range(batch):
        keys = torch.arange(length) if valid is None else valid[b].nonzero().squeeze(1)
        for h in range(heads):
            logits = q[b, h] @ k[b, h, keys].T / width**0.5
            if bias is not None:
                logits = logits + bias[b if len(bias) > 1 else 0, h][:, keys]
            exp = (logits - logits.amax(1, keepdim=True)).exp()
            out[b, h] = exp / exp.sum(1, keepdim=True) @ v[b, h, keys]
    return out


@pytest.mark.parametrize("function", [attend, attend_on_cpu])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("bias_batch", "bias_gradient"), [(0, False), (1, False), (1, True), (3, False), (3, True)])
def test_attend_and_its_gradients_equal_the_naive_formula(bias_batch, bias_gradient, padded, function):
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 3, 2, 5, 4, generator=rng, dtype=torch.float64)
    bias = torch.randn(bias_batch, 2, 5, 5, generator=rng, dtype=torch.float64) if bias_batch else None
    valid = torch.arange(5) < torch.tensor([3, 5, 1])[:, None] if padded else None
    weights = torch.randn(3, 2, 5, 4, generator=rng, dtype=torch.float64)

    def run(function, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in qkv]
        given = None if bias is None else bias.to(dtype).clone().requires_grad_(bias_gradient)
        out = function(*leaves, given, valid)
        wanted = [*leaves, given] if bias_gradient else leaves
        return [out, *torch.autograd.grad((out * weights.to(dtype)).sum(), wanted)]

    for ours, naive in zip(run(function, torch.float32), run(naive_attention, torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), naive, **CLOSE)


@pytest.mark.parametrize("function", [attend, attend_on_cpu])
@pytest.mark.parametrize("bias_gradient", [False, True])
def test_attend_in_bfloat16_keeps_its_type(bias_gradient, function):
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 6, 8, generator=rng).bfloat16()
    bias = torch.randn(1, 2, 6, 6, generator=rng).requires_grad_(bias_gradient)
    valid = torch.arange(6) < torch.tensor([4, 6])[:, None]
    out = function(q, k, v, bias, valid)
    assert out.dtype == torch.bfloat16
    naive = naive_attention(q.double(), k.double(), v.double(), bias.detach().double(), valid)
    torch.testing.assert_close(out.double(), naive, atol=3e-2, rtol=3e-2)


def biases(**sizes: int) -> dict[str, RelativeBias]:
    """Tables without zeros, for sequences of up to the given sizes."""
    rng = torch.Generator().manual_seed(0)
    cpu = torch.device("cpu")
    return {
        name: RelativeBias([1 + torch.rand(sequence_rows(8), 2, generator=rng)], sequence_buckets(size, 8, cpu))
        for name, size in sizes.items()
    }


def bias_of(view: View, relative: dict[str, RelativeBias]) -> torch.Tensor | None:
    return write_out(pad_view(view, dict.fromkeys(view, 0)), relative, 0)


def test_the_bias_has_nothing_between_modalities_and_the_table_within():
    relative = biases(text=4, audio=5)
    view = {name: Tokens.of_padded(torch.zeros(2, n, 3), [n, n]) for name, n in (("text", 4), ("audio", 5))}
    bias = bias_of(view, relative)
    assert bias.shape == (1, 2, 9, 9)
    for name, part in (("text", slice(0, 4)), ("audio", slice(4, 9))):
        wanted = relative[name].table(0)[relative[name].buckets_PP].permute(2, 0, 1)
        torch.testing.assert_close(bias[0, :, part, part], wanted)
    assert not bias[:, :, :4, 4:].any()
    assert not bias[:, :, 4:, :4].any()


def test_the_bias_of_a_modality_without_one_is_zero():
    view = {name: Tokens.of_padded(torch.zeros(1, 3, 3), [3]) for name in ("text", "audio")}
    bias = bias_of(view, biases(audio=3))
    assert not bias[:, :, :3].any()
    assert bias[:, :, 3:, 3:].all()
    assert bias_of(view, {}) is None


def test_the_bias_of_a_masked_view_goes_by_the_original_positions():
    relative = biases(text=6)
    mask = TokenMask.of(list(np.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0]], dtype=bool)))
    bias = bias_of({"text": Tokens.of_padded(torch.zeros(2, 6, 3), [6, 6]).hide(mask)}, relative)
    for row, kept in enumerate(([0, 2, 3, 5], [0, 1, 2, 5])):
        buckets = relative["text"].buckets_PP[kept][:, kept]
        torch.testing.assert_close(bias[row], relative["text"].table(0)[buckets].permute(2, 0, 1))


@pytest.fixture
def usual(monkeypatch):
    monkeypatch.setattr(cpu, "WORTHWHILE", WORTHWHILE)


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([[500, 500, 500]], [[0, 1, 2]]),
        ([[700]], [[0]]),
        ([[900, 200, 900, 300, 200]], [[1, 3, 4], [0, 2]]),
        # what is saved must be worth a further call: 2 · 100² against 99² + 100², and what little a short view has
        ([[100, 99]], [[0, 1]]),
        ([[9, 2, 9, 3, 2]], [[0, 1, 2, 3, 4]]),
        # modalities are padded one by one: grouping by the sum alone would save nothing
        ([[100, 800, 100, 800], [300, 300, 300, 300]], [[0, 2], [1, 3]]),
    ],
)
def test_sequences_of_like_length_are_grouped(lengths, groups):
    assert groups_of_like_length(np.array(lengths), heads=2) == groups


@pytest.mark.usefixtures("usual")
def test_a_view_of_more_heads_is_worth_more_groups():
    lengths = np.array([[200, 200, 300, 300]])
    assert len(groups_of_like_length(lengths, heads=1)) < len(groups_of_like_length(lengths, heads=12))


@pytest.mark.usefixtures("usual")
def test_grouping_loses_no_sequence_and_saves_most_of_the_padding():
    lengths = (np.exp(0.7 * np.random.default_rng(0).standard_normal(300)) * 15).astype(int).clip(3, 70)
    groups = groups_of_like_length(lengths[None], heads=12)
    assert sorted(sample for group in groups for sample in group) == list(range(300))
    assert len(groups) < 8
    least = int((lengths**2).sum())
    cost = sum(len(group) * int(lengths[group].max()) ** 2 for group in groups)
    assert least < cost < 0.2 * 300 * int(lengths.max()) ** 2


def ragged_pass(multiple: int, kind: str = "cpu", relative: dict[str, RelativeBias] | None = None) -> tuple:
    lengths = {"text": [2, 9, 3, 8], "audio": [4, 4, 1, 3]}
    views = [
        {name: Tokens.of_padded(torch.randn(4, max(part), 6), part) for name, part in lengths.items()},
        {"text": Tokens.of_padded(torch.randn(3, 5, 6), [5, 1, 5])},
    ]
    packed = pack(views, ("text", "audio"), multiple)
    return packed, BACKENDS[kind](packed, views, heads=2, relative=relative or {})


@pytest.mark.parametrize("multiple", [1, 8])
def test_padding_to_groups_and_back_keeps_every_token_and_gradients_of_padding_are_zero(multiple):
    packed, mixer = ragged_pass(multiple)
    assert len(mixer.groups) > 2
    x_TD = torch.randn(len(packed.values_TD), 6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(mixer.rows.unpad(mixer.rows.pad(x_TD)), x_TD)
    # a product with what other rows hold: garbage in padding would show
    assert gradcheck(lambda x: mixer.rows.unpad([part.sin() for part in mixer.rows.pad(x)]), (x_TD,))
    padded = [part.detach().requires_grad_() for part in mixer.rows.pad(x_TD)]
    mixer.rows.unpad(padded).sum().backward()
    for part, group in zip(padded, mixer.groups, strict=False):
        assert np.array_equal(part.grad[:, 0, :, 0] == 1, group.rows_BL >= 0)
        assert np.array_equal(part.grad[:, 1, :, 2] == 0, group.rows_BL < 0)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("kind", BACKENDS)
def test_each_token_attends_to_its_own_sequence_only(kind, multiple):
    packed, mixer = ragged_pass(multiple, kind)
    q, k, v = torch.randn(3, len(packed.values_TD), 6, generator=torch.Generator().manual_seed(0))
    mixed = mixer.block(0)(q, k, v)
    for sequence in range(7):
        rows = packed.sequence_T == sequence
        heads = [part[rows].unflatten(1, (2, 3)).transpose(0, 1)[None] for part in (q, k, v)]
        wanted = naive_attention(*heads, None, None)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(mixed[rows], wanted)
    assert mixed.isfinite().all()


def mixed_views(width: int = 8) -> list[View]:
    """Ragged, masked, several modalities together."""

    def tokens(*lengths: int, hide: float = 0.0) -> Tokens:
        whole = Tokens.of_padded(torch.randn(len(lengths), max(lengths), width), list(lengths))
        return whole.hide(masks(list(lengths), hide, last=True, seed=len(lengths))) if hide else whole

    return [
        {"text": tokens(3, 9, 5)},
        {"image": tokens(10, 10)},
        {"text": tokens(3, 9, 5, hide=0.4)},
        {"text": tokens(4, 2, 6), "image": tokens(10, 10, 10, hide=0.6), "audio": tokens(7, 3, 9)},
    ]


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_cpu_form_equals_the_reference_and_so_do_its_gradients(blocks, multiple):
    """To queries, keys, values and to the tables, shared ones and one per block; FlexAttention's are in test_flex."""
    torch.manual_seed(0)
    views = mixed_views()
    packed = pack(views, ORDER, multiple)
    tables = {name: [torch.randn(sequence_rows(8), 2, requires_grad=True) for _ in range(blocks)] for name in ORDER}
    buckets = sequence_buckets(12, 8, torch.device("cpu"))
    relative = {name: RelativeBias(tables[name], buckets) for name in ("text", "audio")}
    leaves = [*torch.randn(3, len(packed.values_TD), 8).requires_grad_().unbind()]
    weights = torch.randn(blocks, len(packed.values_TD), 8)
    if multiple > 1:  # what padding attends to is nobody's business
        weights[:, packed.sequences_T == packed.num_sequences - 1] = 0
    found = {}
    for kind in (PaddedAttention, CPUAttention):
        attention = kind(packed, views, 2, relative)
        out = torch.stack([attention.block(block)(*leaves) for block in range(blocks)])
        learned = [*leaves, *tables["text"], *tables["audio"]]
        found[kind] = [out * (weights != 0), *torch.autograd.grad((out * weights).sum(), learned)]
    for ours, reference in zip(*found.values(), strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(ours, reference, **CLOSE)


@torch.no_grad()
def test_tables_per_block_never_leave_two_biases_alive(monkeypatch):
    model = tiny_model(per_block_tables=True)
    made: list[weakref.ref] = []

    def recorded(*arguments) -> torch.Tensor:
        assert not any(bias() is not None for bias in made)
        made.append(weakref.ref(bias := write_out(*arguments)))
        return bias

    monkeypatch.setattr(cpu, "write_out", recorded)
    model.backbone({"text": texts(3, 20, 4), "image": images(3)})
    groups = len(made) / model.config.encoder.depth
    assert groups == 3
