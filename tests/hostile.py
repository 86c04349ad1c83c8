"""What can be wrong with a file: bytes that rotted, headers that claim too much, and files made to harm. Deterministic in the generator."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator

VALUES = (  # in place of any value of a JSON file
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**53, 2**63, -(2**63), 10**400, 0.0, -0.5, 0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "\ud800",
        "1",
        "../../etc/passwd",
        "/etc/passwd",
        [],
        {},
        [[]],
        [1, 2],
        {"a": 1},
        [None] * 9,
        list(range(200)),
        "long " * 5000,
    ),
)
DTYPES = (  # of safetensors, and none
    *("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"),
    *("I32", "U32", "F32", "C64", "F64", "I64", "U64", "X9", "", 3, None),
)
DEEP = "[" * 100_000 + "]" * 100_000


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def rotten(content: bytes, rng: Rng) -> bytes:
    """Cut short, flipped, overwritten, moved or repeated."""
    data, size = bytearray(content), len(content)
    at, length = int(rng.integers(size)), int(rng.integers(1, 65))
    way = rng.integers(8)
    if way == 0:
        return content[:at]
    if way == 1:
        data[at] ^= 1 << rng.integers(8)
    elif way == 2:
        for place in rng.integers(size, size=length):
            data[place] ^= 1 << rng.integers(8)
    elif way == 3:
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    elif way == 4:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif way == 5:
        del data[at : at + length]
    elif way == 6:
        data[at:at] = rng.bytes(length)
    else:
        at = int(rng.integers(min(size, 64)))  # where most formats keep sizes
        data[at : at + 8] = struct.pack("<q", int(rng.choice([0, -1, 2**62, 2**31, 2**40])))[: len(data[at : at + 8])]
    return bytes(data)


def edited(value: Any, rng: Rng) -> Any:
    """A JSON value in which one part is something else."""
    value = deepcopy(value)
    holder, key, part = None, None, value
    while isinstance(part, (dict, list)) and part and (holder is None or rng.random() < 0.85):
        key = list(part)[rng.integers(len(part))] if isinstance(part, dict) else int(rng.integers(len(part)))
        holder, part = part, part[key]
    strange = VALUES[rng.integers(len(VALUES))]
    if holder is None:
        return strange
    if rng.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and rng.random() < 0.15:
        holder[key + "_" * int(rng.choice([1, 9000]))] = strange
    elif isinstance(part, int) and not isinstance(part, bool) and rng.random() < 0.5:
        holder[key] = part + int(rng.choice([-1, 1, part, 2**20]))
    else:
        holder[key] = strange
    return value


def json_text(value: Any, rng: Rng) -> bytes:
    """An edited JSON file; now and then one that names a key twice or is nested without end."""
    way = rng.random()
    if way < 0.05:
        return DEEP.encode()
    text = json.dumps(value if way < 0.15 else edited(value, rng))
    if way < 0.1:
        return text.replace("{", f"{{{json.dumps(next(iter(value)))}: 1, ", 1).encode()
    if way < 0.15:
        return text.encode(rng.choice(["utf-16", "utf-32"]))
    return text.encode("utf-8", "surrogatepass")


PATHS = (  # in place of any name, and some that look like a world's
    *(
        "/etc/passwd",
        "../../etc/passwd",
        "..",
        ".",
        "~",
        "C:\\Windows",
        "\\\\host\\share",
        "file:///etc/passwd",
        "world\0.json",
        "a" * 500_000,
    ),
    *(
        "os:LSSVWM-A-v0",
        "../LSSVWM-A-v0",
        "a/LSSVWM-A-v0",
        "LSSVWM-A-v\u0663",
        "LSSVWM-\u202eA-v0",
        "LSSVWM-A-v0\n",
        "CartPole-v1",
        "memory-maze",
    ),
)
NUMBERS = (
    "1e999",
    "-1e999",
    "NaN",
    "3.5e38",
    "-1e308",
    "5e-324",
    "-0.0",
    "1.00000000001",
    "9" * 400,
    "-" + "9" * 4200,
    "9" * 5000,
    "64.0",
    "true",
)
AROUND: tuple[Callable[[str], str], ...] = (  # of a JSON text
    lambda text: "\ufeff" + text,
    lambda text: text + "\0",
    lambda text: text + text,
    lambda text: text + " " * 2**20,
    lambda text: text.replace('"', "'"),
    lambda text: "// a world\n" + text,
    lambda text: text.replace("\n}", ",\n}"),
    lambda text: text.replace("\n}", ',\n"fps": 5, "FPS": 5\n}'),
    lambda text: text.replace("\n}", "".join(f',\n"{number}": 0' for number in range(70_000)) + ',\n"69999": 0\n}'),
    lambda text: text.replace("\n}", f',\n"{"x" * 400_000}": 0, "{"x" * 400_000}": 0\n}}'),
    lambda text: f"[{text}]",
)


def record_text(content: bytes, rng: Rng) -> bytes:
    """A world's record with paths, numbers or nesting in place of a value, with lists that are long or contradict others, or as no JSON."""
    record, way = json.loads(content), rng.integers(6)
    name = list(record)[rng.integers(len(record))]
    if way == 0:
        record[rng.choice([name, "id", "name", "weights", "real_id", "__class__"])] = PATHS[rng.integers(len(PATHS))]
        return json.dumps(record).encode()
    if way == 1:
        return AROUND[rng.integers(len(AROUND))](content.decode()).encode()
    if way == 2:
        names = [f"{number:0100}" for number in range(int(rng.choice([2, 4096, 5000])))]
        name = str(rng.choice(["actions", "counts", "milestones", "low", "high", "keys", "reward_values"]))
        lists = {"milestones": [[one, 1] for one in names], "keys": dict.fromkeys(names, 1)}
        numbers = list(range(len(names))) if name in ("low", "high", "reward_values") else names
        record[name] = lists.get(name, numbers) if rng.random() < 0.7 else [names[0]] * len(names)
        return json.dumps(record).encode()
    holder: Any = record
    while isinstance(holder[name], (dict, list)) and holder[name] and rng.random() < 0.8:
        holder = holder[name]
        name = list(holder)[rng.integers(len(holder))] if isinstance(holder, dict) else int(rng.integers(len(holder)))
    nesting = int(rng.choice([int(rng.integers(10, 930)), int(rng.integers(930, 1000))]))
    put = NUMBERS[rng.integers(len(NUMBERS))] if way < 5 else rng.choice(["[", '{"a":']) * nesting
    put += "" if way < 5 else "1" + "".join("]" if letter == "[" else "}" for letter in put if letter in "[{")
    holder[name] = "@here@"
    return json.dumps(record).replace('"@here@"', put).encode()


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors_file(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def without_checksum(content: bytes) -> bytes:
    """The same file as it was written before there were checksums."""
    header, data = safetensors_parts(content)
    header["__metadata__"].pop("sha256")
    return safetensors_file(header, data)


def claiming(content: bytes, rng: Rng) -> bytes:
    """A safetensors file whose header says something else than what is there."""
    header, data = safetensors_parts(content)
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.integers(len(names))]
    entry, way = header[name], rng.integers(12)
    if way == 0:
        entry["dtype"] = DTYPES[rng.integers(len(DTYPES))]
    elif way == 1:
        entry["shape"] = [int(rng.choice([0, 2**40, 2**62, 1])) for _ in range(rng.integers(1, 5))]
    elif way == 2:  # a terabyte, and what a terabyte of zeros takes
        entry.update(shape=[2**38], dtype="F32", data_offsets=[0, 2**40])
    elif way == 3:
        entry["data_offsets"] = [int(rng.choice([0, -1, 2**63, len(data)])), int(rng.choice([0, len(data), 2**64 - 1]))]
    elif way == 4:
        header["more"] = {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [len(data), len(data)]}
    elif way == 5:
        del header[name]
    elif way == 6:
        header[rng.choice(["", "a.b.c", "frame", "world.age", "model.x", "optimizer0.999.step", "model." + "x" * 9000])] = header.pop(name)
    elif way == 7:
        return struct.pack("<Q", int(rng.choice([2**63, 2**40, 99_999_999, 0]))) + content[8:]
    elif way == 8:
        text = json.dumps(header).encode()
        return safetensors_file(text[:-1] + b', "' + name.encode() + b'": ' + json.dumps(entry).encode() + b"}", data)
    elif way == 9:
        return safetensors_file(DEEP.encode(), data)
    elif way == 10:
        header["__metadata__"] = edited(header["__metadata__"], rng)
    else:
        header["__metadata__"]["header"] = rng.choice([DEEP, "[]", "3", "{", '{"a": 1, "a": 2}', "null", '{"steps": NaN}'])
    return safetensors_file(header, data)


