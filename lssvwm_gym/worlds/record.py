"""A world's record beside its weights, `world.json`: a dream of a world that this package doesn't know. Plain JSON, and no code."""

from __future__ import annotations

import json
import re
import types
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.json_config import bounded, in_short, parsed
from lssvwm_gym.worlds.world import World

RECORD = "world.json"
FORMAT = "lssvwm_gym World 1"
LARGEST = 1_000_000  # bytes
MOST = 4096  # of anything that it lists
LONGEST = 100  # letters of a name
LARGEST_NUMBER = 3e38  # float32, in which bounds and rewards come, ends above
WHOLE = {"image_size": (8, 4096), "fps": (1, 1000), "max_episode_steps": (1, 10**9), "most_counted": (0, 10**9), "border": (0, 2048)}
ID = re.compile(r"[A-Za-z0-9_.-]+-v\d{1,4}")  # no namespace and no module: making it imports nothing
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
LEFT_OUT = ("weights", "real_id")  # where it lies is known, and what gymnasium.make imports is not for strangers to say


class WorldError(ValueError):
    """A record of a world that is none; the message names the file and what is wrong with it."""


def write_world(folder: str | Path, world: World) -> Path:
    """Write a world's record into a folder of weights, whole or not at all. Raises `WorldError` for one that couldn't be read again."""
    path = Path(folder) / RECORD
    record = {"format": FORMAT} | {field.name: getattr(world, field.name) for field in fields(World) if field.name not in LEFT_OUT}
    text = json.dumps(record, indent=1, allow_nan=True) + "\n"
    _world(text, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def read_world(folder: str | Path) -> World:
    """The world of a folder of weights, whose weights are that folder.

    Raises `WorldError` for a folder without a record, and for one that is anything but what `write_world` writes.
    """
    path = Path(folder) / RECORD
    try:
        text = bounded(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise WorldError(
            f"{folder}: has no {RECORD}, so nothing says which world it dreams. `lssvwm-gym ship` writes one; "
            "weights of a world that the package knows are opened by its own id"
        ) from None
    except (OSError, ValueError) as error:
        raise WorldError(f"{path}: can't be read ({error})") from None
    return _world(text, path)


def has_record(folder: str | Path | None) -> bool:
    """Whether a folder of weights says itself which world it dreams."""
    return folder is not None and (Path(folder) / RECORD).is_file()


def _world(text: str, path: Path) -> World:
    try:
        record = parsed(text)
        if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
            raise ValueError(f"not the record of a world: its format is not {FORMAT!r}")
        kinds = {field.name: field for field in fields(World) if field.name not in LEFT_OUT}
        missing = [name for name, field in kinds.items() if field.default is MISSING and name not in record]
        if missing or record.keys() - kinds.keys():
            raise ValueError(f"missing {missing}, unknown {sorted(record.keys() - kinds.keys())[:4]}")
        types_of = get_type_hints(World)
        values = {name: _value(types_of[name], value, name) for name, value in record.items()}
        _check(values)
        return World(**values, weights=path.parent)
    except (ValueError, TypeError, RecursionError) as error:
        raise WorldError(f"{path}: {in_short(error)}") from None


def _check(values: dict[str, Any]) -> None:
    """What types don't say."""
    if len(values["id"]) > LONGEST or not ID.fullmatch(values["id"]):
        raise ValueError(f"id is {values['id'][:40]!r}, not letters, numbers and hyphens that end in -v and a number")
    if not NAME.fullmatch(values["name"]):
        raise ValueError(f"name is {values['name'][:40]!r}, not small letters, numbers and hyphens")
    for name, (low, high) in WHOLE.items():
        if name in values and not low <= values[name] <= high:
            raise ValueError(f"{name} is {values[name]}, not {low}..{high}")
    if not values["reward_values"]:
        raise ValueError("no reward_values")


def _value(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _value(get_args(kind)[0], value, name)
    if get_origin(kind) is dict:
        if not isinstance(value, dict) or len(value) > MOST:
            raise TypeError(f"{name} is no object of at most {MOST}")
        return {_value(str, key, name): _value(get_args(kind)[1], one, name) for key, one in value.items()}
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, name)
    if kind is float and type(value) in (int, float):
        if not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{name} is {value}, not finite or out of all proportion")
        return float(value)
    if type(value) is not kind or (kind is str and not 0 < len(value) <= LONGEST):
        raise TypeError(f"{name} is {str(value)[:40]!r}, not a {kind.__name__}{f' of 1 to {LONGEST} letters' if kind is str else ''}")
    if kind is str and not value.isprintable():
        raise ValueError(f"{name} is {value[:40]!r}, which can't be printed")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MOST:
        raise TypeError(f"{name} is no list of at most {MOST}")
    if kinds[-1] is Ellipsis:
        return tuple(_value(kinds[0], one, name) for one in value)
    if len(value) != len(kinds):
        raise TypeError(f"{name} has {len(value)} entries where {len(kinds)} belong")
    return tuple(_value(kind, one, name) for kind, one in zip(kinds, value, strict=True))
