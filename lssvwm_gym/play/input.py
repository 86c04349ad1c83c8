"""Keys, and what each does; free of any window, which says what was pressed."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io.video import write_movie
from lssvwm_gym.play.game import MARKS, Game
from lssvwm_gym.play.save import free_name, latest
from lssvwm_gym.worlds import WorldSpec

REWIND_SPEED = 3  # times as fast as forward
FILM_SCALE = 4  # pixels a side of one pixel of the dream
SAID = 6.0  # seconds that a message stays
MEASURED = 20  # steps over which the speed is measured

ARROWS = {"up": "w", "left": "a", "down": "s", "right": "d"}
OTHER_NAMES = {"space": " ", "escape": "q", "return": "p", ".": "n", "+": "="}  # of the same key
REWIND = "backspace"
MARK_KEYS = tuple(f"f{number}" for number in range(1, MARKS + 1))
SLOWEST, FASTEST = 0.5, 1000.0  # steps a second


@dataclass
class Pace:
    """Steps a second: how many are wanted, and how many there are."""

    wanted: float
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))  # in seconds, of the last steps
    due: float = 0.0  # when the next step is to be taken

    def is_due(self, now: float, speed: float = 1.0) -> bool:
        """Whether to act now; if so, the next step is due a step later. A delay of more than a step is not made up for."""
        if now < self.due:
            return False
        wait = 1 / (self.wanted * speed)
        self.due = self.due + wait if now - self.due < wait else now + wait
        return True

    @property
    def measured(self) -> float | None:
        """Steps a second over the last ones; None before there are some."""
        times = self.step_times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) >= 5 else None

    @property
    def is_held(self) -> bool:
        return self.measured is None or self.measured > 0.93 * self.wanted


class Controls:
    """What the keys do to a game, and the message that is shown about it."""

    def __init__(self, game: Game, fps: float, saves: Path, fastest: float = FASTEST) -> None:
        self.game, self.saves, self.pace, self.fastest = game, saves, Pace(fps), fastest
        self.keyboard = Keyboard()
        self.paused = self.shows_help = self.quits = False
        self.message, self.is_error, self.said_at = "", False, 0.0
        self.film: list[np.ndarray] | None = None
        self.commands = COMMANDS | (POLICY if game.policy is not None else {})

    @property
    def rewinds(self) -> bool:
        return REWIND in self.keyboard.held

    def press(self, key: str) -> None:
        """Note a key of the world, or do what another one stands for. The key is named as `meaning` names it."""
        if (key in self.commands or key in MARK_KEYS) and key not in self.game.world.keys:
            self.say("")
            self.commands[key].do(self) if key in self.commands else self.return_to(MARK_KEYS.index(key))
        elif key in set("".join(self.game.world.keys)):
            self.keyboard.press(key)

    def act(self, now: float) -> None:
        if self.rewinds:
            if self.pace.is_due(now, REWIND_SPEED):
                self._rewind()
        elif not self.paused and self.pace.is_due(now):
            self._step()

    def say(self, message: str, is_error: bool = False) -> None:
        self.message, self.is_error, self.said_at = message, is_error, time.perf_counter()

    @property
    def is_said(self) -> bool:
        """Whether the message is still shown: for some seconds, an error until the next command."""
        return bool(self.message) and (self.is_error or time.perf_counter() - self.said_at < SAID)

    @property
    def standing(self) -> str:
        """What is said while there is no message."""
        return "going back" if self.rewinds else "paused: p goes on, n takes one step" if self.paused else ""

    @property
    def acts(self) -> str:
        """Who chooses actions besides the player."""
        return "replays" if self.game.replaying else "policy acts" if self.game.policy_acts else ""

    def load(self, path: Path) -> None:
        """Go on with a saved game, or say why not."""
        self.attempt(lambda: self._load(path))

    def finish(self) -> None:
        """Write the film that is under way."""
        if self.film is not None:
            print(self.begin_or_end_film())

    def _step(self) -> None:
        pressed = chosen_action(self.game.world.keys, self.keyboard.read())
        try:
            chosen = self.game.policy_action() if pressed is None or self.game.replaying else None
        except Exception as error:  # somebody else's policy may raise anything; the game goes on by hand
            self.game.policy_acts = False
            self.say(f"the policy has stopped: {type(error).__name__}: {error}", is_error=True)
            chosen = None
        self.game.step(next((action for action in (chosen, pressed) if action is not None), 0))
        self.pace.step_times.append(time.perf_counter())
        if self.game.now.over:
            self.pause()
            self.say(f"{self.game.now.over}: r begins anew, p goes on all the same")

    def _rewind(self) -> None:
        self.pace.step_times.clear()
        self.keyboard.tapped = []
        if not self.game.back():
            self.say("no earlier moment is kept")

    def pause(self) -> None:
        self.paused = not self.paused
        self.pace.step_times.clear()

    def single_step(self) -> None:
        self.pace.step_times.clear()
        self._step()
        self.paused = True  # also at an end, which pauses by itself

    def begin_anew(self) -> None:
        self.game.begin()
        self.pace.step_times.clear()

    def mark(self) -> None:
        number = self.game.mark()
        self.say(f"marked: f{number + 1} comes back to here")

    def return_to(self, number: int) -> None:
        """Go back to a mark; -1 is the last one."""
        number = number if number >= 0 else len(self.game.marks) - 1
        if not 0 <= number < len(self.game.marks):
            self.say("no moment is marked" if number < 0 else f"there is no mark {number + 1}: m marks a moment")
            return
        self.game.return_to(number)
        self.pace.step_times.clear()
        self.say(f"back at mark {number + 1}")

    def choose_profile(self, profile: str | None = None) -> None:
        """The next one if none is given."""
        names = list(PROFILES)
        self.game.choose_profile(profile or names[(names.index(self.game.profile) + 1) % len(names)])
        self.pace.step_times.clear()
        self.say(f"profile {self.game.profile}")

    def change_pace(self, factor: float) -> None:
        self.pace = Pace(min(max(self.pace.wanted * factor, SLOWEST), self.fastest))

    def begin_or_end_film(self) -> str:
        """Begin a film, or write the one under way, which goes on if it can't be written."""
        if self.film is None:
            return self.begin_film()
        said = write_film(free_name(self.saves, self.game.world.name, ".mp4"), self.film, self.pace.wanted)
        self.take_film()
        return said

    def begin_film(self) -> str:
        self.film = [self.game.now.frame]
        self.game.films.append(self.film)
        return "filming: v ends the film"

    def take_film(self) -> list[np.ndarray]:
        """The pictures of the film under way, which ends."""
        film, self.film = self.film or [], None
        self.game.films = [other for other in self.game.films if other is not film]
        return film

    def save(self) -> str:
        path = free_name(self.saves, self.game.world.name, ".safetensors")
        self.game.save(path)
        return f"saved as {path}"

    def _load(self, path: Path) -> str:
        self.game.load(path)
        return f"loaded {path}"

    def load_latest(self) -> str:
        if (path := latest(self.saves, self.game.world.name)) is None:
            raise ValueError(f"no game of {self.game.world.name} is saved in {self.saves}: f9 saves one")
        return self._load(path)

    def attempt(self, what: Callable[[], str]) -> None:
        """Say what came of it; a wrong file, or one that can't be written, is no reason to end a game."""
        try:
            self.say(what())
            self.pace.step_times.clear()  # what took the time was no step
        except (OSError, ValueError, ImportError) as error:
            self.say(str(error), is_error=True)


