"""Every downstream task on its toy version, from the pretrained backbone and from scratch, at equal steps.

``make downstream`` runs ``configs/finetune/*/toy*.yaml`` twice each, one run after the other, and prints a table: the
score on held-out combinations, what is scored without looking (the manifest's ``chance``), and minutes. It needs the
model that ``make fit`` leaves and the data of ``python -m data_recipes.toy_tasks --out data/toy/tasks``.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from jsonargparse import auto_cli

from onepeace_lightning.data.shards import read_manifest

ARMS = {"from scratch": ["--model.init_args.backbone=tiny"], "pretrained": []}
RECALL, CHANCE = "R@1", "chance"


def train(config: Path, arm: str, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Scores in percent and minutes of one run; a finished run is not repeated."""
    record = folder / "record.json"
    if not record.exists():
        command = [
            sys.executable, "-m", "onepeace_lightning.cli", "fit", f"--config={config}", "--trainer.logger=false",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.callbacks=onepeace_lightning.training.results.ResultsTable",
            f"--trainer.callbacks.folder={folder}", *ARMS[arm], *options,
        ]  # fmt: skip
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=sys.stderr)
        minutes = (time.monotonic() - start) / 60
        scores = json.loads((folder / "results.json").read_text())
        record.write_text(json.dumps({"scores": scores, "minutes": minutes}) + "\n")
    return json.loads(record.read_text())


def score(scores: Mapping[str, float]) -> tuple[str, float]:
    """The score that stands for a task: R@1 both ways in the mean, or the first one logged."""
    recalls = [value for name, value in scores.items() if name.endswith(RECALL) and CHANCE not in name]
    if recalls:
        return RECALL, mean(recalls)
    return next(iter(scores.items()))


def chance(config: Mapping[str, Any], scores: Mapping[str, float]) -> float:
    """What is scored without looking, in percent: as logged beside recalls, else what the validation manifest says."""
    logged = [value for name, value in scores.items() if name.endswith(RECALL) and CHANCE in name]
    [stream] = config["data"]["init_args"]["val"].values()
    return mean(logged) if logged else read_manifest(stream["path"]).about["chance"]["percent"]


def main(
    configs: str = "configs/finetune/*/toy*.yaml", out: Path = Path("runs/downstream"), options: list[str] | None = None
) -> None:
    """Print a Markdown table.

    Args:
        configs: which configurations to run.
        out: where each run leaves its results.
        options: further options of every run, such as --trainer.max_steps=10.
    """
    print("| task | score | chance | from scratch | pretrained | steps | minutes each |\n|---|---|---|---|---|---|---|")
    for path in sorted(Path().glob(configs)):
        config = yaml.safe_load(path.read_text())
        name = path.parent.name + path.stem.removeprefix("toy").removeprefix("stamps").replace("_", ", ")
        runs = {arm: train(path, arm, out / f"{path.parent.name}-{path.stem}-{arm}".replace(" ", "-"), options or [])
                for arm in ARMS}  # fmt: skip
        metric = score(runs["pretrained"]["scores"])[0]
        cells = [f"{score(run['scores'])[1]:.1f}" for run in runs.values()]
        minutes = " and ".join(f"{run['minutes']:.1f}" for run in runs.values())
        steps = config["trainer"]["max_steps"]
        blind = chance(config, runs["pretrained"]["scores"])
        print(f"| {name.replace('_', ' ')} | {metric} | {blind:.1f} | {' | '.join(cells)} | {steps} | {minutes} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    auto_cli(main)
