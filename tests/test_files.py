import os
from pathlib import Path

import pytest

from onepeace_lightning.files import check_fetched, check_name, files_below, printable

STRANGE = os.fsdecode(b"caf\xe9.png")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_links_are_followed_once_and_hidden_things_left_out(tmp_path):
    for name in ("a/x.png", "a/.DS_Store", "a/.ipynb_checkpoints/x.png", "real/deep/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "a" / "more").symlink_to("../real")
    (tmp_path / "a" / "file.png").symlink_to("../real/deep/y.png")
    (tmp_path / "a" / "gone.png").symlink_to("../nowhere.png")
    (tmp_path / "real" / "deep" / "loop").symlink_to("..")
    found = [path.relative_to(tmp_path / "a").as_posix() for path in files_below(tmp_path / "a")]
    assert found == ["file.png", "more/deep/y.png", "x.png"]


def test_a_name_of_another_encoding_is_spelled_out_and_refused():
    assert printable(STRANGE) == "caf\\xe9.png"
    assert printable("café.png") == "café.png"
    check_name("café.png")
    with pytest.raises(ValueError, match=r"caf\\xe9\.png is no UTF-8; rename"):
        check_name(STRANGE)


def test_a_pointer_in_the_place_of_a_file_is_told(tmp_path):
    path = Path(tmp_path / "model.ckpt")
    path.write_bytes(b"version 2")
    check_fetched(path)
    path.write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"model\.ckpt is a Git LFS pointer .*git lfs pull"):
        check_fetched(path)
