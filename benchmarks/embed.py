"""Items per second of ``onepeace embed``, against a bare loop over preprocessed tensors.

* Command: ``commands.embed.embed`` of a folder of files, from opening the model to the finished file: listing, reading,
  decoding, resizing or resampling, batches, the model, the chunks, the file.
* Baseline: the same model, loaded, over the same items in the same batches, which lie in memory as the tensors that it
  takes; its embeddings are thrown away.

The data are made anew in a temporary folder: 480-pixel JPEGs of smooth noise, and 5 s FLAC sounds at 44.1 kHz of noise
under an envelope.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from benchmarks.loader import flac, jpeg
from benchmarks.timing import in_fresh_process, interleaved, ratio_line, table
from onepeace_lightning.inference.embed import embed
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import PretrainModel

COMMAND = "onepeace embed"
BARE = "a bare loop over preprocessed tensors"
Inputs = list[Text | Image | Audio]


def make_data(root: Path, images: int, sounds: int, image_side: int, seconds: float, preset: Preset) -> None:
    """Write the files of each modality, and a model of images and sounds with random weights."""
    rng = np.random.default_rng(0)
    for modality, count in {"image": images, "audio": sounds}.items():
        (root / modality).mkdir()
        for index in range(count):
            name, data = ("jpg", jpeg(image_side, rng)) if modality == "image" else ("flac", flac(seconds, rng))
            (root / modality / f"{index:05d}.{name}").write_bytes(data)
    torch.manual_seed(0)
    config = preset_config(preset, modalities=("image", "audio"))
    OnePeace(PretrainModel(config, denoise=False)).save_pretrained(root / "model")


def run_command(root: Path, modality: str, batch_size: int) -> None:
    """Embed a folder into a new file."""
    out = root / f"{modality}.npz"
    out.unlink(missing_ok=True)
    source = str(root / modality)
    embed(
        model=str(root / "model"),
        out=str(out),
        items={modality: source},
        batch_size=batch_size,
    )


def preprocessed(onepeace: OnePeace, root: Path, modality: str, batch_size: int) -> list[Any]:
    """All items of a folder as the model takes them."""
    reader = onepeace.modality(modality)
    rows = [reader.read(path) for path in sorted((root / modality).iterdir())]
    return [reader.collate(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def run_bare(onepeace: OnePeace, modality: str, batches: list[Any]) -> None:
    """Embed tensors, and nothing else."""
    for inputs in batches:
        onepeace.embed_inputs(modality, inputs)


def _bare_from_files(root: Path, modality: str, batch_size: int) -> None:
    onepeace = OnePeace.from_pretrained(root / "model")
    run_bare(onepeace, modality, preprocessed(onepeace, root, modality, batch_size))


def run(
    preset: Preset = "base",
    images: int = 32,
    sounds: int = 16,
    batch_size: int = 16,
    repetitions: int = 3,
    image_side: int = 480,
    seconds: float = 5.0,
) -> None:
    """Measure items per second both ways.

    Args:
        preset: size of the model.
        images: images to embed.
        sounds: sounds to embed.
        batch_size: items that run through the model together, on both sides.
        repetitions: timed runs of each way, taking turns.
        image_side: of the images, in pixels.
        seconds: of the sounds.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_data(root, images, sounds, image_side, seconds, preset)
        onepeace = OnePeace.from_pretrained(root / "model")
        ratios = [
            _measure(onepeace, root, modality, preset, batch_size, repetitions) for modality in ("image", "audio")
        ]
    print("\n".join(ratios))


def _measure(onepeace: OnePeace, root: Path, modality: str, preset: Preset, batch_size: int, repetitions: int) -> str:
    """Print both ways' seconds for one modality; returns its ratio line."""
    peaks = {
        COMMAND: in_fresh_process(run_command, root, modality, batch_size),
        BARE: in_fresh_process(_bare_from_files, root, modality, batch_size),
    }
    batches = preprocessed(onepeace, root, modality, batch_size)
    run_bare(onepeace, modality, batches[:1])  # the first call prepares the processor's kernels
    ways = {
        COMMAND: lambda _: run_command(root, modality, batch_size),
        BARE: lambda _: run_bare(onepeace, modality, batches),
    }
    times = interleaved(ways, repetitions)
    count = len(list((root / modality).iterdir()))
    notes = {
        way: f"{count / median(times[way]):.2f} items/s, peak memory {peaks[way].process / 2**20:.0f} MiB"
        for way in ways
    }
    print(f"{count} items of {modality} at {preset!r} on {torch.get_num_threads()} threads")
    print(table(times, notes))
    return ratio_line(times[COMMAND], times[BARE], f"{COMMAND} against {BARE}, {modality}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
