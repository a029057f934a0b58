"""The ``onepeace`` command. Nothing heavy is imported before a command needs it."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

_FUNCTIONS = "onepeace_lightning."


@dataclass(frozen=True)
class Command:
    """What the command line offers under a name.

    Attributes:
        summary: one line for ``onepeace --help``.
        function: module below this package and function, ``module:function``; "" for what a configuration runs.
        extra: the package's extra that it needs.
    """

    summary: str
    function: str = ""
    extra: str = ""


TRAINER = {
    "fit": Command("train a model as a configuration says"),
    "validate": Command("measure a checkpoint on a configuration's validation data"),
    "test": Command("measure a checkpoint on a configuration's test data"),
}
"""Commands of Lightning's trainer, by configuration."""

COMMANDS = {
    "train": Command("train a classifier or a retrieval model in one go", "cli.train:train"),
    "configs": Command("list the configurations that come with this package", "cli.configurations:print_names"),
    "configs copy": Command("copy one of them, to edit it", "cli.configurations:copy"),
    "convert": Command("write a model in another format", "tasks.convert:convert"),
    "embed": Command("embed images, audio or texts into a file", "inference.embed:embed"),
    "export": Command("write embeddings or answers as ONNX or pt2", "tasks.export:export", "export"),
    "index": Command("build an index over embeddings, to search millions", "inference.index:index", "index"),
    "predict": Command("answer with a trained task", "tasks.predict:predict"),
    "search": Command("find what is nearest to a query in files of embeddings", "inference.search:search", "index"),
    "serve": Command("serve embeddings and search over HTTP", "inference.server:serve", "serve"),
    "shards from-coco": Command("make training data of COCO's boxes and masks", "data.from_coco:from_coco"),
    "shards from-csv": Command("make training data of a table and its files", "data.from_table:from_csv"),
    "shards from-folder": Command("make training data of a folder of files", "data.from_folder:from_folder"),
    "shards from-hf": Command("make training data of a saved Hugging Face data set", "data.from_table:from_hf", "hf"),
    "shards from-parquet": Command("make training data of Parquet files", "data.from_table:from_parquet"),
    "shards from-tsv": Command("make training data of the original's tables", "data.from_tsv:from_tsv"),
    "shards manifest": Command("count and check shards that were made elsewhere", "data.make_manifest:manifest"),
}
"""All other commands."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    try:
        _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough: onepeace configs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(args: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if args is None else args)
    first = words[0] if words else "--help"
    if first in ("--help", "-h"):
        print(usage())
    elif first == "--version":
        print(f"onepeace {version('onepeace-lightning')}")
    elif first in TRAINER:
        _train(first, words[1:])
    else:
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else first
        if name in COMMANDS:
            _call(name, words[len(name.split()) :])
        elif group := [command for command in COMMANDS if command.startswith(f"{first} ")]:
            if words[1:] in ([], ["--help"], ["-h"]):
                print(usage(group))
            else:
                sys.exit(f"onepeace {first}: there is no {words[1]!r}; it has {', '.join(c.split()[1] for c in group)}")
        else:
            sys.exit(f"onepeace: there is no command {first!r}\n\n{usage()}")


def usage(names: Sequence[str] | None = None) -> str:
    """The commands with a line each.

    Args:
        names: which; None for all.
    """
    everything = {**TRAINER, **COMMANDS}
    chosen = everything if names is None else {name: everything[name] for name in names}
    lines = [f"  {name:<20} {command.summary}" for name, command in chosen.items()]
    return "\n".join([
        "usage: onepeace COMMAND …      onepeace COMMAND --help      onepeace --version", "", *lines, "",
        "onepeace fit --config pretrain/toy --run mine",
        "    trains, and keeps all that it writes in runs/mine",
        "onepeace COMMAND … --import MODULE",
        "    imports a module of yours first",
    ])  # fmt: skip


def _train(name: str, words: list[str]) -> None:
    if not words:
        from onepeace_lightning.cli.configurations import trainer_usage

        print(
            f"usage: {trainer_usage(name)}\n\n"
            f"onepeace configs\n    names of configurations\n"
            f"onepeace {name} --help\n    every key that can be given, such as --trainer.max_steps=100"
        )
        sys.exit(2)
    from onepeace_lightning.cli.trainer import run

    run(name, words)


def _call(name: str, words: list[str]) -> None:
    """Run one of ``COMMANDS``; what is wrong with the user's files ends it in words, a traceback would bury them."""
    from onepeace_lightning.cli.options import call
    from onepeace_lightning.cli.user_modules import import_modules, without_imports

    words, modules = without_imports(words)
    try:
        import_modules(modules)
        module, _, function = COMMANDS[name].function.partition(":")
        call(getattr(importlib.import_module(_FUNCTIONS + module), function), words, prog=f"onepeace {name}")
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ONEPEACE_TRACEBACK"):
            raise
        extra = COMMANDS[name].extra if isinstance(error, ModuleNotFoundError) else ""
        hint = f"; install what it needs: pip install 'onepeace-lightning[{extra}]'" if extra else ""
        sys.exit(f"onepeace {name}: {error}{hint}")
