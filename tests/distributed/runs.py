"""Running the command in processes that a test may kill, and callbacks that leave word of what happened in them."""

import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from onepeace_lightning.cli import main
from onepeace_lightning.training.finite import keys_of

ROOT = Path(__file__).parent.parent.parent
ALL_STREAMS = ("image-text", "audio-text", "image", "audio", "text")
RUN = [
    "fit",
    "--config=configs/pretrain/toy.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--model.init_args.optimization.warmup_steps=3",
    "--data.init_args.shuffle_buffer=8",
    "--data.init_args.val={image-text: {path: data/toy/val/image-text, batch_size: 8}}",
]
EVERY_3_STEPS = [
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=runs/toy/checkpoints",
    "--trainer.callbacks.filename=last",
    "--trainer.callbacks.every_n_train_steps=3",
    "--trainer.callbacks.enable_version_counter=false",
]


def streams(*names: str, batch_size: int = 3, where: str = "data/toy/train") -> str:
    """The option that trains on these streams of the toy data, or of a copy of it elsewhere."""
    parts = (f"{name}: {{path: {where}/{name}, batch_size: {batch_size}}}" for name in names)
    return f"--data.init_args.train={{{', '.join(parts)}}}"


def callback(name: str, **settings: object) -> list[str]:
    """The options that add one of the callbacks below."""
    return [f"--trainer.callbacks+={__name__}.{name}", *(f"--trainer.callbacks.{k}={v}" for k, v in settings.items())]


def checkout(folder: Path, toy_root: Path) -> Path:
    """An own working folder with the shared toy data."""
    folder.mkdir()
    (folder / "data").symlink_to(toy_root / "data")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def run(
    folder: Path, *args: str, ranks: int = 1, slurm: bool = False, seconds: float = 250, grace: float = 60
) -> list[int | None]:
    """Run ``onepeace`` as torchrun or SLURM would; the output of each process goes to ``<folder>/output<rank>``.

    Args:
        folder: to run in.
        args: of the command.
        ranks: processes.
        slurm: as many nodes of SLURM; the command has to say how many.
        seconds: that the first process may take.
        grace: seconds that each other process has to end after the one before it has.

    Returns:
        Exit code of each process; None for those that had to be ended.
    """
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run, args=(folder, args, rank, ranks, port, slurm)) for rank in range(ranks)]
    for process in processes:
        process.start()
    codes = []
    for rank, process in enumerate(processes):
        process.join(grace if rank else seconds)
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
        print(
            f"rank {rank} of {ranks} ended with {process.exitcode}:\n{output(folder, rank)[-3000:]}"
        )  # shown on failure
    return codes


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_group(function: Callable[..., None], ranks: int, port: int, rank: int, *args: object) -> None:
    """Call a function in one of several processes that torchrun would have started."""
    _join(rank, ranks, port)
    function(*args)


def _join(rank: int, ranks: int, port: int) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
    }  # fmt: skip


def _run(folder: Path, args: tuple[str, ...], rank: int, ranks: int, port: int, slurm: bool) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"output{rank}", "a", buffering=1)  # noqa: SIM115 (it ends with the process)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    logging.basicConfig(force=True)
    torch.set_num_threads(1)
    if slurm:
        os.environ |= {
            "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "onepeace", "SLURM_NODELIST": "localhost",
            "SLURM_NNODES": str(ranks), "SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0",
            "MASTER_PORT": str(port),  # by default it follows from the job's number, and may be taken here
        }  # fmt: skip
    elif ranks > 1:
        _join(rank, ranks, port)
        args = (*args, f"--trainer.devices={ranks}")
    main([*args])


def output(folder: Path, rank: int = 0) -> str:
    """What a process of the last runs in a folder has printed."""
    return (folder / f"output{rank}").read_text()


