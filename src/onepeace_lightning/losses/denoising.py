"""Intra-modal denoising contrast (paper section 3.3): find a hidden token's own teacher feature among all tokens."""

from torch import Tensor
from torch.nn import functional as F

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
    logits = F.normalize(student_MD, dim=-1) / TEMPERATURE @ F.normalize(teacher_ND.detach(), dim=-1).T
    candidates = len(teacher_ND)
    # PyTorch spreads its smoothing over all N candidates, the target included.
    spread = smoothing * candidates / (candidates - 1) if candidates > 1 else 0.0
    loss = F.cross_entropy(logits.float(), target_M, label_smoothing=spread, reduction="sum")
    return loss / max(len(target_M), 1)
