"""``onepeace fit | validate | test``: Lightning's trainer by configuration."""

import json
import logging
import os
import re
import shlex
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Classes that configurations name without their module must have been imported.
import onepeace_lightning.data.datamodule
import onepeace_lightning.tasks  # noqa: F401
from onepeace_lightning.checkpoints.atomic import AtomicCheckpointIO
from onepeace_lightning.cli import configurations, runs
from onepeace_lightning.cli.faults import plain
from onepeace_lightning.cli.loggers import LOGGERS, log_configuration, logger
from onepeace_lightning.cli.user_modules import import_modules, without_imports
from onepeace_lightning.data.bad_samples import TooManyBadSamplesError, TooManyLostShardsError
from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.training.data_counts import DataCounts
from onepeace_lightning.training.failures import FiniteLoss, LostProcess
from onepeace_lightning.training.probe import OnlineProbe  # noqa: F401 (a configuration names it without its module)
from onepeace_lightning.training.progress import Announcement, StepBar
from onepeace_lightning.training.record import RunRecord
from onepeace_lightning.training.strategy import FullyShardedStrategy

USER_FAULTS = (
    ArgumentError, ValueError, OSError, ImportError, MisconfigurationException, FloatingPointError,
    TooManyBadSamplesError,
    TooManyLostShardsError,
)  # fmt: skip
"""Errors that say what the user can mend."""

_PATIENCE = 5.0
"""Seconds that another rank waits for the first one to speak for it."""

_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def best_precision() -> str:
    """``bf16-mixed`` where the GPU, or without one the processor, is fast at bfloat16 matrices; else ``32-true``."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    abilities = torch.cpu.get_capabilities()
    # Processors with avx512_fp16 are made to do this in AMX; where a virtual machine hides it, float32 is faster.
    vectors = abilities.get("avx512_bf16") and not abilities.get("avx512_fp16")
    return "bf16-mixed" if abilities.get("amx_bf16") or vectors else "32-true"


class SaveRunConfig(SaveConfigCallback):
    """Writes the configuration into the run's folder when training starts, so that a run that never did leaves none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / runs.CONFIG_FILE, skip_none=False, overwrite=True)
            log_configuration(trainer, self.parser.dump(self.config, format="json"))


