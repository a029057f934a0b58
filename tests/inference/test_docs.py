"""The commands of docs/search.md, in their order, on a tiny model and tiny files."""

import re
import shlex
import shutil
from pathlib import Path

from onepeace_lightning.cli import main
from tests.conftest import ROOT
from tests.inference.conftest import save_original


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.strip().splitlines()]


def test_every_command_of_the_page_runs(here):
    save_original(here)
    shutil.copy("sounds/0.wav", "siren.wav")
    typed = commands((ROOT / "docs" / "search.md").read_text())
    assert {words[1] for words in typed} == {"convert", "embed", "index", "search"}
    written = []
    for program, *words in typed:
        assert program == "onepeace"
        main(words)
        default = f"{words[1]}.index" if words[0] == "index" else "search.html"
        written.append(words[words.index("--out") + 1] if "--out" in words else default)
    assert [name for name in written if not Path(name).exists()] == []
