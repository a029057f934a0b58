"""Several batches with one contrast in runs of two processes: replicated, sharded, and gone on with."""

import pytest
import torch

from tests.distributed.runs import EVERY_3_STEPS, RUN, callback, checkout, lines, run, streams

STRATEGIES = {"ddp": ["--trainer.strategy=ddp"], "fsdp": ["--config=configs/trainer/fsdp.yaml"]}


def command(strategy: str, *more: str) -> list[str]:
    return [
        *RUN[:2], *STRATEGIES[strategy], *RUN[2:], "--trainer.limit_val_batches=0", "--data.init_args.num_workers=0",
        "--data.init_args.preprocessing.image={size: 32}", streams("image-text", "audio", batch_size=2),
        "--data.init_args.contrast_batches=2", "--model.init_args.drop_path=0.2", *more, *callback("Record"),
    ]  # fmt: skip


def test_both_strategies_learn_the_same_and_a_run_goes_on_at_the_next_group(toy_root, tmp_path):
    weights, seen = {}, {}
    for strategy in STRATEGIES:
        folder = checkout(tmp_path / strategy, toy_root)
        words = command(strategy, "--trainer.max_steps=4", *EVERY_3_STEPS)
        assert run(folder, *words, *callback("Dump"), ranks=2) == [0, 0]
        weights[strategy] = torch.load(folder / "ended.pt", weights_only=True)["weights"]
        seen[strategy] = lines(folder)
    assert [line["keys"] for line in seen["ddp"]] == [line["keys"] for line in seen["fsdp"]]
    assert [len(line["keys"]["image-text"]) for line in seen["ddp"]] == [4] * 4
    for one, other in zip(seen["ddp"], seen["fsdp"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    for name, tensor in weights["ddp"].items():
        torch.testing.assert_close(weights["fsdp"][name], tensor, atol=1e-5, rtol=0, msg=name)

    folder = tmp_path / "fsdp"
    (folder / "rank0.jsonl").unlink()
    assert run(folder, *command("fsdp", "--trainer.max_steps=4", "--ckpt_path=last", *EVERY_3_STEPS), ranks=2) == [0, 0]
    assert [line["keys"] for line in lines(folder)] == [seen["fsdp"][-1]["keys"]]
