import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models import ModelConfig, Tokens
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig, PoolingHead
from onepeace_lightning.training.param_groups import parameter_rules
from tests.tiny import audios, images, randomised, texts, tiny_config

WIDTH, HEADS = 12, 3


def head(**changes) -> PoolingHead:
    torch.manual_seed(0)
    config = PoolingConfig(**{"outputs": 5, "pooled": ("text",)} | changes)
    return randomised(PoolingHead(config, WIDTH, HEADS, 0.5)).eval()


def features(*lengths: int) -> Tokens:
    torch.manual_seed(1)
    return Tokens.of_padded(torch.randn(len(lengths), max(lengths), WIDTH), list(lengths))


def with_types(config: ModelConfig) -> ModelConfig:
    text, image = (
        TextConfig(vocab_size=40, positions=32, buckets=8, type_embedding=True),
        ImageConfig(image_size=48, type_embedding=True),
    )
    return tiny_config(adapters={"text": text, "image": image})


def model(head: PoolingConfig, config: ModelConfig | None = None) -> ClassifyModel:
    torch.manual_seed(0)
    return randomised(ClassifyModel(config or tiny_config(), head)).eval()


@torch.no_grad()
@pytest.mark.parametrize("pooler", [False, True])
def test_the_head_is_what_it_says_sample_by_sample_and_head_by_head(pooler):
    ours, tokens = head(pooler=pooler), features(4, 7, 2)
    for sample, x_LD in enumerate(tokens.values_TD.split(tokens.lengths)):
        x_LD = x_LD[1:]
        pooling = ours.pooling
        k, v = pooling.key(x_LD).chunk(HEADS, 1), pooling.value(x_LD).chunk(HEADS, 1)
        joined = torch.cat([(k[h] @ pooling.query[h]).softmax(0) @ v[h] for h in range(HEADS)])
        pooled = F.layer_norm(pooling.out(joined), (WIDTH,), ours.norm.weight, ours.norm.bias)
        if pooler:
            pooled = (ours.pooler[0].weight @ pooled + ours.pooler[0].bias).tanh()
        first, norm, _, last = ours.classifier
        inner = F.layer_norm(first(pooled), (2 * WIDTH,), norm.weight, norm.bias)
        torch.testing.assert_close(ours({"text": tokens})[sample], last(F.gelu(inner)), atol=1e-5, rtol=1e-4)
    assert pooling.key.bias is None


@torch.no_grad()
def test_cls_is_not_pooled_and_the_last_token_is():
    ours, tokens = head(), features(4, 4)
    changed = tokens.values_TD.clone()
    changed[0] += 1
    assert torch.equal(ours({"text": tokens}), ours({"text": tokens.with_values(changed)}))
    changed[3] += 1
    assert not torch.allclose(ours({"text": tokens})[0], ours({"text": tokens.with_values(changed)})[0])


