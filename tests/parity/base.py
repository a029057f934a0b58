"""What all comparisons are made of."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE = 1e-4
SHARED = Path(__file__).parents[3] / "shared"


@dataclass
class Check:
    """One compared quantity."""

    file: str
    quantity: str
    difference: float
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance


class MissingFileError(Exception):
    """A golden cannot be compared without a file that is not there."""


def companion(folder: Path, name: str) -> Path:
    """The path of a file that other goldens need beside them.

    Raises:
        MissingFileError: where it is not there.
    """
    path = folder / name
    if not path.exists():
        raise MissingFileError(f"needs {name} beside it, and {folder} has none")
    return path


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def gap(ours: Tensor, golden: Tensor) -> float:
    if ours.shape != golden.shape:
        return float("inf")
    return float((ours.double() - golden.double()).abs().max()) if ours.numel() else 0.0


def vocabulary(folder: Path) -> Path:
    """The folder with the original's vocabulary: in the goldens' folder, beside it, or where the checkout has it."""
    parents = folder.resolve().parents
    candidates = [folder / "bpe", *(parent / "bpe" for parent in parents[:2]), SHARED / "bpe"]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise MissingFileError(f"needs the vocabulary (encoder.json, vocab.bpe, dict.txt) in {candidates[0]}")
    return found
