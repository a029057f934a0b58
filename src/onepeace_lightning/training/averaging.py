"""An exponential moving average of the weights, sharded as they are."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from onepeace_lightning.training.parallelize import shard_like


class WeightAverage(L.Callback):
    """Keeps an exponential moving average of all trained weights, measures it, and puts it into checkpoints.

    Validation sees the average. In a checkpoint ``state_dict`` is the average, so that whatever opens the file uses it,
    and ``current_model_state`` holds the weights that training goes on from (as Lightning's ``WeightAveraging`` has it,
    which does not know of shards). Each rank averages its own shards; with ``ddp`` all ranks hold the same.

    After t steps the factor is min(decay, (1 + t) / (10 + t)), so that the average forgets the random start.

    Args:
        decay: what stays of the average at each step.
        evaluate: validate the average; False validates the weights as they are.

    Raises:
        ValueError: ``decay`` is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.9999, evaluate: bool = True) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; give a number between 0 and 1, such as 0.9999")
        self.decay = decay
        self.evaluate = evaluate
        self.steps = 0
        self._average: dict[str, Tensor] = {}
        self._seen = 0
        self._exchanged = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint had an average."""
        self._begin(pl_module)
        self._seen = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Take the weights of this optimizer step into the average."""
        if trainer.global_step == self._seen:  # gradients are being accumulated
            return
        self._seen = trainer.global_step
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = dict(_trained(pl_module))
        averages = [_own(average) for average in self._average.values()]
        get_ema_multi_avg_fn(decay)(averages, [_own(weights[name].detach()) for name in self._average], self.steps)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in the weights' place."""
        if self.evaluate and trainer.state.fn == "fit":
            self._begin(pl_module)
            self._exchange(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights back."""
        if self._exchanged:
            self._exchange(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the weights back, for a checkpoint that may be written now."""
        self.on_validation_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the model, and the weights beside it."""
        if not self._average:
            return
        state = dict(checkpoint["state_dict"])
        checkpoint["current_model_state"] = {name: state[name] for name in self._average if name in state}
        state.update({name: average.to(state[name].device) for name, average in self._average.items() if name in state})
        checkpoint["state_dict"] = state

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average and the weights from a checkpoint; from one without an average both are its weights."""
        if trainer.state.fn != "fit":
            return  # what is measured is the average
        self._begin(pl_module)
        weights = dict(_trained(pl_module))
        trained = checkpoint.get("current_model_state", {})
        for name, average in self._average.items():
            average.copy_(shard_like(checkpoint["state_dict"][name], average) if trained else weights[name].detach())
            if name in trained:
                weights[name].copy_(shard_like(trained[name], weights[name]))

    def state_dict(self) -> dict[str, int]:
        """The number of steps in the average."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.steps = state_dict["steps"]

    def _begin(self, module: L.LightningModule) -> None:
        for name, weight in _trained(module):
            average = self._average.get(name)
            self._average[name] = weight.detach().clone() if average is None else average.to(weight.device)

    @torch.no_grad()
    def _exchange(self, module: L.LightningModule) -> None:
        weights = dict(_trained(module))
        for name, average in self._average.items():
            mine, theirs = _own(average), _own(weights[name].detach())
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
        self._exchanged = not self._exchanged


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