def lines(folder: Path, rank: int = 0) -> list[dict]:
    """What ``Record`` has written."""
    path = folder / f"rank{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def memory() -> float:
    """Memory of this process and its children in MiB, what several share divided among them; no files' pages."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    rollups = (Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes)
    own = ("Pss_Anon:", "Pss_Shmem:")  # a library's pages are shared with any process that happens to run
    return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith(own)) / 1024


class Record(L.Callback):
    """Appends a line per training step to ``rank<r>.jsonl``: step, keys of each stream, loss, learning rate, memory.

    At the end it writes the state of each stream's loader to ``loaders.json``.
    """

    def __init__(self, run: int = 0) -> None:
        self.run = run

    def on_train_end(self, trainer, pl_module):
        loaders = trainer.train_dataloader
        states = {name: loader.state_dict() for name, loader in loaders.items()}
        if trainer.is_global_zero:
            Path("loaders.json").write_text(json.dumps(states))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        line = {
            "run": self.run,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "keys": keys_of(batch),
            "loss": float(outputs["loss"]),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "memory": memory(),
        }
        with Path(f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class Dump(L.Callback):
    """Writes all weights and their first moments, put together, to a file when training starts and when it ends."""

    def on_train_start(self, trainer, pl_module):
        self._write(trainer, pl_module, "started.pt")

    def on_train_end(self, trainer, pl_module):
        self._write(trainer, pl_module, "ended.pt")

    def _write(self, trainer, pl_module, name):
        def whole(tensor):
            return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()

        state = trainer.optimizers[0].state
        weights = {n: whole(p) for n, p in pl_module.named_parameters()}
        moments = {n: whole(state[p]["exp_avg"]) for n, p in pl_module.named_parameters() if p in state}
        if trainer.is_global_zero:
            torch.save({"weights": weights, "moments": moments}, name)


class Kill(L.Callback):
    """Sends a process a signal once so many steps are done, in a hook."""

    def __init__(self, step: int, where: str = "on_train_batch_end", rank: int = 0, signal: str = "SIGKILL") -> None:
        self.step, self.rank, self.signal, self.sent = step, rank, signal, False
        setattr(self, where, self._maybe)

    def _maybe(self, trainer, *args, **kwargs):
        due = trainer.global_step >= self.step and trainer.global_rank == self.rank and not trainer.sanity_checking
        if due and not self.sent:
            self.sent = True
            os.kill(os.getpid(), getattr(signal, self.signal))


class Blind(L.Callback):
    """Hides all checkpoints from every process but one, as a file system does that shows files late elsewhere."""

    def __init__(self, but: int) -> None:
        if os.environ["RANK"] != str(but):
            ModelCheckpoint._find_last_checkpoints = lambda self, trainer: set()


class FullDisk(L.Callback):
    """Lets a process write no file of more than 64 kB once so many steps are done."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step + 1 >= self.step and trainer.global_rank == self.rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))


class RemoveShards(L.Callback):
    """Deletes a stream's shards once so many steps are done."""

    def __init__(self, step: int, folder: str) -> None:
        self.step, self.folder = step, Path(folder)

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            for shard in self.folder.glob("*.tar"):
                shard.unlink()


class Spoil(L.Callback):
    """Makes a weight no number once so many steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            next(pl_module.parameters()).data.fill_(torch.nan)


class SpoilGradient(L.Callback):
    """Makes one process's gradient no number in some steps, after gradients were averaged; no loss shows it."""

    def __init__(self, steps: list[int], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            (gradient.to_local() if isinstance(gradient, DTensor) else gradient).fill_(torch.nan)


class FollowAverage(L.Callback):
    """Averages whole weights in the plain way after each step, and writes average and weights at the end."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average, self.steps = decay, {}, 0

    def _whole(self, module):
        pairs = ((n, p.detach()) for n, p in module.named_parameters() if p.requires_grad)
        return {n: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for n, p in pairs}

    def on_train_start(self, trainer, pl_module):
        self.average = self._whole(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self._whole(pl_module).items():
            self.average[name] = decay * self.average[name] + (1 - decay) * weight

    def on_train_end(self, trainer, pl_module):
        weights = self._whole(pl_module)
        if trainer.is_global_zero:
            torch.save({"average": self.average, "weights": weights}, "followed.pt")
