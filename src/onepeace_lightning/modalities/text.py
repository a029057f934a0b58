"""Text: token ids, learned token embedding and absolute positions.

B = samples, L = token ids of the longest one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.arrays import hide
from onepeace_lightning.modalities.base import Inputs, Modality, Settings, training_only
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.rendering import text_card
from onepeace_lightning.modalities.tokenizers.base import EOS, PAD, Cleaning, Encoding, TextRules
from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.config import AdapterConfig, ModelConfig, at_least, raise_all
from onepeace_lightning.models.flops import Flops
from onepeace_lightning.models.layers import Embedding, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows


@dataclass
class Text(Inputs):
    """Token ids (B, L): each row ends with ``EOS`` and is filled up with ``PAD``.

    Attributes:
        ids_BL: the ids.
        lengths: ids in each row, the final ``EOS`` included; counted where they are not given.
    """

    ids_BL: Tensor
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.lengths:
            self.lengths = (self.ids_BL != PAD).sum(1).tolist()

    @classmethod
    def pad(cls, rows: Sequence[Sequence[int]]) -> "Text":
        """Join rows of token ids of any lengths."""
        width = max(len(row) for row in rows)
        ids_BL = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], dtype=torch.int64)
        return cls(ids_BL, [len(row) for row in rows])

    dynamic: ClassVar = {"ids": {0: "batch", 1: "length"}}

    def exported(self) -> dict[str, Tensor]:
        """The ids, from which lengths are counted."""
        return {"ids": self.ids_BL}

    @property
    def token_lengths(self) -> list[int]:
        """CLS and the ids."""
        return [length + 1 for length in self.lengths]


@dataclass(frozen=True, kw_only=True)
class TextConfig(AdapterConfig):
    """Token embedding with learned positions.

    Attributes:
        vocab_size: token ids.
        positions: rows of the absolute position table, CLS included: the longest sequence.
        buckets: of the relative bias.
        type_embedding: a vector is added to every token, for tasks with two images.
    """

    vocab_size: int = 50264
    positions: int = 514
    buckets: int = 256
    type_embedding: bool = False

    def __post_init__(self) -> None:
        problems = [f"vocab_size is {self.vocab_size}, must be above the 4 special ids"] if self.vocab_size < 5 else []
        raise_all("text", problems + at_least(self, positions=2, buckets=4))

    def build(self, model: ModelConfig) -> "TextAdapter":
        """The adapter of these sizes."""
        return TextAdapter(self, model)

    def decoder_rows(self) -> int:
        """As many as the encoder's positions."""
        return self.positions

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """None: embeddings are looked up."""
        return Flops()