def other_tensors(tensors: dict[str, torch.Tensor], rng: Rng) -> dict[str, torch.Tensor]:
    """Tensors of which one is another: numbers that are none, out of range, of another type or shape."""
    tensors = dict(tensors)
    name = sorted(tensors)[rng.integers(len(tensors))]
    tensor, way = tensors[name].clone(), rng.integers(9)
    if way == 0:
        del tensors[name]
        return tensors
    if way == 1:
        tensor = tensor.to([torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8][rng.integers(5)])
    elif way == 2:
        tensor = tensor[None] if rng.random() < 0.5 else torch.cat([tensor.reshape(-1), tensor.reshape(-1)])
    elif way == 3:
        tensor = tensor.reshape(-1)[:0]
    elif tensor.numel() == 0:
        return tensors | {"more": tensor}
    else:
        strange: list[float] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 60000.0] if tensor.is_floating_point() else [-1, 2**31 - 1, 255]
        number = strange[rng.integers(len(strange))]
        if tensor.dtype in (torch.uint8, torch.bool):
            number = abs(int(number)) % 256
        elif tensor.dtype == torch.int64 and rng.random() < 0.5:
            number = -(2**63) if rng.random() < 0.5 else 2**63 - 1
        tensor.view(-1)[rng.integers(tensor.numel())] = number
    return tensors | {name: tensor}


