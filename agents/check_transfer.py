"""Does what was learned in a dream hold in the real world? Policies are tried in both, and their returns compared.

python -m agents.check_transfer --policies random wander runs/ppo_torch/memory-maze/policy.safetensors
python -m agents.check_transfer --policies random runs/ppo/LSSVWM-MemoryMaze-v0/policy.safetensors --episodes 32 --video runs/transfer.mp4

A policy is one of

random            any action, each as likely
wander            forward, with turns now and then; looks at nothing
explorer          the scripted explorer that episodes are collected with; it needs the map, so it is tried in the real world only
PATH.safetensors  written by agents/ppo_torch.py, agents/ppo.py, agents/recurrent_ppo.py or agents/behavior_cloning.py

Dreams begin from real openings, or with `--data` from long recorded walks, in mazes that they then know; real episodes at the start
of a maze, of seeds from `--seed` on, or with `--walked` after the scripted explorer has shown the maze for so many steps. Needs
`pip install 'lssvwm_gym[agents,memory-maze]'`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.mpc import Planning
from agents.players import DREAMLESS, Player, opened_player
from agents.results import as_json, mean_and_error, shared_out, summary, write_json
from agents.seen import WorldModelObservation, observed
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import picture_of
from lssvwm_gym.evaluation.metrics import rank_correlation
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.rollout import DreamState
from lssvwm_gym.models.state import join_rows
from lssvwm_gym.real_envs.experts.maze_explorer import Explorer

RESAMPLED = 1000  # times, for the interval of a correlation


@dataclass(frozen=True)
class Args:
    """Which policies, and how long to try each."""

    policies: tuple[str, ...] = ("random", "wander")
    episodes: int = 16  # of each policy in the dream, and as many in the real world
    steps: int = 250  # of an episode, in both
    world: str = "memory-maze"
    weights: Path | None = None  # of the dream; the shipped ones if not given
    profile: str = "balanced"  # of the dream: fast, balanced or quality
    device: str = "auto"  # of the dream; what real episodes need of a model runs on the CPU
    dream_seed: int = 0  # of the first dream
    data: Path | None = None  # folder of recorded episodes whose walks dreams begin from, one each in turn; openings if not given
    context: int = 500  # frames of such a walk that are remembered
    batch: int = 16  # dreams side by side; a GPU takes hundreds
    seed: int = 1_000_000  # of the first real episode, far from those of the training data
    walked: int = 0  # steps of the scripted explorer before a policy takes over in the real world; what they earn doesn't count
    real: bool = True  # --no-real leaves the real world out
    workers: int = 1  # processes that episodes are shared out to; 1: all are played in this one
    planning: Planning = field(default_factory=Planning)  # of the planner, where it is one of the policies
    out: Path = Path("runs/transfer.json")
    video: Path | None = None  # .mp4 of every policy's first episode: dream on the left, real on the right


class Played(NamedTuple):
    """One episode, or some side by side."""

    earned: list[float]  # return of each
    frames: np.ndarray | None  # (steps + 1, height, width, 3) uint8 of the first, where it is to be filmed


@dataclass
class Tried:
    """The returns of one policy."""

    policy: str
    dream: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Episodes:
    """What a process needs to know to play some with one policy: in the real world one, in dreams as many as there are seeds."""

    where: str  # "dream" or "real"
    policy: str
    seeds: range
    steps: int
    filmed: bool
    dream: tuple[str, str, str, Path | None]  # what `open_dream` is told
    walks: tuple[Path, ...] = ()  # that dreams begin from; openings if there are none
    context: int = 0  # frames of such a walk
    env: str = ""  # id of the real world
    walked: int = 0  # steps there before the policy's
    planning: Planning = field(default_factory=Planning)


def main(args: Args) -> None:
    check(args)
    results = {policy: Tried(policy) for policy in args.policies}
    films: dict[tuple[str, str], np.ndarray] = {}
    episodes = list(all_episodes(args))
    parts = dict(shared_out(play, episodes, args.workers, [len(one.seeds) * one.steps for one in episodes]))
    for number, one in enumerate(episodes):  # in the order of their seeds, whoever was ready first
        getattr(results[one.policy], one.where).extend(parts[number].earned)
        film = parts[number].frames
        films |= {} if film is None else {(one.policy, one.where): film}
    write(args, list(results.values()))
    print(table(list(results.values())))
    if args.video is not None:
        film_side_by_side(args.video, args.policies, films, open_dream(args.world).world.fps)


def check(args: Args) -> None:
    """End the program with what is wrong with the command line, before anything takes time."""
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    for name in ("episodes", "steps", "batch", "workers"):
        if getattr(args, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(args, name)}")
    if args.walked < 0:
        raise SystemExit(f"walked must be at least 0, not {args.walked}")
    if args.walked and dream.world.name != "memory-maze":
        raise SystemExit(f"the scripted explorer that walks first knows its way in memory-maze, not in {dream.world.name}")
    if (most := dream.world.max_episode_steps) < args.steps + args.walked:
        walked = f" of which {args.walked} are walked first" if args.walked else ""
        raise SystemExit(f"an episode of {args.world} has at most {most} steps, not {args.steps + args.walked}{walked}")
    if len(set(args.policies)) < len(args.policies) or not args.policies:
        raise SystemExit(f"name each policy once, not {' '.join(args.policies) or 'none'}")
    if args.real and dream.world.real_id is None:
        raise SystemExit(f"{args.world} has no real environment here: leave it out with --no-real")
    try:
        check_walks(args)
        for policy in args.policies:
            opened_player(policy, dream, 1, 0, args.planning)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None


def walks(args: Args) -> tuple[Path, ...]:
    """The recordings that dreams begin from; none: openings. Raises `ValueError` for a folder without any."""
    return () if args.data is None else tuple(episode_paths(args.data))


def check_walks(args: Args) -> None:
    """Raises `ValueError` where they are not as long as dreams are to remember."""
    for path in walks(args):
        frames = len(read_arrays(path).get("action", ()))
        if not 1 <= args.context <= frames:
            raise ValueError(f"context must be from 1 to the {frames} frames of {path}, not {args.context}")


def all_episodes(args: Args) -> Iterator[Episodes]:
    """What is to be played. Policies take turns in the real world, so that all are tried alike if it is stopped."""
    dreamt = args.world, args.profile, args.device, args.weights
    begin = walks(args)
    for first in range(0, args.episodes, args.batch):
        seeds = range(args.dream_seed + first, args.dream_seed + min(first + args.batch, args.episodes))
        for policy in args.policies:
            if policy.partition("@")[0] not in DREAMLESS:
                filmed = first == 0 and args.video is not None
                yield Episodes("dream", policy, seeds, args.steps, filmed, dreamt, begin, args.context, planning=args.planning)
    env = open_dream(args.world, args.profile, args.device, args.weights).world.real_id or ""
    for number in range(args.episodes if args.real else 0):
        seeds, filmed = range(args.seed + number, args.seed + number + 1), number == 0 and args.video is not None
        for policy in args.policies:
            seen_through = args.world, args.profile, "cpu", args.weights
            yield Episodes("real", policy, seeds, args.steps, filmed, seen_through, env=env, walked=args.walked, planning=args.planning)


def play(episodes: Episodes) -> Played:
    return play_dreams(episodes) if episodes.where == "dream" else play_real(episodes)


def play_dreams(episodes: Episodes) -> Played:
    """Some dreams of one policy side by side."""
    world, profile, device, weights = episodes.dream
    dream, rows, first = open_dream(world, profile, device, weights), len(episodes.seeds), episodes.seeds[0]
    player = opened_player(episodes.policy, dream, rows, first, episodes.planning)
    torch.manual_seed(first)  # some players draw from it
    state = begun(dream, episodes)
    frame = dream.frame(state)
    earned, goes_on = np.zeros(rows), np.ones(rows, bool)
    frames = [frame[0].cpu().numpy()]
    for _ in range(episodes.steps):
        seen = frame if player.observation == "pixels" else observed(dream, state, player.observation)
        state, reward, terminated, _ = dream.step(state, torch.from_numpy(player.act(seen, None)))
        frame = dream.frame(state)
        earned += reward.cpu().numpy() * goes_on
        goes_on &= ~terminated.cpu().numpy()
        frames += [frame[0].cpu().numpy()] if episodes.filmed else []
    return Played(earned.tolist(), np.stack(frames) if episodes.filmed else None)


def begun(dream: Dream, episodes: Episodes) -> DreamState:
    """Where dreams of these seeds begin."""
    seeds = torch.tensor(episodes.seeds)
    if not episodes.walks:
        return dream.reset(seeds)
    rows = [after_walk(episodes.dream, episodes.walks[seed % len(episodes.walks)], episodes.context) for seed in episodes.seeds]
    return join_rows(rows)._replace(seed=seeds.to(dream.device))


@functools.lru_cache(maxsize=64)
def after_walk(dream: tuple[str, str, str, Path | None], walk: Path, frames: int) -> DreamState:
    """The state after the first frames of a recorded episode, whichever policy goes on from it."""
    return open_dream(*dream).reset(torch.tensor([0]), {"episode": walk, "context_frames": frames})


def play_real(episode: Episodes) -> Played:
    """One episode in the real world, seen as the policy wants to see it."""
    (seed,) = episode.seeds
    torch.manual_seed(seed)  # some players draw from it
    world, profile, device, weights = episode.dream
    dream = open_dream(world, profile, device, weights)
    player = opened_player(episode.policy, dream, 1, seed, episode.planning)
    env: gymnasium.Env = gymnasium.make(episode.env, max_episode_steps=episode.walked + episode.steps)
    if player.observation != "pixels":
        env = WorldModelObservation(env, dream, player.observation)
    try:
        return _played(episode, env, player)
    finally:
        env.close()


def _played(episode: Episodes, env: gymnasium.Env, player: Player) -> Played:
    seen, info = env.reset(seed=episode.seeds[0])
    seen, info = walked_first(episode, env, seen, info)
    earned, frames, over = 0.0, [_frame(env, seen)] if episode.filmed else [], False
    while not over:
        action = player.act(torch.from_numpy(picture_of(seen)[None]), info)[0]
        seen, reward, terminated, truncated, info = env.step(action)
        earned, over = earned + float(reward), terminated or truncated
        if episode.filmed:
            frames.append(_frame(env, seen))
    return Played([earned], np.stack(frames) if frames else None)


def walked_first(episode: Episodes, env: gymnasium.Env, seen: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What is seen and told after the steps that the scripted explorer takes, the same ones before every policy."""
    if episode.walked:
        explorer = Explorer(np.random.default_rng([episode.seeds[0], episode.walked]))
        for _ in range(episode.walked):
            seen, _, _, _, info = env.step(explorer(picture_of(seen), info))
    return seen, info


