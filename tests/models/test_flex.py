"""FlexAttention against padded attention: forward on the CPU, where it has no backward; gradients on CUDA."""

from dataclasses import replace

import pytest
import torch

from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.attention.cpu import CPUAttention
from onepeace_lightning.models.attention.flex import BLOCK, FlexAttention, sequence_block_mask
from onepeace_lightning.models.attention.padded import PaddedAttention
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.packing import Packed, Tokens, View, pack
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows
from tests.tiny import audios, images, masks, texts, tiny_config, tiny_model

HEADS, WIDTH = 2, 8
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ORDER = ("text", "image", "audio", "smell")


def tokens(*lengths: int, hide: float = 0.0, seed: int = 0) -> Tokens:
    x_BLD = torch.randn(len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    whole = Tokens.of_padded(x_BLD, list(lengths))
    return whole.hide(masks(list(lengths), hide, last=True, seed=seed)) if hide else whole


def single_views() -> list[View]:
    return [{"text": tokens(3, 9, 5)}, {"image": tokens(10, 10, seed=1)}]


def mixed_views() -> list[View]:
    """Ragged, masked, several modalities together, one of them without a relative bias."""
    return [
        *single_views(),
        {"text": tokens(3, 9, 5, hide=0.4, seed=2)},
        {"text": tokens(4, 2, 6), "image": tokens(10, 10, 10, hide=0.6, seed=3), "audio": tokens(7, 3, 9, seed=4)},
        {"smell": tokens(2, 3, seed=5), "text": tokens(5, 1, seed=6)},
    ]


def long_views() -> list[View]:
    """Sequences that are longer than a block of the mask, and blocks that hold several."""
    return [{"text": tokens(257, 20, 130)}, {"text": tokens(30, 40), "image": tokens(200, 200, seed=1)}]


def biases(blocks: int) -> dict[str, RelativeBias]:
    rng = torch.Generator().manual_seed(0)

    def bias(buckets: int, positions: int) -> RelativeBias:
        tables = [torch.randn(sequence_rows(buckets), HEADS, generator=rng) for _ in range(blocks)]
        return RelativeBias(tables, sequence_buckets(positions, buckets, torch.device("cpu")))

    return {"text": bias(8, 260), "image": bias(12, 200), "audio": bias(10, 9)}


def bias_of_flex(packed: Packed, flex: FlexAttention, block: int) -> torch.Tensor:
    """(H, T, T) its score and mask functions written out, -inf where tokens do not see each other."""
    total = len(packed.values_TD)
    token = torch.arange(total)
    query, key = token[:, None].expand(total, total), token.expand(total, total)
    zero = torch.zeros(())
    score_mod = flex.rows.score_mod(block)
    rows = []
    for head in range(HEADS):
        one = torch.tensor(head)
        bias = score_mod(torch.zeros(total, total), zero, one, query, key)
        rows.append(bias.masked_fill(~flex.mask.mask_mod(zero, one, query, key), -torch.inf))
    return torch.stack(rows)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("views", [single_views, mixed_views, long_views])
@torch.no_grad()
def test_forward_equals_padded(views, blocks, multiple):
    packed, relative = pack(views(), ORDER, multiple), biases(blocks)
    real = packed.sequences_T < sum(len(next(iter(view.values())).lengths) for view in views())
    q, k, v = torch.randn(3, len(packed.values_TD), WIDTH, generator=torch.Generator().manual_seed(1))
    padded, flex = (kind(packed, views(), HEADS, relative) for kind in (PaddedAttention, FlexAttention))
    for block in range(blocks):
        ours, theirs = (mixer.block(block)(q, k, v)[real] for mixer in (flex, padded))
        torch.testing.assert_close(ours, theirs, **CLOSE)


@torch.no_grad()
def test_forward_without_any_bias_equals_padded():
    packed = pack(mixed_views(), ORDER)
    q, k, v = torch.randn(3, len(packed.values_TD), WIDTH, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        kind(packed, mixed_views(), HEADS, {}).block(0)(q, k, v) for kind in (FlexAttention, PaddedAttention)
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("blocks", [1, 2])
def test_score_and_mask_functions_have_the_values_and_gradients_of_the_written_bias(blocks):
    views, relative = mixed_views(), biases(blocks)
    for bias in relative.values():
        for table in bias.tables_RH:
            table.requires_grad_()
    packed = pack(views, ORDER)
    q, k, v = torch.randn(3, len(packed.values_TD), WIDTH, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(len(packed.values_TD), WIDTH, generator=torch.Generator().manual_seed(2))
    padded, flex = (kind(packed, views, HEADS, relative) for kind in (PaddedAttention, FlexAttention))

    def written_out(block: int) -> torch.Tensor:
        """Attention over all tokens at once."""
        heads = [part[flex.order].unflatten(1, (HEADS, -1)).transpose(0, 1) for part in (q, k, v)]
        logits = heads[0] @ heads[1].mT * (WIDTH // HEADS) ** -0.5 + bias_of_flex(packed, flex, block)
        return (logits.softmax(-1) @ heads[2]).transpose(0, 1).flatten(1)[flex.inverse]

    tables = [table for bias in relative.values() for table in bias.tables_RH]
    for block in range(blocks):
        ours, theirs = written_out(block), padded.block(block)(q, k, v)
        torch.testing.assert_close(ours, theirs, **CLOSE)
        gradients = [
            torch.autograd.grad((out * weights).sum(), tables, allow_unused=True, retain_graph=True)
            for out in (ours, theirs)
        ]
        for index, (one, two) in enumerate(zip(*gradients, strict=True)):
            assert (one is None) == (two is None) == (index % blocks != block)
            if one is not None:
                assert one.abs().max() > 1e-3
                torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("lengths", [[1], [BLOCK], [5, 300, 127, 1, 600, 40, 40, 40, 7], [384, 128, 1]])
def test_block_mask_covers_what_is_seen_and_calls_full_only_what_is(lengths):
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = sequence_block_mask(sequence_T, len(lengths))
    total, count = len(sequence_T), -(-len(sequence_T) // BLOCK)
    assert mask.shape[-2:] == (total, total)
    seen = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
    seen[:total, :total] = sequence_T[:, None] == sequence_T
    tiles = seen.unflatten(1, (count, BLOCK)).unflatten(0, (count, BLOCK)).transpose(1, 2).flatten(2)
    listed = []
    for number, index in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        found = torch.zeros(count, count, dtype=torch.bool)
        for row in range(count):
            found[row, index[0, 0, row, : int(number[0, 0, row])].long()] = True
        listed.append(found)
    partial, full = listed
    assert not (partial & full).any()
    assert torch.equal(full, tiles.all(2))
    assert torch.equal(partial | full, tiles.any(2))


def raw_inputs() -> dict:
    return {"text": texts(6, 3, 9), "image": images(3), "audio": audios(320 * 12 + 80, 320 * 5 + 390, 320 * 9 + 80)}


@pytest.mark.parametrize("per_block_tables", [False, True])
@torch.no_grad()
def test_a_whole_model_gives_the_same_features(per_block_tables):
    model, raw = tiny_model(per_block_tables=per_block_tables), raw_inputs()
    backbone = model.backbone
    embedded = backbone.embed(raw)
    lengths = {name: part.lengths for name, part in embedded.items()}
    hidden = {name: masks(part, 0.4, last=name != "text", seed=7) for name, part in lengths.items()}
    views = [backbone.view({name: embedded[name] for name in names}) for names in (["text"], ["text", "image"])]
    views.append(backbone.view(embedded, hidden))
    features = []
    for choice in ("padded", "flex"):
        set_attention(model, choice)
        features.append(backbone.encode(views))
    for ours, theirs in zip(*features, strict=True):
        for name in ours:
            torch.testing.assert_close(ours[name].values_TD, theirs[name].values_TD, **CLOSE)


def test_the_choice_reaches_every_encoder_and_automatic_is_the_fast_form_on_the_cpu():
    model = tiny_model()
    encoders = [model.backbone.encoder, model.denoiser.decoder]
    views = [{"text": tokens(3, 2)}]
    for choice, kind in (("flex", FlexAttention), ("padded", PaddedAttention), ("auto", CPUAttention)):
        set_attention(model, choice)
        for encoder in encoders:
            assert isinstance(encoder.backend(pack(views, ORDER), views, {}), kind)
    with pytest.raises(ValueError, match=r"'fast'; choose one of auto, padded, cpu, flex"):
        set_attention(model, "fast")


def cuda_model(per_block_tables: bool) -> PretrainModel:
    """Heads of 16 features, images of 257 tokens."""
    config = tiny_config()
    adapters = {"text": config.adapters["text"], "image": replace(config.adapters["image"], image_size=256)}
    return tiny_model(
        encoder=replace(config.encoder, width=32), adapters=adapters, per_block_tables=per_block_tables
    ).cuda()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("per_block_tables", [False, True])
def test_gradients_equal_those_of_padded_on_cuda(per_block_tables):
    model = cuda_model(per_block_tables)
    backbone = model.backbone
    raw = {"text": Text(texts(6, 3, 20).ids_BL.cuda()), "image": images(3, size=256).to("cuda")}
    gradients = []
    for choice in ("padded", "flex"):
        set_attention(model, choice)
        embedded = backbone.embed(raw)
        hidden = {"image": masks([257] * 3, 0.6, last=True, seed=1).to("cuda")}
        views = [
            backbone.view({"text": embedded["text"]}),
            backbone.view({"image": embedded["image"]}),
            backbone.view({"image": embedded["image"]}, hidden),
            backbone.view(embedded),
        ]
        encoded = [part.values_TD for view in backbone.encode(views) for part in view.values()]
        total = torch.stack([part.sin().sum() for part in encoded]).sum()
        parameters = [p for name, p in backbone.named_parameters() if "encoder" in name or "bias_tables" in name]
        gradients.append(torch.autograd.grad(total, parameters))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-3