class OnePeaceCLI(LightningCLI):
    """LightningCLI with what tasks and data must agree on said once, and a folder for each run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tie the model's view of the data to where it is configured; a run's name, and modules of the user."""
        parser.add_argument("--run", type=str | None, help="name of the run (runs/NAME) or its folder")
        parser.add_argument("--import", type=list[str] | None, help="modules to import first")
        parser.add_argument("--logger", type=str | None, help=f"as --trainer.logger: {', '.join(LOGGERS)}")
        parser.link_arguments("data.init_args.tokenizer", "model.init_args.tokenizer")
        parser.link_arguments("data.init_args.preprocessing", "model.init_args.preprocessing", compute_fn=_given)
        parser.link_arguments("data.init_args.train", "model.init_args.data_types", compute_fn=_data_types)

    def before_instantiate_classes(self) -> None:
        """Find the run's folder, refuse one that is used, and fill in what only this project means."""
        config = self._configured()
        trainer = config.trainer
        if trainer.strategy == "fsdp":  # this project's sharding, not Lightning's older one
            trainer.strategy = Namespace(
                class_path=f"{FullyShardedStrategy.__module__}.{FullyShardedStrategy.__name__}", init_args=Namespace()
            )
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch == 1:
            trainer.check_val_every_n_epoch = None  # an interval in steps counts through epochs
        given = config.get("ckpt_path")
        self.folder = runs.run_folder(config.get("run") or trainer.default_root_dir or "run")
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # the table of results says it better
            own = config.get("run") or trainer.default_root_dir
            if given and not own and (found := runs.run_of(given)):
                self.folder = found
        if self.subcommand == "fit":
            if not given:
                runs.refuse_used(self.folder)  # on every rank: nobody waits for one that has refused
        elif given:
            config.ckpt_path = runs.checkpoint_in(self.folder, given)
        trainer.default_root_dir = str(self.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer with what every run has; checkpoint files are written so that a failure leaves the last.

        Raises:
            ValueError: a sharded checkpoint is to be written to a URL.
        """
        config = self._get(self.config_init, "trainer")
        training = self.subcommand in ("fit", None)
        if config.get("logger") in (None, True):
            config["logger"] = logger(self._configured().logger or "tensorboard", self.folder) if training else False
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        made = runs.callbacks(
            self.folder, self.model, self.datamodule, given, training=training, logged=config["logger"] is not False
        )
        if config.get("enable_checkpointing") is False:
            made = [callback for callback in made if not isinstance(callback, ModelCheckpoint)]
        elif not training:
            config["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in given)
        # First, so that it has left the terminal when others print.
        bar = [] if config.get("enable_progress_bar") is False else [StepBar()]
        config["callbacks"] = [*bar, *given, *made]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Find the checkpoint that is meant by ``last``; of processes on several machines the first one says it.

        Raises:
            ValueError: Lightning itself starts the processes of several machines, each of which would look by itself.
        """
        config = self.config_init["fit"]
        if config.get("ckpt_path") != "last":
            return
        strategy = self.trainer.strategy
        # Lightning starts the others of a single machine itself, later; they see the files that this one sees.
        environment = getattr(strategy, "cluster_environment", None)
        if together := environment is not None and not isinstance(environment, LightningEnvironment):
            strategy.setup_environment()
        elif self.trainer.num_nodes > 1:
            raise ValueError(
                "--ckpt_path last: on several machines start the processes with torchrun or srun, so that the first"
                " one says for all which checkpoint it is; or give its path"
            )
        path = runs.last_checkpoint(self.trainer) if self.trainer.is_global_zero or not together else None
        if together:
            path = strategy.broadcast(path)
        if path is None and self.trainer.is_global_zero:
            print(f"{self.folder} has no checkpoint to go on with: the run starts anew")
        config.ckpt_path = path

    def after_fit(self) -> None:
        """Say it where nothing has been written of what was trained."""
        savers = [saver for saver in self.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        written = any(saver.best_model_path or saver.last_model_path for saver in savers)
        if savers and not written and self.trainer.global_step and self.trainer.is_global_zero:
            print(
                "no checkpoint was written: the run ended before the first that the configuration's callbacks would"
                " have written; with save_last: true a ModelCheckpoint writes one at the end"
            )

    def _configured(self) -> Namespace:
        return self.config[self.subcommand] if self.subcommand else self.config


def run(name: str, words: Sequence[str]) -> None:
    """Carry out one of Lightning's subcommands; what is wrong with the user's files ends it in words."""
    quieten()
    try:
        command_line([name, *words])
    except USER_FAULTS as error:
        if os.environ.get("ONEPEACE_TRACEBACK"):
            raise
        _end(name, error)


def command_line(args: Sequence[str], *, run: bool = True) -> OnePeaceCLI:
    """Parse and instantiate; with ``run`` also carry out the subcommand, without it there is none in ``args``."""
    subcommand, words = (list(args[:1]), args[1:]) if run else ([], args)
    warnings.filterwarnings("ignore", ".*args parameter is intended.*")  # configurations are put together before
    return OnePeaceCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        trainer_defaults={
            "precision": best_precision(),
            "gradient_clip_val": 3.0,
            "log_every_n_steps": 10,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": [
                *(Announcement(), DataCounts(), FiniteLoss(), LostProcess()),
                RunRecord(shlex.join(["onepeace", *args])),
            ],
        },
        parser_kwargs={
            "exit_on_error": False,
            **{
                name: {
                    "exit_on_error": False,
                    "usage": configurations.trainer_usage(name),
                    "description": None,
                }
                for name in OnePeaceCLI.subcommands()
            },
        },
        args=[*subcommand, *laid_over(words)],
        run=run,
    )


