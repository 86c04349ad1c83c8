"""Minecraft as people played it: the contractor recordings of VPT (Baker et al., arXiv 2206.11795) and those of BASALT 2022.

A recording is up to five minutes: `<name>.mp4`, 640×360 at 20 Hz, beside `<name>.jsonl` with a JSON object a tick. The recorder takes the
picture, writes it and the state of that moment, and then carries out what mouse and keyboard did. So line t describes frame t, and
its mouse and keyboard led to frame t + 1; here they stand at t + 1, as everywhere in this package. What is known to be wrong in the
recordings, what is done about it, and the arrays of the episodes: docs/data.md.
"""

import math
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from lssvwm_gym.data.convert.human_actions import BUTTONS, DEGREES_A_STEP, discrete, pressed
from lssvwm_gym.data.convert.recording import Found, Recording, beside, files_below, led, named, note
from lssvwm_gym.data.episode import EpisodeError, video_frames
from lssvwm_gym.io.json_config import parsed

FPS = 20.0  # ticks a second
ITEMS = (  # of the inventory vector; wood of every kind counts as log or planks
    *("log", "planks", "stick", "crafting_table", "wooden_pickaxe", "cobblestone", "stone_pickaxe", "furnace", "coal"),
    *("iron_ore", "iron_ingot", "iron_pickaxe", "diamond", "diamond_pickaxe", "dirt", "sand", "other"),
)
POSE = ("xpos", "ypos", "zpos", "yaw", "pitch")
ATTACK = 0  # mouse button
MAX_DEGREES = 180.0  # a tick


class Tick(NamedTuple):
    buttons: np.ndarray  # (23,), done after the frame
    camera: tuple[float, float]  # degrees down and right, done after the frame
    screen: bool  # whether the frame shows a screen
    hotbar: int | None  # 0 to 8, chosen at the frame
    pose: list[float] | None  # at the frame
    inventory: np.ndarray | None  # at the frame


def find_vpt(source: Path, index: Path | None = None) -> list[Found]:
    """The recordings below `source`, or those that an index lists: JSON with `relpaths`, files below `source` or lying flat in it.

    Raises `EpisodeError` for no recordings, an index that is none, and two recordings of one name.
    """
    if index is None:
        return files_below(source, (".mp4", ".jsonl"))
    return named({listed: _listed(source, listed) for listed in _relpaths(index)})


def read_vpt(found: Found, skip: int = 1, cut: bool = False) -> Recording:
    """Open a recording by its mp4, with the arrays of docs/data.md; `pos`, `yaw`, `pitch`, `inventory`, `hotbar` where every line has them.

    Every `skip`-th frame is kept. Of the steps that led to it, buttons count if pressed in any and camera degrees add up; the discrete
    action follows from those, and is `screen` if any of the frames since the last kept one shows a screen. With `cut`, what both video and
    lines have is taken where they end at different times. Raises `EpisodeError` for no such files, lines that are no JSON or lack mouse,
    keyboard or isGuiOpen, and, while frames are read, a broken video or one of another length.
    """
    path, lines = found.path, beside(found.path, ".jsonl")
    for file in (path, lines):
        if not file.exists():
            raise EpisodeError(f"{file}: no such file; a recording is an mp4 and a jsonl of one name")
    ticks, broken = read_ticks(lines)

    def arrays(count: int) -> dict[str, np.ndarray]:
        if count - len(ticks) not in (0, 1) and not cut and not (broken and count > len(ticks)):
            raise EpisodeError(f"{path}: {count} frames for {len(ticks)} lines; take what both have with --cut")
        return _arrays(ticks[:count], skip)

    return Recording(video_frames(path), FPS, arrays, longest=len(ticks))


def read_ticks(path: Path) -> tuple[list[Tick], bool]:
    """Read a jsonl file; also returns whether broken lines at its end were left out, of which a note tells.

    Raises `EpisodeError` naming file and line for other broken lines.
    """
    ticks: list[Tick] = []
    stuck, broken = False, ""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                tick, stuck = _tick(parsed(line.decode("utf-8-sig" if number == 1 else "utf-8")), stuck, first=number == 1)
            except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
                what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                broken = broken or (f"line {number} is not a tick of a recording ({what})" if line.strip() else f"line {number} is empty")
                continue
            if broken:
                raise EpisodeError(f"{path}: {broken}")
            ticks.append(tick)
    if not ticks:
        raise EpisodeError(f"{path}: {broken or 'holds no ticks'}")
    if broken:
        note(f"{path}: {broken}, and so is all that follows: the recording ends before it")
    return ticks, bool(broken)


