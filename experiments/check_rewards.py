"""Are dreamed rewards real? Those of policies are checked in the real simulator, from the same start and on the same actions.

python -m experiments.check_rewards --policies wander agents/policies/memory_maze.safetensors explorer --plot runs/rewards.png
python -m experiments.check_rewards --episodes 24 --workers 2

The explorer's first steps in a real maze are the context; from there a policy acts in the dream, and then the real simulator repeats
those steps and takes the policy's actions. `explorer` needs the map: it acts in the real maze, and the dream is given its actions. A
dreamed reward is real where the maze gives one within `--tolerance` steps of it. When a ball is touched, another colour is drawn to be
wanted, which no past tells: beside the precision of all dreamed rewards there is that of each dream's first one, and the share that was
dreamed where some ball is.

Counter-measures are tried on the same dreams: see `experiments.check_rewards.COUNTER_MEASURES`, and
`experiments.conservative_rollouts` for those that can be learned behind.
Needs `pip install -e '.[agents,memory-maze]'`, and for `--plot` `.[train]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.agent import Agent
from agents.policies import as_json
from experiments.agents_by_name import open_agent
from experiments.conservative_rollouts import OTHER_NOISE
from experiments.planner import Planning
from experiments.trials import answers, write_result
from lssvwm_gym.envs.reset_options import past_of
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import observed
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.real_envs.experts.maze_explorer import MazeExplorer

EXPLORER = "explorer"  # acts in the real maze
AT_A_BALL = 1.0  # cells between the agent and the middle of a ball


@dataclass(frozen=True)
class Args:
    """Whose dreams to check, and how many."""

    policies: tuple[str, ...] = ("wander", "agents/policies/memory_maze.safetensors", "explorer")  # as in experiments/check_transfer.py
    episodes: int = 12  # of each
    context: int = 100  # steps of the scripted explorer before
    steps: int = 200  # dreamed from there
    tolerance: int = 5  # steps that a dreamed and a real reward may be apart
    ages: tuple[int, ...] = (0, 50, 100)  # from which steps on precision and recall are told apart
    world: str = "memory-maze"
    weights: Path | None = None  # of the dream; the shipped ones if not given
    profile: str = "balanced"
    device: str = "auto"
    seed: int = 2_000_000  # of the first maze, far from those of the training data
    batch: int = 16  # dreams side by side
    workers: int = 1  # processes for the real simulator
    planning: Planning = field(default_factory=Planning)  # of the planner, where it is one of the policies
    out: Path = Path("runs/rewards.json")
    plot: Path | None = None  # .png of precision and recall by age


class MazeEpisode(NamedTuple):
    """What happened in a real maze, T steps; frame 0 is the first one that was seen."""

    frames: np.ndarray  # (T + 1, height, width, 3) uint8
    action: np.ndarray  # (T,) int64
    reward: np.ndarray  # (T,) float64
    pose: np.ndarray  # (T + 1, 4) float32
    ball: np.ndarray  # (T,) float32, cells from the agent to the nearest ball


class MazeJob(NamedTuple):
    """An episode to be played: the scripted explorer's, or one whose actions are given."""

    env: str
    seed: int
    steps: int
    action: np.ndarray | None = None


class Dreams(NamedTuple):
    """What was dreamed in some episodes side by side, (B, S) each."""

    action: np.ndarray
    reward: np.ndarray
    again: np.ndarray  # reward of the same step from the same state, dreamed with other noise
    twin: np.ndarray  # reward of a second dream from the same start, on the same actions, with other noise throughout
    probability: np.ndarray  # of a reward other than 0; the dream gives one where it is above a half
    uncertainty: np.ndarray  # zeros with profiles of one pass
    familiarity: np.ndarray


def main(args: Args) -> None:
    try:
        check(args)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    jobs = [MazeJob(dream.world.real_id or "", args.seed + number, args.context + args.steps) for number in range(args.episodes)]
    explored = played(args, jobs)
    report, events = {}, {}
    for policy in args.policies:
        dreams, real = dreamed(args, dream, policy, explored), explored
        if policy != EXPLORER:
            real = played(args, [job._replace(action=taken) for job, taken in zip(jobs, dreams.action, strict=True)], explored)
        reward, ball = (np.stack([getattr(episode, name)[args.context :] for episode in real]) for name in ("reward", "ball"))
        report[policy] = scores(args, dreams, reward, ball)
        events[policy] = {"dreamed": _times(dreams.reward), "twin": _times(dreams.twin), "real": _times(reward)}
        print(f"{policy}\n{table(report[policy])}", flush=True)
    write_result(args.out, {"settings": as_json(args), "policies": report, "rewards_at_step": events})
    if args.plot is not None:
        plot(args.plot, args, report)


