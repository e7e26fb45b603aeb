"""Torch files as numpy arrays, without torch and without running anything that a file asks for.

A checkpoint is a pickle, and a pickle is a program.  Here it may call a dozen harmless functions (:data:`_KNOWN`); any
other class or function becomes a :class:`Record`, which keeps what it was given and does nothing.
Formats: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py (zip since 1.6, before that one stream).
"""

from __future__ import annotations

import _compat_pickle
import io
import logging
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np

from spineps.errors import ModelError

logger = logging.getLogger(__name__)

CURE = "Download the model again from its publisher."
#: First bytes of torch's format before 1.6: the pickled number 0x1950a86a20f9469cfc6c.
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
#: Values that may lie on top of each other in memory (expanded tensors): more is an attack on the memory.
OVERLAP = 2**16
#: No checkpoint has a reason to name these; they would do nothing, but the user should know what kind of file this is.
HOSTILE = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "ctypes", "importlib", "runpy", "pty"}
HOSTILE_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "breakpoint", "input", "execfile", "apply"}

_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": _BFLOAT16, "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


class Checkpoint(dict[str, Any]):
    """What a file holds, and the names of the classes and functions in it that were not brought to life."""

    refused: tuple[str, ...] = ()


class Record:
    """Something of a class that is not known here: its attributes and nothing else.

    Attributes:
        kind: dotted name of the class or function.
        arguments: what it was called with.
        items: entries if it was a mapping, ``values`` if it was a list or set.
    """

    kind = ""

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
        record = super().__new__(cls)
        record.__dict__.update(named, arguments=arguments, items={}, values=[])
        return record

    def __setstate__(self, state: Any) -> None:
        # (attributes, slots) is how objects with slots are stored.
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update((str(k), v) for k, v in part.items())
            elif part is not None:
                self.__dict__["state"] = part

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"][key] = value

    def append(self, value: Any) -> None:
        """One more entry of a list."""
        self.__dict__["values"].append(value)

    add = append

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class _Call:
    """A function that a file may call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _StorageType(NamedTuple):
    dtype: str


class _DType:
    """``numpy.dtype`` as pickled: a code, then a state that sets its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"numpy values of type {code!r} are not read")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """A numpy array as pickled: empty first, then filled by its state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("numpy array of a type that is not read")
        super().__setstate__((shape, dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def read_torch_file(path: Path) -> Checkpoint:
    """The dictionary in a file written by ``torch.save``; tensors are read-only numpy arrays on the mapped file.

    bfloat16 becomes float32.  Objects of unknown classes become :class:`Record`; ``.refused`` lists their names.

    Raises:
        ModelError: not a torch file, truncated or damaged, holds no dictionary, or tries to run something.
    """
    try:
        raw = np.memmap(path, np.uint8, "r")
        with path.open("rb") as file:
            start = file.read(len(LEGACY_MAGIC))
        if start == LEGACY_MAGIC:
            content, refused = _read_legacy(path, raw)
        elif zipfile.is_zipfile(path):
            content, refused = _read_zip(path, raw)
        else:
            raise ModelError(f"{path} is not a torch checkpoint, or only a part of one.", CURE)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist.", "Give the folder of a complete model.") from error
    except (
        # What the pickle machine and zipfile raise on nonsense; whatever it is, the file is at fault.
        pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
        AttributeError, struct.error, OverflowError, MemoryError, RecursionError, NotImplementedError, AssertionError,
    ) as error:  # fmt: skip
        raise ModelError(f"{path} cannot be read: {error or type(error).__name__}.", CURE) from error
    if refused:
        logger.info("%s: not brought to life: %s", path.name, ", ".join(refused))
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no checkpoint (a {type(content).__name__}).", CURE)
    checkpoint = Checkpoint(content)
    checkpoint.refused = refused
    return checkpoint


def _read_zip(path: Path, raw: np.ndarray) -> tuple[Any, tuple[str, ...]]:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def content(name: str) -> np.ndarray:
        info = entries[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError("its parts are compressed, which torch never does")
        # The local header repeats the name and may pad: its own lengths count.
        header = bytes(raw[info.header_offset : info.header_offset + 30])
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        part = raw[start : start + info.file_size]
        if len(part) != info.file_size or zlib.crc32(part.data) != info.CRC:
            raise pickle.UnpicklingError(f"part {name} is damaged")
        return part

    if "data.pkl" not in entries:
        raise pickle.UnpicklingError("it is a zip archive but not a checkpoint")
    order: Literal["<", ">"] = ">" if "byteorder" in entries and bytes(content("byteorder")) == b"big" else "<"

    def storage(key: str, dtype: str, numel: int) -> np.ndarray:
        return _values(content(f"data/{key}"), dtype, numel, order)

    reader = _Reader(io.BytesIO(content("data.pkl").tobytes()), storage)
    return reader.load(), tuple(reader.refused)


def _read_legacy(path: Path, raw: np.ndarray) -> tuple[Any, tuple[str, ...]]:
    """Four pickles (magic, version, system, content), the names of the storages, then the storages one by one."""
    types: dict[str, tuple[str, int]] = {}

    def promised(key: str, dtype: str, numel: int) -> np.ndarray:
        types[key] = dtype, numel
        return np.broadcast_to(np.float32(0), numel)

    with path.open("rb") as file:
        file.seek(len(LEGACY_MAGIC))
        _Reader(file, promised).load()
        order: Literal["<", ">"] = "<" if _Reader(file, promised).load().get("little_endian", True) else ">"
        start = file.tell()
        _Reader(file, promised).load()
        keys = _Reader(file, promised).load()
        at = file.tell()
        found: dict[str, np.ndarray] = {}
        for key in keys:
            dtype, numel = types[key]
            (count,) = struct.unpack(order + "q", bytes(raw[at : at + 8]))
            if count != numel:
                raise pickle.UnpicklingError(f"storage {key} has another size than announced")
            size = numel * (2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize)
            found[key] = _values(raw[at + 8 : at + 8 + size], dtype, numel, order)
            at += 8 + size
        # The storages follow the tensors that use them: the content is read again now that they are known.
        file.seek(start)
        reader = _Reader(file, lambda key, dtype, numel: found[key])
        return reader.load(), tuple(reader.refused)


def _values(raw: np.ndarray, dtype: str, numel: int, order: Literal["<", ">"]) -> np.ndarray:
    size = 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize
    if numel < 0 or numel * size > len(raw):
        raise pickle.UnpicklingError("a storage is larger than the file")
    part = raw[: numel * size]
    if dtype == _BFLOAT16:
        # The upper half of a float32.
        return (part.view(order + "u2").astype(np.uint32) << 16).view(np.float32)
    return part.view(np.dtype(dtype).newbyteorder(order))


class _Reader(pickle._Unpickler):
    """Python's own slow unpickler (its memo is a dict, which no index can blow up) with every way out closed."""

    def __init__(self, file: Any, storage: Callable[[str, str, int], np.ndarray]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._storages: dict[str, np.ndarray] = {}
        self._classes: dict[str, type[Record]] = {}

    @property
    def refused(self) -> list[str]:
        """Names of everything that became a :class:`Record`."""
        return sorted(self._classes)

    def find_class(self, module: str, name: str) -> Any:
        # Old protocols write the names that Python 2 had.
        module = _compat_pickle.IMPORT_MAPPING.get(module, module).replace("numpy._core.", "numpy.core.")
        kind = f"{module}.{name}"
        if kind in _KNOWN:
            return _KNOWN[kind]
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module.split(".")[0] in HOSTILE or (module in ("builtins", "io", "_io") and name in HOSTILE_BUILTINS):
            raise ModelError(
                f"The checkpoint asks to run {kind}: it is no model but an attack. Nothing was run.", "Delete the file."
            )
        if kind not in self._classes:
            self._classes[kind] = type(name, (Record,), {"kind": kind})
        return self._classes[kind]

    def load_build(self) -> None:
        """Gives an object its state, unless the object is not the file's own (a function, a class, a tensor)."""
        if not isinstance(self.stack[-2], (Record, OrderedDict, _Array, _DType)):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it tries to change something that is not its own")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError("it uses pickle's registry of extensions")

    def persistent_load(self, saved_id: Any) -> np.ndarray:
        tag, kind, key, _, numel = saved_id[:5]
        if tag != "storage" or not isinstance(kind, _StorageType) or any(part is not None for part in saved_id[5:]):
            raise pickle.UnpicklingError(f"unknown kind of storage {saved_id!r:.80}")
        if key not in self._storages:
            self._storages[key] = self._storage(str(key), kind.dtype, int(numel))
        return self._storages[key]


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
    shape, steps = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(shape) != len(steps):
        raise pickle.UnpicklingError("a tensor is not made of a storage, a size and strides")
    if min(offset, *shape, *steps, 0) < 0:
        raise pickle.UnpicklingError("a tensor has negative sizes or strides")
    count = 1
    for n in shape:
        count *= n
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    if count and (last >= len(storage) or count > max(len(storage), OVERLAP)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if not count:
        return np.zeros(shape, storage.dtype)
    width = storage.strides[0] if storage.strides[0] else 0
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [s * width for s in steps], writeable=False)


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    if not isinstance(function, _Call):
        raise pickle.UnpicklingError("a tensor of an unknown class")
    return function(*arguments)


def _scalar(dtype: Any, raw: bytes = b"") -> Any:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("a numpy number of an unknown type")
    return np.frombuffer(raw, dtype.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


#: Everything that a file may call.  None of it reads, writes, imports or looks anything up.
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _Call(_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": _Call(lambda data, *_: data),
    "torch._tensor._rebuild_from_type_v2": _Call(_from_type),
    "torch.Size": _Call(tuple),
    "numpy.dtype": _Call(_DType),
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Call(lambda *_: _Array((0,))),
    "numpy.core.multiarray.scalar": _Call(_scalar),
    "_codecs.encode": _Call(_encode),
    "builtins.set": _Call(set),
    "builtins.frozenset": _Call(frozenset),
    "builtins.complex": _Call(complex),
    "collections.defaultdict": _Call(lambda *_: {}),
}
