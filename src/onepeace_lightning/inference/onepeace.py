"""A trained model in use: items of any modality in, embeddings out.

B = items, L = tokens of the longest one, d = the model's width.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace_lightning.checkpoints.hub import upload
from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.checkpoints.original import AnyModel
from onepeace_lightning.checkpoints.pretrained import (
    Pretrained,
    read_pretrained,
    write_pretrained,
)
from onepeace_lightning.checkpoints.resize import set_image_size
from onepeace_lightning.data.prefetch import ahead
from onepeace_lightning.modalities.base import Inputs, Modality
from onepeace_lightning.modalities.items import as_items, read_numbered
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.modalities.tokenizers.gpt2_bpe import BPE_FILES
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.pretraining import PretrainModel

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Types that a model can compute in."""


_RUNS, _RUN = 4, 64
"""Runs of each tensor that a fingerprint reads, and elements in each."""


class OnePeace:
    """A model with its tokenizer and preprocessing.

    Args:
        model: the weights; it is put in evaluation mode.
        tokenizer: needed for text only.
        preprocessing: settings of its modalities; None: the defaults, with what the model takes.
        report: what did not fit when the weights were loaded.
        record: of the run that trained it, where it is known; the model card tells of it.
    """

    def __init__(
        self,
        model: AnyModel,
        *,
        tokenizer: Tokenizer | None = None,
        preprocessing: Preprocessing | None = None,
        report: LoadReport | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing or Preprocessing().fitting(model.config)
        self.report = report or LoadReport()
        self.record = record

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        bpe_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Load a model.

        Args:
            source: a folder of ``save_pretrained``, a training checkpoint (``.ckpt``), a checkpoint of the original
                (``.pt``), or a name ``owner/name`` on the Hugging Face hub.
            revision: a branch, tag or commit of a name on the hub; None for its main branch.
            bpe_dir: for the original's checkpoints, which have no vocabulary: a folder with its ``dict.txt``,
                ``encoder.json`` and ``vocab.bpe``. Images and audio do not need it.
            device: where to compute; None: on a GPU where there is one.
            dtype: float32, bfloat16 or float16, as a ``torch.dtype`` or a name of ``DTYPES``; None: the weights' own.

        Raises:
            FileNotFoundError: where a file is missing.
            ValueError: where the source is nothing known or damaged, or for an unknown device or type.
        """
        place, kind = available_device(device), known_dtype(dtype)
        pretrained = read_pretrained(source, bpe_dir, revision)
        if kind is None:  # weights of several types could not be multiplied
            kind = reduce(torch.promote_types, (parameter.dtype for parameter in pretrained.model.parameters()))
        pretrained.model.to(place, kind)
        return cls(
            pretrained.model,
            tokenizer=pretrained.tokenizer,
            preprocessing=pretrained.preprocessing,
            report=pretrained.report,
            record=pretrained.record,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained`` reads: sizes, weights, the tokenizer's files and a model card.

        The card (``README.md``) tells of the run's data and scores where they are known, of sizes, and of what the
        model cannot do. One that somebody has written or made theirs is left as it is.
        """
        pretrained = Pretrained(self.model, self.preprocessing, self.tokenizer, record=self.record)
        write_pretrained(pretrained, folder)

    def push_to_hub(
        self,
        name: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        message: str = "Add a ONE-PEACE model",
    ) -> str:
        """Publish the model on the Hugging Face hub, as ``save_pretrained`` writes it.

        Args:
            name: ``owner/name``; made where it is missing.
            revision: the branch to write to; None for the main one.
            private: whether a new one is private; None for the owner's default.
            message: of the commit.

        Returns:
            The URL of the commit.

        Raises:
            ValueError: the name is none, or the hub refused.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), name, revision=revision, private=private, message=message)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"OnePeace of {parameters / 1e6:,.1f} M parameters, {kind} on {self.device}"]
        for name in self.config.adapters:
            said = self.preprocessing.modality(name, self.tokenizer).describe() or name
            if self.tokenizer is not None and self.preprocessing.modality(name).reads_text:
                said = f"{said}, vocabulary of {self.tokenizer.vocab_size:,}"
            lines.append(f"  {said}")
        return "\n".join(lines)

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.model.config

    @property
    def backbone(self) -> Backbone:
        """Adapters and encoder."""
        return self.model if isinstance(self.model, Backbone) else self.model.backbone

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def embed(self, *, batch_size: int = 32, **items: Sequence[Any] | None) -> Tensor:
        """Embed one modality, ``embed(text=["a cow"])``; what an item gives does not depend on the others.

        Args:
            batch_size: items that run through the model together.
            **items: a modality of the model to its items. ``text``: sentences. ``image``: paths, PIL images, uint8
                arrays (H, W, 3), or tensors (3, H, W), uint8 or floating-point in [0, 1]. ``audio``: paths, or tuples
                (waveform, sample_rate) with a waveform (N,) or (channels, N) at any rate. Others: paths, and what the
                modality's ``convert`` takes.

        Returns:
            (B, d) float32 on the CPU, of unit length: products are cosines.

        Raises:
            ValueError: for none or several modalities, one that the model lacks, or an item that cannot be read (its
                index and path are named).
        """
        given = self._given(items)
        if len(given) != 1:
            raise ValueError(f"embed takes one modality, not {', '.join(given)}; call it once for each")
        self.check_embeds(*given)
        [modality] = given
        embeddings = [self.embed_inputs(modality, batch[modality]) for batch in self._batches(given, batch_size)]
        return torch.cat(embeddings) if embeddings else torch.empty(0, self.config.encoder.width)

    @torch.no_grad()
    def embed_inputs(self, modality: str, inputs: Inputs) -> Tensor:
        """Embed a batch that a ``modality`` joined; (B, d) float32 on the CPU, of unit length."""
        model = cast(PretrainModel, self.model)
        return model.heads(modality, model.backbone({modality: self._placed(inputs)})).cpu()

    def check_embeds(self, modality: str) -> None:
        """Raise ValueError, saying why, where ``embed`` cannot take this modality."""
        if not isinstance(self.model, PretrainModel):
            raise ValueError(
                f"this {type(self.model).__name__} has no contrastive heads, so no embeddings; encode gives its"
                " features"
            )
        self.modality(modality)

    def modality(self, name: str) -> Modality:
        """What makes items of one modality the model's input.

        Raises:
            ValueError: where the model lacks the modality, or its source had no vocabulary.
        """
        self.backbone.adapter(name)
        modality = self.preprocessing.modality(name, self.tokenizer)
        if modality.reads_text and self.tokenizer is None:
            raise ValueError(
                f"{name} needs the model's vocabulary, and its checkpoint has none: give from_pretrained"
                f" bpe_dir=, a folder with {', '.join(BPE_FILES)}"
            )
        return modality

    def fingerprint(self, modality: str) -> str:
        """16 hexadecimal digits that differ between models that embed one modality differently.

        They come from the weights that this modality runs through, in the type that they are in, and for text from the
        tokenizer. Other modalities do not count: embeddings of images stay valid when the model learns audio.
        """
        others = set(self.backbone.adapters) - {modality}
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if (
                name.startswith("denoiser.")
                or name.endswith(("logit_scale", "logit_bias"))
                or others & set(name.split("."))
            ):
                continue
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            # A few runs of each tensor tell any training apart; all of a large model would take long to read.
            flat = parameter.detach().reshape(-1)
            for start in range(0, flat.numel(), max(flat.numel() // _RUNS, _RUN)):
                digest.update(flat[start : start + _RUN].cpu().view(torch.uint8).numpy().tobytes())
        if self.tokenizer is not None and self.preprocessing.modality(modality).reads_text:
            digest.update(self.tokenizer.fingerprint().encode())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, *, batch_size: int = 32, **items: Sequence[Any] | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Features of every token; modalities that are given together attend to one another, item by item.

        Args:
            batch_size: items that run through the model together.
            **items: modalities of the model to their items, as for ``embed``.

        Returns:
            For each modality (B, L, d) float32 features, CLS first and zeros at the end, and (B, L) bool, True where
            there is a token; on the CPU.

        Raises:
            ValueError: as for ``embed``, and where the modalities differ in their number of items.
        """
        given = self._given(items)
        counts = {name: len(items) for name, items in given.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(f"encode needs the same number of items, at least 1, of each modality; got {counts}")
        rows: dict[str, list[Tensor]] = {name: [] for name in given}
        for inputs in self._batches(given, batch_size):
            for name, tokens in self.backbone({name: self._placed(part) for name, part in inputs.items()}).items():
                rows[name] += tokens.values_TD.float().cpu().split(tokens.lengths)
        return {name: _padded(parts) for name, parts in rows.items()}

    def similarity(self, *, batch_size: int = 32, **items: Sequence[Any]) -> Tensor:
        """Cosines between the items of two modalities, ``similarity(image=[…], text=[…])``.

        Args:
            batch_size: items that run through the model together.
            **items: two modalities to their items, as for ``embed``; the first gives the rows.

        Returns:
            (B, B') float32 on the CPU.

        Raises:
            ValueError: for anything but two modalities, or as ``embed``.
        """
        known = list(self.config.adapters)
        if len(items) != 2 or any(name not in known for name in items):
            raise ValueError(f"similarity takes two of {', '.join(known)}, not {', '.join(items) or 'none'}")
        rows, columns = (self.embed(**{name: part}, batch_size=batch_size) for name, part in items.items())
        return rows @ columns.T

    def set_image_size(self, side: int) -> None:
        """Take images of another side in pixels, a multiple of 16; relative position biases are interpolated.

        Raises:
            ValueError: for an impossible side, or a model without images.
        """
        set_image_size(self.model, side)
        self.preprocessing = self.preprocessing.fitting(self.config)

    def _given(self, items: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The modalities that are not None, after a check that the model can take them."""
        given = {name: as_items(name, part) for name, part in items.items() if part is not None}
        if not given:
            raise ValueError(f"nothing is given; give {', '.join(self.config.adapters)}, such as text=['a cow']")
        for name in given:
            self.modality(name)
        return given

    def _batches(self, given: Mapping[str, list[Any]], batch_size: int) -> Iterator[dict[str, Any]]:
        """Model inputs of ``batch_size`` items at a time, the next ones prepared while the model computes."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        modalities = {name: self.modality(name) for name in given}
        streams = [
            ahead(_numbered(items, batch_size), partial(read_numbered, modalities[name]))
            for name, items in given.items()
        ]
        for rows in zip(*streams, strict=True):
            yield {name: modalities[name].collate(part) for name, part in zip(given, rows, strict=True)}

    def _placed(self, inputs: Inputs) -> Inputs:
        """One batch on the model's device; floating-point values in its type, whole numbers as they are."""
        return inputs.to(self.device, self.dtype)


def _numbered(items: Sequence[Any], batch_size: int) -> Iterator[list[tuple[int, Any]]]:
    """Batches of items with their numbers."""
    for start in range(0, len(items), batch_size):
        yield list(enumerate(items[start : start + batch_size], start))


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    values_BLD = pad_sequence(rows, batch_first=True)
    return values_BLD, torch.arange(values_BLD.shape[1]) < lengths[:, None]


def known_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A type that a model can compute in, by itself or by its name; None stays None.

    Raises:
        ValueError: it is none of ``DTYPES``.
    """
    if dtype is None or dtype in DTYPES.values():
        return cast(torch.dtype | None, dtype)
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype is {dtype!r}; accepted are {', '.join(DTYPES)}, or one of these as a torch.dtype")


def available_device(device: str | torch.device | None) -> torch.device:
    """A device that can be computed on; None is a GPU where there is one.

    Raises:
        ValueError: it is unknown or not there.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on its build
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"device is {str(device)!r}, which is not available here ({first_line}); try 'cpu'") from error
    return place
