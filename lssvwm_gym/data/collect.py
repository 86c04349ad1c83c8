"""Collect episodes from a real simulator, with several processes: `lssvwm-gym collect memory-maze --out DIR`, or `luanti`.
Any other Gymnasium environment: `lssvwm-gym collect gym`, see `collect_gym`.

Episode `<seed>` depends on its seed alone, as far as the world repeats itself. Whatever ends a collection, only whole episodes remain, and
the same command goes on where it was. Another world is one more entry in `SOURCES`.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from lssvwm_gym.data.episode import Episode, is_whole, write_episode
from lssvwm_gym.io.atomic import discard
from lssvwm_gym.io.json_config import check_bounds, imported
from lssvwm_gym.io.video import VIDEO_CRF, check_crf
from lssvwm_gym.io.worker_pool import Done, Failed, Progress, Work, run_jobs
from lssvwm_gym.real_envs.experts import block_players, maze_players
from lssvwm_gym.worlds.minecraft import MINECRAFT

Policy = Callable[[Any, dict[str, Any]], Any]  # (observation, info) -> action
REPORT_FRAMES = 20  # between two movements of the progress bar


@dataclass(frozen=True)
class Collecting:
    """What to collect, and where to."""

    world: str  # a name in SOURCES: memory-maze, luanti
    out: Path  # folder of the episodes
    episodes: int = 100
    workers: int = 2  # processes; each takes a core, and of memory 1.6 GB in Memory Maze and 0.7 GB in Luanti
    first_seed: int = 0  # the seeds are first_seed, first_seed + 1, ...
    size: int = 9  # cells along a side of the maze; of no meaning elsewhere
    steps: int | None = None  # an episode, which has one frame more; left out, it is as long as the world's standard task
    crf: int = VIDEO_CRF  # 0 (lossless) .. 51 (worst)
    # in Memory Maze explorer (as none), seeker, wander, sticky or mixed; in Luanti wander, dig, craft or mixed; your own: module:attribute
    player: str | None = None

    def __post_init__(self) -> None:
        check_bounds(self, episodes=1, workers=1, steps=1, first_seed=0)
        check_crf(self.crf)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)

    def path(self, seed: int) -> Path:
        """The episode's files without their endings."""
        return Path(self.out) / f"{seed:06d}"


@dataclass(frozen=True)
class Source:
    """A real world to collect from. The functions must be importable by name, because other processes call them."""

    make_env: Callable[[Collecting], gym.Env]  # observations are uint8 (height, width, 3) frames, or a dict with one among others
    make_policy: Callable[[np.random.Generator], Policy]  # a new one for every episode
    fps: int  # of the video
    every_frame: tuple[str, ...] = ()  # keys of info recorded at every frame
    once: tuple[str, ...] = ()  # keys of info that stay the same for a whole episode
    steps: int = 1000  # an episode, where nothing else is asked for
    frame: str | None = None  # key of the frame in observations that are a dict; the rest of them is recorded at every frame
    players: dict[str, Callable[[np.random.Generator], Policy]] = field(default_factory=dict)  # in place of make_policy, by name


@dataclass(frozen=True)
class Collected:
    """How a collection ended; seeds in order."""

    done: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)  # their episodes were there already
    failed: dict[int, str] = field(default_factory=dict)  # and what went wrong
    stopped: bool = False  # by Ctrl-C


def make_memory_maze(collecting: Collecting) -> gym.Env:
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software rendering must not use the other workers' cores
    from lssvwm_gym.real_envs.memory_maze import MemoryMazeEnv

    return MemoryMazeEnv(collecting.size)


def make_luanti(collecting: Collecting) -> gym.Env:
    from lssvwm_gym.real_envs.luanti import LuantiEnv

    return LuantiEnv(max_episode_steps=collecting.steps or MINECRAFT.max_episode_steps, senses=True)


SOURCES = {
    "memory-maze": Source(
        make_memory_maze,
        maze_players.MazeExplorer,
        fps=4,
        every_frame=("agent_pos", "agent_dir", "target_color", "target_pos"),
        once=("targets_pos", "maze_layout"),
        players=maze_players.PLAYERS,
    ),
    "luanti": Source(
        make_luanti,
        partial(maze_players.Sticky, gym.spaces.Discrete(len(MINECRAFT.actions)), (), maze_players.STICKY_SHARE),
        fps=MINECRAFT.fps,
        every_frame=("pos", "yaw", "pitch", "hp"),
        once=("seed", "biome"),
        steps=MINECRAFT.max_episode_steps,
        frame="image",
        players=block_players.PLAYERS,
    ),
}


