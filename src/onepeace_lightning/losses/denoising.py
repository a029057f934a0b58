"""Intra-modal denoising contrast (paper section 3.3): find a hidden token's own teacher feature among all tokens."""

from collections.abc import Collection

from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.losses.chunks import of_each_row
from onepeace_lightning.modalities.registry import modality

TEMPERATURE = 0.4

SELF_TAUGHT = (frozenset({"image", "text"}),)
"""Sets with text all of whose modalities are denoised alone, each from its own unmasked view (paper section 3.3). In
any other set with text only the others are, and the unmasked view of all together is their teacher, as in audio-text.
Modalities without text among them are denoised alone, each from its own view."""


def self_taught(modalities: Collection[str]) -> bool:
    """Whether those that are denoised alone are taught by their own unmasked view, not by that of all together."""
    return frozenset(modalities) in SELF_TAUGHT or not any(modality(name).reads_text for name in modalities)


def denoised_alone(modalities: Collection[str]) -> list[str]:
    """Those modalities of a sample that are denoised from a view of their own."""
    if len(modalities) == 1 or self_taught(modalities):
        return list(modalities)
    return [name for name in modalities if not modality(name).reads_text]


def denoising_contrast(student_MD: Tensor, teacher_ND: Tensor, target_M: Tensor, smoothing: float = 0.1) -> Tensor:
    """The mean of ``denoising_losses``; with no hidden token it is zero."""
    return denoising_losses(student_MD, teacher_ND, target_M, smoothing).sum() / max(len(target_M), 1)


def denoising_losses(student_MD: Tensor, teacher_ND: Tensor, target_M: Tensor, smoothing: float = 0.1) -> Tensor:
    """(M,) cross-entropy of each hidden token between N candidates, cosine similarity over temperature 0.4.

    Label smoothing gives every other candidate e' = e / (N - 1): (1 - e - e') · nll + e' · Σ -log p.

    Args:
        student_MD: predicted features of the hidden tokens.
        teacher_ND: features of every token of this modality on this device, without gradient.
        target_M: each hidden token's own row of ``teacher_ND``.
        smoothing: e.
    """
    student_MD = F.normalize(student_MD, dim=-1) / TEMPERATURE
    teacher_ND = F.normalize(teacher_ND.detach(), dim=-1)
    candidates = len(teacher_ND)
    # PyTorch spreads its smoothing over all N candidates, the target included.
    spread = smoothing * candidates / (candidates - 1) if candidates > 1 else 0.0

    def losses(student_PD: Tensor, target_P: Tensor) -> Tensor:
        logits_PN = (student_PD @ teacher_ND.T).float()
        return F.cross_entropy(logits_PN, target_P, label_smoothing=spread, reduction="none")

    return of_each_row(losses, candidates, student_MD, target_M)
