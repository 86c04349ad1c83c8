"""Settings and JSON: bounds, reports written whole; text from strangers in, plain values out, or a `ValueError`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lssvwm_gym.io.atomic import renamed_when_whole


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for what is no JSON, names a key twice, or is nested too deep to be read."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def bounded(path: Path, most: int) -> bytes:
    """What a file holds.

    Raises:
        FileNotFoundError: there is no regular file; a pipe would be waited for, and a device may have no end.
        ValueError: it holds more than `most` bytes.
        OSError: it can't be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; folders are made, paths become text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def check_bounds(settings: Any, **least: float) -> None:
    """Raise `ValueError` for a number among the settings, or one of a tuple, that is below its bound."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if min(value if isinstance(value, tuple) else (value,), default=bound) < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


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
