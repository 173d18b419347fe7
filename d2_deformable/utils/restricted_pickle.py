"""Unpickling that builds data and runs nothing, for files that anyone may have written.

A pickle is a program: it names functions, and Python's own unpickler imports and calls them. Here
`find_class` imports nothing. It maps the few names that arrays of numpy and tensors of torch are
made with to functions of this module, and refuses every other name. Python 2's pickles (those of
Detectron's model zoo) are read too, with numpy's names before and after 2.0.

What is built is bounded by the size of the file: a few bytes cannot ask for gigabytes. This is
why the base class is the standard library's unpickler in Python, not the one in C. The latter
allocates memo and byte strings as long as the pickle claims, and hashes any key, which overflows
the stack if tuples are nested deeply.

For `torch.load` this module is a `pickle_module`.
"""

import io
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .files import FileFormatError
from .text import one_line

# Bytes of an element of torch's storages.
_STORAGES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_STORAGES |= {"Char": 1, "Byte": 1, "Bool": 1}
# Checkpoints of these packages also hold the training log, as objects of their own classes. These
# objects are not built.
_IGNORED_PACKAGES = ("mmengine", "mmcv", "mmdet")
# Supported opcodes: all but those for instances (INST, OBJ, NEWOBJ_EX), extensions (EXT*), sets,
# buffers out of band (protocol 5), and persistent ids as text.
_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE BINUNICODE8
SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8 EMPTY_LIST APPEND APPENDS LIST
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT
BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD BINPERSID
"""
_CODES = [getattr(pickle, name)[0] for name in _OPCODES.split()]


@dataclass(frozen=True, slots=True)
class _Function:
    """The function that a name stands for. Only `Unpickler.load_reduce` can call it."""

    call: object


class _Ignored:
    """Stands for a class, an instance or an attribute of a package in `_IGNORED_PACKAGES`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ClaimedStorage:
    """A storage of torch without values, only with the size that a pickle claims, in elements."""

    numel: int
    itemsize: int


