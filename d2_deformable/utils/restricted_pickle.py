"""Unpickling that builds data and runs nothing, for files that anyone may have written.

A pickle is a program: it names functions, and Python's own unpickler imports and calls them. This
one knows the few that the arrays of numpy and the tensors of torch are made with, calls its own
version of each, and refuses every other name. It follows Python 2's pickles, as those of
Detectron's model zoo, and numpy's names before and after 2.0.

What is built is bounded by the size of the file: a few bytes cannot ask for gigabytes. For
`torch.load` this module is a `pickle_module`.
"""

import io
import math
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

# Numbers and texts, no objects; dates are not needed.
_TYPE = re.compile(r"[biufcSU]\d{0,9}")
# Bytes of an element of torch's storages.
_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
_KEYS = (str, bytes, int, float, type(None))
# Checkpoints of these hold a training's log as their own objects, beside the weights.
_PASSED_OVER = ("mmengine", "mmcv", "mmdet")
# Opcodes of plain values, containers, the memo, and calls, which are checked below. Left out are
# instances (INST, OBJ, NEWOBJ_EX), extensions (EXT*), sets, buffers out of band (protocol
# 5), and persistent ids as text.
_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE BINUNICODE8
SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8 EMPTY_LIST APPEND APPENDS LIST
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT
BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL NEWOBJ REDUCE BUILD BINPERSID
"""


def _dispatch() -> dict:
    codes = [getattr(pickle, name)[0] for name in _OPCODES.split()]
    return {code: pickle._Unpickler.dispatch[code] for code in codes}


@dataclass(frozen=True, slots=True)
class _Name:
    """What a pickle may name; `call` is None where it may only hand it on."""

    name: str
    call: object = None


class _PassedOver:
    """Stands for a class of `_PASSED_OVER`, its functions and its instances. Nothing is made or
    called, and what the pickle would put into one is dropped."""

    __slots__ = ()


class _DType:
    """A dtype in the making: numpy's is one for all, and a pickle would change it in place."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


@dataclass(frozen=True, slots=True)
class ClaimedStorage:
    """A storage of torch that a pickle speaks of and that was not read: its size in elements."""

    numel: int
    itemsize: int


