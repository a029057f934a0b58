"""Losses by source, of streams that mix several.

S = sources of a stream, N = losses (of samples, or of hidden tokens).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from onepeace_lightning.losses.pretraining import Record
from onepeace_lightning.models.packing import to_device


class SourceLosses:
    """The mean of each term of a step's loss over each source's part of the batches of all ranks.

    Args:
        sources: stream to the names of all of its sources; streams of one are left out.
    """

    def __init__(self, sources: Mapping[str, Sequence[str]]) -> None:
        self.sources = {stream: list(names) for stream, names in sources.items() if len(names) > 1}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def recorder(self, origins: Mapping[str, Sequence[str]]) -> Record | None:
        """What ``losses.pretraining`` tells of the losses of a batch.

        Args:
            origins: stream to the source of each sample of the batch.
        """
        if not self.sources:
            return None

        def record(term: str, losses_N: Tensor, samples_N: np.ndarray) -> None:
            stream, _, kind = term.rpartition("/")
            if stream not in self.sources:
                return
            names = self.sources[stream]
            numbers = np.array([names.index(name) for name in origins[stream]])
            is_from_SN = (numbers[samples_N] == np.arange(len(names))[:, None]).astype(np.float32)
            sums_S = to_device(is_from_SN, losses_N.device) @ losses_N.float()
            counts_S = to_device(is_from_SN.sum(1), losses_N.device)
            for number, name in enumerate(names):
                key = f"{stream}/{name}/{kind}"
                self._sums[key] = self._sums.get(key, 0) + sums_S[number]
                self._counts[key] = self._counts.get(key, 0) + counts_S[number]

        return record

    def means(self, strategy: Strategy) -> dict[str, Tensor]:
        """``stream/source/term`` to its mean in this step, over all ranks.

        The last step's where no sample of the source is in the batches of this one; NaN before the first.
        """
        if not self._sums:
            return {}
        both = strategy.reduce(torch.stack([*self._sums.values(), *self._counts.values()]))
        sums, counts = both.chunk(2)
        unknown = torch.full((), torch.nan, device=both.device)
        for key, total, count in zip(self._sums, sums.unbind(), counts.unbind(), strict=True):
            # No branch: that would wait for the device.
            self._last[key] = torch.where(count > 0, total / count, self._last.get(key, unknown))
        self._sums, self._counts = {}, {}
        return dict(self._last)
