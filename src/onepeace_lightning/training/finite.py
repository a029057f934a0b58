"""What keeps infinities and NaN out of weights and checkpoints, on all ranks alike."""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from onepeace_lightning.data.batch import Batch

_log = logging.getLogger(__name__)


class SkippedSteps(L.Callback):
    """Counts optimizer steps that were left out because their gradient was not finite, and ends a run of nothing else.

    A skipped step changes no weight and no moment of the optimizer; the schedule goes on. Its samples are appended to
    ``<default_root_dir>/skipped_steps_rank<r>.jsonl``, one line ``{"step": n, "rank": r, "keys": {stream: [key, …]}}``
    for each batch. The count is logged as ``train/skipped_steps`` and goes on in a resumed run.

    Training in float16 (``16-mixed``) multiplies the loss by a scale that is raised until gradients overflow, and
    halved then: such a step is left out too, but is no fault. As long as the scale is above 1 it is counted apart, as
    ``train/overflows``, and ends nothing.

    Args:
        most: so many skipped steps in a row end the run.

    Attributes:
        total: skipped steps.
        in_a_row: of these, those since the last finite gradient.
        overflows: steps that were left out because the scale of the loss was too high.

    Raises:
        ValueError: ``most`` is below 1.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_skipped_steps is {most}; give 1 or more")
        self.most = most
        self.total = 0
        self.in_a_row = 0
        self.overflows = 0
        self._judged = self._counted = False
        self._keys: list[dict[str, list[str]]] = []

    def judge(self, trainer: L.Trainer, norm: Tensor) -> bool:
        """Whether the step is to be left out because some rank's gradient is not finite; the same on every rank.

        Args:
            trainer: of this rank.
            norm: () of this rank's gradient, or of all together.
        """
        bad = bool(trainer.strategy.reduce((~norm.detach().isfinite()).float(), reduce_op="sum"))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        overflowed = bad and scaler is not None and scaler.get_scale() > 1
        self._judged, self._counted = True, bad and not overflowed
        self.overflows += overflowed
        self.total += self._counted
        self.in_a_row = self.in_a_row + self._counted if bad else 0
        return bad

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write down the samples of a skipped step.

        Raises:
            FloatingPointError: it was one too many in a row.
        """
        self._keys.append(keys_of(batch))
        if not self._judged:  # gradients are being accumulated
            return
        batches, self._keys, self._judged = self._keys, [], False
        if not self._counted:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"skipped_steps_rank{trainer.global_rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for keys in batches:
                file.write(json.dumps({"step": trainer.global_step, "rank": trainer.global_rank, "keys": keys}) + "\n")
        if self.in_a_row >= self.most:
            raise FloatingPointError(
                f"the gradients of {self.in_a_row} steps in a row, the last one {trainer.global_step}, are not finite;"
                f" their samples are listed in {path}. No weight was changed by them. Look at the samples, lower the"
                " learning rate or train in float32 or bf16-mixed, and go on from the last checkpoint with --ckpt_path"
                " last; model.init_args.optimization.max_skipped_steps sets how many are borne"
            )
        if trainer.is_global_zero:
            _log.warning(
                "step %d is skipped: its gradient is not finite (%d so far, %d in a row; %d end the run); its samples"
                " are listed in %s",
                trainer.global_step, self.total, self.in_a_row, self.most, path,
            )  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"total": self.total, "in_a_row": self.in_a_row, "overflows": self.overflows}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.total, self.in_a_row = state_dict["total"], state_dict["in_a_row"]
        self.overflows = state_dict["overflows"]


def keys_of(batch: Any) -> dict[str, list[str]]:
    """Names of a batch's samples by stream; of several batches of a stream, joined."""
    keys: dict[str, list[str]] = {}
    for name, stream in (batch if isinstance(batch, dict) else {"batch": batch}).items():
        for part in stream if isinstance(stream, list | tuple) else [stream]:
            if isinstance(part, Batch):
                keys.setdefault(name, []).extend(part.keys)
    return keys


def refuse_non_finite(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Look through the weights and the optimizer's state of a checkpoint before it is written.

    Args:
        trainer: whose ranks decide together; each looks at its own shards.
        checkpoint: as Lightning's ``dump_checkpoint`` makes it.

    Raises:
        FloatingPointError: on every rank, where a tensor on any of them is infinite or not a number.
    """
    parts = ("state_dict", "current_model_state", "optimizer_states")
    tensors = (leaf for part in parts for leaf in _leaves(part, checkpoint.get(part, ())))
    bad = [name for name, tensor in tensors if not _is_finite(tensor)]
    if not trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
        return
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    raise FloatingPointError(
        f"the checkpoint of step {trainer.global_step} is not written: tensors in it are infinite or not numbers"
        f" ({shown or 'those of another rank'}). The checkpoint before is unharmed: go on from it with --ckpt_path last"
        " and a lower learning rate"
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for number, item in enumerate(value):
            yield from _leaves(f"{name}.{number}", item)


def _is_finite(tensor: Tensor) -> bool:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if own.numel() == 0 or not own.is_floating_point():
        return True
    return bool(torch.stack(own.detach().aminmax()).isfinite().all())  # one pass, nothing is stored
