"""What training and evaluation loaders have in common: how samples are made, and batches that arrive from workers."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.parcel import Parcel

ReadSample = Callable[[dict[str, Any], np.random.Generator], Any]
"""A raw sample ``{"__key__", "__shard__", extension: bytes}`` to what ``JoinExamples`` joins; raises ``BadSample``."""
JoinExamples = Callable[[list[Any]], Batch]


def worker_batches(dataset: IterableDataset[Any], num_workers: int, pin_memory: bool) -> Iterator[Any]:
    """What a data set of whole batches yields, made in ``num_workers`` processes (0: in this one)."""
    # A DataLoader draws from torch's global generator unless it has one: a resumed run would see other numbers.
    generator = torch.Generator()
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=Parcel if num_workers else None,  # what is done to a batch before it leaves its worker
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=generator,
        worker_init_fn=end_with_parent,
    )
    try:
        yield from loader
    except Exception as error:
        if not num_workers:
            raise
        # The worker's own traceback is in the message. This process's would keep the loader in a reference cycle,
        # where its processes are waited for in vain for 5 s each.
        raise error.with_traceback(None) from None


def end_with_parent(_worker: int = 0) -> None:
    """Have this process end soon after the one that started it has died, whatever it waits for.

    A process that is killed closes nothing. Its workers would wait for ever to write into pipes that nobody reads, as
    they hold the other ends themselves.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_id() -> int:
    """The number of this data worker; 0 in the training process."""
    info = get_worker_info()
    return info.id if info else 0


def located(error: BadSample, raw: dict[str, Any]) -> BadSample:
    """The same fault, with the key and the shard of its sample."""
    return type(error)(error.reason, raw["__key__"], raw["__shard__"])


def check_sizes(
    problems: dict[str, bool], what: str, batch_size: int, rank: int, world_size: int, num_workers: int
) -> None:
    """Raise one error that names every problem (message to whether it holds)."""
    problems = problems | {
        f"batch_size={batch_size}: at least 1": batch_size < 1,
        f"rank={rank}: from 0 to world_size - 1 (world_size={world_size})": not 0 <= rank < world_size,
        f"num_workers={num_workers}: at least 0": num_workers < 0,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise ValueError(f"{what}: " + "; ".join(found))