def _tick(line: dict[str, Any], stuck: bool, first: bool) -> tuple[Tick, bool]:
    """A line, and whether attack is stuck from here on."""
    mouse, screen = line["mouse"], bool(line["isGuiOpen"])
    if first:
        stuck = mouse["newButtons"] == [ATTACK]
    elif ATTACK in mouse["newButtons"]:
        stuck = False
    held = [button for button in mouse["buttons"] if not (stuck and button == ATTACK)]
    camera = (0.0, 0.0) if screen else (_degrees(mouse["dy"]), _degrees(mouse["dx"]))
    pose = [float(line[name]) for name in POSE] if all(name in line for name in POSE) else None
    inventory = count_items(line["inventory"]) if "inventory" in line else None
    slot = line.get("hotbar")
    if slot is not None and slot not in range(9):
        raise ValueError(f"hotbar must be 0 to 8, got {slot}")
    hotbar = None if slot is None else int(slot)
    return Tick(pressed(line["keyboard"]["keys"], held), camera, screen, hotbar, pose, inventory), stuck


def _degrees(steps: float) -> float:
    degrees = float(steps) * DEGREES_A_STEP
    if not math.isfinite(degrees):
        raise ValueError(f"the mouse moved by {steps}")
    return degrees if abs(degrees) <= MAX_DEGREES else 0.0


def count_items(stacks: list[dict[str, Any]]) -> np.ndarray:
    """(17,) int32: how many of each of `ITEMS` lie in an inventory, a list of {"type", "quantity"}."""
    counts = np.zeros(len(ITEMS), np.int32)
    for stack in stacks:
        kind = str(stack["type"]).removeprefix("minecraft:")
        kind = next((name for name in ("log", "planks") if kind.endswith(f"_{name}")), kind)
        if kind not in ("", "air", "none"):
            counts[ITEMS.index(kind if kind in ITEMS else "other")] += int(stack["quantity"])
    return counts


def _arrays(ticks: list[Tick], skip: int) -> dict[str, np.ndarray]:
    buttons = np.stack([tick.buttons for tick in ticks])
    camera, screen = np.array([tick.camera for tick in ticks], np.float32), np.array([tick.screen for tick in ticks])
    columns = {name: [getattr(tick, name) for tick in ticks] for name in ("hotbar", "pose", "inventory")}
    recorded = {name: np.array(values) for name, values in columns.items() if all(value is not None for value in values)}
    if "hotbar" in recorded:
        slot = recorded["hotbar"]
        changed = np.flatnonzero(slot[1:] != slot[:-1])
        buttons[changed, BUTTONS.index("hotbar.1") + slot[changed + 1]] = 1  # the number of what is chosen at t + 1 is pressed at t
    pressed_since, turned_since = _grouped(buttons, skip).max(1, initial=0), _grouped(camera, skip).sum(1)
    shown = _grouped(screen, skip).any(1) | screen[skip::skip]
    kept = slice(None, None, skip)
    arrays = {
        "action": led(discrete(pressed_since, turned_since, shown)),
        "buttons": led(pressed_since),
        "camera": led(turned_since),
        "reward": np.zeros(len(screen[kept]), np.float32),
        "screen": screen[kept],
    }
    if "hotbar" in recorded:
        arrays["hotbar"] = recorded["hotbar"][kept].astype(np.uint8)
    if "pose" in recorded:
        arrays |= _pose(recorded["pose"][kept])
    return arrays | ({"inventory": recorded["inventory"][kept]} if "inventory" in recorded else {})


def _grouped(rows: np.ndarray, skip: int) -> np.ndarray:
    """What was done after each frame, (T, ...), as the groups that led to the kept frames but the first: (K, skip, ...)."""
    steps = (len(rows) - 1) // skip
    return rows[: steps * skip].reshape(steps, skip, *rows.shape[1:])


def _pose(rows: np.ndarray) -> dict[str, np.ndarray]:
    """From Minecraft's axes, z to the south and yaw clockwise from there, to those of the package."""
    yaw = np.pi - np.radians(rows[:, 3] % 360)
    pose = {"pos": rows[:, :3] * (1, 1, -1), "yaw": np.arctan2(np.sin(yaw), np.cos(yaw)), "pitch": np.radians(rows[:, 4])}
    return {name: array.astype(np.float32) for name, array in pose.items()}


def _relpaths(index: Path) -> list[Path]:
    """The recordings that an index lists, without ending and each once."""
    try:
        listed = parsed(Path(index).read_text(encoding="utf-8"))["relpaths"]
        paths = [PurePosixPath(path.removesuffix(".mp4").removesuffix(".jsonl")) for path in listed]
    except FileNotFoundError:
        raise EpisodeError(f"{index}: no such file") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EpisodeError(f"{index}: not an index of recordings, a JSON object with a list `relpaths` ({error})") from None
    outside = [path for path in paths if path.is_absolute() or ".." in path.parts or not path.parts]
    if outside or not paths:
        raise EpisodeError(f"{index}: lists {f'{str(outside[0])!r}, which is outside of the source' if outside else 'nothing'}")
    return [Path(path) for path in dict.fromkeys(paths)]


def _listed(source: Path, listed: Path) -> Path:
    """The mp4 of a recording of the index: below the source as listed, or flat in it."""
    below, flat = (beside(source / path.with_name(path.name + ".mp4"), ".mp4") for path in (listed, Path(listed.name)))
    return flat if flat.exists() and not below.exists() else below
