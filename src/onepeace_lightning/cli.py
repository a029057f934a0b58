"""The ``onepeace`` command: ``fit | validate | test`` by configuration, and the commands of ``COMMANDS``."""

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jsonargparse import Namespace, auto_cli
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from onepeace_lightning.checkpoints.atomic import AtomicCheckpointIO
from onepeace_lightning.data import make_shards
from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.data.from_coco import from_coco
from onepeace_lightning.data.from_tsv import from_tsv
from onepeace_lightning.data.shards import read_manifest
from onepeace_lightning.inference.embed import embed
from onepeace_lightning.inference.search import bracketed, search
from onepeace_lightning.modalities.base import modalities
from onepeace_lightning.tasks.convert import convert
from onepeace_lightning.tasks.predict import predict
from onepeace_lightning.training.failures import FiniteLoss, LostProcess
from onepeace_lightning.training.strategy import FullyShardedStrategy

COMMANDS: dict[str, Any] = {
    "convert": convert,
    "embed": embed,
    "predict": predict,
    "search": search,
    "shards": {
        "from-coco": from_coco,
        "from-csv": make_shards.from_csv,
        "from-folder": make_shards.from_folder,
        "from-tsv": from_tsv,
        "manifest": make_shards.manifest,
    },
}
"""Functions, whose arguments are the options, or groups of them."""


def best_precision() -> str:
    """``bf16-mixed`` where the GPU, or without one the processor, is fast at bfloat16 matrices; else ``32-true``."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    abilities = torch.cpu.get_capabilities()
    # Processors with avx512_fp16 are made to do this in AMX; where a virtual machine hides it, float32 is faster.
    vectors = abilities.get("avx512_bf16") and not abilities.get("avx512_fp16")
    return "bf16-mixed" if abilities.get("amx_bf16") or vectors else "32-true"


class OnePeaceCLI(LightningCLI):
    """LightningCLI with what tasks and data must agree on said once."""

    def before_instantiate_classes(self) -> None:
        """Let ``--trainer.strategy fsdp`` mean this project's sharding, not Lightning's older one."""
        trainer = (self.config[self.subcommand] if self.subcommand else self.config).trainer
        if trainer.strategy == "fsdp":
            trainer.strategy = Namespace(
                class_path=f"{FullyShardedStrategy.__module__}.{FullyShardedStrategy.__name__}", init_args=Namespace()
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; checkpoint files are written so that a failure leaves those before as they were."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tie the model's view of the data, and the schedule, to where they are configured."""
        parser.link_arguments("data.init_args.tokenizer", "model.init_args.tokenizer")
        parser.link_arguments("data.init_args.preprocessing", "model.init_args.preprocessing", compute_fn=_given)
        parser.link_arguments("data.init_args.train", "model.init_args.data_types", compute_fn=_data_types)
        parser.link_arguments("trainer.max_steps", "model.init_args.optimization.total_steps", compute_fn=_total_steps)


def _data_types(train: Any) -> list[str]:
    """What the training streams by name hold: the type that a stream says, or is named, or else has in its manifest."""
    if not isinstance(train, dict) or "path" in train:  # the one stream of a downstream task
        return []

    def held(name: str, stream: Any) -> str:
        if said := (stream or {}).get("data_type"):
            return str(said)
        try:
            return str(data_type(name))
        except ValueError:
            return read_manifest(stream["path"]).data_type

    return sorted({held(name, stream) for name, stream in train.items()})


def _given(preprocessing: Any) -> dict[str, Any]:
    """The data's settings, of which sizes of the model follow; its defaults are settings too."""
    return dict(preprocessing or {})


def _total_steps(max_steps: int) -> int | None:
    """None where the run's length is said in epochs."""
    return max_steps if max_steps > 0 else None


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:])
    else:
        command_line(args)


def run_command(name: str, words: Sequence[str]) -> None:
    """Run one of ``COMMANDS``; what is wrong with the user's files ends it in words, a traceback would bury them."""
    try:
        options = list(_options(bracketed(words) if name == "search" else words, _flags(COMMANDS[name])))
        if name in ("embed", "shards"):
            options = _by_modality(name, options)
        auto_cli(COMMANDS[name], args=options, as_positional=True, prog=f"onepeace {name}")
    except (ValueError, OSError) as error:
        sys.exit(f"onepeace {name}: {error}")


def command_line(args: Sequence[str] | None, *, run: bool = True) -> OnePeaceCLI:
    """Parse and instantiate; with ``run`` also carry out the subcommand, without it there is none in ``args``."""
    return OnePeaceCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"precision": best_precision(), "callbacks": [FiniteLoss(), LostProcess()]},
        args=None if args is None else list(args),
        run=run,
    )


def _flags(command: Any) -> set[str]:
    """Options that may stand without a value."""
    if isinstance(command, dict):
        return set().union(*map(_flags, command.values()))
    return {name for name, parameter in inspect.signature(command).parameters.items() if parameter.annotation is bool}


def _options(words: Sequence[str], flags: set[str]) -> Iterator[str]:
    """Options as Python arguments are called (typed with hyphens, they have underscores), flags with their value."""
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if not word.startswith("--"):
            yield word
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        yield f"--{name}{equals}{value}" + ("=true" if name in flags and not equals and following[:2] == "--" else "")


def _by_modality(command: str, options: Sequence[str]) -> list[str]:
    """``--image FOLDER`` and ``--image-col NAME`` as entries of the one argument that maps modalities."""
    given: dict[str, str] = {}
    others: list[str] = []
    words = iter(options)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        key = name if command == "embed" else name.removesuffix("_col")
        mapped = name in modalities() if command == "embed" else key != name
        if word.startswith("--") and mapped:
            given[key] = value if equals else next(words, "")
        else:
            others.append(word)
    argument = {"embed": "items", "shards": "columns"}[command]
    return [*others, f"--{argument}={json.dumps(given)}"] if given else others


if __name__ == "__main__":
    main()