class Unpickler(pickle._Unpickler):
    """Reads one pickle as `pickle.Unpickler` would, or raises `pickle.UnpicklingError`.

    Args:
        file: binary, opened at the pickle; read from memory, so that a length that the pickle
            claims allocates nothing.
        encoding: of Python 2's texts; their arrays need "latin1".
        limit: bytes that the whole file has, of which this pickle may be a part.
    """

    def __init__(self, file, *, encoding="latin1", limit=0):
        start = file.tell()
        rest = file.seek(0, io.SEEK_END) - start
        file.seek(start)
        super().__init__(file, encoding=encoding)
        self._left = 4 * max(rest, limit) + 4096
        calls = {
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "builtins.bytes": self._bytes,
            "builtins.bytearray": self._bytearray,
            "numpy.ndarray": None,
            "numpy.dtype": _dtype,
            "numpy._core.multiarray._reconstruct": _empty_array,
            "numpy._core.multiarray.scalar": self._scalar,
            "numpy._core.numeric._frombuffer": self._array,
            "builtins.getattr": _passed_over,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }
        self._names = {name: _Name(name, call) for name, call in calls.items()}

    def load(self):
        try:
            return super().load()
        except pickle.UnpicklingError:
            raise
        except EOFError:
            raise pickle.UnpicklingError("it ends in the midst") from None
        except Exception as error:  # of a damaged pickle any type
            raise pickle.UnpicklingError(
                f"it is damaged, or no pickle of arrays ({type(error).__name__}: {error})"
            ) from error

    def find_class(self, module, name):
        module = {"__builtin__": "builtins"}.get(module, module)
        full = re.sub(r"^numpy\.core\.", "numpy._core.", f"{module}.{name}")
        if full in self._names:
            return self._names[full]
        if module.partition(".")[0] in _PASSED_OVER:
            return _PassedOver()
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return ClaimedStorage(0, _STORAGES[name])
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither number nor array")

    def _spend(self, size: int) -> None:
        """Account for bytes or items that are about to be built."""
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it claims to hold more than it has bytes for")

    # Opcodes that Python's own unpickler does not check.

    def load_newobj(self):
        self.stack.pop()
        self.stack[-1] = _passed_over(self.stack[-1])

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not (isinstance(function, _Name) and function.call and isinstance(arguments, tuple)):
            raise pickle.UnpicklingError("it calls what is no function of numpy or torch")
        self.stack[-1] = function.call(*arguments)

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is np.ndarray and target.shape == (0,):
            *_, shape, dtype, fortran, data = state
            data, dtype = self._checked(data, dtype, shape)
            target.__setstate__((1, shape, dtype, bool(fortran), data))
        elif isinstance(target, _PassedOver):
            pass
        elif isinstance(target, _DType):
            _set_byte_order(target, state)
        elif type(target) is OrderedDict and isinstance(state, dict):
            if "_metadata" in state:  # versions of the layers, of a state_dict
                target._metadata = state["_metadata"]
        else:
            raise pickle.UnpicklingError(f"it changes a {type(target).__name__}")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self):
        self._set(self.pop_mark())

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _set(self, items):
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise pickle.UnpicklingError(f"it fills a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_appends(self):
        items = self.pop_mark()
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def load_append(self):
        value = self.stack.pop()
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].append(value)

    def load_bytearray8(self):
        # Python's own allocates the length that the pickle claims before it looks.
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)
        if len(data) != size:
            raise EOFError
        self.append(bytearray(data))

    def load_binpersid(self):
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or identity[:1] not in (("storage",), (b"storage",)):
            raise pickle.UnpicklingError("it refers to what is no storage of torch")
        self.append(self.persistent_load(identity))

    dispatch = _dispatch() | {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BINPERSID[0]: load_binpersid,
    }

    # What the names of `_names` stand for.

    def _ordered_dict(self, items=()):
        self._spend(len(items))
        return OrderedDict((_key(key), value) for key, value in items)

    def _encode(self, text, encoding):
        """Bytes in a pickle of protocol 2."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def _bytes(self, data=b""):
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError(f"it makes bytes of a {type(data).__name__}")
        return data

    def _bytearray(self, data=b"", encoding="latin1"):
        data = self._encode(data, encoding) if isinstance(data, str) else self._bytes(data)
        self._spend(len(data))
        return bytearray(data)

    def _array(self, data, dtype, shape, order="C"):
        data, dtype = self._checked(data, dtype, shape)
        return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order="K")

    def _scalar(self, dtype, data):
        return self._array(data, dtype, ())[()]

    def _checked(self, data, dtype, shape) -> tuple[bytes, np.dtype]:
        """Data and type of an array of this shape."""
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        if not (
            isinstance(dtype, _DType)
            and isinstance(data, (bytes, bytearray))
            and isinstance(shape, tuple)
            and len(shape) <= 32
            and all(type(size) is int and 0 <= size < 2**62 for size in shape)
            and math.prod(shape) * dtype.value.itemsize == len(data)
            and dtype.value.itemsize
        ):
            raise pickle.UnpicklingError("an array of it has another size than its data")
        self._spend(len(data))
        return bytes(data), dtype.value

    def _tensor(self, storage, offset, size, stride, *_):
        """requires_grad, hooks and metadata are left out: of a checkpoint only values count."""
        if isinstance(storage, torch.storage.TypedStorage):  # screened as a ClaimedStorage before
            return torch._utils._rebuild_tensor(storage, offset, size, stride)
        if not isinstance(storage, ClaimedStorage):
            raise pickle.UnpicklingError("a tensor of it has no storage")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        numbers = (offset, *size, *stride)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or (
            math.prod(size) and last >= storage.numel
        ):
            raise pickle.UnpicklingError("a tensor of it has another size than its storage")
        self._spend(math.prod(size) * storage.itemsize)
        return None


def load(file, *, encoding="latin1", limit=0):
    """The object of one pickle, see `Unpickler`."""
    return Unpickler(file, encoding=encoding, limit=limit).load()


def _key(key):
    if not isinstance(key, _KEYS):  # the hash of a tuple of tuples of ... overflows the stack
        raise pickle.UnpicklingError(f"a dict of it has a key that is a {type(key).__name__}")
    return key


def _dtype(name, *_):
    if not (isinstance(name, str) and _TYPE.fullmatch(name)):
        raise pickle.UnpicklingError("it holds an array of what are neither numbers nor texts")
    return _DType(np.dtype(name))


def _set_byte_order(dtype: _DType, state) -> None:
    _, order, *structure = state[:5]
    if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
        raise pickle.UnpicklingError("it holds an array of structures")
    if order in ("<", ">"):
        dtype.value = dtype.value.newbyteorder(order)


def _passed_over(target, *_) -> _PassedOver:
    """What comes of a class or an instance that is passed over: an instance, or an attribute."""
    if not isinstance(target, _PassedOver):
        raise pickle.UnpicklingError(f"it makes or asks an instance of {type(target).__name__}")
    return target


def _empty_array(*_):
    return np.empty(0, np.int8)


def _parameter(data, *_):
    return data
