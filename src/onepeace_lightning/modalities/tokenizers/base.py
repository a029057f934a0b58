"""What every tokenizer offers, and the caption clean-up that all of them share."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

BOS, PAD, EOS, UNK = 0, 1, 2, 3
"""Special token ids, the same in every vocabulary."""

DEFAULT_MAX_LENGTH = 70
"""Token ids kept of a caption, eos not counted."""

SETTINGS_FILE = "tokenizer_settings.json"

_LEADING_MARKS = ",.!?*#:;~"
_SURROGATE = re.compile("[\ud800-\udfff]")
# Letters and symbols by category that show nothing: Hangul fillers, an empty Braille cell.
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"
_BLANKS = re.compile(r"\s{2,}|\t")


@dataclass
class Encoding:
    """One caption as token ids.

    Attributes:
        ids: L token ids, the last one eos.
        word_starts: L flags, True where a token begins a word. The first token and eos always do.
    """

    ids: list[int]
    word_starts: list[bool]

    @classmethod
    def from_pieces(cls, text: str, ids: Sequence[int], word_starts: Sequence[bool], max_length: int | None) -> Self:
        """Cut a caption's tokens to ``max_length``, unless that is None, and append eos.

        Raises:
            ValueError: if the caption has no tokens.
        """
        if not ids:
            raise _no_words(text)
        return cls([*ids[:max_length], EOS], [*word_starts[:max_length], True])


Cleaning = Literal["caption", "lower", "none"]
"""What is done to a text: as captions are cleaned for training; lower-cased only; nothing."""


@dataclass(frozen=True)
class TextRules:
    """What becomes of a text before it is split into tokens.

    Attributes:
        cleaning: "caption" lower-cases it and removes leading punctuation and superfluous blanks; "lower" only
            lower-cases it; "none" leaves it as it is.
        max_words: words kept, split at single spaces; None: all.
        truncate: keep no more tokens than the tokenizer's ``max_length``.
    """

    cleaning: Cleaning = "caption"
    max_words: int | None = None
    truncate: bool = True

    def apply(self, text: str) -> str:
        """The cleaned text, without halves of broken characters.

        Raises:
            ValueError: if nothing that can be seen is left.
        """
        clean: dict[str, Callable[[str], str]] = {"caption": clean_text, "lower": str.lower, "none": str}
        cleaned = clean[self.cleaning](whole_characters(text))
        if self.max_words is not None:
            cleaned = " ".join(cleaned.split(" ")[: self.max_words])
        if not is_visible(cleaned):
            raise _no_words(text)
        return cleaned


CAPTION = TextRules()
"""How captions are cleaned for training."""


class Tokenizer(Protocol):
    """Captions to token ids and back.

    The ids 0, 1, 2, 3 are bos, pad, eos, unk in every vocabulary. An implementation inherits from this class, so that
    it pickles (spawned data workers), copies and saves by way of its files.

    Attributes:
        vocab_size: number of ids, the four special ones included.
        max_length: ids kept of a caption, eos not counted.
    """

    vocab_size: int
    max_length: int

    def encode(self, text: str, rules: TextRules = CAPTION) -> Encoding:
        """Clean a text up and split it into tokens.

        Raises:
            ValueError: if no word is left after the clean-up.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Join ids to text; special ids have none. Raises ValueError for an id outside the vocabulary."""
        ...

    def pieces(self) -> list[bytes]:
        """Give what each id stands for in UTF-8, the blank before a word included; nothing for a special id."""
        ...

    def to_files(self) -> dict[str, bytes]:
        """Give everything needed to build this tokenizer again, as file contents by file name."""
        ...

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Build a tokenizer from what ``to_files`` gave."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files into a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            (folder / name).write_bytes(content)

    def fingerprint(self) -> str:
        """Give 16 hexadecimal digits that differ whenever any file of the tokenizer differs."""
        digest = hashlib.sha256()
        for name, content in sorted(self.to_files().items()):
            digest.update(f"{name}:{len(content)}:".encode() + content)
        return digest.hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_files, (self.to_files(),)


def clean_text(text: str) -> str:
    """Lower-case a text and remove leading punctuation, superfluous blanks and halves of broken characters."""
    text = whole_characters(text)
    return _BLANKS.sub(" ", text.lower().lstrip(_LEADING_MARKS)).rstrip("\n").strip(" ")


def whole_characters(text: str) -> str:
    """Join surrogates to the characters whose halves they are, and leave single ones out.

    JSON can hold half of an emoji where a caption was cut off; no encoding can write it.
    """
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")


def whole_strings(content: Any) -> Any:
    """``whole_characters`` of every string in what JSON holds."""
    if isinstance(content, str):
        return whole_characters(content)
    if isinstance(content, list):
        return [whole_strings(part) for part in content]
    if isinstance(content, dict):
        return {whole_characters(key): whole_strings(part) for key, part in content.items()}
    return content


def parsed_json(data: str | bytes, **options: Any) -> Any:
    """What JSON of users holds, its strings by ``whole_strings``.

    Args:
        data: the JSON.
        **options: of ``json.loads``.

    Raises:
        ValueError: it is no JSON.
    """
    return whole_strings(json.loads(data, **options))


def is_visible(text: str) -> bool:
    """Whether a text has a character that is seen; zero-width spaces, direction marks and fillers are not."""
    return any(unicodedata.category(letter)[0] in "LNPS" and letter not in _BLANK_LETTERS for letter in text)


def clean_caption(text: str) -> str:
    """Clean a text up; raise ValueError if nothing that can be seen is left."""
    cleaned = clean_text(text)
    if not is_visible(cleaned):
        raise _no_words(text)
    return cleaned


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise ValueError where an id lies outside the vocabulary."""
    strangers = [index for index in ids if not 0 <= index < vocab_size]
    if strangers:
        raise ValueError(
            f"token ids {strangers[:5]} are outside this vocabulary of {vocab_size}; was it made by another?"
        )


def pack_settings(max_length: int) -> bytes:
    """Write the settings file."""
    return (json.dumps({"max_length": max_length}) + "\n").encode()


def unpack_settings(files: Mapping[str, bytes]) -> int:
    """Read ``max_length`` from the settings file; the default where there is no such file (published vocabularies)."""
    if SETTINGS_FILE not in files:
        return DEFAULT_MAX_LENGTH
    settings = json.loads(files[SETTINGS_FILE])
    if not isinstance(settings, dict) or settings.keys() != {"max_length"}:
        raise ValueError(f'{SETTINGS_FILE} holds {settings!r}; expected one entry, such as {{"max_length": 70}}')
    return check_max_length(settings["max_length"])


def check_max_length(max_length: int) -> int:
    """Give ``max_length`` back, or raise ValueError if it is not a positive whole number."""
    if not isinstance(max_length, int) or max_length < 1:
        raise ValueError(f"max_length is {max_length!r}; expected a whole number of tokens, at least 1 (usually 70)")
    return max_length


def _no_words(text: str) -> ValueError:
    return ValueError(f"caption {text!r} has no words after clean-up; give it at least one word or remove the sample")
