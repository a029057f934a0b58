"""SentencePiece: a vocabulary trained on one's own captions."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import sentencepiece

from onepeace_lightning.modalities.tokenizers.base import (
    BOS,
    CAPTION,
    DEFAULT_MAX_LENGTH,
    EOS,
    PAD,
    SETTINGS_FILE,
    UNK,
    Encoding,
    TextRules,
    Tokenizer,
    check_ids,
    check_max_length,
    clean_text,
    pack_settings,
    unpack_settings,
)

MODEL_FILE = "sentencepiece.model"

_SPACE = "▁"
_MAX_CAPTION_BYTES = 1 << 20


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose special ids are ours.

    Args:
        model: content of a ``.model`` file, trained with bos 0, pad 1, eos 2, unk 3.
        max_length: ids kept of a caption, eos not counted.

    Raises:
        ValueError: if the model has other special ids.
    """

    def __init__(self, model: bytes, *, max_length: int = DEFAULT_MAX_LENGTH) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        special = tuple(getattr(self._processor, f"{name}_id")() for name in ("bos", "pad", "eos", "unk"))
        if special != (BOS, PAD, EOS, UNK):
            raise ValueError(
                f"the SentencePiece model's ids of bos, pad, eos, unk are {special}; expected {(BOS, PAD, EOS, UNK)}: "
                "train it with SentencePieceTokenizer.train"
            )
        self.vocab_size = self._processor.get_piece_size()
        self.max_length = check_max_length(max_length)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, *, max_length: int = DEFAULT_MAX_LENGTH) -> Self:
        """Train a BPE vocabulary; the same captions in the same order give the same bytes.

        Characters that are too rare for a piece of their own are spelled as bytes, so any language can be encoded. 256
        pieces are kept for that.

        Args:
            captions: texts; those without a word are passed over.
            vocab_size: the most ids wanted; a small corpus gives fewer.
            max_length: ids kept of a caption, eos not counted.

        Raises:
            ValueError: if no caption has a word, or ``vocab_size`` cannot hold the bytes and the corpus's characters.
        """
        texts = [text for text in map(clean_text, captions) if text.strip()]
        if not texts:
            raise ValueError("no captions to train a vocabulary on; give at least one that has a word")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",  # unigram prunes a small corpus down to letters
                hard_vocab_limit=False,
                byte_fallback=True,
                bos_id=BOS,
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNK,
                max_sentence_length=_MAX_CAPTION_BYTES,  # beyond it, captions would be dropped silently
                num_threads=1,  # sums over threads depend on their number
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"cannot train {vocab_size} pieces on {len(texts)} captions: {error}. "
                "Ask for more: 260 for bytes and special ids, one for each common character, and the words on top"
            ) from error
        return cls(model.getvalue(), max_length=max_length)

    def encode(self, text: str, rules: TextRules = CAPTION) -> Encoding:
        """See ``Tokenizer``; a piece that begins with ▁ starts a word."""
        ids = self._processor.encode(rules.apply(text))
        starts = [self._processor.id_to_piece(index).startswith(_SPACE) for index in ids]
        return Encoding.from_pieces(text, ids, starts, self.max_length if rules.truncate else None)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer``."""
        check_ids(ids, self.vocab_size)
        return self._processor.decode([index for index in ids if index > UNK])

    def pieces(self) -> list[bytes]:
        """See ``Tokenizer``."""
        found = []
        for index in range(self.vocab_size):
            piece = self._processor.id_to_piece(index)
            if self._processor.is_byte(index):
                found.append(bytes([int(piece[3:5], 16)]))  # <0xE2>
            else:
                found.append(b"" if index <= UNK else piece.replace(_SPACE, " ").encode())
        return found

    def to_files(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return {MODEL_FILE: self._model, SETTINGS_FILE: pack_settings(self.max_length)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """See ``Tokenizer``."""
        return cls(files[MODEL_FILE], max_length=unpack_settings(files))