class Command(NamedTuple):
    """What a key stands for."""

    short: str
    at_length: str
    do: Callable[[Controls], None]


COMMANDS = {
    "p": Command("pause", "pause, go on", lambda controls: controls.pause()),
    "n": Command("step", "one step, then pause", lambda controls: controls.single_step()),
    REWIND: Command("rewind", "hold: go back through the moments that are kept", lambda controls: controls.keyboard.press(REWIND)),
    "m": Command("mark", "mark this moment", lambda controls: controls.mark()),
    "b": Command("back to mark", "go back to the last mark; f1 to f8: to that mark", lambda controls: controls.return_to(-1)),
    "f": Command("profile", "next profile: fast, balanced, quality", lambda controls: controls.choose_profile()),
    "-": Command("slower", "fewer steps a second", lambda controls: controls.change_pace(1 / 1.25)),
    "=": Command("faster", "more steps a second", lambda controls: controls.change_pace(1.25)),
    "v": Command("film", "begin or end a film, MP4", lambda controls: controls.attempt(controls.begin_or_end_film)),
    "f9": Command("save", "save the game to a new file", lambda controls: controls.attempt(controls.save)),
    "f10": Command("load", "load the game saved last; drop any other file here", lambda controls: controls.attempt(controls.load_latest)),
    "r": Command("anew", "begin anew", lambda controls: controls.begin_anew()),
    "h": Command("help", "show or hide all keys", lambda controls: setattr(controls, "shows_help", not controls.shows_help)),
    "q": Command("quit", "quit", lambda controls: setattr(controls, "quits", True)),
}
POLICY = {"t": Command("policy", "let the policy act, or stop it", lambda c: setattr(c.game, "policy_acts", not c.game.policy_acts))}


def write_film(path: Path, film: list[np.ndarray], fps: float) -> str:
    """Write pictures of a game, enlarged, and say so. Raises as `write_movie` does."""
    write_movie(path, film, fps, FILM_SCALE)
    return f"{path}: {len(film)} frames"


@dataclass
class Keyboard:
    """Keys that are down, the oldest first. A key tapped between two steps counts for the next one."""

    held: list[str] = field(default_factory=list)
    tapped: list[str] = field(default_factory=list)

    def press(self, key: str) -> None:
        self.held = list(dict.fromkeys([*self.held, key]))
        self.tapped = list(dict.fromkeys([*self.tapped, key]))

    def release(self, key: str) -> None:
        self.held = [other for other in self.held if other != key]

    def read(self) -> list[str]:
        """The keys since the last call."""
        keys = list(dict.fromkeys([*self.held, *self.tapped]))
        self.tapped = []
        return keys

    def forget(self) -> None:
        """All keys are up: a window without the focus isn't told of keys."""
        self.held, self.tapped = [], []


def chosen_action(keys: dict[str, int], pressed: list[str]) -> int | None:
    """The action of the longest combination that is pressed, between equals the one with the latest key; None if there is none."""
    if not (combinations := [combination for combination in keys if set(combination) <= set(pressed)]):
        return None
    return keys[max(combinations, key=lambda combination: (len(combination), max(map(pressed.index, combination))))]


def meaning(name: str, keys: dict[str, int]) -> str:
    """One name for keys that mean the same. A key that the world knows keeps its own meaning."""
    name = OTHER_NAMES.get(name, name)
    return ARROWS[name] if name in ARROWS and ARROWS[name] in set("".join(keys)) else name


def action_help(world: WorldSpec) -> list[tuple[str, str]]:
    return [(shown(key), world.actions[action].replace("_", " ")) for key, action in world.keys.items() if len(key) == 1]


def command_help(game: Game, at_length: bool = False) -> list[tuple[str, str]]:
    commands = COMMANDS | (POLICY if game.policy is not None else {})
    return [(shown(key), command.at_length if at_length else command.short) for key, command in commands.items()]


def shown(key: str) -> str:
    """How a key is called on the screen."""
    return {" ": "space", REWIND: "bksp"}.get(key, key)