def _check(condition, message: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(message)


class Unpickler(pickle._Unpickler):
    """Reads one pickle as `pickle.Unpickler` would, or raises `pickle.UnpicklingError`.

    Args:
        file: binary, opened at the pickle; read from memory, so that a length that the pickle
            claims allocates nothing.
        encoding: of Python 2's texts; their arrays need "latin1".
        file_size: bytes of the whole file that this pickle is a part of; 0: it is the file.
    """

    def __init__(self, file, *, encoding="latin1", file_size=0):
        start = file.tell()
        rest = file.seek(0, io.SEEK_END) - start
        file.seek(start)
        super().__init__(file, encoding=encoding)
        self._left = 4 * max(rest, file_size) + 4096
        self._calls = {
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "builtins.bytes": lambda: b"",
            "builtins.bytearray": self._bytearray,
            "builtins.getattr": lambda target, name: _require_ignored(target),
            "numpy.ndarray": None,  # an argument of _reconstruct
            "numpy.dtype": _dtype,
            "numpy._core.multiarray._reconstruct": lambda *_: np.empty(0, np.int8),
            "numpy._core.multiarray.scalar": lambda dtype, data: self._array(data, dtype, ())[()],
            "numpy._core.numeric._frombuffer": self._array,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }

    def load(self):
        try:
            return super().load()
        except pickle.UnpicklingError:
            raise
        except EOFError:
            raise pickle.UnpicklingError("it is truncated") from None
        except Exception as error:  # a damaged pickle raises any type
            raise pickle.UnpicklingError(
                f"it is damaged, or no pickle of arrays ({type(error).__name__}: {error})"
            ) from error

    def find_class(self, module, name):
        module = module.replace("__builtin__", "builtins").replace("numpy.core.", "numpy._core.")
        if f"{module}.{name}" in self._calls:
            return _Function(self._calls[f"{module}.{name}"])
        if module.partition(".")[0] in _IGNORED_PACKAGES:
            return _Ignored()
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        itemsize = _STORAGES.get(name.removesuffix("Storage"))
        if module in ("torch", "torch.cuda") and name.endswith("Storage") and itemsize:
            return ClaimedStorage(0, itemsize)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither number nor array")

    def _spend(self, size: int) -> None:
        """Account for bytes or items that are about to be built."""
        self._left -= size
        _check(self._left >= 0, "it claims to hold more than it has bytes for")

    # Opcodes that would make, call, change or hash anything that the pickle names.

    def load_newobj(self):
        self.stack.pop()
        _require_ignored(self.stack[-1])

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        allowed = isinstance(function, _Function) and function.call and type(arguments) is tuple
        _check(allowed, "it calls something that is not a function of numpy or torch")
        self.stack[-1] = function.call(*arguments)

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is np.ndarray and target.shape == (0,):
            *_, shape, dtype, fortran, data = state
            target.__setstate__((1, shape, dtype, bool(fortran), self._data(data, dtype, shape)))
        elif isinstance(target, np.dtype):  # a copy, see _dtype
            _, order, *structure = state[:5]
            _check(structure == [None] * 3, "it holds an array of structures")
            target.__setstate__(target.newbyteorder(order).__reduce__()[2])
        elif type(target) is OrderedDict and type(state) is dict:
            # Versions of the layers, of a state_dict; anything else could replace its methods.
            _check(state.keys() <= {"_metadata"}, "it changes an OrderedDict")
            vars(target).update(state)
        else:
            _check(isinstance(target, _Ignored), f"it changes a {type(target).__name__}")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [(key, value)])

    def load_setitems(self):
        items = self.pop_mark()
        self._set(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def load_dict(self):
        items = self.pop_mark()
        self.append(self._set({}, zip(items[::2], items[1::2], strict=True)))

    def _set(self, target, items):
        _check(type(target) in (dict, OrderedDict), f"it fills a {type(target).__name__}")
        for key, value in items:
            simple = isinstance(key, (str, bytes, int, float, type(None)))
            _check(simple, f"one of its dicts has a key that is a {type(key).__name__}")
            target[key] = value
        return target

    def load_bytearray8(self):
        # Python's own method allocates the length that the pickle claims before it reads.
        self.load_binbytes8()
        self.stack[-1] = bytearray(self.stack[-1])

    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code] for code in _CODES
    } | {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    # Functions in `_calls`.

    def _ordered_dict(self, items=()):
        self._spend(len(items))
        return self._set(OrderedDict(), items)

    def _encode(self, text, encoding="latin1"):
        """Encode text as bytes, as pickles of protocol 2 write bytes."""
        _check(encoding in ("latin1", "latin-1"), f"it encodes as {encoding!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _bytearray(self, data=b"", *encoding):
        data = self._encode(data, *encoding) if encoding else data
        _check(isinstance(data, bytes), f"it makes bytes of a {type(data).__name__}")
        self._spend(len(data))
        return bytearray(data)

    def _array(self, data, dtype, shape, order="C"):
        data = self._data(data, dtype, shape)
        return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order="K")

    def _data(self, data, dtype, shape) -> bytes:
        """The data of an array of this type and shape."""
        data = data.encode("latin1") if isinstance(data, str) else data  # str: of Python 2
        fits = isinstance(dtype, np.dtype) and isinstance(data, (bytes, bytearray))
        fits = fits and _are_sizes(shape) and dtype.itemsize
        fits = fits and math.prod(shape) * dtype.itemsize == len(data)
        _check(fits, "one of its arrays has another size than its data")
        self._spend(len(data))
        return bytes(data)

    def _tensor(self, storage, offset, size, stride, *_):
        """Build a tensor without requires_grad, hooks and metadata, which no checkpoint needs."""
        if isinstance(storage, torch.storage.TypedStorage):  # screened as a ClaimedStorage before
            return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride)
        _check(isinstance(storage, ClaimedStorage), "one of its tensors has no storage")
        fits = _are_sizes(size) and _are_sizes(stride) and _are_sizes((offset,))
        fits = fits and len(size) == len(stride)
        if fits and math.prod(size):
            last = offset + sum((n - 1) * step for n, step in zip(size, stride))
            fits = last < storage.numel
        _check(fits, "one of its tensors has another size than its storage")
        self._spend(math.prod(size) * storage.itemsize)


def load(file, *, encoding="latin1", file_size=0):
    """Read the object of one pickle, see `Unpickler`."""
    return Unpickler(file, encoding=encoding, file_size=file_size).load()


def read_pickle(path):
    """Read a pickle of numbers, strings, arrays and containers without running code.

    Raises:
        FileFormatError: the file is damaged or holds other objects.
        FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        return load(io.BytesIO(data))
    except Exception as error:  # damaged files raise any type
        raise FileFormatError(
            f"{path} is not a data file that can be read safely: {one_line(error)}"
        ) from error


def _are_sizes(numbers) -> bool:
    """Whether these are sizes or strides, few and small enough that products stay short numbers."""
    return (
        isinstance(numbers, tuple)
        and len(numbers) <= 64
        and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    )


def _dtype(name, *_) -> np.dtype:
    """Make a new dtype: a pickle changes the byte order in place, and numpy shares its own."""
    dtype = np.dtype(name if isinstance(name, str) else object, False, True)
    _check(dtype.kind in "biufcSU", "it holds an array of neither numbers nor strings")
    return dtype


def _require_ignored(target) -> _Ignored:
    """Return `target` itself as its new instance, or as its attribute; refuse any other object."""
    ignored = isinstance(target, _Ignored)
    _check(ignored, f"it instantiates a {type(target).__name__}, or reads an attribute of it")
    return target
