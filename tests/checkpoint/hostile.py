"""Damaged and malicious files, made from good ones; seeded."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from checkpoint import mxnet_files
from safetensors.torch import save as save_safetensors

WEIGHTS = {"conv1.weight": torch.arange(24.0).reshape(4, 6), "conv1.bias": torch.ones(4)}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}
HUGE = 2**40


def torch_bytes(content, zipped=True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def good_files() -> dict[str, bytes]:
    return {
        "zip": torch_bytes({"model": WEIGHTS}),
        "zip_with_arrays": torch_bytes({"model": WEIGHTS, "x": np.arange(9)}),
        "legacy": torch_bytes({"model": WEIGHTS}, zipped=False),
        "legacy_with_arrays": torch_bytes({"model": ARRAYS}, zipped=False),
        "safetensors": save_safetensors(WEIGHTS),
        "mxnet": mxnet_files.file_bytes(ARRAYS),
        "zoo": pickle.dumps({"model": ARRAYS, "__author__": "x"}),
        "zoo_of_protocol_0": pickle.dumps({"model": ARRAYS, "__author__": "x"}, 0),
    }


def truncated(count: int) -> dict[str, bytes]:
    """Good files that end early, at `count` places each."""
    return {
        f"{name}_ends_at_{end}": data[:end]
        for name, data in good_files().items()
        for end in np.linspace(0, len(data) - 1, count).astype(int).tolist()
    }


def flipped(count: int) -> dict[str, bytes]:
    """Good files with one to four flipped bits, `count` of each."""
    rng = random.Random(0)
    result = {}
    for name, data in good_files().items():
        for i in range(count):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            result[f"{name}_flipped_{i}"] = bytes(damaged)
    return result


def noise(count: int) -> dict[str, bytes]:
    """Random bytes, some after the magic number of a format."""
    rng = random.Random(1)
    starts = [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", good_files()["legacy"][:15]]
    starts += [b"\x10\0\0\0\0\0\0\0{", (0x112).to_bytes(16, "little")]
    return {
        f"noise_{i}": starts[i % len(starts)] + rng.randbytes(rng.randint(0, 300))
        for i in range(count)
    }


def odd_state_dicts() -> dict[str, bytes]:
    """Weights beside which, or under names where, torch expects something else."""

    def with_attribute(**attributes):
        # Pickled, since such an object would already fail here.
        return Call(OrderedDict, state=attributes, items=WEIGHTS.items())

    contents = {
        "metadata_number": with_attribute(_metadata=5),
        "metadata_list": with_attribute(_metadata=[1]),
        "metadata_of_numbers": with_attribute(_metadata={"": 5}),
        "version_text": with_attribute(_metadata={"": {"version": "x"}}),
        "version_tensor": with_attribute(_metadata={"": {"version": torch.ones(3)}}),
        "items": with_attribute(items=5),
        "copy": with_attribute(copy=5),
        "private": with_attribute(__class__=5),
        "huge_number": {10**5000: torch.ones(2)},
        "numbers": {1.5: torch.ones(2)},
        "nothing": {None: torch.ones(2)},
        "sparse": {"a": torch.ones(2).to_sparse()},
        "no_memory": {"a": torch.ones(2, device="meta")},
        "control_characters": {"a\n\x1b[31m\u202e": 3},
        "numbers_of_models": {"model": 3, "model_state": 3},
        "lists": {"model": [WEIGHTS]},
        "deep": {"model": {"model": {"model": WEIGHTS}}},
    }
    return {name: torch_bytes(content) for name, content in contents.items()}


class Call:
    """An object that pickles as a function call."""

    def __init__(self, function, *arguments, state=None, items=()):
        self.value = (function, arguments, state, None, iter(items))

    def __reduce__(self):
        return self.value


def name(module: str, function: str, arguments: bytes = b")", then: bytes = b"R.") -> bytes:
    """A pickle that calls a function which Python itself would not pickle."""
    return b"\x80\x02c" + f"{module}\n{function}\n".encode() + arguments + then


def command(sign) -> bytes:
    """The pickled arguments (text,) of a call that creates the file `sign`."""
    text = f"touch {sign}".encode()
    return b"X" + struct.pack("<I", len(text)) + text + b"\x85"


def programs(sign) -> dict[str, bytes]:
    """Pickles that create the file `sign`, or ask for more data than they hold; as .pkl."""
    run = command(sign)
    code = f"open({str(sign)!r}, 'w')".encode()
    python = b"X" + struct.pack("<I", len(code)) + code + b"\x85"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"
    size = b"\x8a\x06" + HUGE.to_bytes(6, "little")
    result = {
        "system": name("os", "system", run),
        "posix_system": name("posix", "system", run),
        "nt_system": name("nt", "system", run),
        "popen": name("subprocess", "Popen", run),
        "eval": name("builtins", "eval", python),
        "exec": name("builtins", "exec", python),
        "python_2_exec": name("__builtin__", "exec", python),
        "execfile": name("__builtin__", "execfile", run),
        "dotted_name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + run + b"R.",
        "dotted_allowed": b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93" + run + b"R.",
        "getattr": name("builtins", "getattr", name("os", "path", b"", b"X\1\0\0\0x\x86")[2:]),
        "partial": name("functools", "partial", run),
        "instance": b"(c" + b"os\nsystem\n" + run[:-1] + b"o.",
        "instance_by_name": b"(" + run[:-1] + b"ios\nsystem\n.",
        "new_object": b"\x80\x02cos\nsystem\n" + run + b"\x81.",
        "new_object_ex": b"\x80\x04cos\nsystem\n" + run + b"}\x92.",
        "extension": b"\x80\x02\x82\x01.",
        "numpy_load": name("numpy", "load", run),
        "numpy_runstring": name("numpy.testing._private.utils", "runstring", python),
        "numpy_ctypes": name("numpy", "fromfile", run),
        "codecs_zip": name("_codecs", "encode", b"X\1\0\0\0aX\3\0\0\0zip\x86"),
        "codecs_decode": name("_codecs", "decode", run),
        "torch_load": name("torch", "load", run),
        "torch_jit": name("torch.jit", "load", run),
        "torch_ops": name("torch.ops", "load_library", run),
        "rebuild_from_type": name("torch._tensor", "_rebuild_from_type_v2", run),
        "tensor_type": name("torch", "FloatTensor", size + b"\x85"),
        "add_safe_globals": name("torch.serialization", "add_safe_globals", run),
        "change_a_function": b"\x80\x02c_codecs\nencode\n}X\1\0\0\0aK\1sb.",
        "change_slots": b"\x80\x02c_codecs\nencode\nN}X\x08\0\0\0__code__K\1s\x86b.",
        "change_a_class": b"\x80\x02cnumpy\nndarray\n}X\1\0\0\0aK\1sb.",
        "set_state_of_dict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\1sb.",
        "objects": b"\x80\x02" + dtype.replace(b"f4", b"O8") + b".",
        "python_objects": pickle.dumps({"a": np.array([{}, None])}),
        "structures": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}),
        "dates": pickle.dumps({"a": np.zeros(2, "datetime64[s]")}),
        "subclass": pickle.dumps({"a": np.zeros(2).view(np.recarray)}),
        "masked": pickle.dumps({"a": np.ma.zeros(2)}),
        "type_of_structures": b"\x80\x02"
        + dtype
        + b"(K\x03X\1\0\0\0<X\1\0\0\0aX\1\0\0\0bNK\4K\1K\0tb.",
        "huge_array": b"\x80\x02" + array + b"(K\x01" + size + b"\x85" + dtype + b"\x89C\4abcdtb.",
        "huge_empty_items": b"\x80\x02"
        + array
        + (b"(K\x01" + size + b"\x85" + dtype.replace(b"f4", b"S0") + b"\x89C\0tb."),
        "negative_array": b"\x80\x02"
        + array
        + b"(K\x01J\xff\xff\xff\xff\x85"
        + dtype
        + b"\x89C\0tb.",
        "array_twice": b"\x80\x02" + array + b"(K\x01K\x01\x85" + dtype + b"\x89C\4abcdtbN\x85b.",
        "huge_item": b"\x80\x02cnumpy\ndtype\nX\x0b\0\0\0S9999999999\x89\x88\x87R.",
        "bytearray": name("builtins", "bytearray", size + b"\x85"),
        "bytes": name("builtins", "bytes", size + b"\x85"),
        "storage": name("torch", "FloatStorage", size + b"\x85"),
        "huge_bytearray8": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"a.",
        "huge_bytes8": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"a.",
        "huge_text8": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"a.",
        "huge_frame": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"N.",
        "huge_long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
        "negative_long": b"\x80\x02\x8b\xff\xff\xff\xffa.",
        "huge_number": b"I" + b"9" * 100_000 + b"\n.",
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "unknown_memo": b"\x80\x02h\x05.",
        "nesting": b"\x80\x02" + b"(" * 30_000 + b"." + b"t" * 30_000,
        "deep_lists": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
        "deep_key": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
        "deep_key_of_ordered": b"\x80\x02ccollections\nOrderedDict\n])"
        + b"\x85" * 100_000
        + b"N\x86a\x85R.",
        "itself": b"\x80\x02]q\0h\0a.",
        "laughs": b"\x80\x02]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(120)) + b".",
        "many_from_one": b"\x80\x03B\0\0\1\0"
        + b"a" * 2**16
        + b"q\0]cbuiltins\nbytearray\nq\1"
        + (b"h\0\x85Rah\1" * 10_000 + b"0."),
        "hashing": b"\x80\x02}]Ns.",
        "no_end": b"\x80\x02}q\0",
        "empty_stack": b".",
        "pops": b"\x80\x02" + b"0" * 50 + b".",
        "no_mark": b"\x80\x02K\1u.",
        "protocol_99": b"\x80\x63}.",
        "number": pickle.dumps(3),
        "list": pickle.dumps([1, 2]),
        "text": pickle.dumps("model"),
        "nothing_in_it": pickle.dumps({}),
        "no_weights": pickle.dumps({"model": {}}),
        "numbers": pickle.dumps({"model": {"a": 3}}),
        "names": pickle.dumps({"model": {"a": "b"}}),
        "names_by_number": pickle.dumps({"model": {3: ARRAYS["conv1.bias"]}}),
        "texts": pickle.dumps({"a": np.array(["x"])}),
    }
    result["many_names"] = b"\x80\x02" + b"c" + b"x" * 10_000 + b"\n" + b"y\n\x07\x1b" * 9 + b"\n."
    return result


def as_torch(data: bytes, zipped: bool, records=()) -> bytes:
    """A torch file whose pickle is `data`."""
    if not zipped:
        good = good_files()["legacy"]
        end = good.index(b"}q\x00X\x05\x00\x00\x00model") - 2
        return good[:end] + data + good[end:]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for record, content in records:
            archive.writestr(f"archive/data/{record}", content)
    return buffer.getvalue()


def tensor(numel=2, size=(2,), stride=(1,), offset=0, storage="FloatStorage", key="0") -> bytes:
    """The pickle of {"a": tensor} with any claimed sizes, strides, offset, storage and key."""

    def number(n):
        return b"\x8a\x08" + int(n).to_bytes(8, "little", signed=True)

    def text(t):
        return b"X" + struct.pack("<I", len(t)) + t.encode()

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    identity = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text(key)
    identity += text("cpu") + number(numel) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset)
    call += numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("a") + call + b"s."


def inconsistent() -> dict[str, bytes]:
    """Files whose numbers contradict each other."""
    record = [("0", np.float32([1, 2]).tobytes())]
    claims = {
        "storage_too_long": {"numel": 10**6},
        "storage_huge": {"numel": HUGE, "size": (HUGE,)},
        "storage_negative": {"numel": -1},
        "storage_too_short": {"numel": 1, "size": (1,)},
        "tensor_too_long": {"size": (3,)},
        "tensor_huge": {"size": (HUGE,), "stride": (0,)},
        "tensor_negative": {"size": (-1,)},
        "stride_negative": {"stride": (-1,)},
        "stride_missing": {"stride": ()},
        "offset_beyond": {"offset": 9},
        "offset_negative": {"offset": -1},
        "another_key": {"key": "1"},
        "no_such_type": {"storage": "SomeStorage"},
        "path_as_key": {"key": "../../../etc/passwd"},
    }
    result = {f"zip_{k}": as_torch(tensor(**claim), True, record) for k, claim in claims.items()}
    # The legacy files also lack the record, or its length.
    result |= {f"legacy_{k}": as_torch(tensor(**claim), False) for k, claim in claims.items()}
    assert as_torch(tensor(), True, record)
    good = zipfile.ZipFile(io.BytesIO(good_files()["zip"]))
    for change in ("compressed", "twice", "without_pickle", "two_pickles", "torchscript", "bomb"):
        buffer = io.BytesIO()
        kind = zipfile.ZIP_DEFLATED if change in ("compressed", "bomb") else zipfile.ZIP_STORED
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for info in good.infolist():
                if not (change == "without_pickle" and info.filename.endswith("data.pkl")):
                    archive.writestr(info.filename, good.read(info))
            if change == "two_pickles":
                archive.writestr("another/data.pkl", b"N.")
            if change == "torchscript":
                prefix = good.namelist()[0].partition("/")[0]
                archive.writestr(f"{prefix}/constants.pkl", b"N.")
            if change == "bomb":
                archive.writestr("archive/data/9", bytes(50_000_000))
            if change == "twice":
                archive.filelist.append(archive.filelist[-1])
        result[f"zip_{change}"] = buffer.getvalue()
    # One record that many entries point to.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(WEIGHTS and {"a": 1}, 2))
        archive.writestr("archive/data/0", bytes(10**6))
        for i in range(1, 60):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            entry = archive.filelist[1]
            copy.header_offset, copy.CRC = entry.header_offset, entry.CRC
            copy.file_size = copy.compress_size = entry.file_size
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    result["zip_overlapping"] = buffer.getvalue()
    result |= {f"safetensors_{k}": data for k, data in inconsistent_safetensors().items()}
    return result


def inconsistent_safetensors() -> dict[str, bytes]:
    def file(header, data=bytes(8), length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "shape": file({"a": good | {"shape": [3]}}),
        "huge_shape": file({"a": good | {"shape": [HUGE, HUGE]}}),
        "negative_shape": file({"a": good | {"shape": [-2]}}),
        "no_shape": file({"a": {"dtype": "F32"}}),
        "type": file({"a": good | {"dtype": "F99"}}),
        "offsets": file({"a": good | {"data_offsets": [0, HUGE]}}),
        "offsets_backwards": file({"a": good | {"data_offsets": [8, 0]}}),
        "overlap": file({"a": good, "b": good}),
        "hole": file({"a": good}, bytes(16)),
        "no_object": file(b"[1, 2]"),
        "no_json": file(b"{" + b"x" * 50),
        "no_text": file(b"{\xff\xfe}"),
        "length": file({"a": good}, length=HUGE),
        "short_length": file({"a": good}, length=5),
        "nesting": file(b"{" + b'"a":{' * 50_000),
        "metadata": file({"__metadata__": {"a": 3}, "a": good}),
        "no_tensors": file({}, b""),
    }


def others() -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS)
    text = io.BytesIO()
    np.save(text, ARRAYS["conv1.bias"])
    return {
        "empty": b"",
        "text": b"MODEL:\n  WEIGHTS: x\n",
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 17\n",
        "npz": buffer.getvalue(),
        "npy": text.getvalue(),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "zeros": bytes(1000),
        "tar": b"archive/data.pkl".ljust(257, b"\0") + b"ustar\x0000" + bytes(500),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(80),
    }
