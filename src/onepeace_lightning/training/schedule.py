"""Learning rates over training steps."""

import math
from collections.abc import Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Shape = Literal["cosine", "linear", "steps"]
"""What follows warm-up: a cosine; a straight line that would have begun at step 0; or steps down at milestones."""

MILESTONE_FACTOR = 0.1
"""What each milestone multiplies the learning rate by."""


def lr_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    floor: float,
    start: float | None = None,
    shape: Shape = "cosine",
    milestones: Sequence[int] = (),
) -> float:
    """What the base learning rate is multiplied by at a step.

    Args:
        step: optimizer steps done so far; beyond ``total_steps`` the factor stays what it is there.
        total_steps: where the cosine or line ends.
        warmup_steps: where the straight line from ``start`` reaches 1; 0 starts at 1.
        floor: the factor where the cosine or line ends, in [0, 1].
        start: the factor at step 0; None: ``floor``.
        shape: what follows warm-up.
        milestones: of "steps".
    """
    if shape == "cosine":
        progress = min(1.0, max(0, step - warmup_steps) / (total_steps - warmup_steps))
        factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif shape == "linear":
        factor = floor + (1 - floor) * max(0.0, 1 - step / total_steps)
    else:
        factor = MILESTONE_FACTOR ** sum(step >= milestone for milestone in milestones)
    if step < warmup_steps:
        first = floor if start is None else start
        factor *= first + (1 - first) * step / warmup_steps
    return factor


def warmup_and_decay(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int,
    min_lr: float,
    start: float | None = None,
    shape: Shape = "cosine",
    milestones: Sequence[int] = (),
) -> LambdaLR:
    """Warm up linearly, then follow a cosine, a line or steps down; to be stepped once per optimizer step.

    ``min_lr`` is the last learning rate of the group with the largest base rate, and its first one unless ``start``
    says otherwise. A group with a smaller rate (layer decay) keeps its proportion throughout: at c times the largest
    rate it ends at c × ``min_lr``.

    Args:
        optimizer: each group's ``lr`` is its base rate, reached when warm-up ends.
        total_steps: optimizer steps of the whole run, from its configuration.
        warmup_steps: of these, how many warm up; fewer than ``total_steps``.
        min_lr: between 0 and the largest base rate; "steps" does not end there.
        start: the first learning rate as a fraction of the base rate.
        shape: what follows warm-up.
        milestones: steps at which the shape "steps" multiplies the rate by 0.1; in order, after warm-up.

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
    if start is not None and not 0 <= start <= 1:
        problems.append(f"warmup_from is {start}: give a fraction from 0 to 1 of the learning rate")
    in_order = list(milestones) == sorted(set(milestones)) and all(warmup_steps <= step for step in milestones)
    if bool(milestones) != (shape == "steps") or not in_order:
        problems.append(
            f"schedule is {shape!r}, milestones {list(milestones)}: give 'steps' milestones in order, after warm-up"
            f" ({warmup_steps} steps), and the other schedules none"
        )
    if problems:
        raise ValueError("; ".join(problems))
    floor = min_lr / largest

    def factor(step: int) -> float:
        return lr_factor(
            step, total_steps=total_steps, warmup_steps=warmup_steps, floor=floor, start=start, shape=shape,
            milestones=milestones,
        )  # fmt: skip

    return LambdaLR(optimizer, factor)
