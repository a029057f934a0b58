"""Memory that a large checkpoint takes to convert and to use, and the time to the first embedding.

A checkpoint of the original's format with random weights in float32 is written to a temporary folder. At the published
width, twelve blocks are 1.2 B parameters.

* Memory: the greatest resident memory (VmHWM, which counts the pages of mapped files that were touched) of a process
  that converts the checkpoint with ``onepeace convert`` and then embeds a text, an image and a sound with the result,
  and of one that opens the converted folder and embeds the same. Beside it the greatest anonymous memory (RssAnon),
  which is what the process takes away from others: mapped pages are given back when memory is short.
* Time: ``OnePeace.from_pretrained`` of the converted folder and the three embeddings. Baseline: reading the file from
  its beginning to its end, and the three embeddings with a model that is loaded and warm. The file is in the system's
  cache on both sides wherever memory suffices.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from benchmarks.timing import PeakMemory, in_fresh_process, interleaved, ratio_line, table
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.pretrained import WEIGHTS_FILE
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.tasks.convert import convert

OURS = "from_pretrained and first embeddings"
BASELINE = "reading the file and the forward passes"
CAPTION = "a cow beside a small dog"
BLOCK = 1 << 24
"""Bytes that the plain reading takes at a time."""


def write_checkpoint(folder: Path, preset: Preset, depth: int) -> None:
    """Write ``one-peace.pt`` and a vocabulary; the tensors are drawn one after the other and are never copied."""
    tokenizer = SentencePieceTokenizer.train([CAPTION], 300)
    tokenizer.save(folder / "vocabulary")
    config = preset_config(preset, sizes={"text": {"vocab_size": tokenizer.vocab_size}})
    with torch.device("meta"):
        model = PretrainModel(replace(config, encoder=replace(config.encoder, depth=depth)))
    checkpoint = to_original(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in checkpoint["model"].items():
        # Vectors are scales and shifts of norms for the most part; about 1 keeps all activations in range.
        drawn = torch.empty(tensor.shape).normal_(0, 0.02, generator=generator)
        checkpoint["model"][name] = drawn if tensor.dim() > 1 else drawn.add_(1)
    torch.save(checkpoint, folder / "one-peace.pt")


def samples() -> list[dict[str, Any]]:
    """A text, an image and a sound of 5 s."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    sound = torch.from_numpy(rng.standard_normal(5 * 16_000, dtype=np.float32))
    return [{"text": [CAPTION]}, {"image": [picture]}, {"audio": [(sound, 16_000)]}]


def embed_all(onepeace: OnePeace) -> list[torch.Tensor]:
    """Embed one sample of each modality."""
    return [onepeace.embed(**sample) for sample in samples()]


def convert_and_embed(folder: Path) -> None:
    """What a user of published weights does."""
    convert(str(folder / "one-peace.pt"), bpe_dir=str(folder / "vocabulary"), out=str(folder / "converted"))
    open_and_embed(folder)


def open_and_embed(folder: Path) -> None:
    """What follows every other day."""
    embed_all(OnePeace.from_pretrained(folder / "converted"))


def read_and_embed(path: Path, onepeace: OnePeace) -> None:
    """Read a file from its beginning to its end, into memory that is used again, and embed with a loaded model."""
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    embed_all(onepeace)


def run(preset: Preset = "4b", depth: int = 12, repetitions: int = 3, folder: str | None = None) -> None:
    """Measure memory and time.

    Args:
        preset: whose width, heads and other sizes the model has.
        depth: blocks of the encoder.
        repetitions: timed openings and readings, taking turns.
        folder: where to write the files, 2 × 4 bytes for each parameter; the system's temporary folder if null.

    Raises:
        RuntimeError: where the disk has no room.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        in_fresh_process(write_checkpoint, place, preset, depth)
        original, weights = place / "one-peace.pt", place / "converted" / WEIGHTS_FILE
        size = original.stat().st_size
        if shutil.disk_usage(place).free < 1.05 * size:
            raise RuntimeError(
                f"{place} has no room for the converted checkpoint of {size / 1e9:.1f} GB; give --folder"
            )
        converting = in_fresh_process(convert_and_embed, place)
        opening = in_fresh_process(open_and_embed, place)
        onepeace = OnePeace.from_pretrained(place / "converted")
        parameters = sum(parameter.numel() for parameter in onepeace.model.parameters())
        embed_all(onepeace)
        seconds = interleaved(
            {OURS: lambda _: open_and_embed(place), BASELINE: lambda _: read_and_embed(weights, onepeace)}, repetitions
        )
        print(
            f"{parameters / 1e9:.2f} B parameters in float32, {torch.get_num_threads()} threads: a checkpoint of"
            f" {size / 1e9:.2f} GB, converted {weights.stat().st_size / 1e9:.2f} GB"
        )
        print(_memory("convert and embed", converting, size))
        print(_memory("open the folder and embed", opening, weights.stat().st_size))
        print(table(seconds, dict.fromkeys(seconds, "files in the system's cache")))
        print(ratio_line(seconds[OURS], seconds[BASELINE], f"{OURS} against {BASELINE}"))


def _memory(what: str, peak: PeakMemory, size: int) -> str:
    return (
        f"{what}: peak memory {peak.process / 1e9:.2f} GB, {peak.process / size:.2f} × the file, of which anonymous"
        f" {peak.anonymous / 1e9:.2f} GB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
