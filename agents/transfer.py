"""Does what was learned in a dream hold in the real world? Policies are tried in both, and their returns compared.

python -m agents.transfer --policies random wander runs/ppo_torch/memory-maze/policy.safetensors
python -m agents.transfer --policies random runs/ppo/LSSVWM-MemoryMaze-v0/policy.zip --episodes 32 --video runs/transfer.mp4

A policy is one of

random            any action, each as likely
wander            forward, with turns now and then; looks at nothing
explorer          the scripted explorer that episodes are collected with; it needs the map, so it is tried in the real world only
PATH.safetensors  written by agents/ppo_torch.py
PATH.zip          written by Stable-Baselines3 (agents/ppo.py). Such a file can run code: only load your own

Dreams begin from real openings, real episodes at the start of a maze, of seeds from `--seed` on. Needs
`pip install 'lssvwm_gym[agents,memory-maze]'`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
import tyro

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.players import DREAMLESS, Player, opened_player
from agents.seen import SeenThroughModel, observed
from lssvwm_gym.data.whole_file import renamed_when_whole
from lssvwm_gym.envs.dream import Dream, open_dream


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
    seed: int = 1_000_000  # of the first real episode, far from those of the training data
    processes: int = 2  # for real episodes; 0 to leave the real world out
    out: Path = Path("runs/transfer.json")
    video: Path | None = None  # .mp4 of every policy's first episode: dream on the left, real on the right


class Played(NamedTuple):
    """One episode."""

    earned: float
    frames: np.ndarray | None  # (steps + 1, height, width, 3) uint8, of those to be filmed


@dataclass
class Tried:
    """The returns of one policy."""

    policy: str
    dream: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RealEpisode:
    """What a process needs to know to play one."""

    policy: str
    world: str
    weights: Path | None
    steps: int
    seed: int
    filmed: bool


def main(args: Args) -> None:
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    check(args, dream)
    results = {policy: Tried(policy) for policy in args.policies}
    films: dict[tuple[str, str], np.ndarray] = {}
    for policy in args.policies:
        if policy in DREAMLESS:
            continue
        start = time.perf_counter()
        results[policy].dream, film = play_dreams(args, dream, opened_player(policy, dream, args.episodes, args.dream_seed))
        films |= {} if film is None else {(policy, "dream"): film}
        print(f"{policy}: {args.episodes} dreams in {time.perf_counter() - start:.0f} s", flush=True)
    if args.processes:
        for episode, played in real_episodes(args):
            results[episode.policy].real.append(played.earned)
            films |= {} if played.frames is None else {(episode.policy, "real"): played.frames}
    write(args, list(results.values()))
    print(table(list(results.values())))
    if args.video is not None:
        film_side_by_side(args.video, args.policies, films, dream.world.fps)


def check(args: Args, dream: Dream) -> None:
    """End the program with what is wrong with the command line, before anything takes time."""
    for name in ("episodes", "steps"):
        if getattr(args, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(args, name)}")
    if args.steps > dream.world.max_episode_steps:
        raise SystemExit(f"an episode of {args.world} has at most {dream.world.max_episode_steps} steps, not {args.steps}")
    if len(set(args.policies)) < len(args.policies) or not args.policies:
        raise SystemExit(f"name each policy once, not {' '.join(args.policies) or 'none'}")
    if args.processes and dream.world.real_id is None:
        raise SystemExit(f"{args.world} has no real environment here: leave it out with --processes 0")
    for policy in args.policies:
        try:
            opened_player(policy, dream, 1, 0)
        except (ValueError, ImportError) as error:
            raise SystemExit(str(error)) from None


def play_dreams(args: Args, dream: Dream, player: Player) -> tuple[list[float], np.ndarray | None]:
    """All dreams of one policy side by side: their returns, and the frames of the first one."""
    torch.manual_seed(args.dream_seed)  # some players draw from it
    state, frame = dream.reset(torch.arange(args.dream_seed, args.dream_seed + args.episodes))
    earned, goes_on = np.zeros(args.episodes), np.ones(args.episodes, bool)
    frames = [frame[0].cpu().numpy()]
    for _ in range(args.steps):
        seen = frame if player.observation == "pixels" else observed(dream, state, player.observation)
        state, frame, reward, terminated, _ = dream.step(state, torch.from_numpy(player.act(seen, None)))
        earned += reward.numpy() * goes_on
        goes_on &= ~terminated.numpy()
        frames.append(frame[0].cpu().numpy())
    return earned.tolist(), np.stack(frames) if args.video is not None else None


def real_episodes(args: Args) -> Iterator[tuple[RealEpisode, Played]]:
    """Play all real episodes in some processes, and say how far it is. Policies take turns, so that all are tried alike."""
    episodes = [
        RealEpisode(policy, args.world, args.weights, args.steps, args.seed + number, number == 0 and args.video is not None)
        for number in range(args.episodes)
        for policy in args.policies
    ]
    start, said = time.perf_counter(), 0.0
    # a fresh process each: renderers don't survive a fork
    with ProcessPoolExecutor(args.processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as crew:
        jobs = {crew.submit(play_real, episode): episode for episode in episodes}
        for done, job in enumerate(as_completed(jobs), 1):
            yield jobs[job], job.result()
            seconds = time.perf_counter() - start
            if seconds - said > 5 or done == len(jobs):
                said, left = seconds, seconds / done * (len(jobs) - done)
                print(
                    f"{done} of {len(jobs)} real episodes  {done * args.steps / seconds:.0f} steps/s  {left / 60:.1f} min left", flush=True
                )


def play_real(episode: RealEpisode) -> Played:
    """One episode in the real world, seen as the policy wants to see it."""
    torch.manual_seed(episode.seed)  # some players draw from it
    dream = open_dream(episode.world, device="cpu", weights=episode.weights)
    player = opened_player(episode.policy, dream, 1, episode.seed)
    env: gymnasium.Env = gymnasium.make(dream.world.real_id or "", max_episode_steps=episode.steps)
    if player.observation != "pixels":
        env = SeenThroughModel(env, dream, player.observation)
    try:
        return _played(episode, env, player)
    finally:
        env.close()


def _played(episode: RealEpisode, env: gymnasium.Env, player: Player) -> Played:
    seen, info = env.reset(seed=episode.seed)
    earned, frames, over = 0.0, [_frame(env, seen)] if episode.filmed else [], False
    while not over:
        action = player.act(torch.from_numpy(seen[None]), info)[0]
        seen, reward, terminated, truncated, info = env.step(action)
        earned, over = earned + float(reward), terminated or truncated
        if episode.filmed:
            frames.append(_frame(env, seen))
    return Played(earned, np.stack(frames) if frames else None)


def _frame(env: gymnasium.Env, seen: np.ndarray) -> np.ndarray:
    return env.frame if isinstance(env, SeenThroughModel) else seen


def mean_and_error(returns: list[float]) -> tuple[float, float]:
    """Mean and standard error; NaN where there is too little for one."""
    if not returns:
        return float("nan"), float("nan")
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else float("nan")


def correlation(results: list[Tried]) -> float | None:
    """Pearson's, of the mean returns in dream and real world over the policies tried in both; None for fewer than three."""
    both = [(np.mean(tried.dream), np.mean(tried.real)) for tried in results if tried.dream and tried.real]
    if len(both) < 3 or 0.0 in np.std(both, axis=0):
        return None
    return float(np.corrcoef(np.array(both).T)[0, 1])


