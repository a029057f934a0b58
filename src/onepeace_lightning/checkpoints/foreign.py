"""Pickles of other projects, read without running any of their code.

``torch.load(…, weights_only=True)`` refuses a file as soon as it names a class that PyTorch does not know: the
configuration of another framework, a scalar of NumPy. Here such a class becomes a stand-in that only remembers what it
was given, so that the tensors beside it can be had. Nothing that a file names is ever imported. What would act if it
were (a function of the standard library, a call of any unknown function) is refused by its name.
"""

import _compat_pickle
import io
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

_LFS = b"version https://git-lfs.github.com/spec/"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of what ``torch.save`` wrote before version 1.6: a pickled magic number."""
_HARMLESS = re.compile(
    r"(argparse|types)\.(Simple)?Namespace|typing\.\w+|enum\.\w+|datetime\.\w+|pathlib(\._local)?\.\w*Path|"
    r"(decimal\.Decimal|fractions\.Fraction|uuid\.UUID)"
)
"""Classes of the standard library that hold data and do nothing."""
_PLAIN_DTYPE = re.compile(r"[biufc]\d+|[SU]\d+")


class Refused(pickle.UnpicklingError):
    """A file names something that could act."""


def read_foreign(path: str | Path) -> tuple[Any, list[str]]:
    """The content of a pickle or of what ``torch.save`` wrote, nothing in it executed.

    Args:
        path: a file. Tensors of a zip file (``torch.save`` since version 1.6) are mapped from disk.

    Returns:
        The content in plain containers, and the names of the classes that stand-ins took the places of.

    Raises:
        Refused: naming what could act.
        pickle.UnpicklingError: where it is damaged.
        RuntimeError, EOFError, OSError: where it cannot be read.
        ValueError: for a pointer of Git LFS in place of the file.
    """
    path = Path(path)
    with path.open("rb") as stream:
        start = stream.read(len(_LFS))
        if start == _LFS:
            raise ValueError(
                f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the file itself; fetch it with"
                " 'git lfs pull'"
            )
        legacy, zipped = start.startswith(_LEGACY), start.startswith(b"PK")
        stream.seek(0)
        if not (legacy or zipped):
            reader = _Reader(stream, whole=True)
            return plain(reader.load()), reader.found
    return _read_saved(path, mapped=zipped)


def _read_saved(path: Path, *, mapped: bool) -> tuple[Any, list[str]]:
    def load() -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        return load(), []
    except pickle.UnpicklingError:
        with path.open("rb") as stream:
            reader = _Reader(io.BytesIO(_pickle_of(path)) if mapped else _after_header(stream), whole=False)
            reader.load()
    if not reader.known:
        return load(), []  # nothing foreign: the error stands
    with torch.serialization.safe_globals([(value, name) for name, value in reader.known.items()]):
        return plain(load()), reader.found


def _pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if not names:
            raise pickle.UnpicklingError(f"{path} is a zip file without data.pkl")
        return archive.read(names[0])


def _after_header(stream: Any) -> Any:
    for _ in range(3):  # magic number, version, sizes of numbers
        _Reader(stream, whole=False).load()
    return stream


def plain(value: Any) -> Any:
    """Stand-ins replaced by what they hold: dictionaries, lists, numbers and texts; tensors stay as they are."""
    return _plain(value, set())


def _plain(value: Any, within: set[int]) -> Any:
    if isinstance(value, type) and isinstance(value, _Foreign):
        return value.full_name
    if not isinstance(value, (StandIn, dict, list, tuple, set, frozenset)):
        return value
    if id(value) in within:  # a part that names its parent
        return type(value).__name__
    within = within | {id(value)}
    if isinstance(value, dict):
        return {_plain(key, within): _plain(item, within) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_plain(item, within) for item in value]
        return parts if isinstance(value, list) else tuple(parts) if isinstance(value, tuple) else set(parts)
    return _plain(value.held(), within)


class _Foreign(type):
    """The type of stand-ins: calling one is what a pickle does with a function or a class."""

    full_name: str
    contains: type | None
    """dict or list, where a file fills its objects like one."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """An object that remembers its arguments, if the name is a class's."""
        is_class = cls.full_name.rpartition(".")[2].lstrip("_")[:1].isupper()
        if not (is_class or _HARMLESS.fullmatch(cls.full_name)):
            raise Refused(f"a call of {cls.full_name}")
        return cls.__new__(cls, *args)  # type: ignore[arg-type]


class StandIn(metaclass=_Foreign):
    """In the place of an object whose class is not imported; it remembers what the file gave it."""

    full_name = "object"
    contains: type | None = None
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Any:
        """As pickle makes an object; what is filled like a dictionary or list is one."""
        if cls.contains is not None:
            return OrderedDict() if cls.contains is dict else []
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state[0] if isinstance(state, tuple) and len(state) == 2 and not state[1] else state

    def held(self) -> Any:
        """What the object holds, as plainly as can be told."""
        if isinstance(self.state, Mapping):
            for key in ("_content", "_val"):  # a container or leaf of OmegaConf
                if key in self.state:
                    return self.state[key]
            return dict(self.state)
        if self.state is not None:
            return self.state
        return self.args[0] if len(self.args) == 1 else list(self.args) or type(self).full_name


