"""Lightning's strategy for sharded models: all devices share the weights, checkpoints are folders of shards."""

from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import fsspec
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from onepeace_lightning.checkpoints.atomic import Background, failure, partial_of, publish, remove
from onepeace_lightning.checkpoints.loading import read_checkpoint
from onepeace_lightning.checkpoints.shard_files import METADATA_FILE, REST_FILE, is_sharded, is_url, open_in
from onepeace_lightning.checkpoints.sharded import load_into, read_metadata, read_rest, saved_shapes, writer
from onepeace_lightning.training.parallelize import shard_like


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2: parameters, gradients and optimizer state are spread over the devices (``parallelize`` does it).

    Checkpoints are folders with a file per rank (torch.distributed.checkpoint), which any number of ranks can resume.
    A checkpoint takes its name only when it is complete; at a URL (``s3://…``) its ``.metadata`` come last. An ordinary
    checkpoint file can be resumed too.

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
        self.background: Background | None = None
        self._files_group: dist.ProcessGroup | None = None

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

    def save_in_background(self) -> Background:
        """From now on write checkpoints while training goes on, from a copy in the host's memory.

        Called on all ranks alike, before training.
        """
        if self.background is None:
            self.background = Background()
            self._files_group = dist.new_group(backend="gloo", timeout=self._timeout)
        return self.background

    def teardown(self) -> None:
        """Wait for what is being written."""
        if self.background is not None:
            self.background.wait()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a folder of shards, written by any number of ranks, or a checkpoint file; no code in it is run.

        Raises:
            ValueError: it is incomplete or damaged.
        """
        path = self.broadcast(str(checkpoint_path)).removesuffix(f"/{METADATA_FILE}")
        if is_sharded(path):
            return self._load_sharded(path)
        # Lightning would number an optimizer's parameters as the model does, which groups of parameters do not.
        checkpoint = read_checkpoint(path)
        module = cast(LightningModule, self.lightning_module)
        own = module.state_dict()
        state = {n: shard_like(t, own[n]) if n in own else t for n, t in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=module.strict_loading)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            named = _by_name(saved, optimizer, module)
            set_optimizer_state_dict(module, optimizer, named, options=StateDictOptions(full_state_dict=True))
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder of shards beside the one that it replaces, then exchange them; at a URL replace it.

        Raises:
            OSError: some rank could not write this one, or in the background the one before; raised on every rank.
        """
        path = self.broadcast(str(filepath))
        if self.background is not None:
            self.background.wait()
        target = path if is_url(path) else str(partial_of(Path(path)))
        parts = ["state_dict", "current_model_state"]
        state = {part: checkpoint.pop(part) for part in parts if part in checkpoint}
        for number, optimizer in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = optimizer
        problem = None
        if self.is_global_zero:
            try:
                files, folder = fsspec.url_to_fs(target)
                if files.exists(folder):
                    files.rm(folder, recursive=True)
                files.makedirs(folder, exist_ok=True)
                with open_in(target, REST_FILE, "wb") as stream:
                    torch.save(checkpoint, stream)
            except OSError as error:
                problem = f"rank 0: {error}"
        self.barrier()
        if self.background is None:
            self._finish(partial(dcp.save, state, storage_writer=writer(target)), target, path, problem, None)
        else:
            saving = dcp.async_save(state, storage_writer=writer(target), process_group=self._files_group)
            finish = partial(self._finish, cast(Future, saving).result, target, path, problem, self._files_group)
            self.background.submit(finish)

    def _finish(
        self, write: Callable[[], object], target: str, path: str, problem: str | None, group: dist.ProcessGroup | None
    ) -> None:
        """Write the shards; when all ranks have, give the checkpoint its name."""
        try:
            write()
        except CheckpointException as error:  # what all ranks together have met
            problem = "; ".join(f"rank {rank}: {reason[0]}" for rank, reason in error.failures.items())
        except OSError as error:
            problem = f"rank {self.global_rank}: {error}"
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem, group=group)
        if found := [text for text in problems if text is not None]:
            if self.is_global_zero and not is_url(target):
                remove(Path(target))
            raise failure(Path(path), found[0])
        if self.is_global_zero and not is_url(path):
            publish(Path(target), Path(path))
        dist.barrier(group=group)

    def _load_sharded(self, path: str) -> dict[str, Any]:
        metadata = read_metadata(path)
        model = cast(nn.Module, self.model)
        own = cast(dict[str, Tensor], get_model_state_dict(model))
        # Where weights are averaged, "state_dict" is the average (``averaging.WeightAverage``).
        trained = saved_shapes(metadata, "current_model_state")
        state: dict[str, Any] = {"state_dict": own}
        if trained:
            state["current_model_state"] = {name: torch.empty_like(own[name]) for name in trained if name in own}
        load_into(state, path)
        model.load_state_dict(own, strict=cast(LightningModule, self.lightning_module).strict_loading)
        for number, optimizer in enumerate(self.optimizers):
            part = {f"optimizer_{number}": get_optimizer_state_dict(model, optimizer)}
            load_into(part, path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(model, optimizer, optim_state_dict=part[f"optimizer_{number}"], options=options)
        return {**read_rest(path), **(state if trained else {})}


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
