"""What a parser finds wrong, in the words of who typed it."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

import lightning as L

_NO_CLASS = "Expected a dot import path string: "
_OF_OTHER_TYPES = (_NO_CLASS, "Expected a <class 'list'>", "Expected a <class 'NoneType'>")
"""Reasons why a value is not of another type than the one that is meant: they say something only where they are all."""
_FRAME = re.compile(r"(?:Does not validate against any|Subtypes: |Errors:$|Given value type)")


def plain(message: str) -> str:
    """An error without what a parser says of types; its reasons are what was wrong."""
    if "gpu backend" in message:
        return f"{message} Give --trainer.accelerator cpu to go without one"
    if message.startswith("unrecognized arguments: "):
        return _unknown_argument(message)
    _, found, reasons = message.partition("Errors:\n")
    if not found:
        return "\n".join(_worded(message.splitlines())) if message.startswith("Parser key ") else message
    lines = [line for line in reasons.partition("Given value type")[0].splitlines() if line.strip()]
    lines = [line for line in lines if not _FRAME.match(line.strip())]
    telling = [line for line in lines if not line.strip(" -").startswith(_OF_OTHER_TYPES)]
    lines = telling or [line for line in lines if _NO_CLASS in line] or lines
    key = message.partition("Parser key ")[2].partition(":")[0].strip('"')
    return "\n".join([f"{key}:" if key else "", *_worded(lines)]).strip()


def _worded(lines: Iterable[str]) -> list[str]:
    """Lines of reasons, indented by two for each level."""
    worded, cls, levels = [], "", [0]
    for line in lines:
        text = line.lstrip(" -")
        depth = len(line) - len(text)
        while depth < levels[-1]:
            levels.pop()
        if depth > levels[-1]:
            levels.append(depth)
        if match := re.fullmatch(r"Problem with given class_path '([\w.]+)':", text):
            cls = match[1]
            text = f"{cls.rpartition('.')[2]}:"
        elif match := re.fullmatch(r"Option '(\w+)' is not accepted", text):
            text += _instead(match[1], _parameters(cls))
        elif match := re.fullmatch(r'Parser key "([\w.]+)":', text):
            text = f"{match[1]}:"
        elif match := re.fullmatch(r"Expected a <class '([\w.]+)'>\. Got value: (.*)", text):
            text = f"{match[2]!r} is not of type {match[1]}"
        elif text.startswith(_NO_CLASS):
            name = text.removeprefix(_NO_CLASS)
            text = f"there is no class {name!r}; one of your own is found with --import MODULE or as MODULE.CLASS"
        worded.append(f"{'  ' * (len(levels) - 1)}{text}")
    return worded


def _unknown_argument(message: str) -> str:
    """An option that does not exist, with the one that is meant."""
    given = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
    known = [f"--trainer.{name}" for name in inspect.signature(L.Trainer.__init__).parameters]
    known += ["--run", "--ckpt_path", "--import", "--logger", "--seed_everything", "--config", "--model", "--data"]
    return f"{message}{_instead(given, known)} (`onepeace fit --help` lists all)"


def _parameters(cls: str) -> list[str]:
    module, _, name = cls.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def _instead(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; accepted are {', '.join(known)}" if known and not known[0].startswith("--") else ""
