"""A function's arguments as options of a command; what is typed reaches it as it is typed."""

import argparse
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser


def call(function: Callable[..., None], words: Sequence[str], prog: str) -> None:
    """Call a function with the arguments that a command line gives it; without any, print its usage.

    Arguments before the ``*`` of the signature stand alone, those after it are options. A text is taken literally:
    "null", "~" and "#sunset" are texts.

    Raises:
        SystemExit: the words are no arguments of the function, after a line that says why.
    """
    parser = make_parser(function, prog)
    if not words and any(p.default is p.empty for p in inspect.signature(function).parameters.values()):
        parser.print_help()
        raise SystemExit(2)
    given = vars(parser.parse_intermixed_args([_hyphenated(word) for word in words]))
    function(**given)


def make_parser(function: Callable[..., None], prog: str) -> argparse.ArgumentParser:
    """A parser for a function with a Google docstring."""
    documented = docstring_parser.parse(function.__doc__ or "")
    about = {part.arg_name: (part.description or "").replace("\n", " ") for part in documented.params}
    parameters = inspect.signature(function, eval_str=True).parameters
    about = {name: _as_options(text, parameters) for name, text in about.items()}
    parser = argparse.ArgumentParser(prog=prog, description=_paragraphs(documented), allow_abbrev=False)
    for name, parameter in parameters.items():
        _add(parser, name, parameter, about.get(name, ""))
    return parser


def _add(parser: argparse.ArgumentParser, name: str, parameter: inspect.Parameter, about: str) -> None:
    kind = _without_none(parameter.annotation)
    if kind == dict[str, str]:
        _add_modalities(parser, name, about)
        return
    required = parameter.default is parameter.empty
    if not required and parameter.default is not None and kind is not bool:
        about = f"{about} (default: {parameter.default})"
    settings: dict[str, Any] = {"help": about.replace("%", "%%")}  # argparse fills templates in
    if get_origin(kind) is list:
        settings |= {"nargs": "+", "type": get_args(kind)[0]}
    elif get_origin(kind) is dict:
        settings |= {"nargs": "+", "type": _named, "action": _Named}
    elif get_origin(kind) is Literal:
        settings |= {"choices": get_args(kind)}
    elif kind is bool:
        settings |= {"action": argparse.BooleanOptionalAction if parameter.default else "store_true"}
    else:
        settings |= {"type": kind}
    if parameter.kind is parameter.KEYWORD_ONLY:
        if kind is not bool and get_origin(kind) is not Literal:
            settings["metavar"] = "NAME=NUMBER" if get_origin(kind) is dict else name.upper()
        settings |= {"required": required, "default": None if required else parameter.default}
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, **settings)
    else:
        parser.add_argument(name, **settings)


def _add_modalities(parser: argparse.ArgumentParser, argument: str, about: str) -> None:
    """``--image FOLDER``, or ``--image-col NAME``, as an entry of an argument that maps modalities."""
    from onepeace_lightning.modalities.registry import modalities

    column = argument == "columns"
    group = parser.add_argument_group("column of each modality" if column else "modalities", about)
    parser.set_defaults(**{argument: {}})
    for name in modalities():
        group.add_argument(
            f"--{name}-col" if column else f"--{name}", action=_Entry, dest=argument, default=argparse.SUPPRESS,
            metavar="COLUMN" if column else name.upper(), const=name, nargs=None,
        )  # fmt: skip


class _Entry(argparse.Action):
    """One entry of a mapping."""

    def __init__(self, *, const: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.key = const

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), self.key: values})


class _Named(argparse.Action):
    """``--weights text=1 audio=-0.5`` as a mapping."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, dict(values))


def _named(word: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=NUMBER, such as text=0.5") from None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        # Of several kinds the command line can give the first.
        annotation = next(part for part in get_args(annotation) if part is not types.NoneType)
    return annotation


def _as_options(text: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """Words of a docstring as a terminal shows them: a parameter is called as its option."""

    def option(match: re.Match[str]) -> str:
        parameter = parameters.get(match[1])
        is_option = parameter is not None and parameter.kind is parameter.KEYWORD_ONLY
        return f"--{match[1].replace('_', '-')}" if is_option else match[1]

    return re.sub("``(.+?)``", option, text)


def _paragraphs(documented: docstring_parser.Docstring) -> str:
    parts = (documented.short_description, documented.long_description)
    return "\n\n".join(part for part in parts if part).replace("``", "")


def _hyphenated(word: str) -> str:
    """``--image_col`` is ``--image-col``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