def collect(collecting: Collecting, source: Source | None = None) -> Collected:
    """Collect the episodes that are not yet in `collecting.out`.

    A failing episode is shown with its seed while the others go on; look at the answer's `failed`. Ctrl-C stops quietly. `source` is
    where to collect from, if that is not in `SOURCES`. Raises `ValueError` where `SOURCES` has no such world, or the world no such player,
    `WorkerPoolError` where the simulator can't be started.
    """
    if source is None and collecting.world not in SOURCES:
        raise ValueError(f"no world named {collecting.world!r} to collect from; there is {', '.join(SOURCES)}")
    source = source or SOURCES[collecting.world]
    if collecting.player is not None:
        name, there_is = collecting.player, ", ".join(source.players) or "one without a name"
        if name not in source.players and ":" not in name:
            raise ValueError(f"no player named {name!r} in {collecting.world}; there is {there_is}, and module:attribute of your own")
        source = replace(source, make_policy=source.players.get(name) or imported(name))
    return gather(collecting, partial(Recorder, collecting, source), (collecting.steps or source.steps) + 1)


def gather(collecting: Collecting, open_work: Callable[[], Work], frames: int) -> Collected:
    """`collect` with any work that writes the episode of a seed, of at most `frames` frames; importable by name."""
    Path(collecting.out).mkdir(parents=True, exist_ok=True)
    remove_leftovers(collecting)
    whole = {seed for seed in collecting.seeds if is_whole(collecting.path(seed))}
    missing = [seed for seed in collecting.seeds if seed not in whole]
    collected = Collected(skipped=sorted(whole))
    try:
        _work_off(collecting, open_work, frames, missing, collected)
    except KeyboardInterrupt:
        collected = replace(collected, stopped=True)
    finally:
        remove_leftovers(collecting)
    collected.done.sort()
    return collected


def _work_off(collecting: Collecting, open_work: Callable[[], Work], frames: int, seeds: list[int], collected: Collected) -> None:
    bar = tqdm(total=len(seeds) * frames, unit="frame", desc=f"{len(seeds)} episodes", disable=not seeds)
    with contextlib.closing(run_jobs(seeds, open_work, collecting.workers)) as messages, bar:
        seen = dict.fromkeys(seeds, 0)
        for message in messages:
            amount = message.amount if isinstance(message, Progress) else frames - seen[message.job]
            seen[message.job] += amount
            bar.update(amount)
            if isinstance(message, Done):
                collected.done.append(message.job)
            elif isinstance(message, Failed):
                collected.failed[message.job] = message.why
                tqdm.write(f"seed {message.job} failed: {message.why}", file=sys.stderr)


class Recorder:
    """A worker's work: one simulator, kept open, and an episode written for every seed."""

    def __init__(self, collecting: Collecting, source: Source) -> None:
        self._collecting, self._source = collecting, source
        self._env = source.make_env(collecting)

    def __call__(self, seed: int, report: Callable[[int], None] = lambda frames: None) -> None:
        policy = self._source.make_policy(np.random.default_rng([seed, 1]))  # [seed] alone is what Gymnasium seeds its envs with
        episode = record(self._env, policy, self._source, seed, self._collecting.steps or self._source.steps, report)
        write_episode(self._collecting.path(seed), episode, self._source.fps, self._collecting.crf)

    def close(self) -> None:
        self._env.close()


def record(
    env: gym.Env, policy: Policy, source: Source, seed: int, steps: int, report: Callable[[int], None] = lambda frames: None
) -> Episode:
    """Play one episode of at most `steps` steps; `report` is told now and then how many frames are new.

    A policy may have a `name`, which is recorded, and options of reset with which its episode is to begin, `start`.
    """
    observation, info = env.reset(seed=seed, options=getattr(policy, "start", None))
    observations, actions, rewards, infos = [observation], [], [0.0], [info]
    over = terminated = False
    while len(observations) <= steps and not over:
        actions.append(policy(observation, info))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        infos.append(info)
        over = terminated or truncated
        if len(observations) % REPORT_FRAMES == 0:
            report(REPORT_FRAMES)
    extras = {name: np.stack([one[name] for one in observations]) for name in observations[0]} if source.frame else {}
    frames = extras.pop(source.frame) if source.frame else np.stack(observations)
    extras |= {key: np.stack([info[key] for info in infos]) for key in source.every_frame}
    extras |= {key: np.asarray(infos[0][key]) for key in source.once}
    extras |= {"policy": np.asarray(policy.name)} if hasattr(policy, "name") else {}
    extras["terminated"] = np.arange(len(frames)) == (len(frames) - 1 if terminated else -1)
    small = isinstance(env.action_space, gym.spaces.Discrete) and env.action_space.n <= 256  # all others are of the actions' own type
    taken = np.stack([np.asarray(action, np.uint8 if small else None) for action in actions])
    aligned = np.concatenate([np.zeros_like(taken[:1]), taken])  # a placeholder comes first
    return Episode(frames, aligned, np.array(rewards, np.float32), extras)


def remove_leftovers(collecting: Collecting) -> None:
    """Of this collection's seeds only: another collection may be writing to the same folder."""
    for seed in collecting.seeds:
        for unfinished in Path(collecting.out).glob(f".{seed:06d}.*.part"):
            discard(unfinished)
