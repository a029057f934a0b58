"""Code blocks of pages in Markdown, as commands and programs in their order."""

import re
import shlex
from typing import NamedTuple

PYTHON = "python"


class Block(NamedTuple):
    """A block of code: its language, "" where the page says none, and its text."""

    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks and the indented ones of a page, in their order."""
    found: list[Block] = []
    language, lines, before = None, [], ""
    for line in [*page.splitlines(), ""]:
        fence = re.match(r"```(\w*)", line)
        if language is not None and language != "indented":
            if fence:
                found.append(Block(language, "\n".join(lines)))
                language, lines = None, []
            else:
                lines.append(line)
        elif fence:
            if lines:
                found.append(Block("", "\n".join(lines).strip()))
            language, lines = fence[1], []
        elif line.startswith("    ") and (language == "indented" or not before.strip()):
            language = "indented"
            lines.append(line[4:])
        elif language == "indented" and line.strip():
            found.append(Block("", "\n".join(lines).strip()))
            language, lines = None, []
        before = line
    if lines:
        found.append(Block("", "\n".join(lines).strip()))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of a block's command lines; lines that end in a backslash go on."""
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_shell(block: Block) -> bool:
    """Whether a block is typed in a terminal."""
    words = block.text.split()
    return block.language in ("bash", "sh") or (
        block.language == "" and bool(words) and words[0] in ("onepeace", "pip", "make", "curl", "python", "git", "cd")
    )
