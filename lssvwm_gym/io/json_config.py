"""Settings and JSON: reports written whole; text from strangers in, plain values or the fields of a dataclass out."""

import importlib
import json
import math
import pkgutil
import sys
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lssvwm_gym.io.atomic import renamed_when_whole


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for what is no JSON, names a key twice, or is nested too deep to be read."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def bounded(path: Path, most: int) -> bytes:
    """What a file holds. Raises `ValueError` for more than `most` bytes, `OSError` where it can't be read.

    `FileNotFoundError` also for what is no regular file: a pipe would be waited for, and a device may have no end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


def write_json(path: Path, value: Any, allow_nan: bool = True) -> None:
    """Write a value as indented JSON, whole or not at all; folders are made, paths become text.

    Raises `ValueError` for a number that is not finite, which JSON itself doesn't know, unless they are allowed.
    """
    with renamed_when_whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=str, allow_nan=allow_nan) + "\n", encoding="utf-8")


def check_bounds(settings: Any, **least: float) -> None:
    """Raise `ValueError` for a number among the settings, or one of a tuple, that is below its bound; None is none."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=bound) < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


def imported(name: str) -> Any:
    """What `module:attribute` names; modules of the current folder are found, too. Raises `ValueError` for a name that leads to nothing."""
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # a console script doesn't look into the current folder by itself
    try:
        return pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: no module named {error.name!r}; looked in the current folder too") from None
    except AttributeError:
        module, _, attribute = name.partition(":")
        raise ValueError(f"{name}: {module} has no {attribute!r}") from None


def needed(module: str, message: str) -> Any:
    """A module that an extra brings. Raises `ImportError` where it is missing, with a message that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(message) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {in_short(twice)!r} twice")
    return value


def in_short(said: object) -> str:
    """What an error says, or anything from a file that it quotes, in some 300 letters at most: strangers name things without end."""
    text = f"no {said}" if isinstance(said, KeyError) else str(said) or type(said).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


@dataclass(frozen=True)
class Bounds:
    """What the values of a dataclass may be, besides their types."""

    numbers: tuple[float, float]  # every float, both ends included
    most: int  # entries of anything that is listed
    letters: int = 100  # of a text, which has at least one
    whole: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # whole numbers by the field's name, both ends included
    any_whole: tuple[int, int] | None = None  # whole numbers of other fields
    as_written: bool = False  # a whole number stays one where a float belongs
    above_zero: frozenset[str] = frozenset()  # fields of floats that are not 0
    signed: frozenset[str] = frozenset()  # fields of floats that may be as far below 0 as above


def fields_of(subject: type, values: Any, bounds: Bounds) -> dict[str, Any]:
    """The fields of a frozen dataclass from a parsed JSON object, where tuples have become lists.

    Raises `TypeError` for unknown names and for values of another type, `ValueError` for those out of bounds.
    """
    if not isinstance(values, dict):
        raise TypeError(f"it is {type(values).__name__}, not an object")
    kinds = get_type_hints(subject)
    if unknown := values.keys() - kinds.keys():
        raise TypeError(f"unknown {', '.join(sorted(unknown)[:4])}")
    return {name: _value(kinds[name], value, name, bounds) for name, value in values.items()}


def _value(kind: Any, value: Any, name: str, bounds: Bounds) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _value(next(one for one in get_args(kind) if one is not types.NoneType), value, name, bounds)
    if get_origin(kind) is dict:
        if not isinstance(value, dict) or len(value) > bounds.most:
            raise TypeError(f"{name} is no object of at most {bounds.most}")
        return {_value(str, key, name, bounds): _value(get_args(kind)[1], one, name, bounds) for key, one in value.items()}
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, name, bounds)
    if kind is float and type(value) in (int, float):
        lowest = -bounds.numbers[1] if name in bounds.signed else bounds.numbers[0]
        if not lowest <= value <= bounds.numbers[1] or not math.isfinite(value) or (value == 0 and name in bounds.above_zero):
            raise ValueError(f"{name} is {in_short(value)}, not finite or out of all proportion")
        return value if bounds.as_written else float(value)
    if type(value) is not kind:
        raise TypeError(f"{name} is {str(value)[:40]!r}, not a {kind.__name__}")
    if kind is int and (limits := bounds.whole.get(name, bounds.any_whole)) and not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name} is {in_short(value)}, not {limits[0]}..{limits[1]}")
    if kind is str and not 0 < len(value) <= bounds.letters:
        raise TypeError(f"{name} is {value[:40]!r}, not a str of 1 to {bounds.letters} letters")
    if kind is str and not value.isprintable():
        raise ValueError(f"{name} is {value[:40]!r}, which can't be printed")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, name: str, bounds: Bounds) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > bounds.most:
        raise TypeError(f"{name} is no list of at most {bounds.most}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise TypeError(f"{name} has {len(value)} entries where {len(kinds)} belong")
    return tuple(_value(kind, one, name, bounds) for kind, one in zip(kinds, value, strict=True))
