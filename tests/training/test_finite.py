"""Steps whose gradient is not finite, and checkpoints of what is not finite; several processes too."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.training.finite import SkippedSteps
from onepeace_lightning.training.optimizer import Optimization
from tests.distributed.runs import EVERY_3_STEPS, RUN, SpoilGradient, callback, checkout, lines, output, run, streams

GOOD, BAD = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])


class Root(TrainedModule):
    """The root of a weighted sum: at zero the loss is finite and the gradient is not."""

    def __init__(self, limit: int = 10):
        super().__init__()
        self.optimization = Optimization(max_skipped_steps=limit)
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.after: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).sum().sqrt()
        self.log_means({"train/loss": loss})
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        assert outputs["loss"].isfinite()
        self.after.append(self.weight.tolist())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(task, batches, folder, **options):
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_of_a_non_finite_gradient_changes_nothing_and_the_next_goes_on(tmp_path, clip, precision):
    task, without = Root(), Root()
    trainer = fit(task, [GOOD, BAD, GOOD, BAD], tmp_path, gradient_clip_val=clip, precision=precision)
    assert task.after[0] == task.after[1]
    assert task.after[2] == task.after[3]
    assert task.after[1] != task.after[2]
    fit(without, [GOOD, GOOD], tmp_path, gradient_clip_val=clip, precision=precision)
    assert without.after == task.after[::2]  # moments and their count are untouched, too
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    assert task.skipped.state_dict() == {"total": 2, "in_a_row": 1, "overflows": 0}
    assert "train/overflows" not in trainer.callback_metrics


class Half(Root):
    """Adds in float16, whose gradient overflows where the scale of the loss is 2^19 or more."""

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).half().sum().float().sqrt()


def fit_scaled(task, batches, folder, scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return fit(task, batches, folder, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_a_scale_of_the_loss_that_is_found_is_no_fault(tmp_path):
    """Three overflows would end the run, were they counted as skipped steps."""
    task = Half(limit=2)
    trainer = fit_scaled(task, [GOOD, GOOD, GOOD, GOOD], tmp_path, 2.0**21)
    assert task.after[2] == [1.0, 1.0]
    assert task.after[3] != task.after[2]
    assert task.skipped.state_dict() == {"total": 0, "in_a_row": 0, "overflows": 3}
    assert trainer.callback_metrics["train/overflows"] == 3
    assert trainer.callback_metrics["train/skipped_steps"] == 0
    assert not list(tmp_path.glob("skipped_steps*"))


def test_gradients_that_no_scale_makes_finite_end_a_run_in_float16(tmp_path):
    task = Half(limit=2)
    with pytest.raises(FloatingPointError, match="2 steps in a row, the last one 5, "):
        fit_scaled(task, [GOOD, BAD, BAD, BAD, BAD, BAD], tmp_path, 4.0)
    assert task.skipped.state_dict() == {"total": 2, "in_a_row": 2, "overflows": 2}  # at 4 and 2; at 1 and 1/2


def test_a_bad_part_of_an_accumulated_step_drops_the_whole_step(tmp_path):
    task = Root()
    fit(task, [GOOD, BAD, GOOD, GOOD], tmp_path, accumulate_grad_batches=2)
    assert task.after[1] == [1.0, 1.0]
    assert task.after[3] != [1.0, 1.0]
    (line,) = (tmp_path / "skipped_steps_rank0.jsonl").read_text().splitlines()[::2]
    assert json.loads(line)["step"] == 1


def test_too_many_in_a_row_end_the_run(tmp_path):
    task = Root(limit=2)
    with pytest.raises(FloatingPointError, match=r"2 steps in a row, the last one 4, .*skipped_steps_rank0.jsonl"):
        fit(task, [BAD, GOOD, BAD, BAD, GOOD], tmp_path)
    assert task.after[-1] == task.after[1]
    with pytest.raises(ValueError, match="max_skipped_steps is 0"):
        SkippedSteps(0)


def test_the_gradient_norm_is_logged_before_clipping(tmp_path):
    trainer = fit(Root(), [GOOD], tmp_path, gradient_clip_val=0.1)
    assert trainer.callback_metrics["train/gradient_norm"].item() == pytest.approx(5 / (2 * 7**0.5))


@pytest.mark.parametrize("where", ["weight", "moment"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_no_checkpoint_holds_a_non_finite_tensor(tmp_path, where, weights_only):
    task = Root()
    trainer = fit(task, [GOOD], tmp_path)
    if where == "weight":
        task.weight.data[1] = torch.inf
    else:
        trainer.optimizers[0].state[task.weight]["exp_avg"][0] = torch.nan
    if where == "moment" and weights_only:
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)  # moments are not in it
        return
    with pytest.raises(FloatingPointError, match=r"step 1 is not written: .*\("):
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_skip_alike_and_none_writes_what_is_not_finite(strategy, toy_root, tmp_path):
    folder = checkout(tmp_path / strategy, toy_root)
    strategies = {"ddp": ["--trainer.strategy=ddp"], "fsdp": ["--config=configs/trainer/fsdp.yaml"]}[strategy]
    command = [
        *RUN[:2], *strategies, *RUN[2:], "--trainer.max_steps=4", "--trainer.limit_val_batches=0",
        "--data.init_args.num_workers=0", "--data.init_args.preprocessing={image: {size: 32}}", streams("image-text"),
        *EVERY_3_STEPS, *callback("Record"),
        *callback(SpoilGradient.__name__, steps="[1, 3]", rank=1), *callback("Dump"),
    ]  # fmt: skip
    assert run(folder, *command, ranks=2) == [0, 0]
    weights = torch.load(folder / "ended.pt", weights_only=True)["weights"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    for rank in range(2):
        (written,) = folder.rglob(f"skipped_steps_rank{rank}.jsonl")
        skipped = [json.loads(line) for line in written.read_text().splitlines()]
        seen = {line["step"]: line["keys"] for line in lines(folder, rank)}
        assert [line["step"] for line in skipped] == [2, 4]
        assert [line["keys"] for line in skipped] == [seen[2], seen[4]]
    assert "step 2 is skipped" in output(folder)

    more = ["--trainer.max_steps=8", "--model.init_args.optimization.max_skipped_steps=2", "--ckpt_path=last"]
    spoiled = [word.replace("[1, 3]", "[4, 5]") for word in command]
    assert run(folder, *spoiled, *more, ranks=2) == [1, 1]
    assert "2 steps in a row, the last one 6" in output(folder, 1)
