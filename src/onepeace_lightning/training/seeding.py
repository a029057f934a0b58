"""Random numbers of a training step that depend on nothing but where the step is."""

import numpy as np
import torch


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seed PyTorch's generators for one training step.

    A step of a resumed run, which has drawn other numbers before, draws what that of the uninterrupted run does; ranks
    draw different ones.

    Args:
        seed: of the run.
        epoch: counted from 0.
        batch: in the epoch, counted from 0.
        rank: of this process.
    """
    state = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
