"""Accounting is tested by a clock that the test advances."""

import math

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.tasks import Optimization, PretrainTask
from onepeace_lightning.training import throughput
from onepeace_lightning.training.peaks import PEAKS, peak_flops
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops
from onepeace_lightning.training.throughput import Throughput, Window
from tests.tiny import IMAGE_SIZE, batches, images, texts

FETCH, WORK, VALIDATE, SAVE = 3.0, 1.0, 100.0, 1000.0
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.time = 0.0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "_now", lambda device: clock.time)
    return clock


class Loader:
    """Pairs of pictures and texts; each batch takes its time."""

    def __init__(self, clock: Clock, steps: int, samples: int = 2, spent: float = FETCH) -> None:
        self.clock, self.steps, self.samples, self.spent = clock, steps, samples, spent

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            self.clock.time += self.spent
            yield {"image-text": Batch(["a"] * self.samples, {
                "image": images(self.samples), "text": texts(*[4] * self.samples)})}  # fmt: skip


class Task(L.LightningModule):
    """One weight to train, and a fixed cost."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        self.clock.time += WORK
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        self.clock.time += VALIDATE

    def on_save_checkpoint(self, checkpoint):
        self.clock.time += SAVE

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def step_flops(self, batch) -> int:
        return 10**12 * len(batch["image-text"])


class Record(L.Callback):
    """What is shown and logged after each step."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.shown: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("throughput/")})
        self.shown.append(dict(trainer.progress_bar_metrics))


def fit(clock, steps, window=2, callbacks=(), task=None, **options) -> Record:
    record = Record()
    trainer = L.Trainer(
        **{**QUIET, "max_steps": steps, "enable_checkpointing": bool(callbacks), **options},
        callbacks=[Throughput(window), record, *callbacks],
    )
    trainer.fit(task or Task(clock), Loader(clock, steps), Loader(clock, 1, spent=0.0))
    return record


def test_rates_are_means_over_a_window_and_the_first_step_is_left_out(clock):
    record = fit(clock, 5)
    assert [bool(metrics) for metrics in record.logged] == [False, False, True, True, True]
    last = record.logged[-1]
    assert last["throughput/samples_per_second"] == pytest.approx(2 / (FETCH + WORK))
    assert last["throughput/image_tokens_per_second"] == pytest.approx(2 * 10 / (FETCH + WORK))
    assert last["throughput/text_tokens_per_second"] == pytest.approx(2 * 5 / (FETCH + WORK))
    assert last["throughput/data_wait"] == pytest.approx(FETCH / (FETCH + WORK))
    assert last["throughput/model_tflop_per_step"] == pytest.approx(2)
    assert last["throughput/model_tflop_per_second"] == pytest.approx(2 / (FETCH + WORK))
    assert last["throughput/peak_memory_gib"] > 0.05
    assert "throughput/mfu" not in last  # a processor has no known peak
    for shown in record.shown[2:]:  # also between the ends of windows
        assert shown["samples/s"] == pytest.approx(0.5)
    assert record.shown[-1]["data wait"] == pytest.approx(0.75)


