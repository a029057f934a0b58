"""Lightning's strategy for sharded models: all devices share the weights, checkpoints are folders of shards."""

from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from onepeace_lightning.checkpoints.atomic import failure, partial_of, publish, remove
from onepeace_lightning.checkpoints.loading import read_checkpoint
from onepeace_lightning.checkpoints.sharded import is_sharded, read_metadata
from onepeace_lightning.training.parallelize import shard_like


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2: parameters, gradients and optimizer state are spread over the devices (``distributed.plan`` does it).

    Checkpoints are folders with a file per rank (torch.distributed.checkpoint), which any number of ranks can resume.
    A checkpoint takes its name only when it is complete. An ordinary checkpoint file can be resumed too.

    Args:
        replicas: groups of devices that hold a copy of the model each (hybrid sharding); 1 shards over all devices.
            With as many as there are nodes, weights are gathered within a node only.
        timeout_seconds: how long a rank waits for another one before it gives up.
        process_group_backend: of the collectives; by default NCCL on GPUs and Gloo on processors.
    """

    def __init__(
        self, replicas: int = 1, timeout_seconds: float = 1800, process_group_backend: str | None = None
    ) -> None:
        if replicas < 1 or timeout_seconds <= 0:
            raise ValueError(
                f"replicas is {replicas}, must be at least 1; timeout_seconds is {timeout_seconds}, above 0"
            )
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout_seconds))
        self.replicas = replicas

    def setup_environment(self) -> None:
        """Start the processes' group and lay the devices out.

        Raises:
            ValueError: the devices cannot be split into so many replicas.
        """
        self._setup_distributed()
        if self.world_size % self.replicas:
            raise ValueError(f"replicas is {self.replicas}; give a divisor of the number of devices, {self.world_size}")
        shape = (self.replicas, self.world_size // self.replicas)
        mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))
        self._device_mesh = mesh if self.replicas > 1 else mesh["shard"]
        if self.lightning_module is not None:
            self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every device has its own data."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder of shards, written by any number of ranks, or a checkpoint file; no code in it is run.

        Raises:
            ValueError: it is incomplete or damaged.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if is_sharded(path):
            read_metadata(path)
            return super().load_checkpoint(path, weights_only)
        # Lightning would number an optimizer's parameters as the model does, which groups of parameters do not.
        checkpoint = read_checkpoint(path)
        module = cast(LightningModule, self.lightning_module)
        own = module.state_dict()
        state = {n: shard_like(t, own[n]) if n in own else t for n, t in checkpoint.pop("state_dict").items()}
        module.load_state_dict(state, strict=module.strict_loading)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            named = _by_name(saved, optimizer, module)
            set_optimizer_state_dict(module, optimizer, named, options=StateDictOptions(full_state_dict=True))
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder of shards beside the one that it replaces, then exchange them.

        Raises:
            OSError: some rank could not write; raised on every rank.
        """
        path = Path(self.broadcast(str(filepath)))
        partial = partial_of(path)
        if self.is_global_zero:
            remove(partial)
        self.barrier()
        problem = None
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
        except CheckpointException as error:  # what all ranks together have met
            problem = "; ".join(f"rank {rank}: {reason[0]}" for rank, reason in error.failures.items())
        except OSError as error:
            problem = f"rank {self.global_rank}: {error}"
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem)
        if found := [text for text in problems if text is not None]:
            if self.is_global_zero:
                remove(partial)
            raise failure(path, found[0])
        if self.is_global_zero:
            publish(partial, path)
        self.barrier()


def _by_name(saved: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimizer's state with its parameters called by name instead of by their place among all groups."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    ours = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in saved["param_groups"]]
    sizes, wanted = ([len(group) for group in groups] for groups in (theirs, ours))
    if sizes != wanted:
        raise ValueError(
            f"the checkpoint's optimizer has groups of {sizes} parameters, the configured one {wanted}: train the same"
            " parameters, or start a new run from the checkpoint's weights (init_from)"
        )
    name_of = dict(zip(chain(*theirs), chain(*ours), strict=True))
    groups = [{**group, "params": [name_of[i] for i in group["params"]]} for group in saved["param_groups"]]
    return {"state": {name_of[i]: state for i, state in saved["state"].items()}, "param_groups": groups}


def placement(task: LightningModule) -> dict[str, Any]:
    """``device``, ``mesh`` and ``gather_dtype`` of ``parallelize`` for a task, from its trainer (or without one).

    Raises:
        ValueError: the trainer shards by FSDP1, which cannot do what is needed here.
    """
    trainer: Trainer | None = task._trainer
    if trainer is None:
        return {"device": task.device}
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "strategy='fsdp' is FSDP1, which knows no frozen parts: use onepeace_lightning.training"
            ".strategy.FullyShardedStrategy() (on the command line --config configs/trainer/fsdp.yaml)"
        )
    mesh: DeviceMesh | None = strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None
    # On processors autocast leaves layer norms alone, and they take no weights of another type than their input.
    halved = trainer.precision == "bf16-mixed" and strategy.root_device.type == "cuda"
    return {"device": strategy.root_device, "mesh": mesh, "gather_dtype": torch.bfloat16 if halved else None}