def _frame(env: gymnasium.Env, seen: Any) -> np.ndarray:
    frame: np.ndarray = env.frame if isinstance(env, WorldModelObservation) else picture_of(seen)
    return frame


def correlations(results: list[Tried]) -> dict[str, Any]:
    """Of the mean returns in dream and real world over the policies tried in both; None where fewer than three differ.

    `linear` is Pearson's, `rank` Spearman's, which asks for the order only; `rank_interval` holds nine tenths of the rank
    correlations of episodes drawn anew from those that were played (the bootstrap of Efron, 1979).
    """
    both = [tried for tried in results if tried.dream and tried.real]
    means = np.array([[np.mean(tried.dream), np.mean(tried.real)] for tried in both]).reshape(-1, 2).T
    linear, rank = _correlated(means, lambda a, b: float(np.corrcoef(a, b)[0, 1])), _correlated(means, _rank_correlation)
    interval = None
    if rank is not None:
        rng = np.random.default_rng(0)
        drawn = [
            np.array([[rng.choice(x, len(x)).mean() for x in (tried.dream, tried.real)] for tried in both]).T for _ in range(RESAMPLED)
        ]
        found = [value for value in (_correlated(some, _rank_correlation) for some in drawn) if value is not None]
        interval = np.quantile(found, (0.05, 0.95)).round(3).tolist() if found else None
    return {"policies": len(both), "linear": linear, "rank": rank, "rank_interval": interval}


