"""How long a start takes with very many shards, and a resume in the middle of a pass on another topology.

The manifest lists shards that are not there: up to the first sample nothing but the manifest is read. A rank of the
given number reads it (in a run the first rank does, and tells the others), plans its pass, and takes over a state in
which every worker has given half of its part. The reading itself is not measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.sampler import PassOrder


def run(shards: int = 150_000, samples: int = 10_000, ranks: int = 512, workers: int = 8, batch_size: int = 64) -> None:
    """Measure seconds.

    Args:
        shards: in the manifest.
        samples: of each shard.
        ranks: that share the data.
        workers: of each rank.
        batch_size: of each rank.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "manifest-elsewhere.json"
        listed = [{"name": f"{index:06d}.tar", "samples": samples, "bytes": 1 << 29} for index in range(shards)]
        about = {"folder": place, "data_type": "text", "samples": shards * samples, "source": "-", "license": "-"}
        path.write_text(json.dumps(about | {"shards": listed}))
        began = time.perf_counter()
        loader = _loader(path, batch_size, ranks, workers)
        _say(f"a loader over {shards:,} shards of {samples:,} samples, {ranks} ranks of {workers} workers", began)
        began = time.perf_counter()
        source, topology = loader.sources[0], loader.topology
        pass_index, chunk = next(source.chunks(topology, ranks - 1, workers - 1))
        pieces = PassOrder(source.manifest, source.seed, source.index, pass_index).pieces(chunk, topology.at_once)
        _say(f"the order of a pass for one worker ({len(pieces)} pieces)", began)
        half = shards * samples // (ranks * workers) // 2
        state = loader.state_dict() | {"consumed": {rank: [[half] for _ in range(workers)] for rank in range(ranks)}}
        for other in ((ranks, workers, batch_size), (ranks * 3 // 4, workers // 2 + 1, batch_size + 1)):
            resumed = _loader(path, other[2], other[0], other[1])
            began = time.perf_counter()
            resumed.load_state_dict(state)
            next(resumed.sources[0].chunks(resumed.topology, 0, 0))
            left = sum(len(part) for _, part in resumed.sources[0].left)
            _say(
                f"resume in the middle of the pass on {other[0]} ranks of {other[1]} workers ({left:,} ranges left)",
                began,
            )
            if left:
                size = len(json.dumps(resumed.state_dict()["sources"][0]["left"]))
                print(f"      {size / 2**20:.1f} MiB of ranges in a checkpoint")


def _loader(path: Path, batch_size: int, ranks: int, workers: int) -> TrainLoader:
    def collate(rows: list) -> Batch:
        return Batch([], {"x": torch.zeros(len(rows))})

    return TrainLoader(path, batch_size, lambda raw, rng: raw, collate, world_size=ranks, num_workers=workers)


def _say(what: str, began: float) -> None:
    print(f"{time.perf_counter() - began:6.2f} s  {what}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
