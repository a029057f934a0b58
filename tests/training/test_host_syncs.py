"""A training step never waits for the device: where tokens lie is host data, and no value is read back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.models import PretrainModel
from tests.tiny import batches, tiny_config, tiny_model

STREAMS = ("image-text", "audio-text", "image", "text", "audio")
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.bincount.default,
    aten._unique2.default, aten.unique_dim.default, aten.equal.default, aten.is_nonzero.default,
}  # fmt: skip
"""What cannot run on a GPU without waiting for its result: the size of the output, or a number for Python."""


class NoReads(TorchDispatchMode):
    """Refuses operations that a GPU's queue would have to be emptied for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        indexed = function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
        by_mask = indexed and any(index is not None and index.dtype == torch.bool for index in args[1])
        counts = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if function in READS or by_mask or counts:
            raise RuntimeError(f"{function} waits for the device")
        return function(*args, **kwargs)


@contextmanager
def no_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(self: Tensor, *_: object, **__: object) -> None:
        raise RuntimeError("a tensor is read back on the host")

    with NoReads(), monkeypatch.context() as patch:
        for name in ("tolist", "numpy", "__array__", "cpu", "item", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refuse)
        yield


def step(model: PretrainModel, data: dict) -> None:
    pretraining_loss(model, data).total.backward()


def test_a_pretraining_step_reads_no_tensor_back(monkeypatch):
    model = tiny_model(encoder=replace(tiny_config().encoder, drop_path=0.2)).train()
    data = batches(model, *STREAMS)
    step(model, data)  # what is kept from step to step, such as tables of relative positions
    with no_reads(monkeypatch):
        step(model, data)
    assert model.heads.logit_scale.grad.abs() > 0


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: bool(x.any()),
        lambda x: x[x > 0], lambda x: int(x[0]), lambda x: x.numpy(), lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.repeat_interleave(torch.ones(3, dtype=torch.long)), lambda x: torch.where(x > 0),
    ],
)  # fmt: skip
def test_the_check_notices_every_kind_of_reading(monkeypatch, read):
    x = torch.ones(3)
    with no_reads(monkeypatch), pytest.raises(RuntimeError):
        read(x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pretraining_step_on_cuda_does_not_synchronise():
    config = tiny_config()
    model = tiny_model(encoder=replace(config.encoder, width=32, drop_path=0.2)).train()
    data = {name: batch.to("cuda") for name, batch in batches(model, *STREAMS).items()}
    model.cuda()
    step(model, data)  # compiles, and asks cuDNN for its algorithms
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
