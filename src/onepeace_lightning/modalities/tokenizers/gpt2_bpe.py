"""GPT-2's byte-level BPE with a dictionary of its own order: the vocabulary of the published weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Self

import tokenizers

from onepeace_lightning.modalities.tokenizers.base import (
    CAPTION,
    DEFAULT_MAX_LENGTH,
    SETTINGS_FILE,
    UNK,
    Encoding,
    TextRules,
    Tokenizer,
    check_ids,
    check_max_length,
    pack_settings,
    unpack_settings,
)

DICT_FILE, ENCODER_FILE, MERGES_FILE = BPE_FILES = ("dict.txt", "encoder.json", "vocab.bpe")

_SPACE = "Ġ"
_SPECIAL = UNK + 1


class GPT2BPETokenizer(Tokenizer):
    """Byte-level BPE whose ids are lines of a dictionary.

    A token's id is the line of ``dict.txt`` that holds its BPE id in decimal, counted from 0, plus 4 for the special
    ids. The published dictionary has 50 260 lines, GPT-2's 50 257 ids and three fillers ``madeupword000N`` that make
    the total a multiple of 8: 50 264 ids.

    Args:
        dictionary: content of ``dict.txt``: "<BPE id> <count>" in each line.
        encoder: content of ``encoder.json``: {token: BPE id}.
        merges: content of ``vocab.bpe``: "<left> <right>" in each line, after a version line.
        max_length: ids kept of a caption, eos not counted.

    Raises:
        ValueError: if a file is malformed or they do not belong together.
    """

    def __init__(
        self, dictionary: bytes, encoder: bytes, merges: bytes, *, max_length: int = DEFAULT_MAX_LENGTH
    ) -> None:
        self._files = {DICT_FILE: dictionary, ENCODER_FILE: encoder, MERGES_FILE: merges}
        tokens: dict[str, int] = json.loads(encoder)
        missing = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - tokens.keys())
        if missing:
            # The BPE would drop such bytes without a word.
            raise ValueError(f"{ENCODER_FILE} lacks {len(missing)} of the 256 byte tokens, such as {missing[:5]}")
        self._bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=tokens, merges=_read_merges(merges)))
        self._bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._bpe.decoder = tokenizers.decoders.ByteLevel()

        lines = _read_dictionary(dictionary)
        line_of = {token: line for line, token in enumerate(lines)}
        absent = [index for index in tokens.values() if str(index) not in line_of]
        if absent:
            raise ValueError(
                f"{DICT_FILE} lacks {len(absent)} BPE ids of {ENCODER_FILE}, such as {absent[:5]}: "
                "take the two from the same place"
            )
        self._ids = {index: line_of[str(index)] + _SPECIAL for index in tokens.values()}
        self._bpe_ids = {index: bpe_id for bpe_id, index in self._ids.items()}
        self.vocab_size = len(lines) + _SPECIAL
        self.max_length = check_max_length(max_length)

    def encode(self, text: str, rules: TextRules = CAPTION) -> Encoding:
        """See ``Tokenizer``; a token that begins with a space starts a word."""
        pieces = self._bpe.encode(" " + rules.apply(text))
        ids = [self._ids[index] for index in pieces.ids]
        starts = [token.startswith(_SPACE) for token in pieces.tokens]
        return Encoding.from_pieces(text, ids, starts, self.max_length if rules.truncate else None)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Tokenizer``; the dictionary's fillers have no text either."""
        check_ids(ids, self.vocab_size)
        return self._bpe.decode([self._bpe_ids[index] for index in ids if index in self._bpe_ids]).removeprefix(" ")

    def pieces(self) -> list[bytes]:
        """See ``Tokenizer``."""
        found = [b""] * self.vocab_size
        for index, bpe_id in self._bpe_ids.items():
            found[index] = bytes(_BYTES[letter] for letter in str(self._bpe.id_to_token(bpe_id)))
        return found

    def to_files(self) -> dict[str, bytes]:
        """See ``Tokenizer``."""
        return {**self._files, SETTINGS_FILE: pack_settings(self.max_length)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """See ``Tokenizer``."""
        return cls(*(files[name] for name in BPE_FILES), max_length=unpack_settings(files))


def _byte_of_letter() -> dict[str, int]:
    """GPT-2 writes a byte that is no visible Latin-1 character as one of the letters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_of_letter()


def _read_merges(content: bytes) -> list[tuple[str, str]]:
    lines = [line for line in content.decode().split("\n") if line]
    if lines and lines[0].startswith("#version"):
        del lines[0]
    pairs = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not right:
            raise ValueError(f"{MERGES_FILE}: line {line!r} is no merge; expected two tokens with a space between")
        pairs.append((left, right))
    return pairs


def _read_dictionary(content: bytes) -> list[str]:
    tokens = []
    for line in content.decode().splitlines():
        token, _, count = line.rpartition(" ")
        if not token or not count.isdecimal():
            raise ValueError(f'{DICT_FILE}: line {line!r} is no entry; expected "<BPE id> <count>"')
        tokens.append(token)
    return tokens
