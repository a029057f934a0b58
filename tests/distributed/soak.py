"""A run of all five streams that is killed at random and started again on another topology each time.

Between kills the number of processes (one or two) and of data workers of each, the batch size and the shuffle buffer
change at random. The check knows what the last checkpoint says is left of the passes under way: every sample must have
been seen in all passes before, and in those just where it is not left. Where a kill changes nothing, what is done again
is what was done before.

    python -m tests.distributed.soak --steps 300 --kills 8
    python -m tests.distributed.soak --steps 300 --kills 8 --s3_errors 0.02

With ``--s3_errors`` the shards are in a bucket of a server on this machine. Of this fraction of reads one half is
answered with an error, the other is cut off in the middle. Shards are read in small blocks through a cache that is too
small for them, so that many requests are made in each pass.

Memory grows over some hundred steps after a start for a reason that ends by itself: oneDNN compiles each new shape of a
matrix product and keeps 1 024 of them. Here it keeps 16, so that anything else that grew would be seen. The run goes on
undisturbed after the last kill; the slope is that of the second half of this stretch, from the least memory in each
epoch: within one, workers hold more and more of what their process has changed since it started them.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_recipes.toy.pretraining import ToyConfig, build
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.dataloader import TrainLoader
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.sampler import PassOrder
from onepeace_lightning.data.shards import read_shard
from tests.distributed.runs import ALL_STREAMS, RUN, callback, checkout, lines, output, run, streams

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


class Topology(NamedTuple):
    """How a part of the run is started."""

    ranks: int
    workers: int
    batch_size: int
    shuffle_buffer: int


BUCKET = "s3://soak"

LAST = Topology(2, 2, 4, 8)
"""How the run ends."""


@dataclass
class Soak:
    """What was found.

    Attributes:
        steps: distinct steps, undisturbed ones included.
        resumed: how often the run went on from a checkpoint; a kill before the first one makes it start anew.
        repeated: steps that a resumed run did again, having been killed after their last checkpoint.
        topologies: distinct ones.
        passes: of each stream, those under way included.
        slope: growth of the least memory of a rank with its workers in an epoch, at last, in MiB per 100 steps.
        memory: at the end, in MiB.
    """

    steps: int
    resumed: int
    repeated: int
    topologies: int
    passes: dict[str, int]
    slope: float
    memory: float


def soak(
    folder: Path,
    steps: int,
    kills: int,
    *,
    undisturbed: int,
    sharded: bool = True,
    seed: int = 0,
    names: Sequence[str] = ALL_STREAMS,
    remote: Mapping[str, Any] | None = None,
) -> Soak:
    """Train, kill, go on, and check.

    Args:
        folder: has the toy data.
        steps: during which kills come.
        kills: how often a random process is killed at a random place.
        undisturbed: further steps without a kill; over the second half of them memory is watched.
        sharded: FSDP2, else DDP.
        seed: of the kills and topologies.
        names: of the streams that are trained on.
        remote: how the shards of a ``Bucket`` are read; None: the folder's own are.

    Raises:
        AssertionError: a sample was lost, or seen twice in a pass, or more was done again than since a checkpoint.
    """
    rng = random.Random(seed)
    every = max(2, steps // 30)
    whole = (steps + undisturbed) // every * every  # the last step is one with a checkpoint
    used = []
    for at in [*sorted(rng.sample(range(2, steps), kills)), None]:
        topology = LAST
        if at is not None and used and rng.random() < 0.2:
            topology = used[-1]
        elif at is not None:
            topology = Topology(rng.randint(1, 2), rng.randint(0, 2), rng.randint(2, 5), rng.choice([8, 200, 1000]))
        used.append(topology)
        command = [
            *RUN[:2], *(["--config=configs/trainer/fsdp.yaml"] if sharded else ["--trainer.strategy=ddp"]), *RUN[2:],
            f"--trainer.max_steps={whole}", "--trainer.limit_val_batches=0",
            f"--data.init_args.num_workers={topology.workers}",
            f"--data.init_args.shuffle_buffer={topology.shuffle_buffer}",
            "--data.init_args.preprocessing={image: {size: 32}}",
            f"--data.init_args.steps_per_epoch={max(8, steps // 12)}",
            streams(*names, batch_size=topology.batch_size, **({} if remote is None else {"where": BUCKET})),
            *([] if remote is None else [f"--data.init_args.storage={json.dumps(remote)}"]),
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.dirpath=checkpoints", "--trainer.callbacks.filename=last",
            "--trainer.callbacks.enable_version_counter=false", f"--trainer.callbacks.every_n_train_steps={every}",
            *callback("Record", run=len(used) - 1), "--ckpt_path=last",
        ]  # fmt: skip
        if at is not None:
            victim = rng.randrange(topology.ranks)
            command += callback("Kill", step=at, rank=victim, where=rng.choice(HOOKS))
        codes = run(folder, *command, ranks=topology.ranks, seconds=3600)
        if at is None:
            assert codes == [0] * topology.ranks, output(folder)[-3000:]
        else:
            assert codes[victim] == -signal.SIGKILL, output(folder, victim)[-3000:]
            assert 0 not in codes, "the other process went on alone"
    return check(folder, used, whole, every, undisturbed // 2, names)


class Bucket:
    """Streams of the toy data in a ``tests.data.s3.BadS3``, in a process of its own: this one forks, without threads.

    Attributes:
        remote: how to read them, in many requests.
    """

    def __init__(self, folder: Path, names: Sequence[str], errors: float) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        files = {
            f"{name}/{file.name}": file for name in names for file in (folder / f"data/toy/train/{name}").iterdir()
        }
        self._process = multiprocessing.get_context("fork").Process(target=_serve, args=(files, errors, theirs))
        self._process.start()
        cache = {"cache": str((folder / "cache").absolute()), "cache_gib": 1e-4}
        self.remote = {**cache, "block_mib": 1 / 64, "pause": 0.01, "options": self._pipe.recv()}

    def close(self) -> Counter:
        """Stop the server; how many requests there were, by method and by fault."""
        self._pipe.send("end")
        requests = self._pipe.recv()
        self._process.join()
        return requests


def _serve(files: Mapping[str, Path], errors: float, pipe: Connection) -> None:
    from tests.data.s3 import BadS3  # moto is needed for this alone

    server = BadS3()
    client: Any = server.client()
    bucket = BUCKET.removeprefix("s3://")
    client.create_bucket(Bucket=bucket)
    for key, file in files.items():
        client.upload_file(str(file), bucket, key)
    server.network.errors = server.network.cuts = errors / 2
    pipe.send(server.options())
    pipe.recv()
    pipe.send(server.network.requests)
    server.close()


def check(folder: Path, used: list[Topology], steps: int, every: int, watched: int, names: Sequence[str]) -> Soak:
    """Compare what all parts of the run saw with what is in the shards."""
    final, resumed, repeated = timeline(folder, used, every)
    assert sorted(final) == list(range(1, steps + 1))
    states = json.loads((folder / "loaders.json").read_text())
    passes = {}
    for stream in names:
        seen = Counter(key for parts in final.values() for line in parts.values() for key in line["keys"][stream])
        wanted, passes[stream] = expected(folder / "data/toy/train" / stream, states[stream])
        wrong = {key: (seen[key], wanted[key]) for key in seen | wanted if seen[key] != wanted[key]}
        assert not wrong, f"{stream}: key: (times seen, times it should have been): {wrong}"
    lowest: dict[int, dict] = {}
    for line in lines(folder, 0)[-watched:]:
        lowest[line["epoch"]] = min(line, lowest.get(line["epoch"], line), key=lambda one: one["memory"])
    slope = np.polyfit([line["step"] for line in lowest.values()], [line["memory"] for line in lowest.values()], 1)[0]
    return Soak(steps, resumed, repeated, len(set(used)), passes, 100 * float(slope), lines(folder, 0)[-1]["memory"])


def timeline(folder: Path, used: list[Topology], every: int) -> tuple[dict[int, dict[int, dict]], int, int]:
    """What counts of each step: rank to its line, without what a later part of the run did again."""
    all_lines = [line | {"rank": rank} for rank in range(2) for line in lines(folder, rank)]
    final: dict[int, dict[int, dict]] = {}
    repeated, begins = 0, []
    for number, topology in enumerate(used):
        mine = [line for line in all_lines if line["run"] == number]
        begins.append(min((line["step"] for line in mine), default=None))
        if begins[-1] is None:  # killed in its first step
            continue
        again = {step: final.pop(step) for step in sorted(final) if step >= begins[-1]}
        assert len(again) <= every, f"part {number} did {len(again)} steps again, but checkpoints are {every} apart"
        repeated += len(again)
        for line in mine:
            before = again.get(line["step"], {}).get(line["rank"])
            if before is not None and number and used[number - 1] == topology and before["run"] == number - 1:
                # The same topology, and from a checkpoint which that part of the run wrote, or both began with.
                assert before["keys"] == line["keys"], f"step {line['step']}: other samples the second time"
                assert abs(before["loss"] - line["loss"]) < 1e-4, f"step {line['step']}: another loss"
            final.setdefault(line["step"], {})[line["rank"]] = line
    return final, sum(step > 1 for step in begins[1:] if step is not None), repeated


def expected(path: Path, state: dict) -> tuple[Counter, int]:
    """How often each key of a stream must have been seen when its loader's state is this, and in how many passes."""
    manifest = read_manifest(path)
    names = [[raw["__key__"] for _, raw in read_shard(manifest, s, range(s.samples))] for s in manifest.shards]
    state["consumed"] = {int(rank): each for rank, each in state["consumed"].items()}  # JSON made them text
    batch_size = state["topology"]["batch_size"] + 1
    # Loading the state on one rank, whatever it was before, works out what is left.
    other = TrainLoader(path, batch_size, lambda raw, rng: raw, lambda rows: Batch([], {}), seed=state["seed"])
    other.load_state_dict(state)
    source = other.sources[0]
    counts = Counter({key: source.next_pass for shard in names for key in shard})
    for pass_index, left in source.left:
        order = PassOrder(manifest, source.seed, source.index, pass_index)
        counts.subtract(names[shard][i] for piece in order.pieces(left, 1) for shard, i in order.samples(piece))
    return counts, source.next_pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--undisturbed", type=int, default=900)
    parser.add_argument("--strategy", choices=("fsdp", "ddp"), default="fsdp")
    parser.add_argument("--s3_errors", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"  # read when the processes of the run start to compute
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "made"
        build(root / "data" / "toy", ToyConfig(pairs=48, singles=16, gallery=16))
        at = checkout(Path(place) / "run", root)
        bucket = None if given.s3_errors is None else Bucket(at, ALL_STREAMS, given.s3_errors)
        started = time.perf_counter()
        found = soak(
            at, given.steps, given.kills, undisturbed=given.undisturbed, sharded=given.strategy == "fsdp",
            seed=given.seed, remote=None if bucket is None else bucket.remote,
        )  # fmt: skip
        print(f"{given.strategy}, {given.kills} kills: {found}")
        if bucket is not None:
            requests = bucket.close()
            failed = requests["errors"] + requests["cuts"]
            print(f"{requests['GET']} reads, {failed} failed ({requests['cuts']} of them were cut off)")
        print(f"{time.perf_counter() - started:.0f} s")
