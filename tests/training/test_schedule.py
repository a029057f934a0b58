import math

import pytest
import torch

from onepeace_lightning.training.schedule import lr_factor, warmup_cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (5, 0.55), (10, 1.0), (60, 0.55), (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2), (110, 0.1), (500, 0.1)],
)
def test_factor_at_the_corners(step, expected):
    assert lr_factor(step, total_steps=110, warmup_steps=10, floor=0.1) == pytest.approx(expected)


def test_factor_without_warmup_starts_at_the_base_rate():
    assert lr_factor(0, total_steps=10, warmup_steps=0, floor=0.0) == 1.0


def make_optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=123.0)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def advance(optimizer, scheduler, steps):
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def test_groups_keep_their_proportion():
    optimizer = make_optimizer(0.25, 1.0)
    scheduler = warmup_cosine(optimizer, total_steps=20, warmup_steps=4, min_lr=0.1)
    assert rates_of(optimizer) == pytest.approx([0.025, 0.1])
    advance(optimizer, scheduler, 4)
    assert rates_of(optimizer) == pytest.approx([0.25, 1.0])
    advance(optimizer, scheduler, 16)
    assert rates_of(optimizer) == pytest.approx([0.025, 0.1])


def test_resuming_continues_the_same_curve():
    settings = {"total_steps": 12, "warmup_steps": 3, "min_lr": 0.05}
    whole = make_optimizer(0.5, 1.0)
    whole_scheduler = warmup_cosine(whole, **settings)
    advance(whole, whole_scheduler, 5)
    saved = whole.state_dict(), whole_scheduler.state_dict()
    advance(whole, whole_scheduler, 4)

    resumed = make_optimizer(0.5, 1.0)
    scheduler = warmup_cosine(resumed, **settings)
    resumed.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    advance(resumed, scheduler, 4)
    assert rates_of(resumed) == rates_of(whole)


def test_a_restored_optimizer_is_scheduled_from_its_base_rate():
    trained = make_optimizer(1.0)
    advance(trained, warmup_cosine(trained, total_steps=10, warmup_steps=0, min_lr=0.5), 10)
    restored = make_optimizer(1.0)
    restored.load_state_dict(trained.state_dict())
    assert rates_of(restored) == pytest.approx([0.5])
    warmup_cosine(restored, total_steps=10, warmup_steps=0, min_lr=0.5)
    assert rates_of(restored) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_steps": 0, "warmup_steps": 0}, "total_steps is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 10}, "warmup_steps is 10, total_steps 10"),
        ({"min_lr": -0.1}, "min_lr is -0.1"),
        ({"min_lr": 2.0}, "min_lr is 2.0.*1.0"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message):
    settings = {"total_steps": 10, "warmup_steps": 2, "min_lr": 0.0} | changes
    with pytest.raises(ValueError, match=message):
        warmup_cosine(make_optimizer(1.0), **settings)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"warmup_steps is 20.*min_lr is 3"):
        warmup_cosine(make_optimizer(1.0), total_steps=10, warmup_steps=20, min_lr=3)


def test_a_base_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"base learning rate is 0\.0"):
        warmup_cosine(make_optimizer(0.0), total_steps=10, warmup_steps=1, min_lr=0.0)
