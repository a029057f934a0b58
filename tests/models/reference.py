"""The encoder written out slowly: one sequence at a time, one head at a time, float64."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.encoder import Encoder


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    bias = getattr(layer, "bias", None)
    return x @ layer.weight.double().T + (0 if bias is None else bias.double())


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * layer.weight.double() + layer.bias.double()
    )


def attention(layer: nn.Module, x_LD: Tensor, bias_HLL: Tensor) -> Tensor:
    width = x_LD.shape[1] // layer.heads
    heads = []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (linear(p, x_LD)[:, part] for p in (layer.query, layer.key, layer.value))
        heads.append((q @ k.T / width**0.5 + bias_HLL[head]).softmax(-1) @ v)
    return linear(layer.out, norm(layer.norm, torch.cat(heads, 1)))


def ffn(layer: nn.Module, x_LD: Tensor) -> Tensor:
    gate, up = linear(layer.gate, x_LD), linear(layer.up, x_LD)
    gelu = gate * (1 + torch.erf(gate / 2**0.5)) / 2
    return linear(layer.down, norm(layer.norm, gelu * up))


def encode(
    encoder: Encoder, tokens: Mapping[str, Tensor], biases: list[Mapping[str, Tensor]] | None = None
) -> dict[str, Tensor]:
    """Features of one sequence.

    ``tokens``: modality to (L, D), joined in this order. ``biases``: for each block, modality to (H, L, L).
    """
    sizes = [len(part) for part in tokens.values()]
    x_LD = torch.cat([part.double() for part in tokens.values()])
    for index, block in enumerate(encoder.blocks):
        zero = x_LD.new_zeros
        bias = [
            zero(block.attention.heads, n, n) if biases is None else biases[index][name].double()
            for name, n in zip(tokens, sizes, strict=True)
        ]
        joined = torch.stack(
            [torch.block_diag(*(part[head] for part in bias)) for head in range(block.attention.heads)]
        )
        gamma_1 = torch.as_tensor(block.gamma_1).double()
        gamma_2 = torch.as_tensor(block.gamma_2).double()
        x_LD = x_LD + gamma_1 * attention(block.attention, norm(block.norm_attention, x_LD), joined)
        normed = norm(block.norm_ffn, x_LD).split(sizes)
        fed = torch.cat([ffn(block.ffns[name], part) for name, part in zip(tokens, normed, strict=True)])
        x_LD = x_LD + gamma_2 * fed
    return {name: norm(encoder.norms[name], part) for name, part in zip(tokens, x_LD.split(sizes), strict=True)}


def literal_denoising(student_MD: Tensor, teacher_ND: Tensor, targets: list[int], e: float = 0.1) -> Tensor:
    """(1 - e - e') · nll + e' · Σ -log p, cosine × 2.5, mean over hidden tokens, one token at a time."""
    total = student_MD.new_zeros((), dtype=torch.float64)
    spread = e / (len(teacher_ND) - 1)
    for student, target in zip(student_MD.double(), targets, strict=True):
        logits = torch.stack([2.5 * F.cosine_similarity(student, teacher, dim=0) for teacher in teacher_ND.double()])
        log_p = logits - logits.logsumexp(0)
        total = total + (1 - e - spread) * -log_p[target] + spread * -log_p.sum()
    return total / len(targets)