def laid_over(words: Sequence[str]) -> list[str]:
    """A command line whose configurations, by path or name, are laid over each other and given as one.

    Modules to import, of the command line or of a configuration, are imported.

    Raises:
        ValueError: there is no such configuration.
        ImportError: there is no such module.
    """
    words, modules = without_imports(words)
    given: list[str] = []
    rest: list[str] = []
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            given.append(value if equals else next(following, ""))
        elif option == "--trainer.logger":
            named = value if equals else next(following, "")
            rest.append(f"--logger={named}" if named in LOGGERS else f"--trainer.logger={named}")
        else:
            rest.append(word)
    settings, rest = _preprocessing(rest)
    whole = configurations.merged(given)
    trainer = whole.get("trainer") or {}
    if isinstance(trainer.get("logger"), str) and trainer["logger"] in LOGGERS:
        whole["logger"] = trainer.pop("logger")
    if settings and isinstance(data := whole.get("data"), dict):
        whole["data"] = configurations.laid_over(data, {"init_args": {"preprocessing": settings}})
    elif settings:
        rest.append(f"--data.preprocessing={json.dumps(settings)}")
    modules = [*(whole.get("import") or []), *modules]
    import_modules(modules)
    if modules:
        whole["import"] = modules
    own = trainer.get("default_root_dir")
    if given and not whole.get("run") and not own:
        whole["run"] = configurations.run_name(given)
    return ["--config", json.dumps(whole), *rest] if whole else rest


_PREPROCESSING = re.compile(r"--data\.(?:init_args\.)?preprocessing\.(\w+)\.(\w+)")


def _preprocessing(words: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Settings that are given one by one, ``--data.preprocessing.image.size=128``, and the other words.

    Raises:
        ValueError: no value follows.
    """
    settings: dict[str, dict[str, Any]] = {}
    rest: list[str] = []
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        if found := _PREPROCESSING.fullmatch(option):
            given = value if equals else next(following, None)
            if given is None:
                raise ValueError(f"{option} needs a value, such as {option}=…")
            settings.setdefault(found[1], {})[found[2]] = _value(given)
        else:
            rest.append(word)
    return settings, rest


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _data_types(train: Any) -> list[str]:
    """What the training streams by name hold: the type that a stream says, or is named, or else has in its manifest."""
    if not isinstance(train, dict) or {"path", "sources"} & set(train):  # the one stream of a downstream task
        return []

    def held(name: str, stream: Any) -> str:
        # jsonargparse may hand over a class's arguments with its name.
        settings = (stream or {}).get("init_args") or stream or {}
        if said := settings.get("data_type"):
            return str(said)
        try:
            return str(data_type(name))
        except ValueError:
            first: Any = next(iter(settings.get("sources") or ()), {})
            return read_manifest(settings.get("path") or (first.get("init_args") or first)["path"]).data_type

    return sorted({held(name, stream) for name, stream in train.items()})


def _given(preprocessing: Any) -> dict[str, Any]:
    """The data's settings, of which sizes of the model follow; its defaults are settings too."""
    return dict(preprocessing or {})


_KNOWN = (
    ".*does not have many workers.*", ".*isinstance.treespec, LeafSpec.*",
    ".*litlogger.*", ".*tensorboardX.*", ".*MLFlow only allows.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The number of training batches.*", ".*lr_scheduler.step.*", ".*Be aware that when using `ckpt_path`.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
)  # fmt: skip
"""Warnings of Lightning about what is meant to be so."""


def quieten() -> None:
    """Lightning's notes on what it found are said by this project in one line, or not at all."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in _KNOWN:
        warnings.filterwarnings("ignore", text)


def _end(name: str, error: BaseException) -> NoReturn:
    """Say what was wrong, once for all ranks where all have met it."""
    rank = next((os.environ[key] for key in _RANKS if os.environ.get(key, "0") != "0"), "")
    if rank:
        # A fault that the first rank has met too has ended this process by then.
        time.sleep(_PATIENCE)
    speaker = f"onepeace {name}{f' (rank {rank})' if rank else ''}"
    sys.exit(f"{speaker}: {plain(str(error))}\n(ONEPEACE_TRACEBACK=1 shows where it happened)")
