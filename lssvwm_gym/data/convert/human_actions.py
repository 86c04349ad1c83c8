"""Mouse and keyboard of a human who plays Minecraft, as buttons and camera degrees, and as one discrete action.

`buttons` and `camera` keep what was done, in the order of `BUTTONS` and in degrees. The discrete action is what a small world model can
learn from: one of 315 combinations of a move, a turn, a tilt and a hand, or `screen`; docs/data.md has a table of them.
"""

from itertools import product

import numpy as np

BUTTONS = (
    *("inventory", "ESC"),
    *(f"hotbar.{slot}" for slot in range(1, 10)),
    *("forward", "back", "left", "right", "jump", "sneak", "sprint", "swapHands", "attack", "use", "pickItem", "drop"),
)
KEYS = {
    f"key.keyboard.{key}": button
    for key, button in {
        **{"w": "forward", "s": "back", "a": "left", "d": "right", "space": "jump", "left.shift": "sneak", "left.control": "sprint"},
        **{"e": "inventory", "escape": "ESC", "f": "swapHands", "q": "drop"},
        **{str(slot): f"hotbar.{slot}" for slot in range(1, 10)},
    }.items()
}
MOUSE = {0: "attack", 1: "use", 2: "pickItem"}
DEGREES_A_STEP = 360 / 2400  # of the mouse, as the recorder scales it

MOVES = ("none", "forward", "jump_forward", "jump", "back", "left", "right")
TURNS = ("none", "turn_left", "turn_left_fast", "turn_right", "turn_right_fast")
TILTS = ("none", "look_up", "look_down")
HANDS = ("none", "attack", "use")
SIZES = (len(MOVES), len(TURNS), len(TILTS), len(HANDS))
SCREEN = int(np.prod(SIZES))  # 315, the last id
STILL = 1.5  # degrees a step, below which the camera counts as still
FAST = 10.0  # degrees a step

_COLUMN = {name: column for column, name in enumerate(BUTTONS)}


def action_names() -> tuple[str, ...]:
    """A name for each of the 316 ids: `forward+turn_right_fast+attack`, `none`, `screen`."""
    parts = ([part for part in reversed(parts) if part != "none"] for parts in product(HANDS, TILTS, TURNS, MOVES))
    return (*("+".join(names) or "none" for names in parts), "screen")


def pressed(keys: list[str], mouse_buttons: list[int]) -> np.ndarray:
    """(23,) uint8 in the order of `BUTTONS`, 1 where pressed. Keys and buttons without a meaning are left out."""
    row = np.zeros(len(BUTTONS), np.uint8)
    names = [KEYS.get(key) for key in keys] + [MOUSE.get(button) for button in mouse_buttons]
    row[[_COLUMN[name] for name in names if name is not None]] = 1
    return row


def discrete(buttons: np.ndarray, camera: np.ndarray, screen: np.ndarray) -> np.ndarray:
    """The ids of steps, (T,) uint16, 0 to 315.

    Buttons (T, 23) are 0 or 1, in the order of `BUTTONS`, camera (T, 2) is degrees, down and to the right positive, and screen (T,) bool
    says whether a screen was open before or after the step.
    """
    held = {name: buttons[:, column] > 0 for name, column in _COLUMN.items()}
    forward, back = held["forward"] & ~held["back"], held["back"] & ~held["forward"]
    left, right = held["left"] & ~held["right"], held["right"] & ~held["left"]
    move = np.select([forward & held["jump"], held["jump"], forward, back, left, right], [2, 3, 1, 4, 5, 6], 0)
    down, to_right = camera[:, 0], camera[:, 1]
    turn = np.select([to_right <= -FAST, to_right <= -STILL, to_right >= FAST, to_right >= STILL], [2, 1, 4, 3], 0)
    tilt = np.select([down <= -STILL, down >= STILL], [1, 2], 0)
    hand = np.select([held["attack"], held["use"]], [1, 2], 0)
    ids = np.ravel_multi_index((move, turn, tilt, hand), SIZES, order="F")
    return np.where(screen, SCREEN, ids).astype(np.uint16)
