"""Settings of a game, the loop that keeps its pace, and what each key does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pygame

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.io.video import check_movie, enlarged, write_movie
from lssvwm_gym.play.beside import RealWorld
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.keyboard import MARK_KEYS, REWIND, Keyboard, chosen_action, meaning
from lssvwm_gym.play.saved_game import free_name, latest
from lssvwm_gym.play.wheel import open_driver
from lssvwm_gym.play.window import Window
from lssvwm_gym.worlds import chosen_world

REDRAWS = 30  # a second at least, so that keys are read in time while a step waits for its moment
REWIND_SPEED = 3  # times as fast as forward
WATCHED = 32  # real frames that a dream beside the real world sees before it goes on by itself
SLOWEST, FASTEST = 0.5, 1000.0  # steps a second
FILM_SCALE = 4  # pixels a side of one pixel of the dream
SAID = 6.0  # seconds that a message stays
MEASURED = 20  # steps over which the speed is measured


@dataclass(frozen=True)
class Playing:
    """Which dream to walk in, and how it is shown."""

    world: str = ""  # its name may also stand first, without --world; if not given, what the weights say, else memory-maze
    profile: Literal["fast", "balanced", "quality"] = "balanced"  # how carefully each frame is dreamed; key f changes it
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    seed: int | None = None  # of the first dream; the same seed and keys, the same dream
    start: Literal["opening", "cold"] = "opening"  # from a real opening, or from nothing
    context_frames: int | None = None  # begin deep inside a real walk, with so many of its frames remembered
    episode: Path | None = None  # begin with a recorded episode of your own instead, its first 32 or --context-frames frames
    beside: bool = False  # the real world goes along on the same actions; the dream sees its first 32 or --context-frames frames
    policy: str | None = None  # at the wheel until you take it: random, wander or module:attribute[:argument]
    load: Path | None = None  # begin with this saved game or state
    replay: Path | None = None  # begin where this saved game began, and see its moves again
    fps: float | None = None  # steps a second at most; those of the world if not given
    scale: int | None = None  # screen pixels a side of one pixel of the dream; 9, or 7 of two pictures
    rewind_mb: int = 800  # memory for moments to go back to; one takes about 4 MB, so that is 50 seconds of Memory Maze
    saves: Path = Path("runs/play")  # folder of games and films
    record: Path | None = None  # MP4 or GIF of the whole game, to write when you quit

    def __post_init__(self) -> None:
        if self.fps is not None and not SLOWEST <= self.fps <= FASTEST:
            raise ValueError(f"fps must be {SLOWEST:g} to {FASTEST:g} steps a second, not {self.fps}")
        if self.scale is not None and self.scale < 1:
            raise ValueError(f"scale must be at least 1, not {self.scale}")
        if self.rewind_mb < 0:
            raise ValueError(f"rewind_mb must be 0 or more, not {self.rewind_mb}")
        if self.beside and (self.start == "cold" or self.episode):
            raise ValueError("beside the real world a dream begins with its frames: leave out --start cold and --episode")
        if self.beside and self.context_frames is not None and self.context_frames < 1:
            raise ValueError(f"beside the real world a dream sees at least its first frame: context_frames can't be {self.context_frames}")
        if self.load and self.replay:
            raise ValueError("one of --load and --replay, not both")


@dataclass
class Pace:
    """Steps a second: how many are wanted, and how many come."""

    wanted: float
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=MEASURED))  # of the last steps, in seconds
    due: float = 0.0  # when the next step is to be taken

    def is_due(self, now: float, speed: float = 1.0) -> bool:
        """Whether to act now; if so, the next time is a step later. What is late by more than a step is not made up for."""
        if now < self.due:
            return False
        wait = 1 / (self.wanted * speed)
        self.due = self.due + wait if now - self.due < wait else now + wait
        return True

    @property
    def measured(self) -> float | None:
        """Steps a second over the last ones; None before there are some."""
        if len(self.moments) < 5:
            return None
        return (len(self.moments) - 1) / (self.moments[-1] - self.moments[0])

    @property
    def is_held(self) -> bool:
        return self.measured is None or self.measured > 0.93 * self.wanted


class Player:
    """One at the keyboard: what is held down, what was asked for, what is to be said."""

    def __init__(self, game: Game, fps: float, saves: Path) -> None:
        self.game, self.saves, self.pace = game, saves, Pace(fps)
        self.keyboard = Keyboard()
        self.paused = self.shows_help = self.real_first = self.quits = False
        self.message, self.is_error, self.said_at = "", False, 0.0
        self.film: list[np.ndarray] | None = None
        self.commands: dict[str, Callable[[], None]] = {
            "q": lambda: setattr(self, "quits", True),
            "p": self._pause,
            "n": self._single_step,
            "r": self._begin_anew,
            "m": self._mark,
            "b": lambda: self._return_to(len(game.marks) - 1),
            "f": self._next_profile,
            "v": self._film,
            "h": lambda: setattr(self, "shows_help", not self.shows_help),
            "-": lambda: self._change_pace(1 / 1.25),
            "=": lambda: self._change_pace(1.25),
            "f9": self._save,
            "f10": self._load_latest,
        }
        self.commands |= {key: lambda number=number: self._return_to(number) for number, key in enumerate(MARK_KEYS)}  # type: ignore[misc]
        if game.real is not None:
            self.commands |= {"tab": lambda: setattr(self, "real_first", not self.real_first), "e": game.toggle_eyes}
        if game.policy is not None:
            self.commands["t"] = lambda: setattr(game, "policy_drives", not game.policy_drives)

    @property
    def rewinds(self) -> bool:
        return REWIND in self.keyboard.held

    def obey(self, event: pygame.event.Event) -> None:
        """Note a key, or do what it stands for."""
        if event.type == pygame.QUIT:
            self.quits = True
        elif event.type == pygame.DROPFILE:
            self._load(Path(event.file))
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.keyboard.forget()
        elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
            key = meaning(pygame.key.name(event.key), self.game.world.keys)
            if event.type == pygame.KEYUP:
                self.keyboard.release(key)
            elif key in self.commands and key not in self.game.world.keys:
                self.say("")
                self.commands[key]()
            else:
                self.keyboard.press(key)

    def act(self, now: float) -> None:
        """Go on, or back, if it is time to."""
        if self.rewinds:
            if self.pace.is_due(now, REWIND_SPEED):
                self._rewind()
        elif not self.paused and self.pace.is_due(now):
            self._step()

    def say(self, message: str, is_error: bool = False) -> None:
        self.message, self.is_error, self.said_at = message, is_error, time.perf_counter()

    @property
    def is_said(self) -> bool:
        """Whether the message is still of interest: for some seconds, an error until the next command."""
        return bool(self.message) and (self.is_error or time.perf_counter() - self.said_at < SAID)

    def finish(self) -> None:
        """Write the film that is not finished yet."""
        if self.film is not None:
            self._film()

    def _step(self) -> None:
        pressed = chosen_action(self.game.world.keys, self.keyboard.read())
        try:
            driven = self.game.drive() if pressed is None or self.game.replaying else None
        except Exception as error:  # somebody else's policy may raise anything; the game is yours then
            self.game.policy_drives = False
            self.say(f"the policy has stopped: {type(error).__name__}: {error}", is_error=True)
            driven = None
        self.game.step(next((action for action in (driven, pressed) if action is not None), 0))
        self.pace.moments.append(time.perf_counter())
        if self.game.now.over:
            self._pause()
            self.say(f"{self.game.now.over}: r begins anew, p goes on all the same")

    def _rewind(self) -> None:
        self.pace.moments.clear()
        self.keyboard.tapped = []
        if not self.game.back():
            self.say("no earlier moment is kept")

    def _pause(self) -> None:
        self.paused = not self.paused
        self.pace.moments.clear()

    def _single_step(self) -> None:
        self.paused = True
        self.pace.moments.clear()
        self._step()
        self.paused = True

    def _begin_anew(self) -> None:
        try:
            self.game.begin()
        except RuntimeError as error:  # the real world doesn't begin, `SimulatorDied` included; the dream is still there
            self.say(f"{error}: r tries again", is_error=True)
        self.pace.moments.clear()

    def _mark(self) -> None:
        number = self.game.mark()
        self.say(f"marked: f{number + 1} comes back to here")

    def _return_to(self, number: int) -> None:
        if not 0 <= number < len(self.game.marks):
            self.say("no moment is marked" if number < 0 else f"there is no mark {number + 1}: m marks a moment")
            return
        self.game.return_to(number)
        self.pace.moments.clear()
        self.say(f"back at mark {number + 1}")

    def _next_profile(self) -> None:
        self.game.next_profile()
        self.pace.moments.clear()
        self.say(f"profile {self.game.profile}")

    def _change_pace(self, factor: float) -> None:
        self.pace = Pace(min(max(self.pace.wanted * factor, SLOWEST), FASTEST))

    def _film(self) -> None:
        """Begin a film with this moment, or write the one under way."""
        if self.film is None:
            self.film = [self.game.picture()]
            self.game.films.append(self.film)
            self.say("filming: v ends the film")
            return
        film, self.film = self.film, None
        self.game.films = [other for other in self.game.films if other is not film]
        self._try(lambda: self._write(film))

    def _write(self, film: list[np.ndarray]) -> str:
        path = free_name(self.saves, self.game.world.name, ".mp4")
        write_movie(path, enlarged(np.stack(film), FILM_SCALE), self.pace.wanted)
        return f"{path}: {len(film)} frames"

    def _save(self) -> None:
        def save() -> str:
            path = free_name(self.saves, self.game.world.name, ".safetensors")
            self.game.save(path)
            return f"saved as {path}"

        self._try(save)

    def _load_latest(self) -> None:
        path = latest(self.saves, self.game.world.name)
        if path is None:
            self.say(f"no game of {self.game.world.name} is saved in {self.saves}: f9 saves one", is_error=True)
        else:
            self._load(path)

    def _load(self, path: Path) -> None:
        def load() -> str:
            self.game.load(path)
            return f"loaded {path}"

        self._try(load)

    def _try(self, what: Callable[[], str]) -> None:
        """Say what came of it; a file that is wrong, or can't be written, is no reason to end a game."""
        try:
            self.say(what())
            self.pace.moments.clear()  # it took time that steps are not to blame for
        except (OSError, ValueError, ImportError) as error:
            self.say(str(error), is_error=True)


