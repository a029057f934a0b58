"""Pickles with foreign classes: what they hold can be had, and nothing in them runs."""

import argparse
import enum
import functools
import operator
import os
import pickle
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from onepeace_lightning.checkpoints.loading import read_file

WAYS = ("torch.save", "torch.save before 1.6", "pickle")


class Registered(dict):
    """A dictionary of its own kind, as configurations are."""


class Rows(list):
    """A list of its own kind."""


class Mode(enum.Enum):
    FAST = "fast"


class Node:
    """As OmegaConf's, with a parent and a value."""

    def __init__(self, value, parent=None):
        key = "_content" if isinstance(value, (dict, list)) else "_val"
        self.__dict__.update({"_metadata": object(), "_parent": parent, key: value})


def act(path):
    Path(path).touch()


@pytest.fixture
def elsewhere(monkeypatch):
    """A package that is there when a file is written and gone when it is read."""
    module = types.ModuleType("otherpackage.things")
    for thing in (Registered, Rows, Mode, Node, act):
        monkeypatch.setattr(thing, "__module__", module.__name__)
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "otherpackage", types.ModuleType("otherpackage"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return lambda: [sys.modules.pop(name) for name in ("otherpackage", module.__name__)]


def write(content, path, way):
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch.save")
    return path


def configuration():
    root = Node({})
    root.__dict__["_content"] = {"lr": Node(0.5, root), "list": Node([Node(1, root), Node("a", root)], root)}
    return root


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: argparse.Namespace(lr=1, name="a"), {"lr": 1, "name": "a"}),
        (lambda: Registered(a=1, b=Registered(c=[2])), {"a": 1, "b": {"c": [2]}}),
        (lambda: Rows([1, 2]), [1, 2]),
        (lambda: Mode.FAST, "fast"),
        (lambda: configuration(), {"lr": 0.5, "list": [1, "a"]}),
        (lambda: np.float64(2.5), 2.5),
        (lambda: np.int32(7), 7),
    ],
    ids=["namespace", "dictionary", "list", "enum", "configuration", "float64", "int32"],
)
def test_foreign_objects_become_plain_data(make, expected, way, tmp_path, elsewhere):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "half": torch.ones(3, dtype=torch.float16)}
    path = write({"foreign": make(), "model": tensors}, tmp_path / "file", way)
    elsewhere()
    content, found = read_file(path)
    assert content["foreign"] == expected
    assert found
    assert all(torch.equal(tensor, content["model"][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("way", WAYS)
def test_arrays_of_numpy_are_arrays(way, tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    content, _ = read_file(write({"array": array}, tmp_path / "file", way))
    assert np.array_equal(content["array"], array)


def test_numbers_under_numpys_old_name(tmp_path):
    data = pickle.dumps({"best": np.float64(0.25)}, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "file").write_bytes(data)
    assert read_file(tmp_path / "file") == ({"best": 0.25}, ["numpy.core.multiarray.scalar", "numpy.dtype"])


def test_tensors_beside_foreign_objects_stay_mapped(tmp_path, elsewhere):
    weights = torch.arange(100_000.0)
    path = write({"args": argparse.Namespace(a=1), "model": {"w": weights}}, tmp_path / "file", "torch.save")
    loaded = read_file(path)[0]["model"]["w"]
    data = bytearray(path.read_bytes())
    at = data.index(weights.numpy().tobytes()[:4096])
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(torch.full((4,), 9.0).numpy().tobytes())
    assert loaded[:4].tolist() == [9.0] * 4  # read from the file only now


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), r"posix\.system"),
        (eval, ("open({!r}, 'w')",), r"builtins\.eval"),
        (exec, ("open({!r}, 'w')",), r"builtins\.exec"),
        (getattr, (os, "system"), r"builtins\.getattr"),
        (operator.methodcaller, ("system",), r"operator\.methodcaller"),
        (functools.partial, (print, 1), r"functools\.partial"),
        (subprocess.Popen, (["touch", "{}"],), r"subprocess\.Popen"),
        (act, ("{}",), r"a call of otherpackage\.things\.act"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_act_is_refused_by_name(function, arguments, named, way, tmp_path, elsewhere):
    target = str(tmp_path / "touched")
    filled = [argument.format(target) if isinstance(argument, str) else argument for argument in arguments]
    if function is getattr:
        filled = ["text", "upper"]
    path = write({"model": {}, "x": Calls(function, *filled)}, tmp_path / "file", way)
    elsewhere()
    with pytest.raises(ValueError, match=rf"file is refused: it holds {named}, which is code"):
        read_file(path)
    assert not Path(target).exists()


@pytest.mark.parametrize(
    ("module", "name", "named"),
    [
        ("os", "system", r"os\.system"),
        ("__builtin__", "eval", r"builtins\.eval"),
        ("builtins", "object.__subclasses__", r"builtins\.object\.__subclasses__"),
        ("collections", "OrderedDict.__reduce_ex__", r"collections\.OrderedDict\.__reduce_ex__"),
        ("numpy", "load", r"numpy\.load"),
        ("numpy.core.multiarray", "fromstring", r"numpy\.core\.multiarray\.fromstring"),
        ("torch", "load", r"torch\.load"),
        ("torch.serialization", "os.system", r"torch\.serialization\.os\.system"),
        ("torch._utils", "_import_dotted_name", r"torch\._utils\._import_dotted_name"),
        ("datetime", "sys.modules", r"a call of datetime\.sys\.modules|datetime\.sys"),
        ("pathlib", "os.system", r"pathlib\.os\.system"),
        ("omegaconf.dictconfig", "DictConfig.__init__.__globals__", r"a call of omegaconf"),
        ("mmcv.utils", "os.system", r"a call of mmcv\.utils\.os\.system"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_names_that_a_hand_written_pickle_may_ask_for_are_refused(module, name, named, zipped, tmp_path):
    """Dotted names, Python 2's names, and functions of packages whose data are read; nothing is imported or called."""
    before = set(sys.modules)
    content = b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"(S'x'\ntR."
    path = tmp_path / "file"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="refused") as refusal:
        read_file(path)
    assert re.search(named, str(refusal.value))
    assert not {"omegaconf", "mmcv"} & (set(sys.modules) - before)


def test_an_object_cannot_rename_the_class_that_it_is_of(tmp_path):
    """A state that is given to a class itself, not to one of its objects."""
    (tmp_path / "file").write_bytes(b"\x80\x04cmmcv.utils\nConfig\n}(S'full_name'\nS'os.system'\nub.")
    with pytest.raises(ValueError, match=r"file (is refused|cannot be read)"):
        read_file(tmp_path / "file")


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_module_is_refused(way, tmp_path):
    path = write({"model": torch.nn.Linear(2, 2)}, tmp_path / "file", way)
    with pytest.raises(ValueError, match=r"refused: it holds torch\.nn\.modules\.linear\.Linear"):
        read_file(path)


def test_bytes_of_tensors_are_read_without_code_too(tmp_path):
    """A plain pickle holds each tensor as a file of its own; code in that one does not run either."""
    import io

    inner = io.BytesIO()
    torch.save(Calls(print, "executed"), inner)
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue())))
    with pytest.raises(ValueError, match="refused"):
        read_file(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "one-peace.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n")
    with pytest.raises(ValueError, match=r"one-peace\.pt is a pointer of Git LFS .* 'git lfs pull'"):
        read_file(tmp_path / "one-peace.pt")


@pytest.mark.parametrize("content", [b"", b"\x80", b"<html>", b"\x80\x04K\x01", b"PK\x03\x04"])
def test_damaged_files_are_one_clear_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"file (is refused|cannot be read)"):
        read_file(tmp_path / "file")
