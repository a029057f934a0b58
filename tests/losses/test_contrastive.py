import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.losses import chunks
from onepeace_lightning.losses.contrastive import Keys, aligning_contrast, gather, sigmoid_contrast

CLOSE = {"atol": 1e-6, "rtol": 1e-5}
SCALE = 7.0
RANKS = 2


def embeddings(seed: int, count: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=rng), dim=-1)


def naive(queries_A: Tensor, keys_B: Tensor, queries_B: Tensor, keys_A: Tensor, scale: Tensor) -> Tensor:
    """One sample at a time: -log p of its partner, the mean over samples and both directions."""
    total = scale.new_zeros(())
    for queries, keys in ((queries_A, keys_B), (queries_B, keys_A)):
        for i, query in enumerate(queries):
            logits = torch.stack([scale.squeeze() * (query * key).sum() for key in keys])
            total = total - (logits[i] - logits.logsumexp(0))
    return total / (2 * len(queries_A))


@pytest.mark.parametrize("keys", ["differentiable", "detached"])
def test_the_loss_and_its_gradients_equal_the_naive_formula(keys: Keys):
    def gradients(function) -> list[Tensor]:
        leaves = [
            embeddings(0).requires_grad_(),
            embeddings(1).requires_grad_(),
            torch.tensor([SCALE]).requires_grad_(),
        ]
        loss = function(*leaves)
        return [loss.reshape(()), *torch.autograd.grad(loss.sum(), leaves)]

    def literal(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        key_a, key_b = (a, b) if keys == "differentiable" else (a.detach(), b.detach())
        return naive(a, key_b, b, key_a, scale)

    for ours, wanted in zip(
        gradients(lambda a, b, scale: aligning_contrast(a, b, scale, keys)), gradients(literal), strict=True
    ):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_both_directions_count():
    a, b, scale = embeddings(0), embeddings(1), torch.tensor([SCALE])
    forth = F.cross_entropy(SCALE * a @ b.T, torch.arange(6))
    back = F.cross_entropy(SCALE * b @ a.T, torch.arange(6))
    assert abs(forth - back) > 1e-3
    torch.testing.assert_close(aligning_contrast(a, b, scale), (forth + back) / 2)
    torch.testing.assert_close(aligning_contrast(b, a, scale), (forth + back) / 2)


def test_logits_stay_exact_under_autocast():
    a, b, scale = embeddings(0), embeddings(1), torch.tensor([100.0])
    exact = aligning_contrast(a, b, scale)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(aligning_contrast(a, b, scale), exact, atol=0, rtol=0)


@pytest.mark.parametrize("keys", ["differentiable", "detached", "sigmoid"])
@pytest.mark.parametrize("limit", [1, 13, 24])
def test_chunks_of_logits_change_nothing(keys, limit, monkeypatch):
    def computed() -> list[Tensor]:
        leaves = [
            embeddings(0).requires_grad_(),
            embeddings(1).requires_grad_(),
            torch.tensor([SCALE]).requires_grad_(),
        ]
        if keys == "sigmoid":
            loss = sigmoid_contrast(*leaves, torch.tensor([-2.0]))
        else:
            loss = aligning_contrast(*leaves, keys)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    whole = computed()
    monkeypatch.setattr(chunks, "LOGITS", limit)
    for ours, wanted in zip(computed(), whole, strict=True):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_the_sigmoid_contrast_is_a_binary_cross_entropy_of_each_pair():
    a, b, scale, bias = embeddings(0), embeddings(1), torch.tensor([SCALE]), torch.tensor([-1.5])
    wanted = 0.0
    for i in range(6):
        for j in range(6):
            p = torch.sigmoid(SCALE * (a[i] * b[j]).sum() + bias)
            wanted = wanted - torch.log(p if i == j else 1 - p)
    torch.testing.assert_close(sigmoid_contrast(a, b, scale, bias), wanted.squeeze() / 6, **CLOSE)


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match=r"keys is 'frozen'; choose 'differentiable' or 'detached'"):
        aligning_contrast(embeddings(0), embeddings(1), torch.ones(1), "frozen")


def test_gather_on_one_process_gives_the_rows_themselves():
    rows = embeddings(0).requires_grad_()
    assert gather(rows, "differentiable") is rows
    assert not gather(rows, "detached").requires_grad


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    a, b = (embeddings(seed).chunk(RANKS)[rank].clone().requires_grad_() for seed in (0, 1))
    results = {"rows": gather(a, "detached").detach()}
    for keys in ("differentiable", "detached"):
        scale = torch.tensor([SCALE], requires_grad=True)
        loss = aligning_contrast(a, b, scale, keys)
        results[keys] = [loss.detach(), *torch.autograd.grad(loss, [a, b, scale])]
    scale = torch.tensor([SCALE], requires_grad=True)
    loss = sigmoid_contrast(a, b, scale, torch.tensor([-1.5]))
    results["sigmoid"] = [loss.detach(), *torch.autograd.grad(loss, [a, b, scale])]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes computes from its half of the batch."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.spawn(one_rank, (str(folder),), nprocs=RANKS)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def whole_batch(keys: Keys) -> list[Tensor]:
    leaves = [embeddings(0).requires_grad_(), embeddings(1).requires_grad_(), torch.tensor([SCALE], requires_grad=True)]
    loss = sigmoid_contrast(*leaves, torch.tensor([-1.5])) if keys == "sigmoid" else aligning_contrast(*leaves, keys)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("keys", ["differentiable", "detached", "sigmoid"])
def test_two_ranks_compute_what_one_process_computes_with_the_whole_batch(ranks, keys: Keys):
    """With each key's gradient, or without any: the mean over ranks is the gradient of the whole batch's loss."""
    loss, a, b, scale = whole_batch(keys)
    torch.testing.assert_close(torch.stack([rank[keys][0] for rank in ranks]).mean(), loss, **CLOSE)
    for index, wanted in ((1, a), (2, b)):
        torch.testing.assert_close(torch.cat([rank[keys][index] for rank in ranks]) / RANKS, wanted, **CLOSE)
    torch.testing.assert_close(torch.stack([rank[keys][3] for rank in ranks]).mean(0), scale, **CLOSE)


def test_the_two_modes_differ_in_gradient_but_not_in_value(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["differentiable"][0], rank["detached"][0])
        assert (rank["differentiable"][1] - rank["detached"][1]).abs().max() > 1e-3


def test_rows_are_gathered_in_rank_order(ranks):
    for rank in ranks:
        torch.testing.assert_close(rank["rows"], embeddings(0))
