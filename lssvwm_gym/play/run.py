"""Settings of a game, and the loop that keeps its pace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pygame

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.io.video import check_movie, enlarged, write_movie
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import FASTEST, FILM_SCALE, SLOWEST, Player
from lssvwm_gym.play.policies import open_driver
from lssvwm_gym.play.side_by_side import RealWorld
from lssvwm_gym.play.window import Window
from lssvwm_gym.worlds import chosen_world

REDRAWS = 30  # a second at least, so that keys are read in time while a step waits for its moment
WATCHED = 32  # real frames that a dream beside the real world sees before it goes on by itself


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
