"""Gradients of one contrast over many small batches against those of the large batch, in one process and in two."""

import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, contrast_terms, pretraining_loss, weight
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.training.gradient_cache import cached_loss, encode
from tests.tiny import batches, randomised, tiny_config, tiny_model
from tests.training.test_parallelize import free_port, part

STREAMS = ("image-text", "audio-text")
COUNT = 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def model(*, denoise=False, drop_path=0.0, contrast="softmax") -> PretrainModel:
    torch.manual_seed(0)
    config = tiny_config()
    config = replace(config, encoder=replace(config.encoder, drop_path=drop_path))
    return randomised(PretrainModel(config, denoise=denoise, logit_bias=contrast == "sigmoid")).train()


def split(data: dict[str, Batch], *bounds: int) -> list[dict[str, Batch]]:
    """The samples between each two bounds."""
    return [{name: part(b, slice(*rows)) for name, b in data.items()} for rows in pairwise(bounds)]


def gradients(made: PretrainModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def cached(made: PretrainModel, parts, objectives: Objectives, frozen=()):
    terms, last = cached_loss(
        lambda piece: encode(made, piece, objectives, frozen),
        lambda piece, contrast: pretraining_loss(made, piece, objectives, frozen, contrast).terms,
        parts,
        objectives,
        lambda loss: loss.backward(),
    )
    last.backward()
    return terms, last.item(), gradients(made)


def assert_equal(got, wanted):
    assert got.keys() == wanted.keys()
    assert len(got) > 20
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("bounds", [(0, 1, 2, 3, 4), (0, 3, 4)])
@pytest.mark.parametrize(
    "objectives",
    [
        Objectives(denoise=False),
        Objectives(denoise=False, keys="detached"),
        Objectives(denoise=False, contrast="sigmoid"),
    ],
    ids=["softmax", "detached", "sigmoid"],
)
def test_gradients_and_terms_are_the_large_batch_s(objectives, bounds):
    data = batches(tiny_model(), *STREAMS, count=COUNT)
    large, small = (model(contrast=objectives.contrast) for _ in range(2))
    loss = pretraining_loss(large, data, objectives)
    loss.total.backward()
    terms, total, got = cached(small, split(data, *bounds), objectives)
    assert_equal(got, gradients(large))
    assert total == pytest.approx(loss.total.item(), abs=1e-5)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {name: value.item() for name, value in loss.terms.items()}, abs=1e-5
    )


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_denoising_is_each_batch_s_own_and_random_numbers_are_drawn_twice_alike(drop_path):
    objectives = Objectives()
    parts = split(batches(tiny_model(), *STREAMS, "image", count=COUNT), 0, 2, 4)
    large, small = (model(denoise=True, drop_path=drop_path) for _ in range(2))
    torch.manual_seed(5)
    terms, total, got = cached(small, parts, objectives)

    torch.manual_seed(5)
    seeds = torch.randint(2**62, (len(parts),)).tolist()
    kept, shares = [], []
    for seed, piece in zip(seeds, parts, strict=True):  # all graphs at once, which caching is there to avoid
        torch.manual_seed(seed)
        loss = pretraining_loss(large, piece, objectives, contrast=lambda found, *_: kept.append(found) or {})
        shares += [weight(name) * value / len(parts) for name, value in loss.terms.items()]
    joined = {
        stream: {name: torch.cat([found[stream][name] for found in kept]) for name in sides}
        for stream, sides in kept[0].items()
    }
    contrasts = contrast_terms(joined, large.heads.scale, None, objectives=objectives)
    wanted = torch.stack([*shares, *contrasts.values()]).sum()
    wanted.backward()
    assert_equal(got, gradients(large))
    assert total == pytest.approx(wanted.item(), abs=1e-5)
    assert "image/image" in terms
    assert "image-text/contrast" in terms


def test_frozen_modalities_get_no_gradient_and_the_others_the_large_batch_s():
    data = batches(tiny_model(), "audio-text", count=COUNT)
    objectives = Objectives(denoise=False)
    large, small = model(), model()
    pretraining_loss(large, data, objectives, ["text"]).total.backward()
    _, _, got = cached(small, split(data, 0, 2, 4), objectives, ["text"])
    assert_equal(got, gradients(large))


def test_without_a_pair_the_batches_are_accumulated():
    parts = split(batches(tiny_model(), "image", count=COUNT), 0, 2, 4)
    large, small = model(denoise=True), model(denoise=True)
    terms, total, got = cached(small, parts, Objectives())
    wanted = sum(pretraining_loss(large, piece).total / 2 for piece in parts)
    wanted.backward()
    assert_equal(got, gradients(large))
    assert total == pytest.approx(wanted.item(), abs=1e-5)
    assert list(terms) == ["image/image"]


def test_under_autocast_each_batch_has_its_own_graph():
    data = batches(tiny_model(), "image-text", count=COUNT)
    objectives = Objectives(denoise=False)
    large, small = model(), model()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pretraining_loss(large, data, objectives).total
        _, total, got = cached(small, split(data, 0, 2, 4), objectives)
    loss.backward()
    wanted = gradients(large)
    assert total == pytest.approx(loss.item(), abs=0.05)
    assert got.keys() == wanted.keys()
    flat = [torch.cat([found[name].flatten() for name in wanted]) for found in (got, wanted)]
    assert (flat[0] - flat[1]).norm() < 0.05 * flat[1].norm()


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    data = batches(tiny_model(), *STREAMS, count=COUNT)
    out = {}
    for contrast in ("softmax", "sigmoid"):
        objectives = Objectives(denoise=False, contrast=contrast)
        made = model(contrast=contrast)
        _, total, got = cached(made, split(data, 2 * rank, 2 * rank + 1, 2 * rank + 2), objectives)
        for gradient in got.values():
            dist.all_reduce(gradient)
        out[contrast] = total, {name: gradient / 2 for name, gradient in got.items()}
    torch.save(out, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_two_batches_each_have_the_gradients_of_one_large_batch(tmp_path):
    mp.spawn(_rank, (free_port(), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    data = batches(tiny_model(), *STREAMS, count=COUNT)
    for contrast in ("softmax", "sigmoid"):
        large = model(contrast=contrast)
        loss = pretraining_loss(large, data, Objectives(denoise=False, contrast=contrast)).total
        loss.backward()
        assert sum(rank[contrast][0] for rank in ranks) / 2 == pytest.approx(loss.item(), abs=1e-5)
        for rank in ranks:
            assert_equal(rank[contrast][1], gradients(large))
