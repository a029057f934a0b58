"""The ``onepeace`` command: ``fit | validate | test | predict`` by configuration, and ``shards`` to make data."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from onepeace_lightning.data import make_shards
from onepeace_lightning.distributed.saving import AtomicCheckpointIO
from onepeace_lightning.distributed.strategy import FullyShardedStrategy

SHARD_COMMANDS: Any = {
    "from-csv": make_shards.from_csv,
    "from-folder": make_shards.from_folder,
    "manifest": make_shards.manifest,
}


def best_precision() -> str:
    """``bf16-mixed`` where the GPU, or without one the processor, multiplies bfloat16 matrices; else ``32-true``."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    abilities = torch.cpu.get_capabilities()
    return "bf16-mixed" if abilities.get("amx_bf16") or abilities.get("avx512_bf16") else "32-true"


class OnePeaceCLI(LightningCLI):
    """LightningCLI with what tasks and data must agree on said once."""

    def before_instantiate_classes(self) -> None:
        """Let ``--trainer.strategy fsdp`` mean this project's sharding, not Lightning's older one."""
        trainer = (self.config[self.subcommand] if self.subcommand else self.config).trainer
        if trainer.strategy == "fsdp":
            trainer.strategy = FullyShardedStrategy()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; checkpoint files are written so that a failure leaves those before as they were."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tie the model's view of the data, and the schedule, to where they are configured."""
        parser.link_arguments("data.init_args.tokenizer", "model.init_args.tokenizer")
        parser.link_arguments("data.init_args.preprocessing.image_size", "model.init_args.image_size")
        parser.link_arguments("data.init_args.train", "model.init_args.data_types", compute_fn=_data_types)
        parser.link_arguments("trainer.max_steps", "model.init_args.optimization.total_steps", compute_fn=_total_steps)


def _data_types(train: Any) -> list[str]:
    """What the configured training streams hold: a stream is of the type it says, or else of the type it is named."""
    if not isinstance(train, dict):  # the one stream of a downstream task, which need not say what it holds
        return []
    return sorted({(stream or {}).get("data_type") or name for name, stream in train.items()})


def _total_steps(max_steps: int) -> int | None:
    """None where the run's length is said in epochs."""
    return max_steps if max_steps > 0 else None


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] == ["shards"]:
        # Options are typed with hyphens, Python arguments have underscores.
        options = [_underscored(word) if word.startswith("--") else word for word in words[1:]]
        try:
            auto_cli(SHARD_COMMANDS, args=options, as_positional=True, prog="onepeace shards")
        except (ValueError, OSError) as error:  # what is wrong with the user's files; a traceback would bury it
            sys.exit(f"onepeace shards: {error}")
        return
    command_line(args)


def command_line(args: Sequence[str] | None, *, run: bool = True) -> OnePeaceCLI:
    """Parse and instantiate; with ``run`` also carry out the subcommand, without it there is none in ``args``."""
    return OnePeaceCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"precision": best_precision()},
        args=None if args is None else list(args),
        run=run,
    )


def _underscored(option: str) -> str:
    name, equals, value = option[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


if __name__ == "__main__":
    main()
