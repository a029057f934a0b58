"""What a run that goes on says where it is no longer the run that it was."""

import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.resume import SameRun

STREAMS = {"image-text": {"path": "a", "batch_size": 2}, "audio-text": {"path": "b", "batch_size": 2}}


class Module:
    def __init__(self, **changes):
        self.optimization = Optimization(**changes)


class Run:
    """What the callback asks a trainer for."""

    ckpt_path = "runs/a/checkpoints/last.ckpt"

    def __init__(self, train=STREAMS, seed=0, fn="fit"):
        self.datamodule = DataModule(train, seed=seed)
        self.state = type("State", (), {"fn": fn})


def saved(tmp_path):
    checkpoint = {}
    SameRun().on_save_checkpoint(Run(), Module(), checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    return torch.load(tmp_path / "x.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("run", "module", "said"),
    [
        (Run(seed=3), Module(), r"--data\.seed is 3, the run's is 0"),
        (Run({"image-text": STREAMS["image-text"]}), Module(), "the training stream audio-text is missing"),
        (Run({**STREAMS, "text": STREAMS["image-text"]}), Module(), "the training stream text is new"),
        (Run(), Module(lr=0.5), r"--model\.optimization\.lr is 0\.5, the run's is 0\.0005, and its optimizer keeps it"),
        (Run(), Module(betas=(0.5, 0.6)), r"betas is \[0\.5, 0\.6\]"),
    ],
)
def test_what_has_changed_is_named_with_the_two_ways_on(tmp_path, run, module, said):
    with pytest.raises(ValueError, match=said) as caught:
        SameRun().on_load_checkpoint(run, module, saved(tmp_path))
    assert "--run NEW --model.init_from runs/a/checkpoints/last.ckpt" in str(caught.value)


def test_the_same_run_goes_on_and_streams_take_their_order_of_before(tmp_path):
    run = Run(dict(reversed(STREAMS.items())))
    SameRun().on_load_checkpoint(run, Module(total_steps=9, min_lr=1e-9), saved(tmp_path))
    assert list(run.datamodule.train) == list(STREAMS)


def test_measuring_takes_any_data(tmp_path):
    SameRun().on_load_checkpoint(Run(seed=3, fn="validate"), Module(lr=1.0), saved(tmp_path))