@torch.no_grad()
def test_tokens_of_several_modalities_are_pooled_in_one_attention():
    ours = head(pooled=("image", "text"))
    parts = {"text": features(4, 7), "image": features(6, 3)}
    joined = [
        torch.cat([part.values_TD.split(part.lengths)[sample][1:] for part in parts.values()]) for sample in (0, 1)
    ]
    cls = torch.zeros(1, WIDTH)
    alone = head(pooled=("audio",))
    for sample, x_LD in enumerate(joined):
        tokens = Tokens.of_padded(torch.cat([cls, x_LD])[None], [1 + len(x_LD)])
        torch.testing.assert_close(ours(parts)[sample], alone({"audio": tokens})[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_two_images_are_joined_in_order():
    ours, first, second = head(images=2), {"text": features(4, 5)}, {"text": features(3, 6)}
    expected = ours.classifier(torch.cat([ours.pool(first), ours.pool(second)], 1))
    assert torch.equal(ours(first, second), expected)
    assert not torch.allclose(ours(second, first), expected)


@pytest.mark.parametrize(
    ("changes", "message"), [({"outputs": 0}, "outputs is 0"), ({"images": 3}, "images is 3, must be 1 or 2")]
)
def test_impossible_heads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PoolingConfig(**{"outputs": 2, "pooled": ("text",)} | changes)


@torch.no_grad()
@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_named_modality_of_a_fused_pass_is_pooled(modality):
    ours = model(PoolingConfig(outputs=3, pooled=(modality,)))
    inputs = {"text": texts(5, 3), "image": images(2)}
    fused = ours.backbone(inputs)
    assert torch.equal(ours(inputs), ours.head(fused))
    alone = ours.backbone({modality: inputs[modality]})
    assert not torch.allclose(ours(inputs), ours.head(alone))


@torch.no_grad()
def test_an_answer_does_not_depend_on_its_batch():
    ours = model(PoolingConfig(outputs=3, pooled=("audio",)))
    together = ours({"audio": audios(320 * 9 + 80, 320 * 4 + 80)})
    both = audios(320 * 9 + 80, 320 * 4 + 80)
    short = type(both)(both.waveforms_BN[1:, : 320 * 4 + 80], both.lengths[1:])
    torch.testing.assert_close(together[1:], ours({"audio": short}), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_type_embeddings_mark_every_token_and_the_second_image_on_top():
    ours = model(PoolingConfig(outputs=2, pooled=("text",), images=2), with_types(tiny_config()))
    inputs, second = {"text": texts(5, 3), "image": images(2)}, images(2, seed=9)
    text, image = ours.backbone.adapters["text"], ours.backbone.adapters["image"]
    logits = ours({**inputs, "second_image": second})
    marks = [text.type_embedding.clone(), image.type_embedding.clone(), image.type_embedding_second.clone()]
    for mark in (text.type_embedding, image.type_embedding, image.type_embedding_second):
        mark.zero_()
    plain = {**ours.backbone.embed(inputs), "second": image.embed(second)}
    marked = [(plain["text"], marks[0]), (plain["image"], marks[1]), (plain["second"], marks[1] + marks[2])]
    one, two, three = (tokens.with_values(tokens.values_TD + mark) for tokens, mark in marked)
    views = [{"text": one, "image": two}, {"text": one, "image": three}]
    expected = ours.head(*ours.backbone.encode(views))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, ours({**inputs, "second_image": second}))


def test_type_embeddings_start_at_zero_and_their_matrices_decay():
    ours = ClassifyModel(with_types(tiny_config()), PoolingConfig(outputs=2, pooled=("text",), images=2))
    marks = {name: p for name, p in ours.named_parameters() if "type_embedding" in name}
    assert len(marks) == 3
    assert all((mark == 0).all() for mark in marks.values())
    rules = parameter_rules(ours, weight_decay=0.1, layer_decay=0.5)
    assert rules["head.pooling.query"] == (1.0, 0.1)
    assert all(rules[name] == (0.5**4, 0.1) for name in marks)


@pytest.mark.parametrize(("made_for", "given"), [(1, 2), (2, 1)])
def test_the_number_of_images_must_be_the_heads(made_for, given):
    ours = model(PoolingConfig(outputs=2, pooled=("text",), images=made_for), with_types(tiny_config()))
    second = {"second_image": images(2)} if given == 2 else {}
    with pytest.raises(ValueError, match=rf"{given} item.s. of a modality per sample.*made for {made_for}"):
        ours({"text": texts(5, 3), "image": images(2), **second})


def test_a_second_image_needs_type_embeddings():
    ours = model(PoolingConfig(outputs=2, pooled=("text",), images=2))
    with pytest.raises(ValueError, match="type_embedding=True"):
        ours({"text": texts(5, 3), "image": images(2), "second_image": images(2)})


def test_a_head_on_a_modality_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="pools 'depth'; the model has text, image, audio"):
        ClassifyModel(tiny_config(), PoolingConfig(outputs=2, pooled=("depth",)))
