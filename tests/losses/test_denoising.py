import math

import pytest
import torch

from onepeace_lightning.losses import chunks
from onepeace_lightning.losses.denoising import denoising_contrast
from tests.models.reference import literal_denoising

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def features(hidden: int = 4, candidates: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(hidden, 5, generator=rng), torch.randn(candidates, 5, generator=rng)
    return student, teacher, torch.randperm(candidates, generator=rng)[:hidden]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("candidates", [2, 7, 40])
def test_the_loss_and_its_gradient_equal_the_literal_formula(smoothing, candidates):
    student, teacher, target = features(min(4, candidates), candidates)
    ours, literal = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = denoising_contrast(ours, teacher, target, smoothing)
    wanted = literal_denoising(literal, teacher, target.tolist(), smoothing)
    torch.testing.assert_close(loss.double(), wanted, **CLOSE)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(ours.grad, literal.grad, **CLOSE)


@pytest.mark.parametrize("limit", [1, 80, 119])
def test_the_parts_of_many_logits_add_up_to_the_loss_and_its_gradient(monkeypatch, limit):
    student, teacher, target = features(3, 40)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    wanted = denoising_contrast(whole, teacher, target)
    monkeypatch.setattr(chunks, "LOGITS", limit)
    loss = denoising_contrast(parts, teacher, target)
    torch.testing.assert_close(loss, wanted, **CLOSE)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(parts.grad, whole.grad, **CLOSE)


def test_smoothing_is_a_tenth_unless_said_otherwise():
    student, teacher, target = features()
    torch.testing.assert_close(
        denoising_contrast(student, teacher, target), denoising_contrast(student, teacher, target, 0.1)
    )


def test_only_directions_matter():
    student, teacher, target = features()
    torch.testing.assert_close(
        denoising_contrast(3 * student, 0.2 * teacher, target), denoising_contrast(student, teacher, target)
    )


def test_the_teacher_learns_nothing():
    student, teacher, target = features()
    teacher.requires_grad_()
    denoising_contrast(student.requires_grad_(), teacher, target).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_nothing_hidden_costs_nothing_and_leaves_a_gradient_of_zero():
    weight = torch.randn(5, 5, requires_grad=True)
    loss = denoising_contrast(torch.empty(0, 5) @ weight, torch.randn(7, 5), torch.empty(0, dtype=torch.long))
    assert loss == 0
    loss.backward()
    assert not weight.grad.any()


def test_a_lone_candidate_costs_nothing():
    student = torch.randn(1, 5, requires_grad=True)
    loss = denoising_contrast(student, torch.randn(1, 5), torch.tensor([0]))
    assert loss == 0
    loss.backward()
    assert student.grad.isfinite().all()


def test_a_perfect_student_has_the_least_loss_without_smoothing():
    teacher = torch.eye(4)
    p = 1 / (1 + 3 * math.exp(-2.5))
    loss = denoising_contrast(teacher, teacher, torch.arange(4), 0.0)
    assert loss.item() == pytest.approx(-math.log(p), rel=1e-5)


def test_bfloat16_features_are_compared_in_float32():
    student, teacher, target = features(4, 40)
    loss = denoising_contrast(student.bfloat16(), teacher.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, denoising_contrast(student, teacher, target), atol=0.02, rtol=0.02)
