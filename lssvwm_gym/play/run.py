"""Settings of a game, and the loop that keeps its pace."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pygame

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.video import check_movie
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import FASTEST, SLOWEST, Controls, write_film
from lssvwm_gym.play.policies import open_policy
from lssvwm_gym.play.window import Window, open_display
from lssvwm_gym.worlds import chosen_world

REDRAWS = 30  # a second at least, so that keys are read in time between two steps


@dataclass(frozen=True)
class Playing:
    """Which dream to play in, and how it is shown."""

    world: str = ""  # its name may also stand first, without --world; if not given, what the weights say, else memory-maze
    profile: Literal["fast", "balanced", "quality"] = "balanced"  # how carefully each frame is dreamed; key f changes it
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    seed: int | None = None  # of the first dream; the same seed and keys, the same dream
    start: Literal["context", "cold"] = "context"  # from a short real context, or from nothing
    context_frames: int | None = None  # begin with so many frames of a long real context
    episode: Path | None = None  # begin with a recorded episode of your own instead, its first 32 or --context-frames frames
    policy: str | None = None  # acts while you hold no key: random, wander or module:attribute[:argument]
    load: Path | None = None  # begin with this saved game or state
    replay: Path | None = None  # begin where this saved game began, and see its moves again
    fps: float | None = None  # steps a second at most; those of the world if not given
    scale: int | None = None  # screen pixels a side of one pixel of the dream; 9 if not given
    rewind_mb: int = 800  # memory for going back; a step takes about 4 MB, so that is 50 seconds of Memory Maze
    saves: Path = Path("runs/play")  # folder of games and films
    record: Path | None = None  # MP4 or GIF of the whole game, written however it ends

    def __post_init__(self) -> None:
        if self.fps is not None and not SLOWEST <= self.fps <= FASTEST:
            raise ValueError(f"fps must be {SLOWEST:g} to {FASTEST:g} steps a second, not {self.fps}")
        check_bounds(self, scale=1, rewind_mb=0)
        if self.load and self.replay:
            raise ValueError("one of --load and --replay, not both")


def play(run: Playing) -> Game:
    """Open a window and play until the player quits. Returns the game, whose env is closed.

    However the game ends, by Ctrl-C or by an error too, what was recorded is written.

    Raises:
        ValueError: an unknown world, a policy, game or recording that can't be what it is said to be, or options that don't fit.
        OSError: there is no screen, and no invisible one was asked for by `SDL_VIDEODRIVER`.
    """
    world = chosen_world(run.world, run.weights)
    if world.continuous:
        raise ValueError(f"an action of {world.name} is {len(world.actions)} numbers, for which there are no keys; step it from Python")
    fps, record = run.fps or world.fps, run.record
    if record:
        check_movie(record)
    with ExitStack() as at_the_end:  # the last one first, and all of them, whatever one raises
        at_the_end.callback(pygame.quit)
        open_display()
        game = open_game(run)
        at_the_end.callback(game.close)
        controls = Controls(game, fps, run.saves)
        at_the_end.callback(controls.finish)
        if record:
            film = [game.picture()]
            game.films.append(film)
            at_the_end.callback(lambda: print(write_film(record, film, fps)))
        with suppress(KeyboardInterrupt), _closed_terminal_interrupts():  # quits, as q does
            _play_until_quit(controls, Window(game, run.scale))
    return game


def open_game(run: Playing) -> Game:
    """The game that the settings describe, at its first frame. Raises as `play` does."""
    world = chosen_world(run.world, run.weights)
    env = DreamEnv(world, profile=run.profile, weights=run.weights)
    options = {"start": "cold" if run.start == "cold" else None, "context_frames": run.context_frames, "episode": run.episode}
    game = Game(env, options, run.rewind_mb * 10**6, run.seed)
    if run.policy:
        game.policy, game.policy_acts = open_policy(run.policy, env.dream, run.seed or 0), True
    if run.load:
        game.load(run.load)
    if run.replay:
        game.replay(run.replay)
    return game


@contextmanager
def _closed_terminal_interrupts() -> Iterator[None]:
    """A closed terminal ends the game as Ctrl-C does, unless somebody else takes care of the signal."""
    if os.name == "nt" or threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _play_until_quit(controls: Controls, window: Window) -> None:
    clock = pygame.time.Clock()
    controls.pace.due = time.perf_counter()
    window.draw(controls)
    while not controls.quits:
        for event in pygame.event.get():
            controls.obey(event)
        if not controls.quits:
            controls.act(time.perf_counter())
            window.draw(controls)
            clock.tick(max(REDRAWS, controls.pace.wanted))
