"""A run of two processes with two data workers each and all five streams, killed at random and started again.

It fails where a sample of any pass over any stream was not seen exactly once, and prints how memory went.

    python -m tests.distributed.soak --steps 300 --kills 8

Memory grows over some hundred steps after a start for a reason that ends by itself: oneDNN compiles each new shape of a
matrix product and keeps 1 024 of them. Here it keeps 16, so that anything else that grew would be seen. The run goes on
undisturbed after the last kill; the slope is that of the second half of this stretch, from the least memory in each
epoch: within one, workers hold more and more of what their process has changed since it started them.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.toy.pretraining import ToyConfig, build
from onepeace_lightning.data.shards import read_manifest
from tests.distributed.runs import ALL_STREAMS, RUN, callback, checkout, lines, output, run, streams

RANKS, WORKERS, BATCH = 2, 2, 4
HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")


@dataclass
class Soak:
    """What was found.

    Attributes:
        steps: distinct steps, of each rank, undisturbed ones included.
        repeated: steps that a resumed run did again, having been killed after their last checkpoint.
        passes: of each stream.
        slope: growth of the least memory of a rank with its workers in an epoch, at last, in MiB per 100 steps.
        memory: at the end, in MiB.
    """

    steps: int
    repeated: int
    passes: dict[str, int]
    slope: float
    memory: float


def soak(folder: Path, steps: int, kills: int, *, undisturbed: int, sharded: bool = True, seed: int = 0) -> Soak:
    """Train, kill, go on, and check.

    Args:
        folder: has the toy data.
        steps: during which kills come.
        kills: how often a random process is killed at a random place.
        undisturbed: further steps without a kill; over the second half of them memory is watched.
        sharded: FSDP2, else DDP.
        seed: of the kills.

    Raises:
        AssertionError: a sample was lost, or seen twice in a pass.
    """
    every, whole = max(2, steps // 30), steps + undisturbed
    command = [
        *RUN[:2], *(["--config=configs/trainer/fsdp.yaml"] if sharded else ["--trainer.strategy=ddp"]), *RUN[2:],
        f"--trainer.max_steps={whole}", "--trainer.limit_val_batches=0", f"--data.init_args.num_workers={WORKERS}",
        "--data.init_args.preprocessing.image_size=32", f"--data.init_args.steps_per_epoch={max(8, steps // 12)}",
        streams(*ALL_STREAMS, batch_size=BATCH), "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.dirpath=checkpoints", "--trainer.callbacks.filename=last",
        "--trainer.callbacks.enable_version_counter=false", f"--trainer.callbacks.every_n_train_steps={every}",
        *callback("Record"), "--ckpt_path=last",
    ]  # fmt: skip
    rng = random.Random(seed)
    for at in sorted(rng.sample(range(2, steps), kills)):
        victim, where = rng.randrange(RANKS), rng.choice(HOOKS)
        codes = run(folder, *command, *callback("Kill", step=at, rank=victim, where=where), ranks=RANKS, seconds=3600)
        assert codes[victim] == -signal.SIGKILL, output(folder, victim)[-3000:]
        assert 0 not in codes, "the other process went on alone"
    codes = run(folder, *command, ranks=RANKS, seconds=3600)
    assert codes == [0] * RANKS, output(folder)[-3000:]
    return check(folder, whole, undisturbed // 2)


def check(folder: Path, steps: int, watched: int) -> Soak:
    """Compare what all parts of the run saw with what is in the shards."""
    seen: list[dict[int, dict]] = []
    repeated = 0
    for rank in range(RANKS):
        by_step: dict[int, dict] = {}
        for line in lines(folder, rank):
            before = by_step.setdefault(line["step"], line)
            assert before["keys"] == line["keys"], f"rank {rank}, step {line['step']}: other samples the second time"
            assert abs(before["loss"] - line["loss"]) < 1e-4, f"rank {rank}, step {line['step']}: another loss"
        assert sorted(by_step) == list(range(1, steps + 1))
        repeated += len(lines(folder, rank)) - steps
        seen.append(by_step)
    passes = {}
    for stream in ALL_STREAMS:
        path = folder / "data/toy/train" / stream
        samples = read_manifest(path).samples
        length = samples // (BATCH * RANKS)  # steps of a pass: batches divide each rank's share
        assert length * BATCH * RANKS == samples
        orders = set()
        for first in range(1, steps - length + 2, length):
            keys = [k for rank in seen for step in range(first, first + length) for k in rank[step]["keys"][stream]]
            doubled = [key for key, times in Counter(keys).items() if times > 1]
            assert len(set(keys)) == samples, f"{stream}, pass from step {first}: twice {doubled}"
            orders.add(tuple(keys))
        passes[stream] = steps // length
        assert len(orders) == passes[stream], f"{stream}: two passes had the same order"
    lowest: dict[int, dict] = {}
    for line in lines(folder, 0)[-watched:]:
        lowest[line["epoch"]] = min(line, lowest.get(line["epoch"], line), key=lambda one: one["memory"])
    slope = np.polyfit([line["step"] for line in lowest.values()], [line["memory"] for line in lowest.values()], 1)[0]
    return Soak(steps, repeated, passes, 100 * float(slope), lines(folder, 0)[-1]["memory"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--undisturbed", type=int, default=900)
    parser.add_argument("--strategy", choices=("fsdp", "ddp"), default="fsdp")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"  # read when the processes of the run start to compute
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "made"
        build(root / "data" / "toy", ToyConfig(pairs=48, singles=16, gallery=16))
        started = time.perf_counter()
        found = soak(checkout(Path(place) / "run", root), given.steps, given.kills, undisturbed=given.undisturbed,
                     sharded=given.strategy == "fsdp", seed=given.seed)  # fmt: skip
        print(f"{given.strategy}, {RANKS} processes x {WORKERS} workers, {given.kills} kills: {found}")
        print(f"{time.perf_counter() - started:.0f} s")
