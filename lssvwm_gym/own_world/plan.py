"""How much fits the time: an environment is played or recordings are looked at, each network is trained a little, the time is shared."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.collect import Source, record
from lssvwm_gym.data.collect_gym import make
from lssvwm_gym.data.convert.recording import keep_settings, read_settings
from lssvwm_gym.data.episode import write_episode
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import PLANE, SPACE, start_pose
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.own_world import settings
from lssvwm_gym.own_world.recordings import MOST_FRAMES, chosen, converted, world_of_recordings
from lssvwm_gym.own_world.settings import FOR_DATA, FOR_ENV, Network, OwnWorld, Plan
from lssvwm_gym.real_envs.experts.maze_players import Sticky
from lssvwm_gym.training.autoencoder import reconstruction_loss
from lssvwm_gym.training.distributed import ShardedRNG
from lssvwm_gym.training.dreamed_samples import GAP
from lssvwm_gym.training.heads import HeadTrainer
from lssvwm_gym.training.world_model import Trainer

ASKED, PLAN = "dream.json", "plan.json"
FOLDERS = ("data", "autoencoder", "world", "heads", "without_flow_head", "weights")  # of what is made
SHARES = {"collect": 0.12, "between": 0.025, "autoencoder": 0.14, "world": 0.46, "heads": 0.18}  # of the time, a stage
TRIED_SECONDS, TRIED_EPISODES = 0.02, 20  # of the time, at most so many for each: episodes that are played to plan by
LONGEST_CLIP, LONGEST_SEGMENT, LONGEST_DREAM = 32, 10, 16  # frames; clips; frames that the flow head dreams while it learns


class Tried(NamedTuple):
    """Some episodes of an environment, or all of the recordings to learn from."""

    sticky: float
    lengths: list[int]  # frames
    seconds: float  # a frame
    actions: int  # Discrete ones, 0 where they are numbers
    action_size: int
    pose_size: int = 0  # numbers of a pose, 0 where there is none
    tests: int = 0  # recordings that are held out


class Costs(NamedTuple):
    """Seconds that a step of each training takes, and encoding a frame."""

    autoencoder: float
    world: float
    heads: float
    encoding: float

    def steps(self, seconds: float, frames: int) -> tuple[float, float, float]:
        """How many steps of each training so many seconds are in all, where the last two begin by encoding the frames."""
        one, two, three = ((SHARES[name] * seconds - extra) / cost for name, cost, extra in self._each(frames))
        return one, two, three

    def seconds(self, steps: tuple[int, int, int], frames: int) -> float:
        """In how many seconds in all each training makes so many steps."""
        return max((count * cost + extra) / SHARES[name] for count, (name, cost, extra) in zip(steps, self._each(frames), strict=True))

    def _each(self, frames: int) -> tuple[tuple[str, float, float], ...]:
        extra = self.encoding * frames
        return ("autoencoder", self.autoencoder, 0.0), ("world", self.world, extra), ("heads", self.heads, extra)


def planned(run: OwnWorld) -> Plan:
    """The plan that a folder has, made if there is none. Raises `ValueError` for a folder of another command line, and as `dream` does."""
    run.out.mkdir(parents=True, exist_ok=True)
    others = ("out", "workers", "threads", *(FOR_ENV if run.data else FOR_DATA))
    asked = json.loads(json.dumps({name: value for name, value in asdict(run).items() if name not in others}, default=str))
    if (run.out / ASKED).exists():
        keep_settings(run.out / ASKED, asked, "dream")
    elif taken := [name for name in (*FOLDERS, PLAN) if (run.out / name).exists()]:
        raise ValueError(f"{run.out} has {', '.join(taken)}, but no {ASKED} that says of which world: choose another folder")
    plan = read_settings(run.out / PLAN, lambda said: Plan(**{"poses": bool(run.position), **said}), "dream")
    if plan is None:
        plan = made_plan(run)
        keep_settings(run.out / ASKED, asked, "dream")
        write_json(run.out / PLAN, asdict(plan))
    print(
        f"{run.out / PLAN}: {plan.episodes} episodes, a {plan.network} network, {plan.autoencoder_steps} steps of its autoencoder, "
        f"{plan.world_steps} of the world model, {plan.head_steps} of its flow head"
    )
    return plan


def made_plan(run: OwnWorld) -> Plan:
    """Play a little or look at the recordings, train a little, and share the time: what need not be played is trained instead."""
    began, whole = time.monotonic(), 60 * run.minutes
    tried, shared = (recorded(run), 1 - SHARES["collect"] - SHARES["between"]) if run.data else (tried_out(run), 1.0)
    length, (short, middle, long) = statistics.mean(tried.lengths), np.quantile(tried.lengths, (0.25, 0.5, 0.75)).astype(int).tolist()
    count = len(tried.lengths)
    if long <= GAP[0] + 1:
        raise ValueError(f"{run.env or run.data} ends after {middle} frames, of {count} episodes: too early to dream on from anything")
    affordable = min(MOST_FRAMES, SHARES["collect"] * whole * run.workers / tried.seconds) / length
    episodes = count if run.data else run.episodes or (8 if run.network == "tiny" else max(8, int(affordable)))
    plan = Plan(
        network=run.network,
        episodes=episodes,
        test_episodes=tried.tests or max(4, episodes // 20),
        sticky=tried.sticky,
        frames=max(4, min(LONGEST_CLIP, long)),
        clips=max(1, min(LONGEST_SEGMENT, middle // LONGEST_CLIP)),
        ahead=max(1, min(LONGEST_DREAM, (long - GAP[0]) // 2)),
        context_frames=max(1, min(16, short // 4)),
        autoencoder_steps=1,
        world_steps=4,
        head_steps=4,
        seconds={},
        poses=bool(tried.pose_size),
    )
    if run.network == "tiny":
        return with_steps(plan, "tiny", settings.NETWORKS["tiny"].least, min(60.0, whole))
    chosen, frames = None, min(MOST_FRAMES, int(episodes * length))
    for name in [name for name in settings.NETWORKS if name != "tiny"] if run.network == "auto" else [run.network]:
        costs, least = measured(run, settings.NETWORKS[name], plan, tried), settings.NETWORKS[name].least
        left = (whole - (time.monotonic() - began)) / shared
        counts = costs.steps(left, frames)
        if not all(count >= fewest for count, fewest in zip(counts, least, strict=True)):
            break
        chosen = with_steps(plan, name, counts, left)
    if chosen is None:
        needed = math.ceil((whole - shared * (left - costs.seconds(least, frames))) / 60)
        steps = f"{least[0]} steps of the autoencoder, {least[1]} of the world model and {least[2]} of the flow head"
        raise ValueError(f"--minutes {run.minutes:g} is too few: at least {steps} take {needed} minutes on this machine")
    return chosen


def with_steps(plan: Plan, network: str, counts: tuple[float, ...], left: float) -> Plan:
    """A plan with steps of the three trainings, and what each stage has of the seconds that are left."""
    one, two, three = map(int, counts)
    seconds = {stage: round(share * left, 1) for stage, share in SHARES.items()}
    return replace(plan, network=network, seconds=seconds, autoencoder_steps=one, world_steps=two, head_steps=three)


def recorded(run: OwnWorld) -> Tried:
    """What the recordings are, once they are converted. Raises `EpisodeError` as `converted` and `chosen` do."""
    converted(run)
    learn, test = chosen(run)
    world, lengths = world_of_recordings(run, [*learn, *test]), [look.length for look in learn]
    size, pose_size, _ = learn[0].kind
    return Tried(0.0, lengths, 1.0, len(world.actions), size, pose_size * world.poses, len(test))


def tried_out(run: OwnWorld) -> Tried:
    """Play some episodes. Raises `ValueError` for environments that can't be made or have neither pictures nor such actions."""
    env = make(run.collecting)
    with env:
        tries = [_tried(run, env, sticky) for sticky in (settings.STICKY if run.sticky is None else (run.sticky,))]
    return max(tries, key=lambda tried: statistics.mean(tried.lengths))  # the first of those that are as long


