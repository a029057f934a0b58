"""Series: readings of several channels at a stated rate (motion sensors, ECG), in patches of consecutive readings.

T = readings, C = channels, N = patches.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import soxr
import torch
from PIL import Image as Pillow
from torch import Tensor

from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.arrays import read_npy
from onepeace_lightning.modalities.base import Settings
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.rendering import line_plot
from onepeace_lightning.modalities.vectors import Vectors, VectorsModality

Readings = tuple[Tensor, float]
"""(T, C) float32, and readings per second."""


@dataclass(frozen=True, kw_only=True)
class SeriesSettings(Settings):
    """Settings of series.

    Attributes:
        channels: of every series.
        rate: readings per second that the model takes; others are resampled.
        stored_rate: readings per second of files without a column ``time_column``; None: ``rate``.
        time_column: of tables, the seconds at which each reading was taken, evenly, from which their rate follows.
        max_seconds: longer series are cut to their first seconds.
        patch: readings of a token; shorter series are filled up with zeros, what is left over at the end is dropped.
        standardise: shift and scale each channel of a series to mean 0 and deviation 1.
    """

    channels: int = 6
    rate: float = 50.0
    stored_rate: float | None = None
    time_column: str = "time"
    max_seconds: float = 20.0
    patch: int = 10
    standardise: bool = True

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        counts = {"channels": self.channels, "patch": self.patch}
        rates = {"rate": self.rate, "stored_rate": self.rate if self.stored_rate is None else self.stored_rate}
        problems = super().problems() + [f"{k} is {v}, must be at least 1" for k, v in counts.items() if v < 1]
        problems += [f"{k} is {v}; give readings per second above 0" for k, v in rates.items() if not 0 < v < math.inf]
        if not self.patch <= self.max_seconds * self.rate < math.inf:
            problems.append(f"max_seconds is {self.max_seconds}; give at least a patch, {self.patch / self.rate:g}")
        return problems


@register
class SeriesModality(VectorsModality):
    """Series; decoded they are ``Readings``, arrays are (N, patch · C) float32."""

    name = "series"
    plural = "series"
    order = 5
    extensions = ("series.npy", "series.csv", "series.parquet")
    settings_type = SeriesSettings

    def decode(self, data: bytes) -> Readings:
        """Decode an array (T, C), or a table in Parquet or CSV with a column for each channel and perhaps the time.

        Raises:
            ValueError: the bytes are no such thing, or hold what is no number.
        """
        rate = self.settings.stored_rate or self.settings.rate
        try:
            if data.startswith(b"\x93NUMPY"):
                return self.convert((read_npy(data), rate))
            if data.startswith(b"PAR1"):
                table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
            else:
                table = pyarrow.csv.read_csv(io.BytesIO(data))
            named = {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"cannot decode the {self.name} ({looks_like(data)}): {error}") from error
        if all(name.replace(".", "").lstrip("-").isdigit() for name in named):
            raise ValueError(
                f"the {self.name}'s first line is {', '.join(named)}; its first line must name the columns"
            )
        if (times := named.pop(self.settings.time_column, None)) is not None:
            steps = np.diff(times)
            if not len(steps) or not steps.min() > 0 or steps.max() > 2 * steps.min():
                raise ValueError(
                    f"column {self.settings.time_column!r} must rise evenly; readings are missing or mixed"
                )
            rate = 1 / float(steps.mean())
        return self.convert((np.stack(list(named.values()) or [np.empty(0)], 1), rate))

    def convert(self, item: Any) -> Readings:
        """Readings from an array or tensor (T, C), or (T,) of one channel, with its rate in readings per second.

        Raises:
            ValueError: the item is no such thing, or has values that are not finite.
        """
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (np.ndarray, Tensor))):
            raise ValueError(f"a {type(item).__name__} is no {self.name}; give a path or (array (T, C), rate)")
        readings, rate = torch.as_tensor(np.array(item[0], np.float32)), float(item[1])
        readings = readings[:, None] if readings.dim() == 1 else readings
        if readings.dim() != 2 or not readings.numel():
            raise ValueError(f"an array {tuple(readings.shape)}; give (readings, channels)")
        if not readings.isfinite().all() or not 0 < rate < math.inf:
            raise ValueError(f"{int((~readings.isfinite()).sum())} values that are not finite, at a rate of {rate}")
        return readings, rate

    def transform(self, item: Readings) -> Tensor:
        """(N, patch · C): resampled, cut to the first seconds, standardised, in patches.

        Raises:
            ValueError: there are other channels than the settings say.
        """
        s, (readings, rate) = self.settings, item
        if (found := readings.shape[1]) != s.channels:
            raise ValueError(f"{found} channels, not {s.channels}: set channels in the preprocessing of {self.name}")
        if rate != s.rate:
            readings = torch.from_numpy(soxr.resample(readings.numpy(), rate, s.rate))
        readings = readings[: int(s.max_seconds * s.rate)]
        if s.standardise:
            readings = (readings - readings.mean(0)) / readings.std(0, correction=0).clamp(min=1e-6)
        if len(readings) < s.patch:
            readings = torch.cat([readings, readings.new_zeros(s.patch - len(readings), s.channels)])
        return readings[: len(readings) // s.patch * s.patch].unflatten(0, (-1, s.patch)).flatten(1)

    def sizes(self) -> dict[str, Any]:
        """Of a patch, and how many there are at most."""
        s = self.settings
        return {"features": s.channels * s.patch, "positions": 1 + int(s.max_seconds * s.rate) // s.patch}

    def sample(self, inputs: Vectors, row: int) -> Readings:
        """The readings of a row, as the model sees them."""
        patches = inputs.values[row, : inputs.lengths[row]].float().cpu()
        return patches.unflatten(1, (self.settings.patch, -1)).flatten(0, 1), self.settings.rate

    def thumbnail(self, item: Readings, side: int) -> Pillow.Image:
        """A line for each channel, one above the other."""
        return line_plot(item[0], side)
