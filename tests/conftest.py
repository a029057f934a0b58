"""What several test folders share."""

from pathlib import Path

import pytest

from data_recipes.toy import ToyConfig, build

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    """A folder that looks like a checkout in which a very small ``data/toy`` was made."""
    root = tmp_path_factory.mktemp("checkout")
    build(root / "data" / "toy", ToyConfig(pairs=48, singles=16, gallery=16))
    (root / "configs").symlink_to(ROOT / "configs")
    return root