def _tried(run: OwnWorld, env: Any, sticky: float) -> Tried:
    source = Source(lambda _: env, lambda rng: Sticky(env.action_space, run.odds, sticky, rng), env.fps, frame=env.picture)
    began, lengths = time.monotonic(), list[int]()
    with tempfile.TemporaryDirectory() as folder:
        while len(lengths) < 2 or (len(lengths) < TRIED_EPISODES and time.monotonic() - began < TRIED_SECONDS * 60 * run.minutes):
            policy = source.make_policy(np.random.default_rng([run.seed, len(lengths), 1]))
            episode = record(env, policy, source, run.seed + len(lengths), run.steps)
            write_episode(Path(folder) / "tried", episode, source.fps)
            lengths.append(len(episode))
    seconds, space = (time.monotonic() - began) / sum(lengths), env.action_space
    size = 0 if space.shape == () else int(np.prod(space.shape))
    return Tried(sticky, lengths, seconds, 0 if size else int(space.n), size, PLANE if run.position else 0)


def measured(run: OwnWorld, network: Network, plan: Plan, tried: Tried) -> Costs:
    """What a few steps of each training cost, on noise."""
    training = settings.autoencoder_training(run, network, 1)
    autoencoder, rng = Autoencoder(training.model).to(memory_format=torch.channels_last), ShardedRNG(torch.Generator(), 0, 1)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(autoencoder.parameters())
    frames = torch.randint(256, (training.batch, run.size, run.size, 3), dtype=torch.uint8)

    def learn() -> None:
        optimizer.zero_grad()
        reconstruction_loss(autoencoder, frames, rng)[0].backward()
        optimizer.step()

    world = settings.world_training(run, network, plan)
    model = replace(world.model, actions=tried.actions, action_size=tried.action_size)
    model = model if tried.pose_size else replace(model, memory_features=0)
    model = replace(model, motion_scale=(*model.motion_scale, 0.1, 0.1)) if tried.pose_size == SPACE else model
    length = max(plan.frames + 2, min(GAP[0] + 6 * GAP[1], int(np.median(tried.lengths))), GAP[0] + plan.ahead + 2)
    episode = _noise_episode(model, length, bool(tried.pose_size))
    trainer = Trainer(replace(world, model=model, steps=100), [episode] * settings.ROWS)
    heads = settings.head_training(run, network, plan)
    head_trainer = HeadTrainer(heads, Weights(autoencoder, WorldModel(model).eval(), episode, episode, {}), [episode] * settings.ROWS)
    with_dreams = _seconds(head_trainer.train_step, 1, 0)
    with torch.no_grad():
        encoding = _seconds(lambda: autoencoder.encode(frames), 2) / len(frames)
    head = _seconds(head_trainer.train_step, 3)
    return Costs(_seconds(learn), _seconds(trainer.train_step), head + max(0.0, with_dreams - head) / heads.refresh, encoding)


def _noise_episode(model: WorldModelConfig, frames: int, poses: bool) -> Segment:
    numbers = model.action_size
    action = torch.rand(frames, numbers) if numbers else torch.randint(model.actions, (frames,))
    pose = start_pose(frames, model.pose_size) if poses else torch.full((frames, PLANE), torch.nan)
    latent = torch.randn(frames, model.tokens, model.latent_channels)
    return Segment(latent.half(), action, torch.zeros(frames), pose, torch.zeros(frames, 0), terminated=torch.arange(frames) == frames - 1)


def _seconds(step: Callable[[], Any], times: int = 3, before: int = 1) -> float:
    """The median time of a step, after some."""
    took = []
    for _ in range(before + times):
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return statistics.median(took[before:])
