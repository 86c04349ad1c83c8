"""The keyboard: which keys are down, what they mean in a world, and what else can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from lssvwm_gym.worlds import World

ARROWS = {"up": "w", "left": "a", "down": "s", "right": "d"}
OTHER_NAMES = {"space": " ", "escape": "q", "return": "p", ".": "n", "+": "="}  # of the same key
REWIND = "backspace"
COMMANDS = {  # key: (short, what it does)
    "p": ("pause", "pause, go on"),
    "n": ("step", "one step, then pause"),
    REWIND: ("rewind", "hold: go back through the moments that are kept"),
    "m": ("mark", "mark this moment"),
    "b": ("back to mark", "go back to the last mark; f1 to f8: to that mark"),
    "f": ("profile", "next profile: fast, balanced, quality"),
    "-": ("slower", "fewer steps a second"),
    "=": ("faster", "more steps a second"),
    "v": ("film", "begin or end a film, MP4"),
    "f9": ("save", "save the game to a new file"),
    "f10": ("load", "load the game saved last; drop any other file here"),
    "r": ("anew", "begin anew"),
    "h": ("help", "show or hide all keys"),
    "q": ("quit", "quit"),
}
BESIDE = {
    "tab": ("swap", "show the dream first, or the real world"),
    "e": ("eyes", "open or close the dream's eyes: whether it sees the real world"),
}
POLICY = {"t": ("wheel", "give the policy the wheel, or take it")}
MARK_KEYS = tuple(f"f{number}" for number in range(1, 9))


@dataclass
class Keyboard:
    """Keys that are down, the oldest first. A key tapped between two steps counts for the next one."""

    held: list[str] = field(default_factory=list)
    tapped: list[str] = field(default_factory=list)

    def press(self, key: str) -> None:
        self.held.append(key)
        self.tapped.append(key)

    def release(self, key: str) -> None:
        self.held = [other for other in self.held if other != key]

    def read(self) -> list[str]:
        """The keys since the last call."""
        keys = list(dict.fromkeys([*self.held, *self.tapped]))
        self.tapped = []
        return keys

    def forget(self) -> None:
        """All keys are up: what happens while the window isn't looked at is not seen."""
        self.held, self.tapped = [], []


def chosen_action(keys: dict[str, int], pressed: list[str]) -> int | None:
    """The action of the longest combination that is pressed, between equals the one with the latest key; None if there is none."""
    combinations = [combination for combination in keys if set(combination) <= set(pressed)]
    if not combinations:
        return None
    return keys[max(combinations, key=lambda combination: (len(combination), max(map(pressed.index, combination))))]


def meaning(name: str, keys: dict[str, int]) -> str:
    """One name for keys that mean the same. A key that the world knows keeps its own meaning."""
    name = OTHER_NAMES.get(name, name)
    if name in ARROWS and ARROWS[name] in set("".join(keys)):
        return ARROWS[name]
    return name


def action_help(world: World) -> list[tuple[str, str]]:
    """Keys of the world, and their actions."""
    return [(shown(key), world.actions[action].replace("_", " ")) for key, action in world.keys.items() if len(key) == 1]


def shown(key: str) -> str:
    """How a key is called on the screen."""
    return {" ": "space", REWIND: "bksp"}.get(key, key)