def other_eight_bits(tensors: dict[str, torch.Tensor], rng: Rng) -> dict[str, torch.Tensor]:
    """Tensors as they lie in the file, of which one in 8 bits, or its scale, is another, is missing, or is there beside what has none."""
    tensors = dict(tensors)
    names = [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]
    floats = [name for name, tensor in tensors.items() if tensor.dtype == torch.float16]
    name, other, way = names[rng.integers(len(names))], names[rng.integers(len(names))], rng.integers(12)
    beside, number, scale = f"{name}_scale", tensors[name], tensors[f"{name}_scale"].clone()
    if way < 3:
        strange = (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, -1e-4, 1e38, 3e36, 1e-45, 1e-38)
        scale[rng.integers(len(scale)) if rng.random() < 0.7 else slice(None)] = strange[rng.integers(len(strange))]
        tensors[beside] = scale
    elif way == 3:
        del tensors[beside if rng.random() < 0.7 else name]
    elif way == 4:
        plain = floats[rng.integers(len(floats))]
        tensors[str(rng.choice([f"{plain}_scale", f"{beside}_scale", "_scale", "nothing_scale", "x" * 9000 + "_scale"]))] = scale
    elif way == 5:
        shapes = (scale[:-1], scale.repeat(2), scale[:, None], scale[None], scale[:0], scale[0], scale[:1])
        tensors[beside] = shapes[rng.integers(len(shapes))].clone()
    elif way == 6:
        tensors[beside] = scale.to([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8][rng.integers(5)])
    elif way == 7:
        tensors[name] = number.to([torch.uint8, torch.int32, torch.int64, torch.float16, torch.bool][rng.integers(5)])
    elif way == 8:
        shapes = (
            number[:-1],
            number[:, :-1],
            number.transpose(0, 1),
            number.flatten(),
            number[None],
            number.view(-1, *[1] * 70),
            number[:0],
        )
        tensors[name] = shapes[rng.integers(len(shapes))].clone()
    elif way == 9:
        tensors[name], tensors[beside] = number[:-1].clone(), scale[:-1].clone()
    elif way == 10:
        plain = floats[rng.integers(len(floats))]
        tensors[plain] = tensors[plain].to(torch.int8)
        if rng.random() < 0.5:
            tensors[f"{plain}_scale"] = torch.ones(tensors[plain].shape[:1])
    elif rng.random() < 0.5:
        tensors[beside], tensors[f"{other}_scale"] = tensors[f"{other}_scale"], scale
    else:
        tensors[name] = number.clone()
        tensors[name].view(-1)[rng.integers(number.numel())] = int(rng.choice([-128, 127, 0]))
    return tensors


def npy(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data


HEADERS: tuple[Callable[[], bytes], ...] = (
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", b"1234"),
    lambda: npy("{'descr': '|V2000000000', 'fortran_order': False, 'shape': (3,)}"),
    lambda: npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"\x80\x04N."),
    lambda: npy("{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."),
    lambda: npy("(" * 9000),
    lambda: npy("-" * 9000 + "1"),
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,)}"),
    lambda: npy("__import__('os').getpid()"),
    lambda: npy(b"\xff" * 100),
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904, 4611686018427387904)}"),
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"12345678", (3, 0)),
    lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}", b"12345678"),
    lambda: npy("{'descr': '<U3', 'fortran_order': True, 'shape': ()}", b"123456789012"),
    lambda: npy("{'descr': '<f4', 'fortran_order': 3, 'shape': 2, 'more': 1}", b"12345678"),
    lambda: npy("{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627776,)}"),
    lambda: b"not an array",
    lambda: b"",
)


def zipped(members: dict[str, bytes], twice: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if twice:
            archive.writestr(zipfile.ZipInfo(twice), members[twice])
    return file.getvalue()


def npz_bomb(gigabytes: int = 3) -> bytes:
    """A small zip that inflates to gigabytes of zeros, with an honest header."""
    file, block = io.BytesIO(), bytes(2**24)
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("reward.npy", "w", force_zip64=True) as out,
    ):
        out.write(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({gigabytes * 2**28},)}}"))
        for _ in range(gigabytes * 64):
            out.write(block)
    return file.getvalue()


def lying_about_size(bomb: bytes) -> bytes:
    """The same zip, whose directory says that it holds a hundred bytes."""
    at = bomb.rindex(b"PK\x01\x02")
    return bomb[: at + 24] + struct.pack("<I", 100) + bomb[at + 28 :]