class TextAdapter(Adapter):
    """Token ids to tokens."""

    def __init__(self, config: TextConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.embedding = Embedding(config.vocab_size, model.encoder.width, PAD, self.init_std)
        self.positions = nn.Parameter(torch.empty(config.positions, model.encoder.width))
        if config.type_embedding:
            self.type_embedding = nn.Parameter(torch.empty(1, model.encoder.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and positions; the type embedding starts at zero."""
        super().reset_parameters()
        init_normal_(self.positions, self.init_std)
        if self.config.type_embedding:
            nn.init.zeros_(self.type_embedding)

    def embed(self, inputs: Text) -> Tokens:
        """[CLS; embedding] + positions.

        Raises:
            ValueError: for more tokens than there are positions.
        """
        length = inputs.ids_BL.shape[1]
        if length + 1 > len(self.positions):
            raise ValueError(
                f"text of {length} tokens; at most {len(self.positions) - 1} fit: lower the tokenizer's max_length"
            )
        return Tokens.of_padded(self.padded(inputs.ids_BL)[0], inputs.token_lengths)

    def padded(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[CLS; embedding] + positions, and where there is a token."""
        batch, length = ids_BL.shape
        x_BLD = torch.cat([self.cls_token.expand(batch, 1, -1), self.embedding(ids_BL)], 1)
        x_BLD = x_BLD + self.positions[: length + 1]
        if self.config.type_embedding:
            x_BLD = x_BLD + self.type_embedding
        return x_BLD, torch.cat([torch.ones_like(ids_BL[:, :1], dtype=torch.bool), ids_BL != PAD], 1)

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions."""
        return super().no_weight_decay() | {"positions"}

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return sequence_rows(self.config.buckets)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return sequence_buckets(positions, self.config.buckets, self.cls_token.device)


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """Settings of text; the tokenizer has those of its vocabulary.

    Attributes:
        cleaning: "caption", "lower" or "none" (``tokenizers.base.TextRules``).
        max_words: words kept, split at single spaces; None: all.
        truncate: keep no more tokens than the tokenizer's ``max_length``.
        mask_ratio: fraction of the words, rounded up.
        fused_mask_ratio: the same beside a modality that alone is denoised from the pair's fused pass; where text is
            denoised alone too, of the tokens, rounded down.
    """

    cleaning: Cleaning = "caption"
    max_words: int | None = None
    truncate: bool = True
    mask_ratio: float = training_only(0.15)
    fused_mask_ratio: float = training_only(0.4)

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = super().problems()
        if self.cleaning not in get_args(Cleaning):
            problems.append(f"cleaning is {self.cleaning!r}; choose one of {', '.join(get_args(Cleaning))}")
        if self.max_words is not None and self.max_words < 1:
            problems.append(f"max_words is {self.max_words}; give at least 1, or null for all")
        return problems

    @property
    def rules(self) -> TextRules:
        """What becomes of a text."""
        return TextRules(self.cleaning, self.max_words, self.truncate)


@register
class TextModality(Modality):
    """Sentences; an array is an ``Encoding`` of the tokenizer."""

    name = "text"
    plural = "captions"
    order = 0
    extensions = ("txt",)
    config_type = TextConfig
    settings_type = TextSettings
    reads_text = True
    denoising_weight = 0.5

    def decode(self, data: bytes) -> str:
        """The text of a UTF-8 file, with or without a byte order mark.

        Raises:
            ValueError: the bytes are no UTF-8.
        """
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
            raise ValueError(
                f"the text ({looks_like(data)}) is {'UTF-16' if utf16 else 'not UTF-8'} ({error}); save it as UTF-8"
            ) from error

    def load(self, item: Any) -> str:
        """The sentence itself; a ``str`` is never a path.

        Raises:
            ValueError: the item is no ``str``.
        """
        if not isinstance(item, str):
            raise ValueError(f"a {type(item).__name__} is no text; give a str")
        return item

    def check(self, item: Any) -> None:
        """Raise ValueError where no word is left after the clean-up."""
        self.settings.rules.apply(item)

    def transform(self, item: str) -> Encoding:
        """Token ids, the last one ``EOS``, and where words begin.

        Raises:
            ValueError: there is no word in the text, or there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer, and there is none; give the folder of one")
        return self.tokenizer.encode(item, self.settings.rules)

    def num_tokens(self, array: Encoding) -> int:
        """The ids, ``EOS`` included."""
        return len(array.ids)

    def collate(self, arrays: Sequence[Encoding]) -> Text:
        """Rows of ids, filled up to the longest."""
        return Text.pad([array.ids for array in arrays])

    def random(self, config: AdapterConfig, batch: int, rng: np.random.Generator) -> Text:
        """Rows of ids."""
        vocab_size, longest = config.vocab_size, min(config.positions - 1, 12)  # type: ignore[attr-defined]
        lengths = [max(2, longest - row) for row in range(batch)]
        return Text.pad([[*rng.integers(EOS + 1, vocab_size, length - 1).tolist(), EOS] for length in lengths])

    def mask(self, array: Encoding, rng: np.random.Generator) -> np.ndarray:
        """Whole words, ``ceil(ratio * words)`` of them; never CLS or eos."""
        return word_mask(array.word_starts, rng, self.settings.mask_ratio)

    def fused_mask(self, array: Encoding, alone: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """Whole words; where text is denoised alone too, single tokens, first those that were visible there."""
        ratio = self.settings.fused_mask_ratio
        if alone is None:
            return word_mask(array.word_starts, rng, ratio)
        return np.concatenate([hide(len(array.ids) - 1, ratio, rng, first=~alone[1:-1]), [False]])

    def sizes(self) -> dict[str, Any]:
        """The vocabulary's."""
        return {} if self.tokenizer is None else {"vocab_size": self.tokenizer.vocab_size}

    def evaluation(self) -> dict[str, Any]:
        """How a text is cleaned, and how many of its token ids are kept."""
        return {**super().evaluation(), "max_length": self.tokenizer.max_length if self.tokenizer else None}

    def describe(self) -> str:
        """How a text is cleaned, unless as captions are; the tokenizer is named by its fingerprint."""
        rules = self.settings.rules
        said = {"caption": "", "lower": "lower-cased only", "none": "as it is"}[rules.cleaning]
        words = "" if rules.max_words is None else f"its first {rules.max_words} words"
        length = "" if rules.truncate else "of any length"
        parts = [part for part in (said, words, length) if part]
        return f"text {', '.join(parts)}" if parts else ""

    def sample(self, inputs: Text, row: int) -> str:
        """The words of the ids.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer, and there is none; give the folder of one")
        return self.tokenizer.decode(inputs.ids_BL[row, : inputs.lengths[row]].tolist())

    def html(self, item: str, title: str = "") -> str:
        """The quoted text."""
        return f"<blockquote>{escape(item)}</blockquote>"

    def thumbnail(self, item: str, side: int) -> Pillow.Image:
        """The first words on a card."""
        return text_card(item if len(item) <= 12 else item[:11] + "…", side)


def word_mask(word_starts: Sequence[bool], rng: np.random.Generator, ratio: float) -> np.ndarray:
    """(1 + L,) bool over CLS, tokens and eos that hides ``ceil(ratio * words)`` whole words.

    Args:
        word_starts: L flags, those of the tokens and of eos, which both begin with a word start.
        rng: the only source of randomness.
        ratio: fraction of the words.

    Raises:
        ValueError: if there is no token before eos, or the first does not start a word.
    """
    starts = np.asarray(word_starts, dtype=bool)
    if len(starts) < 2 or not starts[0] or not starts[-1]:
        raise ValueError(
            f"word_starts is {list(word_starts)}; expected one flag for each token and one for eos, at least two, "
            "the first and last True, as Encoding.word_starts has them"
        )
    word_of_token = np.cumsum(starts[:-1]) - 1
    words = int(word_of_token[-1]) + 1
    hidden = rng.choice(words, math.ceil(ratio * words), replace=False)
    return np.concatenate([[False], np.isin(word_of_token, hidden), [False]])
