"""The training loader's samples per second, against a bare decode-and-transform loop over the same files.

* Loader: an epoch of ``DataModule.train_dataloader`` with two data workers, of an image-text folder, then of an
  audio-text folder: tar shards, shuffling, batches, their way to the main process.
* Baseline: two processes, each over its half of the same encoded files, lying in a folder outside shards. Every sample
  is read, decoded, transformed, tokenised and masked by the same ``AlignedReader``, on one thread, and thrown away: no
  shards, no shuffling, no batches, no way back.

An epoch is several passes over the folder. Both start their processes inside the measured time. The data are made anew
in a temporary folder: 256-pixel JPEGs of smooth noise, 5 s FLAC sounds at 44.1 kHz of noise under an envelope, and
captions of 4 to 20 words.
"""

import io
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
from jsonargparse import auto_cli
from PIL import Image

from benchmarks.timing import in_fresh_process, interleaved, ratio_line, table
from onepeace_lightning.cli.trainer import quieten
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.readers import AlignedReader
from onepeace_lightning.data.sampler import sample_rng
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer, load_tokenizer

LOADER = "loader"
BARE = "a bare decode-and-transform loop"
PROCESSES = 2
FIELDS = {"image-text": "jpg", "audio-text": "flac"}
PREPROCESSING = Preprocessing()
WORDS = [first + last for first in ("ba", "de", "ki", "lo", "mu", "sa") for last in ("nd", "rk", "st", "lm", "t")]


def make_data(root: Path, counts: dict[str, int], image_side: int, seconds: float, batch_size: int) -> None:
    """Write each data type's shards, the same samples as bare files, and a tokenizer."""
    rng = np.random.default_rng(0)
    captions = []
    for data_type, count in counts.items():
        bare = root / "bare" / data_type
        bare.mkdir(parents=True)
        with ShardWriter(
            root / "shards" / data_type, data_type, source="benchmark", license="CC0", samples_per_shard=4 * batch_size
        ) as writer:
            for index in range(count):
                key = f"{index:05d}"
                caption = " ".join(rng.choice(WORDS, rng.integers(4, 21)))
                captions.append(caption)
                data = jpeg(image_side, rng) if data_type == "image-text" else flac(seconds, rng)
                fields = {FIELDS[data_type]: data, "txt": caption.encode()}
                writer.write(key, fields)
                for ending, content in fields.items():
                    (bare / f"{key}.{ending}").write_bytes(content)
    SentencePieceTokenizer.train(captions, 512).save(root / "tokenizer")


def jpeg(side: int, rng: np.random.Generator) -> bytes:
    """An image of smooth noise with a little grain, about as large as a photograph's JPEG."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    picture = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


def flac(seconds: float, rng: np.random.Generator, rate: int = 44_100) -> bytes:
    """A sound of noise that swells and fades."""
    samples = round(seconds * rate)
    envelope = np.interp(np.arange(samples), np.linspace(0, samples, 12), rng.random(12))
    file = io.BytesIO()
    soundfile.write(file, 0.5 * envelope * rng.standard_normal(samples).clip(-2, 2) / 2, rate, format="FLAC")
    return file.getvalue()


def read_with_loader(root: Path, data_type: str, passes: int, batch_size: int) -> None:
    """Every sample, several times."""
    folder = root / "shards" / data_type
    data = DataModule(
        {data_type: StreamConfig(str(folder), batch_size)},
        tokenizer=str(root / "tokenizer"),
        preprocessing=PREPROCESSING.to_dict(),
        num_workers=PROCESSES,
        steps_per_epoch=passes * read_manifest(folder).samples // batch_size,
    )
    data.setup("fit")
    for _ in data.train_dataloader():
        pass


def read_bare(root: Path, data_type: str, passes: int) -> None:
    """Every sample, several times.

    Raises:
        RuntimeError: where a process failed.
    """
    tokenizer = load_tokenizer(root / "tokenizer")
    reader = AlignedReader.of(data_type, PREPROCESSING, tokenizer, train=True, masks=True)
    keys = sorted(path.stem for path in (root / "bare" / data_type).glob("*.txt")) * passes
    # The default way to make processes is also a DataLoader's.
    workers = [
        multiprocessing.Process(target=_read_files, args=(reader, root / "bare" / data_type, keys[start::PROCESSES]))
        for start in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"a process of the bare loop over {data_type} failed; its error is printed above")


def _read_files(reader: AlignedReader, folder: Path, keys: list[str]) -> None:
    torch.set_num_threads(1)  # as in a DataLoader's workers
    for key in keys:
        fields = {end: (folder / f"{key}.{end}").read_bytes() for end in (FIELDS[str(reader.data_type)], "txt")}
        reader({"__key__": key, "__shard__": str(folder), **fields}, sample_rng(0, 0, int(key)))


def _read_all(reader: Callable[..., None], root: Path, *options: int) -> None:
    for data_type in FIELDS:
        reader(root, data_type, *options)


def _epochs(root: Path, data_type: str, passes: int, batch_size: int, repetitions: int) -> dict[str, list[float]]:
    ways = {
        LOADER: lambda _: read_with_loader(root, data_type, passes, batch_size),
        BARE: lambda _: read_bare(root, data_type, passes),
    }
    return interleaved(ways, repetitions)


def run(
    image_text: int = 768,
    audio_text: int = 256,
    batch_size: int = 16,
    passes: int = 4,
    repetitions: int = 7,
    image_side: int = 256,
    seconds: float = 5.0,
) -> None:
    """Measure samples per second both ways.

    Args:
        image_text: image-text samples, a multiple of the batch size.
        audio_text: audio-text samples, a multiple of the batch size.
        batch_size: samples in the loader's batches.
        passes: over the data in an epoch.
        repetitions: timed epochs of each way, taking turns.
        image_side: of the images, in pixels.
        seconds: of the sounds.

    Raises:
        ValueError: where an epoch would not be every sample once.
    """
    counts = {"image-text": image_text, "audio-text": audio_text}
    if uneven := {name: count for name, count in counts.items() if count < 1 or count % batch_size}:
        raise ValueError(f"numbers of samples {uneven} are not multiples of batch_size {batch_size}")
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_fresh_process(make_data, root, counts, image_side, seconds, batch_size)
        peaks = {
            LOADER: in_fresh_process(_read_all, read_with_loader, root, passes, batch_size),
            BARE: in_fresh_process(_read_all, read_bare, root, passes),
        }
        times = {data_type: _epochs(root, data_type, passes, batch_size, repetitions) for data_type in counts}
    totals = {
        way: [sum(both) for both in zip(*(times[name][way] for name in counts), strict=True)] for way in (LOADER, BARE)
    }
    for data_type, count in counts.items():
        rates = {way: f"{count * passes / median(times[data_type][way]):.0f} samples/s" for way in totals}
        print(f"{data_type}, {passes} × {count} samples, {PROCESSES} processes\n{table(times[data_type], rates)}")
    memory = {
        way: f"peak memory {peak.process / 2**20:.0f} MiB, {peak.child / 2**20:.0f} MiB in the largest of its workers"
        for way, peak in peaks.items()
    }
    print(f"both\n{table(totals, memory)}")
    print(ratio_line(totals[LOADER], totals[BARE], f"{LOADER} against {BARE}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
