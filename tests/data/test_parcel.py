from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.parcel import SMALL, Parcel
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.inputs import TokenMask


def opened(batch):
    return ForkingPickler.loads(ForkingPickler.dumps(Parcel(batch)))


def test_what_arrives_is_the_batch():
    pixels = torch.randint(0, 256, (2, 200, 200, 3), dtype=torch.uint8).movedim(-1, 1)
    sound = Audio.pad([torch.randn(30_000), torch.randn(500)])
    masks = {"image": TokenMask.of([np.array([False, True, True]), np.array([False, False])])}
    batch = Batch(["a", "b"], {"image": Image(pixels), "audio": sound}, masks, captions=["one", "two"], sources=["a"])
    found = opened(batch)
    assert type(found) is Batch
    assert (found.keys, found.captions, found.sources) == (batch.keys, batch.captions, ["a"])
    assert torch.equal(found.inputs["image"].pixels, pixels)
    assert found.inputs["image"].pixels.stride() == pixels.stride()
    assert torch.equal(found.inputs["audio"].waveforms_BN, sound.waveforms_BN)
    assert found.inputs["audio"].lengths == sound.lengths
    assert torch.equal(found.masks["image"].hidden_M, torch.tensor([1, 2]))
    assert found.masks["image"].positions_N.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("size", "shared"), [(SMALL, False), (SMALL + 1, True)])
def test_only_large_tensors_take_shared_memory(size, shared):
    found = opened(Batch(["a"], {"bytes": torch.ones(size, dtype=torch.uint8)})).inputs["bytes"]
    assert found.is_shared() is shared
    assert found.sum() == size
    found += 1  # it can be written to


def test_types_that_numpy_lacks_arrive_too():
    values = torch.randn(3).bfloat16()
    assert torch.equal(opened(Batch(["a"], {"x": values})).inputs["x"], values)
