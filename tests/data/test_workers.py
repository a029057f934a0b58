import multiprocessing
import os
import signal
import time

import numpy as np
from torch.utils.data import IterableDataset

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.workers import worker_batches


class Large(IterableDataset):
    """Batches that go through the pipe between processes, which holds less than one of them."""

    def __iter__(self):
        return iter([Batch(["a"], {}, targets={"numbers": np.zeros(100_000)})] * 5)


def train(pipe) -> None:
    batches = worker_batches(Large(), 2, pin_memory=False)
    next(batches)
    pipe.send([process.pid for process in multiprocessing.active_children()])
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_workers_of_a_process_that_is_killed_end():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=train, args=(theirs,))
    process.start()
    theirs.close()
    workers = ours.recv()
    assert len(workers) == 2
    time.sleep(1)  # they wait to write
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 20
    try:
        while any(map(alive, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(alive, workers))
    finally:
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
