"""Attention, packing and depth: what a view gives does not depend on what it is computed with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models.block import DropPath
from onepeace_lightning.models.encoder import Encoder
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.packing import Tokens, View, pack
from tests.models import reference
from tests.tiny import audios, images, mask_rows, masks, randomised, texts, tiny_config, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VIEWS = [("text",), ("image",), ("audio",), ("text", "image"), ("text", "audio"), ("text", "image", "audio")]


def raw_inputs() -> dict:
    """Three samples, the last with the longest text and the first with the longest sound."""
    return {
        "text": texts(6, 3, 9),
        "image": images(3),
        "audio": audios(320 * 12 + 80, 320 * 5 + 390, 320 * 9 + 80),
    }


def select(raw: dict, rows: list[int]) -> dict:
    """The named samples as a batch of their own, with no more padding than they need."""
    ids, audio = raw["text"].ids_BL[rows], raw["audio"]
    lengths = [audio.lengths[row] for row in rows]
    longest, samples = int((ids != 1).sum(1).max()), max(lengths)
    return {
        "text": Text(ids[:, :longest]),
        "image": Image(raw["image"].pixels[rows]),
        "audio": Audio(audio.waveforms_BN[rows, :samples], lengths),
    }


def hidden(raw: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    lengths = {name: tokens.lengths for name, tokens in model.backbone.embed(raw).items()}
    return {name: masks(part, 0.4, last=name != "text", seed=7) for name, part in lengths.items()}


def encode(model: nn.Module, raw: dict, names: tuple[str, ...], hide: dict | None = None) -> dict[str, Tokens]:
    backbone = model.backbone
    tokens = backbone.embed({name: raw[name] for name in names})
    return backbone.encode([backbone.view(tokens, hide)])[0]


def rows_of(tokens: Tokens) -> list[torch.Tensor]:
    return list(tokens.values_TD.split(tokens.lengths))


def reference_features(model: nn.Module, view: View, sample: int) -> dict[str, torch.Tensor]:
    """Features of one sample of a view, by the slow encoder."""
    config, adapters = model.config, model.backbone.adapters
    tokens, biases = {}, [{} for _ in range(config.encoder.depth)]
    for name in config.adapters:
        if name not in view:
            continue
        tokens[name] = view[name].values_TD.split(view[name].lengths)[sample]
        places = np.split(view[name].positions_T, np.cumsum(view[name].lengths))[sample]
        buckets = adapters[name].buckets(int(places.max()) + 1)[places][:, places]
        for block, per_block in enumerate(biases):
            tables = adapters[name].bias_tables
            per_block[name] = tables[block if config.per_block_tables else 0][buckets].permute(2, 0, 1)
    return reference.encode(model.backbone.encoder, tokens, biases)


@pytest.mark.parametrize("per_block_tables", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_all_views_in_one_pass_equal_the_slow_encoder_one_sequence_at_a_time(masked, per_block_tables):
    model, raw = tiny_model(per_block_tables=per_block_tables), raw_inputs()
    backbone = model.backbone
    hide = hidden(raw, model) if masked else {}
    tokens = backbone.embed(raw)
    views = [backbone.view({name: tokens[name] for name in names}, hide) for names in VIEWS]
    for view, features in zip(views, backbone.encode(views), strict=True):
        for sample in range(3):
            for name, wanted in reference_features(model, view, sample).items():
                torch.testing.assert_close(rows_of(features[name])[sample].double(), wanted, **CLOSE)


@torch.no_grad()
def test_each_block_uses_its_own_table():
    model, raw = tiny_model(per_block_tables=True), raw_inputs()
    before = encode(model, raw, ("text",))["text"].values_TD
    for table in model.backbone.adapters["text"].bias_tables:
        table.add_(torch.randn_like(table))
        after = encode(model, raw, ("text",))["text"].values_TD
        assert (after - before).abs().max() > 1e-3
        before = after


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("names", VIEWS)
@torch.no_grad()
def test_a_padded_batch_gives_what_each_sample_gives_alone(names, masked):
    model, raw = tiny_model(), raw_inputs()
    hide = hidden(raw, model) if masked else {}
    together = encode(model, raw, names, hide)
    for sample in range(3):
        one = select(raw, [sample])
        alone = encode(
            model, one, names, {name: TokenMask.of([mask_rows(mask)[sample]]) for name, mask in hide.items()}
        )
        for name in names:
            torch.testing.assert_close(rows_of(together[name])[sample], alone[name].values_TD, **CLOSE)


@torch.no_grad()
def test_the_order_and_the_size_of_the_batch_do_not_matter():
    model, raw = tiny_model(), raw_inputs()
    names = ("text", "image", "audio")
    whole = encode(model, raw, names)
    for rows in ([2, 0, 1], [1, 2]):
        part = encode(model, select(raw, rows), names)
        for name in names:
            for place, sample in enumerate(rows):
                torch.testing.assert_close(rows_of(part[name])[place], rows_of(whole[name])[sample], **CLOSE)


@torch.no_grad()
def test_views_in_one_pass_give_what_each_gives_in_its_own():
    model, raw = tiny_model(), raw_inputs()
    backbone, hide = model.backbone, hidden(raw, model)
    tokens, two = backbone.embed(raw), backbone.embed(select(raw, [1, 2]))
    views = [backbone.view({name: tokens[name] for name in names}) for names in VIEWS]
    views += [backbone.view({name: tokens[name] for name in names}, hide) for names in VIEWS]
    views += [backbone.view({name: two[name] for name in names}) for names in VIEWS]
    for view, packed in zip(views, backbone.encode(views), strict=True):
        alone = backbone.encode([view])[0]
        assert set(packed) == set(view)
        for name in view:
            assert packed[name].lengths == view[name].lengths
            torch.testing.assert_close(packed[name].values_TD, alone[name].values_TD, **CLOSE)


@torch.no_grad()
def test_modalities_of_a_view_see_one_another_and_their_order_in_the_mapping_does_not_matter():
    model, raw = tiny_model(), raw_inputs()
    backbone = model.backbone
    tokens = backbone.embed(raw)
    text, image = tokens["text"], tokens["image"]
    one, two = backbone.encode([{"text": text, "image": image}, {"image": image, "text": text}])
    for name in ("text", "image"):
        torch.testing.assert_close(one[name].values_TD, two[name].values_TD, **CLOSE)
        alone = backbone.encode([{name: tokens[name]}])[0][name].values_TD
        assert (one[name].values_TD - alone).abs().max() > 1e-3


def test_sample_0_has_no_gradient_at_all_towards_sample_1():
    model, raw = tiny_model(), raw_inputs()
    backbone, hide = model.backbone, hidden(raw, model)
    raw["image"].pixels.requires_grad_()
    raw["audio"].waveforms_BN.requires_grad_()
    embedded: list[torch.Tensor] = []
    backbone.adapters["text"].embedding.register_forward_hook(lambda _m, _i, out: embedded.append(out))
    tokens = backbone.embed(raw)
    views = [backbone.view({name: tokens[name] for name in names}) for names in VIEWS]
    views += [backbone.view({name: tokens[name] for name in names}, hide) for names in VIEWS]
    first = [rows_of(part)[0].square().sum() for view in backbone.encode(views) for part in view.values()]
    leaves = [raw["image"].pixels, raw["audio"].waveforms_BN, embedded[0]]
    for gradient in torch.autograd.grad(torch.stack(first).sum(), leaves):
        assert gradient[0].abs().max() > 0
        assert not gradient[1:].any()


def test_one_view_has_no_gradient_towards_another():
    model, raw = tiny_model(), raw_inputs()
    tokens = {name: part.with_values(part.values_TD.detach()) for name, part in model.backbone.embed(raw).items()}
    views = []
    for _ in range(2):
        fresh = {name: part.with_values(part.values_TD.clone().requires_grad_()) for name, part in tokens.items()}
        views.append(fresh)
    first, _ = model.backbone.encode(views)
    total = torch.stack([part.values_TD.square().sum() for part in first.values()]).sum()
    leaves = [part.values_TD for view in views for part in view.values()]
    gradients = torch.autograd.grad(total, leaves)
    assert all(gradient.abs().max() > 0 for gradient in gradients[:3])
    assert not any(gradient.any() for gradient in gradients[3:])


def one_view(*lengths: int, names: tuple[str, ...] = ("text", "image"), width: int = 4) -> View:
    values = torch.ones(len(lengths), max(lengths), width)
    return {name: Tokens.of_padded(values, list(lengths)) for name in names}


def test_drop_path_draws_once_per_sequence_and_anew_for_each_view():
    torch.manual_seed(0)
    packed = pack([one_view(*[3, 2] * 200), one_view(*[3, 2] * 200)], ("text", "image"))
    out = DropPath(0.25).train()(torch.ones(len(packed.values_TD), 1), packed)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    draws = [set(out[packed.sequence_T == sequence].flatten().tolist()) for sequence in range(800)]
    assert all(len(draw) == 1 for draw in draws)
    kept = torch.tensor([draw.pop() > 0 for draw in draws])
    assert abs(kept.float().mean() - 0.75) < 0.05
    # sequence i of both views holds the same sample; independent draws agree in 0.75² + 0.25² of the cases
    assert abs((kept[:400] == kept[400:]).float().mean() - 0.625) < 0.1


def test_the_two_branches_of_a_block_are_dropped_independently():
    config = replace(tiny_config().encoder, depth=2, drop_path=0.5)
    torch.manual_seed(0)
    block = randomised(Encoder(config, ("text",))).blocks[1].train()
    packed = pack([one_view(*[2] * 64, names=("text",), width=24)], ("text",))
    both = {tuple(row.tolist()) for row in block(packed.values_TD, packed, lambda q, k, v: v).detach()}
    assert len(both) == 4


def test_drop_path_does_nothing_in_evaluation():
    packed = pack([one_view(3, 2)], ("text", "image"))
    branch_TD = torch.randn(len(packed.values_TD), 4)
    assert DropPath(0.9).eval()(branch_TD, packed) is branch_TD
    assert DropPath(0.0).train()(branch_TD, packed) is branch_TD


@torch.no_grad()
def test_drop_path_is_off_in_an_evaluated_model():
    config = tiny_config()
    torch.manual_seed(0)
    model = tiny_model(encoder=replace(config.encoder, drop_path=0.9))
    plain = tiny_model()
    raw = raw_inputs()
    features = [encode(m.eval(), raw, ("text", "audio"))["audio"].values_TD for m in (model, plain)]
    torch.testing.assert_close(*features)
    assert not torch.equal(encode(model.train(), raw, ("text", "audio"))["audio"].values_TD, features[0])


def test_drop_path_rises_linearly_from_zero_to_the_last_block():
    encoder = Encoder(replace(tiny_config().encoder, depth=5, drop_path=0.4), ("text",))
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_decoders_blocks_have_no_layer_scale():
    encoder = Encoder(replace(tiny_config().encoder, layer_scale=None), ("text",))
    assert not [name for name, _ in encoder.named_parameters() if "gamma" in name]


def test_a_modality_that_the_model_lacks_is_named():
    model = tiny_model(adapters={"text": tiny_config().adapters["text"]})
    with pytest.raises(ValueError, match="no 'image' modality; it has text"):
        model.backbone.embed({"image": images(1)})