def check(args: Args) -> None:
    """Raises `ValueError` or `ImportError` for what is wrong with the command line, before anything takes time."""
    check_bounds(args, episodes=1, context=1, steps=1, batch=1, workers=1, tolerance=0)
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    if dream.world.real_id is None or dream.world.milestones or dream.weights.world_model.config.pose_size != 4:
        raise ValueError(f"{args.world} can't be replayed here: only worlds with a real environment that tells where the balls are")
    if args.context + args.steps > dream.world.max_episode_steps:
        raise ValueError(f"an episode has {dream.world.max_episode_steps} steps, not {args.context} + {args.steps}")
    for policy in args.policies:
        open_agent(policy, dream, 1, 0, args.planning)


def played(args: Args, jobs: list[MazeJob], before: list[MazeEpisode] | None = None) -> list[MazeEpisode]:
    """The jobs' episodes in the real simulator; their actions follow those of the context of the episodes `before`."""
    if before is not None:
        contexts = [episode.action[: args.context] for episode in before]
        jobs = [job._replace(action=np.concatenate([context, job.action])) for job, context in zip(jobs, contexts, strict=True)]
    done = dict(answers(play, jobs, args.workers, [job.steps for job in jobs]))
    return [done[number] for number in range(len(jobs))]


def play(job: MazeJob) -> MazeEpisode:
    """One episode in the real simulator."""
    explorer = MazeExplorer(np.random.default_rng([job.seed, 1]))
    env: gymnasium.Env = gymnasium.make(job.env, max_episode_steps=job.steps)
    try:
        frame, info = env.reset(seed=job.seed)
        frames, actions, rewards, infos = [frame], [], [], [info]
        for step in range(job.steps):
            actions.append(explorer(frame, info) if job.action is None else int(job.action[step]))
            frame, reward, _, _, info = env.step(np.int64(actions[-1]))
            rewards.append(float(reward))
            frames.append(frame)
            infos.append(info)
    finally:
        env.close()
    pose = np.stack([np.concatenate([info["agent_pos"], info["agent_dir"]]) for info in infos])
    ball = [np.linalg.norm(info["targets_pos"] - info["agent_pos"], axis=1).min() for info in infos[1:]]
    return MazeEpisode(np.stack(frames), np.array(actions), np.array(rewards), pose.astype(np.float32), np.array(ball, np.float32))


