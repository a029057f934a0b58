"""``python -m tests.parity DIR``: every golden in DIR against this implementation; ``tests/goldens`` has a small set.

Prints file, quantity, largest absolute difference and tolerance; exits with 1 where one is past it, with 2 where
nothing could be compared. Golden files hold inputs and outputs of the original's mathematics in float32 and checkpoints
in its formats. A golden that needs a file which is not there is skipped by name.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.parity import detection, model, recipes, released, vision
from tests.parity.base import Check, MissingFileError

CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {
    **model.CHECKS,
    **released.CHECKS,
    **vision.CHECKS,
    **detection.CHECKS,
    **recipes.CHECKS,
}
"""File in a folder of goldens to what is compared with it; each module of this package has its own."""


def main(folder: Path) -> int:
    """Print every comparison; 0 where all are within tolerance, 1 where one is not, 2 where there was none."""
    files = [name for name in CHECKS if (folder / name).exists()]
    if not files:
        what = f"it holds none of {', '.join(CHECKS)}" if folder.is_dir() else "there is no such folder"
        print(f"{folder}: {what}", file=sys.stderr)
        return 2
    passed = failed = 0
    skipped: list[str] = []
    for file in files:
        try:
            for check in CHECKS[file](folder):
                mark = "ok  " if check.ok else "FAIL"
                figures = f"{check.difference:.2e} (at most {check.tolerance:.0e})"
                print(f"{mark} {check.file:26} {check.quantity:88} {figures}")
                passed, failed = passed + check.ok, failed + (not check.ok)
        except MissingFileError as missing:
            skipped.append(file)
            print(f"skip {file:26} {missing}")
    note = f"; skipped: {', '.join(skipped)}" if skipped else ""
    print(f"{passed} within tolerance, {failed} past it{note}")
    return 1 if failed else 0 if passed else 2
