"""Settings of a game, and how it is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import FASTEST, SLOWEST
from lssvwm_gym.play.policies import open_policy
from lssvwm_gym.worlds import chosen_world

WEB_FASTEST = 30.0  # steps a second


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
    rewind_mb: int = 800  # memory for going back: 800 are 42 seconds of Memory Maze, 34 of the block world, 57 of Take Cover
    saves: Path = Path("runs/play")  # folder of games and films
    record: Path | None = None  # MP4 or GIF of the whole game, written however it ends
    web: bool = False  # in browsers instead of a window
    host: str = "127.0.0.1"  # with --web: the address to listen at; others than this machine's own get a token
    port: int = 8765  # with --web; 0 for any that is free
    visitors: int = 8  # with --web: at most so many at once, each with a dream of their own; they share --rewind-mb

    def __post_init__(self) -> None:
        if self.fps is not None and not SLOWEST <= self.fps <= FASTEST:
            raise ValueError(f"fps must be {SLOWEST:g} to {FASTEST:g} steps a second, not {self.fps}")
        check_bounds(self, scale=1, rewind_mb=0, port=0, visitors=1)
        if self.port > 65535:
            raise ValueError(f"port must be 0 to 65535, not {self.port}")
        if self.load and self.replay:
            raise ValueError("one of --load and --replay, not both")
        if self.web and (self.record or self.scale):
            raise ValueError("--record and --scale are of the window; with --web, every visitor downloads films and sizes the picture")
        if self.web and (self.fps or 0) > WEB_FASTEST:
            raise ValueError(f"with --web, fps is at most {WEB_FASTEST:g}, not {self.fps:g}")


def open_game(run: Playing) -> Game:
    """The game that the settings describe, at its first frame. Raises as `play` does."""
    env = DreamEnv(chosen_world(run.world, run.weights), profile=run.profile, weights=run.weights)
    options = {"start": "cold" if run.start == "cold" else None, "context_frames": run.context_frames, "episode": run.episode}
    game = Game(env, options, run.rewind_mb * 10**6, run.seed)
    if run.policy:
        game.policy, game.policy_acts = open_policy(run.policy, env.dream, run.seed or 0), True
    if run.load:
        game.load(run.load)
    if run.replay:
        game.replay(run.replay)
    return game