def play(run: Playing) -> Game:
    """Open a window and play until the player quits. Returns the game, whose env is closed.

    Raises:
        ValueError: an unknown world, a policy, game or recording that can't be what it is said to be, or options that don't fit.
        SimulatorUnavailable: `beside` where the real world can't run; the message says what to install.
    """
    world = chosen_world(run.world, run.weights)
    if world.continuous:
        raise ValueError(f"an action of {world.name} is {len(world.actions)} numbers, for which there are no keys; step it from Python")
    if run.record:
        check_movie(run.record)
    fps = run.fps or world.fps
    game = open_game(run)
    try:
        film = [game.picture()]
        if run.record:
            game.films.append(film)
        _play_until_quit(Player(game, fps, run.saves), Window(game, run.scale))
    finally:
        game.close()
        pygame.quit()
    if run.record:
        write_movie(run.record, enlarged(np.stack(film), FILM_SCALE), fps)
        print(f"{run.record}: {len(film)} frames")
    return game


def open_game(run: Playing) -> Game:
    """The game that the settings describe, at its first moment. Raises as `play` does."""
    world = chosen_world(run.world, run.weights)
    env = DreamEnv(world, profile=run.profile, weights=run.weights)
    real = RealWorld(world) if run.beside else None
    try:
        game = Game(env, reset_options(run), run.rewind_mb * 10**6, real, run.context_frames or WATCHED, run.seed)
        if run.policy:
            game.policy, game.policy_drives = open_driver(run.policy, env.dream, run.seed or 0), True
        if run.load:
            game.load(run.load)
        if run.replay:
            game.replay(run.replay)
    except BaseException:
        if real is not None:
            real.close()
        raise
    return game


def reset_options(run: Playing) -> dict[str, Any]:
    """What the env's reset is told about the beginning of the dream."""
    options: dict[str, Any] = {"start": "cold"} if run.start == "cold" else {}
    options |= {"context_frames": run.context_frames} if run.context_frames is not None else {}
    return options | ({"episode": run.episode} if run.episode is not None else {})


def _play_until_quit(player: Player, window: Window) -> None:
    clock = pygame.time.Clock()
    player.pace.due = time.perf_counter()
    window.draw(player)
    while not player.quits:
        for event in pygame.event.get():
            player.obey(event)
        if not player.quits:
            player.act(time.perf_counter())
            window.draw(player)
            clock.tick(max(REDRAWS, player.pace.wanted))
    player.finish()