def write(args: Args, results: list[Tried]) -> None:
    """Write every return and what comes of them; numbers that don't exist are null."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()}
    policies = []
    for tried in results:
        numbers = {}
        for where in ("dream", "real"):
            mean, error = mean_and_error(getattr(tried, where))
            numbers[where] = {"mean": _or_none(mean), "standard_error": _or_none(error), "returns": getattr(tried, where)}
        policies.append({"policy": tried.policy, **numbers})
    result = {"settings": settings, "policies": policies, "correlation": correlation(results)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(args.out) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def table(results: list[Tried]) -> str:
    width = max(len("policy"), *(len(tried.policy) for tried in results))
    lines = [f"{'policy':<{width}}  {'dream':>15}  {'real':>15}"]
    for tried in results:
        cells = (_cell(*mean_and_error(returns)) for returns in (tried.dream, tried.real))
        lines.append(f"{tried.policy:<{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
    found = correlation(results)
    return "\n".join([*lines, f"correlation over policies: {'needs three that differ' if found is None else f'{found:.3f}'}"])


def film_side_by_side(path: Path, policies: tuple[str, ...], films: dict[tuple[str, str], np.ndarray], fps: int) -> None:
    """One after the other, every policy's dream beside its real episode; black where it has none."""
    from lssvwm_gym.data.movie import enlarged, write_movie

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


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else number


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
