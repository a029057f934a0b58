"""Intra-modal denoising contrast (paper section 3.3): find a hidden token's own teacher feature among all tokens."""

from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.losses.chunks import summed

TEMPERATURE = 0.4


def denoising_contrast(student_MD: Tensor, teacher_ND: Tensor, target_M: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross-entropy over M hidden tokens between N candidates, cosine similarity over temperature 0.4.

    Label smoothing gives every other candidate e' = e / (N - 1): (1 - e - e') · nll + e' · Σ -log p.
    With no hidden token the loss is zero.

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

    def total(student_PD: Tensor, target_P: Tensor) -> Tensor:
        logits_PN = (student_PD @ teacher_ND.T).float()
        return F.cross_entropy(logits_PN, target_P, label_smoothing=spread, reduction="sum")

    return summed(total, candidates, student_MD, target_M) / max(len(target_M), 1)
