"""Goldens of rules: which ids a text becomes, how long a clip is kept, the learning rate before every step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from onepeace_lightning.checkpoints.pretrained import HUB_TEXT
from onepeace_lightning.checkpoints.released.fairseq import AudioQuestionAnswering, Grounding
from onepeace_lightning.data.readers.questions import with_choice
from onepeace_lightning.modalities.audio import SAMPLE_RATE, AudioModality, AudioSettings, num_frames
from onepeace_lightning.modalities.text import TextSettings
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer
from onepeace_lightning.modalities.tokenizers.base import TextRules
from onepeace_lightning.training.optimizer import Optimization, adamw
from tests.parity.base import Check, vocabulary

CONFIGS = Path(__file__).parents[2] / "configs"
RATE_TOLERANCE = 1e-9
"""Of learning rates of up to 5e-4."""
RULES = {"training": {}, "hub": HUB_TEXT, "grounding": Grounding.text}
"""Name of a rule in the golden to settings of text."""


def rules(settings: Any) -> TextRules:
    return TextSettings(**settings).rules


def ids(file: str, quantity: str, tokenizer: Tokenizer, text: str, settings: Any, wanted: list[int]) -> Check:
    same = tokenizer.encode(text, rules(settings)).ids == wanted
    return Check(file, f"{quantity}, {text[:40]!r}", 0.0 if same else float("inf"), 0)


def text(folder: Path) -> Iterator[Check]:
    """Ids by the rules of training, hub, RefCOCO, AVQA and ESC-50, with the original's vocabulary."""
    file, tokenizer = "text.json", load_tokenizer(vocabulary(folder))
    golden = json.loads((folder / file).read_text())
    for case in golden["cases"]:
        for rule, settings in RULES.items():
            yield ids(file, f"ids, {rule}", tokenizer, case["text"], settings, case[rule])
    for case in golden["avqa"]:
        asked = with_choice(case["question"], case["answer"])
        yield ids(file, "ids, AVQA", tokenizer, asked, AudioQuestionAnswering.text, case["ids"])
    [prompt] = yaml.safe_load((CONFIGS / "zero_shot" / "esc50.yaml").read_text())["model"]["init_args"]["prompts"]
    for case in golden["esc50"]:
        said = prompt.replace("{label}", case["label"])
        yield ids(file, "ids, ESC-50", tokenizer, said, {}, case["ids"])


def audio_lengths(file: str, cases: list[dict[str, int]]) -> Iterator[Check]:
    for case in cases:
        modality = AudioModality(AudioSettings(max_seconds=case["most_seconds"]))
        clip = modality.transform((torch.randn(case["samples"]), SAMPLE_RATE))
        what = f"{case['samples']} samples, at most {case['most_seconds']} s"
        yield Check(file, f"samples kept of {what}", abs(len(clip) - case["kept"]), 0)
        yield Check(file, f"frames of {what}", abs(num_frames(len(clip)) - case["frames"]), 0)


def rates(settings: Optimization, steps: int) -> list[float]:
    """The learning rate before every step, by the optimizer and schedule of a training run."""
    made = adamw(nn.Linear(1, 1), settings, steps)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def by_step(file: str, name: str, golden: dict[str, Any]) -> Iterator[Check]:
    warmup = golden.get("warmup", golden.get("warmup_ratio"))
    settings = Optimization(lr=golden["lr"], min_lr=golden["min_lr"], warmup_steps=warmup)
    wanted = golden["before_update"]
    ours = rates(settings, golden["total"])[: len(wanted)]
    apart = max((abs(a - b) for a, b in zip(ours, wanted, strict=True)), default=float("inf"))
    yield Check(file, f"learning rate before each of {len(wanted)} steps, {name}", apart, RATE_TOLERANCE)


def by_epoch(file: str, name: str, golden: dict[str, Any]) -> Iterator[Check]:
    """Warm-up and cosine by fractions of an epoch, of which any number of steps is one."""
    steps = 20
    settings = Optimization(
        lr=golden["lr"], min_lr=golden["min_lr"], warmup_steps=golden["warmup_epochs"] / golden["epochs"]
    )
    ours = rates(settings, golden["epochs"] * steps)
    for epoch, wanted in golden["by_epoch"].items():
        found = ours[round(float(epoch) * steps)]
        yield Check(file, f"learning rate at epoch {epoch}, {name}", abs(found - wanted), RATE_TOLERANCE)


def recipes(folder: Path) -> Iterator[Check]:
    """Lengths of clips, and learning rates."""
    file = "recipes.json"
    for name, golden in json.loads((folder / file).read_text()).items():
        if name == "audio_lengths":
            yield from audio_lengths(file, golden)
        elif "before_update" in golden:
            yield from by_step(file, name, golden)
        elif "by_epoch" in golden:
            yield from by_epoch(file, name, golden)
        else:
            yield Check(file, f"{name}, which is not compared", float("inf"), 0)


CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {"text.json": text, "recipes.json": recipes}
