import math

import pytest
import torch

from onepeace_lightning.training.schedule import lr_factor, warmup_and_decay


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
    scheduler = warmup_and_decay(optimizer, total_steps=20, warmup_steps=4, min_lr=0.1)
    assert rates_of(optimizer) == pytest.approx([0.025, 0.1])
    advance(optimizer, scheduler, 4)
    assert rates_of(optimizer) == pytest.approx([0.25, 1.0])
    advance(optimizer, scheduler, 16)
    assert rates_of(optimizer) == pytest.approx([0.025, 0.1])


def test_resuming_continues_the_same_curve():
    settings = {"total_steps": 12, "warmup_steps": 3, "min_lr": 0.05}
    whole = make_optimizer(0.5, 1.0)
    whole_scheduler = warmup_and_decay(whole, **settings)
    advance(whole, whole_scheduler, 5)
    saved = whole.state_dict(), whole_scheduler.state_dict()
    advance(whole, whole_scheduler, 4)

    resumed = make_optimizer(0.5, 1.0)
    scheduler = warmup_and_decay(resumed, **settings)
    resumed.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    advance(resumed, scheduler, 4)
    assert rates_of(resumed) == rates_of(whole)


def test_a_restored_optimizer_is_scheduled_from_its_base_rate():
    trained = make_optimizer(1.0)
    advance(trained, warmup_and_decay(trained, total_steps=10, warmup_steps=0, min_lr=0.5), 10)
    restored = make_optimizer(1.0)
    restored.load_state_dict(trained.state_dict())
    assert rates_of(restored) == pytest.approx([0.5])
    warmup_and_decay(restored, total_steps=10, warmup_steps=0, min_lr=0.5)
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
        warmup_and_decay(make_optimizer(1.0), **settings)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"warmup_steps is 20.*min_lr is 3"):
        warmup_and_decay(make_optimizer(1.0), total_steps=10, warmup_steps=20, min_lr=3)


def test_a_base_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"base learning rate is 0\.0"):
        warmup_and_decay(make_optimizer(0.0), total_steps=10, warmup_steps=1, min_lr=0.0)


def test_steps_as_the_detector_was_trained():
    def factor(step):
        return lr_factor(
            step, total_steps=92187, warmup_steps=250, floor=0.0, start=0.001, shape="steps", milestones=(81944, 88773)
        )

    expected = {0: 0.001, 125: 0.5005, 250: 1.0, 81943: 1.0, 81944: 0.1, 88772: 0.1, 88773: 0.01, 99999: 0.01}
    assert {step: factor(step) for step in expected} == pytest.approx(expected)


def test_a_line_begins_at_step_0_and_warmup_lies_over_it():
    def factor(step):
        return lr_factor(step, total_steps=100, warmup_steps=10, floor=0.0, start=0.5, shape="linear")

    assert [factor(step) for step in (0, 5, 10, 50, 100, 120)] == pytest.approx([0.5, 0.95 * 0.75, 0.9, 0.5, 0, 0])


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": "steps"},
        {"milestones": (5,)},
        {"shape": "steps", "milestones": (1, 5)},
        {"shape": "steps", "milestones": (7, 5)},
    ],
)
def test_milestones_belong_to_steps_after_warmup(settings):
    with pytest.raises(ValueError, match="give 'steps' milestones in order, after warm-up"):
        warmup_and_decay(make_optimizer(1.0), total_steps=10, warmup_steps=2, min_lr=0.0, **settings)


def test_a_start_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match="warmup_from is 2"):
        warmup_and_decay(make_optimizer(1.0), total_steps=10, warmup_steps=2, min_lr=0.0, start=2)