def dreamed(args: Args, dream: Dream, policy: str, episodes: list[MazeEpisode]) -> Dreams:
    """Dreams that begin after the episodes' context, a batch after the other; `explorer`'s actions are the episodes' own."""
    parts = []
    for first in range(0, len(episodes), args.batch):
        some, seed = episodes[first : first + args.batch], args.seed + first
        torch.manual_seed(seed)  # some agents draw from it
        agent = None if policy == EXPLORER else open_agent(policy, dream, len(some), seed, args.planning)
        given = np.stack([episode.action[args.context :] for episode in some])
        parts.append(dream_on(dream, after_context(dream, some, args.context, seed), args.steps, agent or given))
    return Dreams(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@torch.no_grad()
def after_context(dream: Dream, episodes: list[MazeEpisode], steps: int, seed: int) -> DreamState:
    """The state after the first steps of episodes, at their true poses."""
    device = dream.device
    frames = torch.from_numpy(np.stack([episode.frames[: steps + 1] for episode in episodes])).to(device)
    latent = torch.stack([dream.weights.autoencoder.encode(one).half().float() for one in frames])  # rounded like a recorded one
    unknown = np.full((len(episodes), 1), len(dream.world.actions))  # no action led to the first frame
    action = torch.from_numpy(np.concatenate([unknown, np.stack([episode.action[:steps] for episode in episodes])], 1)).to(device)
    pose = torch.from_numpy(np.stack([episode.pose[: steps + 1] for episode in episodes])).to(device)
    past = past_of(latent, action, pose, latent.new_zeros(*latent.shape[:2], 0))
    return dream.prefill(torch.arange(seed, seed + len(episodes)), past)


def dream_on(dream: Dream, state: DreamState, steps: int, agent: Agent | np.ndarray) -> Dreams:
    """Dream on from the rows of a state, on the actions of an agent or on given ones (B, S), and beside them twins on the same actions."""
    twin, moments = state._replace(seed=state.seed + OTHER_NOISE), []
    for step in range(steps):
        chosen = agent[:, step] if isinstance(agent, np.ndarray) else agent.act(observed(dream, state, agent.observation), None)
        action = torch.from_numpy(np.asarray(chosen, np.int64))
        again = dream.step(state._replace(seed=state.seed + OTHER_NOISE), action).reward
        twin, second, *_ = dream.step(twin, action)
        led = dream.step(state, action)
        state, reward, info = led.state, led.reward, dream.info(led.state, led)
        uncertainty = info.get("uncertainty", torch.zeros(len(action)))
        numbers = (action, reward, again, second, info["reward_probability"], uncertainty, info["familiarity"])
        moments.append([part.cpu().numpy() for part in numbers])
    return Dreams(*(np.stack(parts, 1) for parts in zip(*moments, strict=True)))


Kept = Callable[[Dreams, int], np.ndarray]  # what a counter-measure leaves of the dreamed rewards (B, S); given the tolerance


def shorter(dreams: Dreams, steps: int) -> np.ndarray:
    """Dreams end after some steps."""
    return np.where(np.arange(dreams.reward.shape[1]) < steps, dreams.reward, 0)


def ended_when_uncertain(dreams: Dreams, most: float, over: int = 8) -> np.ndarray:
    """Dreams end when the mean uncertainty of some steps is high."""
    mean = np.stack([dreams.uncertainty[:, max(0, step - over + 1) : step + 1].mean(1) for step in range(dreams.reward.shape[1])], 1)
    return np.where(np.maximum.accumulate(mean, 1) <= most, dreams.reward, 0)


def likelier(dreams: Dreams, least: float) -> np.ndarray:
    """What is dreamed where another probability than a half is asked for; steps in a row are one reward."""
    likely = dreams.probability >= least
    return likely & ~np.pad(likely, ((0, 0), (1, 0)))[:, :-1]


COUNTER_MEASURES: dict[str, Kept] = {
    "none": lambda dreams, _: dreams.reward,
    "the first 50 steps": lambda dreams, _: shorter(dreams, 50),
    "the first 100 steps": lambda dreams, _: shorter(dreams, 100),
    "ended at uncertainty 0.10": lambda dreams, _: ended_when_uncertain(dreams, 0.10),
    "ended at uncertainty 0.15": lambda dreams, _: ended_when_uncertain(dreams, 0.15),
    "where uncertainty is below 0.10": lambda dreams, _: np.where(dreams.uncertainty <= 0.10, dreams.reward, 0),
    "where familiarity is above 0.5": lambda dreams, _: np.where(dreams.familiarity >= 0.5, dreams.reward, 0),
    "where familiarity is above 0.9": lambda dreams, _: np.where(dreams.familiarity >= 0.9, dreams.reward, 0),
    "the step dreamed twice agrees": lambda dreams, _: np.where(dreams.again == dreams.reward, dreams.reward, 0),
    "two dreams agree": lambda dreams, tolerance: np.where(pairs(dreams.reward, dreams.twin, tolerance)[0], dreams.reward, 0),
    "probability above 0.1": lambda dreams, _: likelier(dreams, 0.1),
    "probability above 0.2": lambda dreams, _: likelier(dreams, 0.2),
    "probability above 0.8": lambda dreams, _: likelier(dreams, 0.8),
}


def pairs(dreamed: np.ndarray, real: np.ndarray, tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rewards (B, S) have one of the other kind at most so many steps apart, (B, S) bool each; every one has at most one partner."""
    with_real, with_dreamed = np.zeros(dreamed.shape, bool), np.zeros(real.shape, bool)
    for row in range(len(dreamed)):
        free = list(np.flatnonzero(real[row]))
        for step in np.flatnonzero(dreamed[row]):
            near = [other for other in free if abs(other - step) <= tolerance]
            if near:  # the earliest: those that come later may need the later ones
                with_real[row, step] = with_dreamed[row, near[0]] = True
                free.remove(near[0])
    return with_real, with_dreamed


def scores(args: Args, dreams: Dreams, reward: np.ndarray, ball: np.ndarray) -> dict[str, dict[str, Any]]:
    """Precision and recall of what each counter-measure leaves of the dreamed rewards, and of all of them by age."""
    result = {name: rates(kept(dreams, args.tolerance), reward, ball, args.tolerance) for name, kept in COUNTER_MEASURES.items()}
    for first, last in zip(args.ages, (*args.ages[1:], args.steps), strict=True):
        result[f"steps {first} to {last}"] = rates(dreams.reward, reward, ball, args.tolerance, slice(first, last))
    quantiles = np.quantile(dreams.uncertainty, (0.5, 0.9, 0.99)).round(4).tolist()
    return {**result, "uncertainty": {"median, 90 %, 99 %": quantiles}}


def rates(
    dreamed: np.ndarray, reward: np.ndarray, ball: np.ndarray, tolerance: int, ages: slice = slice(None)
) -> dict[str, float | int | None]:
    """Of rewards (B, S) at some ages: how many, and which share is real, was dreamed, comes first and is real, is at a ball."""
    right, found = pairs(dreamed, reward, tolerance)
    events, real = dreamed != 0, reward != 0
    # more than the tolerance after a real reward another ball is wanted than in the dream
    before = np.pad(np.cumsum(real, 1), ((0, 0), (tolerance + 1, 0)))[:, : real.shape[1]]
    first = events & (np.cumsum(events, 1) == 1) & (before == 0)
    near = np.stack([ball[:, max(0, step - tolerance) : step + tolerance + 1].min(1) for step in range(ball.shape[1])], 1) <= AT_A_BALL
    return {
        "dreamed": int(events[:, ages].sum()),
        "real": int(real[:, ages].sum()),
        "precision": _share(right[:, ages], events[:, ages]),
        "recall": _share(found[:, ages], real[:, ages]),
        "first": int(first[:, ages].sum()),
        "precision_of_first": _share(right[:, ages], first[:, ages]),
        "at_a_ball": _share(near[:, ages], events[:, ages]),
    }


def _share(yes: np.ndarray, of: np.ndarray) -> float | None:
    return round(float(yes[of].mean()), 4) if of.any() else None


def _times(rewards: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in rewards]


def table(report: dict[str, dict[str, Any]]) -> str:
    columns = ("dreamed", "real", "precision", "recall", "first", "precision_of_first", "at_a_ball")
    lines = [f"{'':<34}" + "".join(f"{name:>20}" for name in columns)]
    for name, numbers in report.items():
        if name != "uncertainty":
            cells = ("-" if numbers[column] is None else f"{numbers[column]:g}" for column in columns)
            lines.append(f"{name:<34}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, f"uncertainty (median, 90 %, 99 %): {report['uncertainty']['median, 90 %, 99 %']}"])


def plot(path: Path, args: Args, report: dict[str, dict[str, Any]]) -> None:
    """Bars of precision and recall by age, and of precision behind each counter-measure, for each policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ages = [name for name in next(iter(report.values())) if name.startswith("steps ")]
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    groups = (("precision", ages), ("recall", ages), ("precision", list(COUNTER_MEASURES)))
    for axes, (number, names) in zip(panels, groups, strict=True):
        for place, (policy, numbers) in enumerate(report.items()):
            at = np.arange(len(names)) + (place - (len(report) - 1) / 2) * 0.8 / len(report)
            bars = axes.bar(at, [numbers[name][number] or 0 for name in names], 0.8 / len(report), label=Path(policy).stem)
            of = "dreamed" if number == "precision" else "real"
            axes.bar_label(bars, [str(numbers[name][of]) for name in names], fontsize=6)
        slanted = dict(rotation=45, ha="right") if len(names) > 4 else {}
        axes.set_xticks(range(len(names)), names, fontsize=7, **slanted)
        axes.set_ylim(0, 1.05)
        axes.set_title(f"{number} of dreamed rewards", fontsize=9)
    panels[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"plot: {path}")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