class _Filled(StandIn):
    """A stand-in that may turn out to be a dictionary or a list, which its class then remembers."""

    items: Any

    def __new__(cls, *args: Any) -> Any:
        """As pickle makes an object."""
        made = object.__new__(cls)
        made.args, made.state, made.items = args, None, None
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        type(self).contains = dict
        self.items = {**(self.items or {}), key: value}

    def append(self, value: Any) -> None:
        """Hold one more."""
        self.extend([value])

    def extend(self, values: Any) -> None:
        """Hold some more."""
        type(self).contains = list
        self.items = [*(self.items or []), *values]

    def held(self) -> Any:
        """Its items, if it has any; else as any stand-in."""
        return super().held() if self.items is None else self.items


class _Dtype(StandIn):
    """NumPy's number type."""

    full_name = "numpy.Dtype"

    def of(self, data: bytes, what: str) -> np.ndarray:
        """Numbers out of bytes; ValueError for types that hold objects."""
        arguments: Any = getattr(self, "args", ())
        code = arguments[0] if arguments else None
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code) or not isinstance(data, bytes):
            raise Refused(f"{what} of type {code!r}")
        order = self.state[1] if isinstance(self.state, tuple) and self.state[1] in ("<", ">") else "<"
        return np.frombuffer(data, order + code if isinstance(order, str) else code)


class _Array(StandIn):
    """An array of NumPy."""

    full_name = "numpy.Array"

    def held(self) -> Any:
        """The array."""
        _, shape, dtype, fortran, data = self.state
        return dtype.of(data, "an array of NumPy").reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    [value] = dtype.of(data, "a number of NumPy")
    return value.item()


def _new_array(*args: Any) -> _Array:
    return _Array()


def _reconstructed(cls: Any, *args: Any) -> Any:
    return cls.__new__(cls)


def _defaults(*args: Any) -> dict[Any, Any]:
    return {}


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


_PLAIN_TYPES = (dict, list, tuple, set, frozenset, int, float, complex, str, bool, bytes, object)
_KNOWN: dict[str, Any] = {
    **{f"builtins.{kind.__name__}": kind for kind in _PLAIN_TYPES},
    "copyreg._reconstructor": _reconstructed,
    "collections.defaultdict": _defaults,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _new_array for core in ("core", "_core")},
}
"""Names of Python and NumPy that stand for data, and what makes that data here."""


def _tensor_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _nothing(*args: Any) -> None:
    return None


_TORCH: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encoded,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _tensor_from_bytes,
    "torch.Size": torch.Size,
}
"""What a plain pickle of tensors needs besides."""


_TORCH_MODULES = {f"torch{part}" for part in ("", "._utils", "._tensor", ".nn.parameter", ".serialization", ".storage")}
"""Where PyTorch keeps what it saves tensors with; which names in them it accepts, it says itself."""


class _Reader(pickle.Unpickler):
    """Reads a pickle with stand-ins for all that is not known.

    Args:
        stream: at its beginning.
        whole: make tensors too; otherwise only look for names: PyTorch reads the file itself afterwards.
    """

    def __init__(self, stream: Any, *, whole: bool) -> None:
        super().__init__(stream, encoding="latin1")
        self.whole = whole
        self.known: dict[str, Any] = {}
        self.stand_ins: dict[str, type[StandIn]] = {}

    @property
    def found(self) -> list[str]:
        """Names of foreign classes, NumPy's too."""
        return sorted(name for name in self.known if not name.startswith("builtins."))

    def load(self) -> Any:
        """The content; afterwards ``known`` has what each name stands for."""
        content = super().load()
        for name, seen in self.stand_ins.items():
            members = {"full_name": name, "contains": seen.contains}
            self.known[name] = _Foreign(name.rpartition(".")[2], (StandIn,), members)
        return content

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for; nothing is imported."""
        if (module, name) in _compat_pickle.NAME_MAPPING:  # names of Python 2, which protocol 2 is written with
            module, name = _compat_pickle.NAME_MAPPING[module, name]
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if full in _KNOWN:
            self.known[full] = _KNOWN[full]
            return _KNOWN[full]
        package = module.partition(".")[0]
        if full in _TORCH and (self.whole or package != "torch"):
            return _TORCH[full]
        if package == "torch":
            other = "." in name or (module == "torch._utils" and not name.startswith("_rebuild"))
            if self.whole or module not in _TORCH_MODULES or other:
                raise Refused(full)
            return _nothing if module == "torch._utils" else _TorchName
        standard = package in sys.stdlib_module_names or package == "numpy"
        if standard and not _HARMLESS.fullmatch(full):
            raise Refused(full)
        if full not in self.stand_ins:
            self.stand_ins[full] = cast(
                type[StandIn], _Foreign(name, (_Filled,), {"full_name": full, "contains": None})
            )
        return self.stand_ins[full]

    def persistent_load(self, pid: Any) -> None:
        """Storages of tensors, which lie outside of the pickle."""
        if self.whole:
            raise Refused("a reference to another file")


class _TorchName(_Filled):
    """A name of PyTorch while a file is looked through; PyTorch itself judges it afterwards."""

    full_name = "torch.Name"
