from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.encoder import COMPILED_MULTIPLE, compile_blocks
from tests.tiny import audios, images, masks, texts, tiny_config, tiny_model

STEPS = 50


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def model(depth: int = 2) -> PretrainModel:
    """All blocks but the first have stochastic depth."""
    return tiny_model(encoder=replace(tiny_config().encoder, depth=depth, drop_path=0.2))


def ragged(seed: int) -> dict[str, Batch]:
    """An image-text and an audio-text batch of lengths, masks and numbers of samples that change with the seed."""
    rng = torch.Generator().manual_seed(seed)
    out = {}
    for data_type in ("image-text", "audio-text"):
        count = int(torch.randint(1, 5, (), generator=rng))
        raw = {
            "text": texts(*torch.randint(3, 20, (count,), generator=rng).tolist(), seed=seed),
            "image": images(count, seed=seed),
            "audio": audios(*(320 * torch.randint(3, 30, (count,), generator=rng) + 80).tolist(), seed=seed),
        }
        raw = {name: raw[name] for name in data_type.split("-")}
        alone, fused = (
            {name: masks(part.token_lengths, share, last=name != "text", seed=seed) for name, part in raw.items()}
            for share in (0.4, 0.6)
        )
        out[data_type] = Batch([str(i) for i in range(count)], raw, alone, fused)
    return out


def step(model: PretrainModel, batches: dict[str, Batch]) -> torch.Tensor:
    model.zero_grad()
    torch.manual_seed(0)
    total = pretraining_loss(model, batches).total
    total.backward()
    return total.detach()


def test_no_step_of_other_lengths_compiles_again():
    compiled = model(depth=3).train()
    compile_blocks(compiled, backend="aot_eager")
    step(compiled, ragged(0))
    # Four parts of a block, around attention and the calls to it, with gradient and without, the last with stochastic
    # depth and without; those of the decoder. The encoder's blocks share them, whatever their rates.
    first = graphs()
    assert 2 < first <= 14
    for seed in range(1, STEPS):
        step(compiled, ragged(seed))
    assert graphs() == first


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_blocks_give_the_same_loss_and_gradients(checkpointed):
    plain, compiled = model().eval(), model().eval()
    compile_blocks(compiled, backend="aot_eager")
    for one in (plain, compiled):
        for block in one.backbone.encoder.blocks if checkpointed else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    sizes = []
    compiled.backbone.encoder.blocks[0].register_forward_hook(lambda _b, args, _o: sizes.append(len(args[0])))
    for seed in range(3):
        torch.testing.assert_close(step(compiled, ragged(seed)), step(plain, ragged(seed)), atol=1e-5, rtol=1e-5)
        for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: name + m)
    assert sizes
    assert all(size % COMPILED_MULTIPLE == 0 for size in sizes)


def test_a_block_that_is_checkpointed_or_compiled_already_is_refused():
    one = model()
    compile_blocks(one, backend="eager")
    with pytest.raises(ValueError, match="compile first, and once"):
        compile_blocks(one, backend="eager")
