"""How fast training is, what fraction of the hardware it uses, and how long it waits for data."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.training.peaks import peak_flops

Moment = float | torch.cuda.Event


@dataclass
class _Step:
    """One training step on this rank.

    Attributes:
        before: when the step before had ended; None where the time since was spent on something else than data.
        begin: when the batch was there.
        samples: of all streams.
        tokens: by modality.
        flops: model FLOPs, where the task says them.
        end: when the step had ended.
    """

    before: Moment | None
    begin: Moment
    samples: int
    tokens: Counter[str]
    flops: int | None
    end: Moment = 0.0


@dataclass
class Window:
    """Sums over the steps of a window and over all ranks, and what they say.

    Attributes:
        steps: training batches of each rank.
        ranks: processes, one device each.
        seconds: of all ranks together.
        waited: seconds out of these in which a device had nothing to do because its batch was not there.
        samples: of all streams.
        flops: model FLOPs; None where the task does not say them.
        tokens: modality to tokens of all samples, each counted once however many views are made of it, CLS included.
        peak: FLOP/s of one device; None where it is not known.
        memory: the greatest peak of any rank in bytes.
    """

    steps: int
    ranks: int
    seconds: float
    waited: float
    samples: float
    flops: float | None
    tokens: dict[str, float] = field(default_factory=dict)
    peak: float | None = None
    memory: float = 0.0

    def metrics(self) -> dict[str, float]:
        """What is logged, under ``throughput/``."""
        elapsed = self.seconds / self.ranks
        out = {
            "samples_per_second": self.samples / elapsed,
            **{f"{name}_tokens_per_second": count / elapsed for name, count in self.tokens.items()},
            "data_wait": self.waited / self.seconds,
            "peak_memory_gib": self.memory / 2**30,
        }
        if self.flops is not None:
            out["model_tflop_per_step"] = self.flops / self.steps / 1e12
            out["model_tflop_per_second"] = self.flops / elapsed / 1e12
            if self.peak is not None:
                out["mfu"] = self.flops / (self.seconds * self.peak)
        return {f"throughput/{name}": value for name, value in out.items()}


class Throughput(L.Callback):
    """Logs speed, model FLOPs utilisation, data waiting and memory, averaged over every ``window`` steps and all ranks.

    Logged as ``throughput/…``: ``samples_per_second``; ``<modality>_tokens_per_second`` (tokens of the samples, each
    counted once however many views are made of it, CLS included); ``data_wait``, the fraction of the time in which
    the device had nothing to do because the next batch was not there; ``peak_memory_gib``, the most that any rank's
    tensors took on its GPU since the process began, or on a CPU the most that its process took; and where the task has
    a method ``step_flops(batch)``, ``model_tflop_per_step`` and ``model_tflop_per_second`` of all ranks together (a
    step is one batch per rank, also when gradients accumulate), and ``mfu``, the fraction of the devices' peak
    (``peaks``). An unknown device or precision has no ``mfu``. The progress bar shows samples/s, MFU and data wait.

    Validation, checkpoints and the first step of a run (which compiles, and waits for the workers to start) are left
    out: what is measured is training. On GPUs the times are the device's own (events), so that a wait that the device
    does not notice is none.

    Args:
        window: steps that are averaged.

    Raises:
        ValueError: for a window of less than one step.
    """

    def __init__(self, window: int = 20) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; give 1 step or more")
        self.window = window
        self._steps: list[_Step] = []
        self._first = True
        self._step: _Step | None = None
        self._end: Moment | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew."""
        self._steps, self._first, self._end = [], True, None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch has come: note what it holds."""
        begin = _now(pl_module.device)
        # Reading lengths waits for the device, as the model is about to do anyway: that is why it happens here.
        streams = list(batch.values()) if isinstance(batch, Mapping) else [batch]
        batches = [part for stream in streams for part in (stream if isinstance(stream, list | tuple) else [stream])]
        count: Callable[[Any], int] | None = getattr(pl_module, "step_flops", None)
        flops = None if count is None else count(batch)
        self._step = _Step(self._end, begin, sum(map(len, batches)), _tokens(batches), flops)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step; at the end of a window, log."""
        self._end = _now(pl_module.device)
        if self._step is not None and not self._first:
            self._step.end = self._end
            self._steps.append(self._step)
        self._first = False
        if len(self._steps) == self.window:
            self._log(trainer, pl_module)
            self._steps = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The time until the next batch is not spent waiting for it."""
        self._end = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The time until the next batch is not spent waiting for it."""
        self._end = None

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = self._gather(trainer, pl_module.device).metrics()
        pl_module.log_dict(metrics, batch_size=1)
        shown = {"samples/s": "samples_per_second", "MFU": "mfu", "data wait": "data_wait"}
        for label, name in shown.items():
            if (value := metrics.get(f"throughput/{name}")) is not None:
                pl_module.log(label, value, prog_bar=True, logger=False, batch_size=1)

    def _gather(self, trainer: L.Trainer, device: torch.device) -> Window:
        """Sum the window over its steps and all ranks."""
        waited = sum(_seconds(step.before, step.begin) for step in self._steps if step.before is not None)
        worked = sum(_seconds(step.begin, step.end) for step in self._steps)
        counts = [step.flops for step in self._steps if step.flops is not None]
        tokens = sum((step.tokens for step in self._steps), Counter[str]())
        names = sorted(tokens)  # the same on all ranks, as their streams are
        own = [waited + worked, waited, sum(step.samples for step in self._steps), sum(counts)]
        own += [tokens[name] for name in names]
        seconds, waited, samples, flops, *by_modality = _reduce(trainer, own, "sum", device)
        (memory,) = _reduce(trainer, [_peak_memory(device)], "max", device)
        return Window(
            steps=len(self._steps),
            ranks=trainer.world_size,
            seconds=seconds,
            waited=waited,
            samples=samples,
            flops=flops if counts else None,
            tokens=dict(zip(names, by_modality, strict=True)),
            peak=_peak(device, str(trainer.precision)),
            memory=memory,
        )


def _tokens(batches: list[Batch]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for batch in batches:
        for name, inputs in batch.inputs.items():
            tokens[name.removeprefix(SECOND)] += sum(inputs.token_lengths)
    return tokens


def _now(device: torch.device) -> Moment:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Moment, end: Moment) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _reduce(trainer: L.Trainer, values: list[float], how: str, device: torch.device) -> list[float]:
    # float64, which counts FLOPs of a window exactly, is nothing that Apple's GPUs have
    kind = torch.float32 if device.type == "mps" else torch.float64
    reduced = trainer.strategy.reduce(torch.tensor(values, dtype=kind, device=device), reduce_op=how)
    if not isinstance(reduced, Tensor):
        raise TypeError(f"the strategy {type(trainer.strategy).__name__} reduced a tensor to {type(reduced).__name__}")
    return reduced.tolist()


def _peak(device: torch.device, precision: str) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def _peak_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
