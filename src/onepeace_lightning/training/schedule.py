"""Learning rates over training steps."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def lr_factor(step: int, *, total_steps: int, warmup_steps: int, floor: float) -> float:
    """What the base learning rate is multiplied by at a step.

    Args:
        step: optimizer steps done so far; beyond ``total_steps`` the factor stays at ``floor``.
        total_steps: where the cosine ends.
        warmup_steps: where the straight line from ``floor`` reaches 1; 0 starts at 1.
        floor: the factor at both ends, in [0, 1].
    """
    if step < warmup_steps:
        return floor + (1 - floor) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(optimizer: Optimizer, *, total_steps: int, warmup_steps: int, min_lr: float) -> LambdaLR:
    """Warm up linearly, then follow a cosine down; to be stepped once per optimizer step.

    ``min_lr`` is the first and last learning rate of the group with the largest base rate. A group with a smaller one
    (layer decay) keeps its proportion throughout: at c times the largest rate it starts and ends at c × ``min_lr``.

    Args:
        optimizer: each group's ``lr`` is its base rate, reached when warm-up ends.
        total_steps: optimizer steps of the whole run, from its configuration.
        warmup_steps: of these, how many warm up; fewer than ``total_steps``.
        min_lr: between 0 and the largest base rate.

    Returns:
        A scheduler; its ``state_dict`` restores the step on resuming.

    Raises:
        ValueError: an argument is out of its range; every such argument is named.
    """
    # A restored optimizer holds the current rate in "lr" and the base rate in "initial_lr".
    largest = max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
    problems = []
    if total_steps < 1:
        problems.append(f"total_steps is {total_steps}: give the run's number of optimizer steps, at least 1")
    if warmup_steps < 0:
        problems.append(f"warmup_steps is {warmup_steps}: give 0 or more")
    elif warmup_steps >= total_steps:
        problems.append(
            f"warmup_steps is {warmup_steps}, total_steps {total_steps}: warm-up must end before the run; lower it"
        )
    if not largest > 0:
        problems.append(f"the largest base learning rate is {largest}: give the optimizer a positive lr")
    elif not 0 <= min_lr <= largest:
        problems.append(f"min_lr is {min_lr}: give a value from 0 to the base learning rate, {largest}")
    if problems:
        raise ValueError("; ".join(problems))
    floor = min_lr / largest

    def factor(step: int) -> float:
        return lr_factor(step, total_steps=total_steps, warmup_steps=warmup_steps, floor=floor)

    return LambdaLR(optimizer, factor)
