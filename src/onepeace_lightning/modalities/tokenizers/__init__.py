"""Captions to token ids: SentencePiece for one's own data, GPT-2 BPE for the published weights."""

from collections.abc import Mapping
from pathlib import Path

from onepeace_lightning.files import is_lfs_pointer
from onepeace_lightning.modalities.tokenizers.base import SETTINGS_FILE, Encoding, Tokenizer
from onepeace_lightning.modalities.tokenizers.gpt2_bpe import BPE_FILES, GPT2BPETokenizer
from onepeace_lightning.modalities.tokenizers.sentencepiece import MODEL_FILE, SentencePieceTokenizer

__all__ = [
    "Encoding",
    "GPT2BPETokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_from_files",
]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer saved in a folder, which may hold other files too.

    Raises:
        FileNotFoundError: if the files of neither kind are all there.
        ValueError: if the files of both kinds are there, or a file is malformed.
    """
    folder = Path(folder)
    names = (MODEL_FILE, *BPE_FILES, SETTINGS_FILE)
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    return tokenizer_from_files(files, source=str(folder))


def tokenizer_from_files(files: Mapping[str, bytes], *, source: str = "this set of files") -> Tokenizer:
    """Build the tokenizer whose ``to_files`` gave these files; a checkpoint carries them.

    Args:
        files: contents by file name; which names there are says which kind it is.
        source: what to call the files in an error.

    Raises:
        FileNotFoundError: if the files of neither kind are all there.
        ValueError: if the files of both kinds are there, or a file is malformed.
    """
    if pointers := [name for name, content in files.items() if is_lfs_pointer(content)]:
        raise ValueError(
            f"{source} holds {', '.join(pointers)} as a Git LFS pointer, not the file itself: fetch it with"
            " `git lfs pull`"
        )
    bpe = [name for name in BPE_FILES if name in files]
    if MODEL_FILE in files and bpe:
        raise ValueError(f"{source} holds two tokenizers, {MODEL_FILE} and {', '.join(bpe)}; remove one of them")
    if MODEL_FILE in files:
        return SentencePieceTokenizer.from_files(files)
    if len(bpe) == len(BPE_FILES):
        return GPT2BPETokenizer.from_files(files)
    if bpe:
        missing = [name for name in BPE_FILES if name not in files]
        raise FileNotFoundError(
            f"{source} holds {', '.join(bpe)} but lacks {', '.join(missing)}; a BPE tokenizer needs all three"
        )
    raise FileNotFoundError(
        f"{source} holds no tokenizer; expected {MODEL_FILE} (SentencePiece), or {', '.join(BPE_FILES)} (GPT-2 BPE)"
    )