def _correlated(means: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
    if means.shape[1] < 3 or 0.0 in means.std(1):
        return None
    return round(measure(*means), 6)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return rank_correlation(torch.from_numpy(a), torch.from_numpy(b))


def write(args: Args, results: list[Tried]) -> None:
    """Write every return and what comes of them."""
    policies = [{"policy": tried.policy, "dream": summary(tried.dream), "real": summary(tried.real)} for tried in results]
    write_json(args.out, {"settings": as_json(args), "policies": policies, "correlation": correlations(results)})


def table(results: list[Tried]) -> str:
    width = max(len("policy"), *(len(tried.policy) for tried in results))
    lines = [f"{'policy':<{width}}  {'dream':>15}  {'real':>15}"]
    for tried in results:
        cells = (_cell(*mean_and_error(returns)) for returns in (tried.dream, tried.real))
        lines.append(f"{tried.policy:<{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
    found = correlations(results)
    if found["rank"] is None:
        return "\n".join([*lines, "correlation over policies: needs three that differ"])
    low, high = found["rank_interval"] or (float("nan"),) * 2
    said = f"linear {found['linear']:.3f}, of ranks {found['rank']:.3f} ({low:.2f} to {high:.2f} in 9 of 10 redrawings)"
    return "\n".join([*lines, f"correlation over {found['policies']} policies: {said}"])


def film_side_by_side(path: Path, policies: tuple[str, ...], films: dict[tuple[str, str], np.ndarray], fps: int) -> None:
    """One after the other, every policy's dream beside its real episode; black where it has none."""
    from lssvwm_gym.io.video import enlarged, write_movie

    scenes = []
    for policy in policies:
        pair = [films.get((policy, where)) for where in ("dream", "real")]
        one = next((film for film in pair if film is not None), None)
        if one is not None:
            scenes.append(np.concatenate([np.zeros_like(one) if film is None else film for film in pair], 2))
    write_movie(path, enlarged(np.concatenate(scenes), 4), 3 * fps)
    print(f"film: {path}")


def _cell(mean: float, error: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.2f} ± {error:.2f}"


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