def test_neither_validation_nor_checkpoints_are_waiting_or_training(clock, tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    record = fit(clock, 9, window=4, callbacks=[saver], val_check_interval=3)
    assert clock.time > 2 * VALIDATE + 3 * SAVE
    # of steps 2 to 5, what came after steps 2, 4 (checkpoint) and 3 (validation) is unknown; of 6 to 9, after 6 and 8
    for metrics, waits in ((record.logged[4], 1), (record.logged[8], 2)):
        elapsed = waits * FETCH + 4 * WORK
        assert metrics["throughput/data_wait"] == pytest.approx(waits * FETCH / elapsed)
        assert metrics["throughput/samples_per_second"] == pytest.approx(4 * 2 / elapsed)


def test_a_second_run_starts_anew(clock):
    callback = Throughput(3)
    for _ in range(2):
        record = Record()
        trainer = L.Trainer(**QUIET, max_steps=3, enable_checkpointing=False, callbacks=[callback, record])
        trainer.fit(Task(clock), Loader(clock, 3))
        assert record.logged[-1] == {}


def test_the_logger_gets_what_the_bar_does_not(clock, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    fit(clock, 6, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert "throughput/samples_per_second" in header.split(",")
    assert "samples/s" not in header.split(",")
    assert rows


def test_a_task_that_does_not_say_its_flops_has_the_rest(clock):
    class Silent(Task):
        step_flops = None

    metrics = fit(clock, 3, task=Silent(clock)).logged[-1]
    assert "throughput/samples_per_second" in metrics
    assert not any("flop" in name for name in metrics)


def test_a_window_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="window is 0"):
        Throughput(0)


def test_pretraining_says_what_its_steps_cost(tmp_path, clock):
    SentencePieceTokenizer.train(["a few words to learn from"], 300).save(tmp_path)
    settings = Optimization(total_steps=4, warmup_steps=1)
    task = PretrainTask(
        str(tmp_path), settings, preprocessing={"image": {"size": IMAGE_SIZE}}, data_types=["image-text", "audio-text"]
    )
    task.configure_model()
    step = batches(task.model, "image-text", "audio-text")
    record = Record()
    trainer = L.Trainer(**QUIET, max_steps=3, enable_checkpointing=False, callbacks=[Throughput(2), record])
    clock.time = 1.0

    class Ticking(Loader):
        def __iter__(self):
            for _ in range(self.steps):
                self.clock.time += 1.0
                yield step

    trainer.fit(task, Ticking(clock, 3))
    metrics = record.logged[-1]
    assert metrics["throughput/model_tflop_per_step"] == pytest.approx(
        total_flops(step_flops(task.config, step)) / 1e12
    )
    assert metrics["throughput/samples_per_second"] == pytest.approx(6)
    # [CLS; ids; eos] of both streams' captions
    text = sum(sum(batch.inputs["text"].token_lengths) for batch in step.values())
    assert metrics["throughput/text_tokens_per_second"] == pytest.approx(text)


class TwoRanks(Task):
    """Rank 1 has more samples, and works longer."""

    def training_step(self, batch, batch_idx):
        self.clock.time += WORK * (1 + 2 * dist.get_rank())
        return self.weight.square().sum()

    def train_dataloader(self):
        return Loader(self.clock, 3, samples=2 + dist.get_rank())

    def on_train_start(self):
        throughput._now = lambda device: self.clock.time

    def on_train_end(self):
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        assert metrics["throughput/samples_per_second"] == pytest.approx((2 + 3) / (FETCH + 2 * WORK))
        assert metrics["throughput/text_tokens_per_second"] == pytest.approx(5 * 5 / (FETCH + 2 * WORK))
        assert metrics["throughput/data_wait"] == pytest.approx(FETCH / (FETCH + 2 * WORK))
        assert metrics["throughput/model_tflop_per_step"] == pytest.approx(5)
        torch.save(metrics, f"{self.trainer.default_root_dir}/rank{self.global_rank}.pt")


@pytest.mark.timeout(120)
def test_numbers_are_those_of_all_ranks(tmp_path):
    trainer = L.Trainer(
        **QUIET, devices=2, strategy="ddp_spawn", max_steps=3, enable_checkpointing=False, callbacks=[Throughput(2)],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(TwoRanks(Clock()))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second


def test_mfu_is_a_share_of_all_devices_peaks():
    window = Window(steps=2, ranks=4, seconds=40.0, waited=4.0, samples=80, flops=8e15, peak=1e15, memory=2**31)
    metrics = window.metrics()
    # 8 PFLOP in 10 seconds, of the 4 PFLOP/s of four devices
    assert metrics["throughput/mfu"] == pytest.approx(0.2)
    assert metrics["throughput/model_tflop_per_second"] == pytest.approx(800)
    assert metrics["throughput/samples_per_second"] == pytest.approx(8)
    assert metrics["throughput/peak_memory_gib"] == 2


@pytest.mark.parametrize(
    ("device", "half", "tf32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5, 494.5),
        ("NVIDIA H100 PCIe", 756.5, 378),
        ("NVIDIA H200", 989.5, 494.5),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A100-PCIE-40GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("A100-SXM4-40GB", 312, 156),
        ("NVIDIA L40S", 362.05, 183),
        ("NVIDIA L4", 121, 60),
    ],
)
def test_known_devices_have_their_dense_peaks(device, half, tf32, monkeypatch):
    for precision in ("bf16-mixed", "bf16-true", "16-mixed"):
        assert peak_flops(device, precision) == pytest.approx(half * 1e12)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(device, "32-true") == pytest.approx(tf32 * 1e12)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak_flops(device, "32-true") < tf32 * 1e12


@pytest.mark.parametrize(
    "device",
    ["NVIDIA H800", "NVIDIA H20", "NVIDIA A100-SXM-64GB", "NVIDIA A100X", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "L400"],
)
def test_other_devices_are_not_guessed(device):
    assert peak_flops(device, "bf16-mixed") is None


def test_other_precisions_are_not_guessed():
    assert peak_flops("NVIDIA H200", "64-true") is None
    assert peak_flops("NVIDIA H200", "transformer-engine") is None


def test_every_peak_is_dense():
    """A figure with sparsity, which is twice as large, would stand out."""
    for pattern, peak in PEAKS.items():
        assert 1.9 < peak.half / peak.tf32 < 2.1, pattern
        assert peak.tf32 >= peak.single, pattern


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_time_is_that_of_the_device():
    device = torch.device("cuda", 0)
    before = throughput._now(device)
    torch.cuda._sleep(10**8)
    after = throughput._now(device)
    assert throughput._seconds(before, after) > 1e-3
    assert math.isfinite(throughput._peak_memory(device))
