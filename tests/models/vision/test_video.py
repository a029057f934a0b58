"""The video classifier: adapters start as nothing, clips and frames see what they should."""

from dataclasses import replace

import pytest
import torch

from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.vision.trunk import Trunk
from onepeace_lightning.models.vision.video import VideoClassifier, VideoClassifierConfig
from onepeace_lightning.training.parallelize import materialise
from tests.tiny import IMAGE_SIZE, drawn, randomised, tiny_config

FRAMES = 3


def config(**changes):
    base = tiny_config()
    return replace(base, adapters={"image": base.adapters["image"]}, **changes)


@pytest.fixture
def model() -> VideoClassifier:
    torch.manual_seed(0)
    return randomised(VideoClassifier(config(), VideoClassifierConfig(classes=5, frames=FRAMES))).eval()


def clips(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, 3, IMAGE_SIZE, IMAGE_SIZE, generator=drawn(seed))


@torch.no_grad()
def test_at_first_every_frame_is_an_image_to_the_frozen_branch():
    torch.manual_seed(0)
    model = VideoClassifier(config(), VideoClassifierConfig(classes=5, frames=FRAMES)).eval()
    trunk = randomised(Trunk(config())).eval()
    model.backbone.load_state_dict(trunk.state_dict())
    frames = clips(2, FRAMES)
    alone = trunk(Image(frames.flatten(0, 1)))[:, 0]
    wanted = torch.nn.functional.layer_norm(alone, alone.shape[-1:]).unflatten(0, (2, FRAMES))
    torch.testing.assert_close(model.features(frames), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_see_their_own_clip_only_and_their_order_matters(model):
    frames = clips(2, FRAMES)
    before = model.features(frames)
    changed = frames.clone()
    changed[1, 2] += 1
    after = model.features(changed)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1, 0], before[1, 0], atol=1e-5)
    assert not torch.allclose(model(frames.flip(1)), model(frames), atol=1e-5)


@torch.no_grad()
def test_views_are_averaged_as_probabilities(model):
    views = clips(2, 4, FRAMES)
    found = model.probabilities(views)
    assert found.shape == (2, 5)
    wanted = torch.stack([model(views[:, view]).softmax(-1) for view in range(4)]).mean(0)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="clips of 2 frames; this model takes 3"):
        model(clips(1, 2))
    model.set_frames(2)
    assert model(clips(1, 2)).shape == (1, 5)
    assert not model.frame_positions.table_TD.any()


def test_all_but_the_branch_learns_where_it_is_frozen(model):
    model.backbone.requires_grad_(False)
    model.train()(clips(2, FRAMES)).square().sum().backward()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"adapters", "frame_positions", "norm", "head"}
    assert all(p.grad is not None and p.grad.any() for p in model.adapters.parameters())


def test_the_model_is_drawn_from_the_meta_device():
    with torch.device("meta"):
        model = VideoClassifier(config(), VideoClassifierConfig(classes=5, frames=FRAMES))
    materialise(model, torch.device("cpu"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not any(part.up.weight.any() for adapters in model.adapters for part in adapters.children())


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="frames is 0"):
        VideoClassifierConfig(classes=2, frames=0)
    with pytest.raises(ValueError, match="is of one modality whose patches form a grid"):
        VideoClassifier(
            replace(tiny_config(), adapters={"text": tiny_config().adapters["text"]}), VideoClassifierConfig(classes=2)
        )
