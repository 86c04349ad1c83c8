"""From an environment to a dream of it by one command: `lssvwm-gym dream --env ID --out DIR`.

Collects episodes, trains the autoencoder, the world model and its flow head, packages and evaluates; each stage is a command of its own,
which is printed before it runs. How much of each fits the time is measured once and kept in `plan.json`: the same command goes on where
it was stopped.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.data.collect import Source, record
from lssvwm_gym.data.collect_gym import GymCollecting, collect_gym, make
from lssvwm_gym.data.convert.recording import keep_settings, read_settings
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate
from lssvwm_gym.io.json_config import check_bounds, write_json
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.real_envs.experts.maze_players import Sticky
from lssvwm_gym.training.autoencoder import AutoencoderTraining, reconstruction_loss, train_autoencoder
from lssvwm_gym.training.config import CURRICULUM, WorldTraining
from lssvwm_gym.training.distributed import ShardedRNG
from lssvwm_gym.training.dreamed_samples import GAP, DreamOptions
from lssvwm_gym.training.heads import HeadTrainer, HeadTraining, train_heads
from lssvwm_gym.training.world_model import Trainer, train_world

ASKED, PLAN = "dream.json", "plan.json"
ORDER = ("collect", "between", "autoencoder", "world", "between", "heads", "between", "between")  # of the stages
SHARES = {"collect": 0.12, "between": 0.025, "autoencoder": 0.2, "world": 0.42, "heads": 0.16}  # of the time, a stage
MOST_FRAMES = 100_000  # that are collected; in memory they take 1.2 GB
STICKY = (0.75, 0.0)  # of these the one with longer episodes, where they end early
TRIED_SECONDS, TRIED_EPISODES = 0.02, 20  # of the time, at most so many for each: episodes that are played to plan by
LONGEST_CLIP, ROWS, LONGEST_SEGMENT = 32, 8, 10  # frames; clips a step; clips
WRITING = 1.25  # a frame takes so much longer where it is written, too
PATCHES = 16  # a side of a picture, so that there are always as many tokens
FOLDERS = ("data", "autoencoder", "world", "heads", "without_flow_head", "weights")  # of what is made


@dataclass(frozen=True)
class Network:
    """Sizes of the models, and the fewest steps in which they learn anything: of autoencoder, world model and flow head."""

    widths: tuple[int, ...]
    model: WorldModelConfig
    flow_width: int
    least: tuple[int, int, int]


NETWORKS = {  # the first one that gets its steps in the time is taken
    "medium": Network((32, 64, 128), WorldModelConfig(), 160, (2000, 1500, 2000)),
    "small": Network(
        (16, 32, 64),
        WorldModelConfig(latent_channels=16, width=96, heads=3, head_width=32, d_state=16, memory_features=256),
        80,
        (200, 60, 60),
    ),
}
TINY = Network(
    (8, 8, 16), WorldModelConfig(latent_channels=8, width=32, heads=2, head_width=16, d_state=8, memory_features=32), 20, (1, 1, 1)
)


@dataclass(frozen=True)
class OwnWorld:
    """Which environment to dream of, and how long that may take. The same command line goes on where it was stopped."""

    env: str  # its id
    out: Path  # folder for all that is made; the dream is in its folder `weights`
    minutes: float = 60.0  # for all stages together, on this machine
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()  # modules that register environments, such as miniworld
    kwargs: str = "{}"  # JSON object, for gymnasium.make
    episodes: int = 0  # to learn from; 0: as many as the time allows
    steps: int = 250  # an episode at most
    sticky: float | None = None  # chance that an action is taken again; if not given 0.75, or 0 where episodes are longer then
    odds: tuple[float, ...] = ()  # how often each Discrete action is drawn beside the others
    pixels: Literal["auto", "observation", "render"] = "auto"  # what is recorded, as in `collect gym`
    size: int = 64  # pixels a side of the square frames, a multiple of 16
    crop: bool = False  # take the middle square of a frame
    fps: int = 0  # frames a second of world time; 0: what the environment says
    position: str = ""  # where the agent is, as in `collect gym`; then the dream has a spatial memory
    plane: tuple[int, int] = (1, 2)
    angle: str = ""  # where it looks
    unit: Literal["radians", "degrees", "quarters"] = "radians"  # of the angle
    network: Literal["auto", "medium", "small", "tiny"] = "auto"  # sizes of the models; tiny shows the way and learns nothing
    workers: int = 1  # processes that collect
    seed: int = 0
    threads: int = 0  # 0: leave it to torch

    def __post_init__(self) -> None:
        check_bounds(self, episodes=0, workers=1, size=32)
        if not self.minutes > 0 or self.size % 16:
            raise ValueError(f"minutes must be above 0 and size a multiple of 16, got {self.minutes} and {self.size}")
        _ = self.collecting

    @property
    def collecting(self) -> GymCollecting:
        """What is collected, as far as it is given."""
        names = {field.name for field in fields(GymCollecting)} & {field.name for field in fields(self)} - {"out", "episodes", "sticky"}
        given = {name: getattr(self, name) for name in names}
        return GymCollecting(**given, out=self.out / "data" / "train", least=3, sticky=STICKY[0] if self.sticky is None else self.sticky)


@dataclass(frozen=True)
class Plan:
    """What was decided for a folder, and the seconds that each stage should take."""

    network: str
    episodes: int  # to learn from
    test_episodes: int  # to evaluate on
    sticky: float
    frames: int  # of a training clip
    clips: int  # of the longest segment
    ahead: int  # frames that the flow head dreams while it learns
    context_frames: int  # of real past that a dream goes on from
    autoencoder_steps: int
    world_steps: int
    head_steps: int
    seconds: dict[str, float]


class Tried(NamedTuple):
    """Some episodes of an environment."""

    sticky: float
    lengths: list[int]  # frames
    seconds: float  # a frame
    actions: int  # Discrete ones, 0 where they are numbers
    action_size: int


class Stage(NamedTuple):
    """A command, the function behind it, and what is there once it is done."""

    command: str
    settings: Any
    function: Callable[[Any], Any]
    done: Path | None = None


def dream(run: OwnWorld) -> Path:
    """Make the dream, as far as it is not yet made, and return its folder of weights.

    Raises:
        ValueError: an environment without pictures or with other actions than Discrete or Box, too little time, or a folder with something
            else. All of these before anything is trained.
        WorkerPoolError: the environment can't be made in another process.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    plan, began = planned(run), time.monotonic()
    for number, stage in enumerate(stages(run, plan)):
        place = f"[{number + 1}/{len(ORDER)}]"
        if stage.done is not None and stage.done.exists():
            print(f"{place} {stage.done} is there already", flush=True)
            continue
        left = [plan.seconds[name] for name in ORDER[number:]]
        end = time.strftime("%H:%M", time.localtime(time.time() + sum(left)))
        print(f"{place} takes about {_clock(left[0])}, all that is left {_clock(sum(left))}, until {end}:")
        print(command_line(stage.command, stage.settings), flush=True)
        stage.function(stage.settings)
    print(f'done in {_clock(time.monotonic() - began)}: gymnasium.make("LSSVWM-Dream-v0", weights="{run.out / "weights"}")')
    return run.out / "weights"


def stages(run: OwnWorld, plan: Plan) -> Iterator[Stage]:
    """One after the other; those before have been done when the next is asked for."""
    out, train = run.out, run.collecting.out
    network = _network(plan.network)
    collecting = replace(run.collecting, episodes=plan.episodes, sticky=plan.sticky, workers=run.workers, first_seed=run.seed)
    yield Stage("collect gym", collecting, _collected)
    test = replace(collecting, out=out / "data" / "test", episodes=plan.test_episodes, first_seed=run.seed + plan.episodes)
    yield Stage("collect gym", test, _collected)
    autoencoder, world, heads = (
        out / name for name in ("autoencoder/autoencoder.safetensors", "world/world.safetensors", "heads/world.safetensors")
    )
    yield Stage(
        "train autoencoder",
        replace(autoencoder_training(run, network, plan.autoencoder_steps), val=test.out),
        train_autoencoder,
        autoencoder,
    )
    yield Stage("train world", world_training(run, network, plan), train_world, world)
    packaging = Packaging(autoencoder, world, out / "without_flow_head", train, short_context_frames=plan.context_frames, seed=run.seed)
    yield Stage("package", packaging, package, packaging.out / "config.json")
    yield Stage("train heads", head_training(run, network, plan), train_heads, heads)
    packaging = replace(packaging, world_model=heads, out=out / "weights")
    yield Stage("package", packaging, package, packaging.out / "config.json")
    yield Stage("evaluate", _evaluation(run, test.out), evaluate, out / "evaluation.json")


def planned(run: OwnWorld) -> Plan:
    """The plan that a folder has, made if there is none. Raises `ValueError` for a folder of another command line, and as `dream` does."""
    run.out.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps({name: value for name, value in asdict(run).items() if name not in ("out", "workers", "threads")}))
    if (run.out / ASKED).exists():
        keep_settings(run.out / ASKED, asked, "dream")
    elif taken := [name for name in (*FOLDERS, PLAN) if (run.out / name).exists()]:
        raise ValueError(f"{run.out} has {', '.join(taken)}, but no {ASKED} that says of which world: choose another folder")
    plan = read_settings(run.out / PLAN, lambda said: Plan(**said), "dream")
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
    """Play a little, train a little, and share the time."""
    began, whole = time.monotonic(), 60 * run.minutes
    tried = tried_out(run)
    length, (short, middle, long) = statistics.mean(tried.lengths), np.quantile(tried.lengths, (0.25, 0.5, 0.75)).astype(int).tolist()
    affordable = min(MOST_FRAMES, SHARES["collect"] * whole * run.workers / (WRITING * tried.seconds)) / length
    episodes = run.episodes or max(8, int(affordable))
    plan = Plan(
        network=run.network,
        episodes=episodes,
        test_episodes=max(4, episodes // 20),
        sticky=tried.sticky,
        frames=max(4, min(LONGEST_CLIP, long)),
        clips=max(1, min(LONGEST_SEGMENT, middle // LONGEST_CLIP)),
        ahead=max(1, min(LONGEST_CLIP, (long - GAP[0]) // 2)),
        context_frames=max(1, min(16, short // 4)),
        autoencoder_steps=1,
        world_steps=4,
        head_steps=4,
        seconds={},
    )
    names = [run.network] if run.network != "auto" else list(NETWORKS)
    for name in names:
        costs = measured(run, _network(name), plan, tried)
        left = whole - (time.monotonic() - began)
        parts = [SHARES[stage] * left for stage in ("autoencoder", "world", "heads")]
        encoding = costs[3] * min(MOST_FRAMES, episodes * length)  # of all frames, before the world model and again before its head
        counts = [int((part - extra) / cost) for part, extra, cost in zip(parts, (0, encoding, encoding), costs, strict=False)]
        if enough := all(count >= least for count, least in zip(counts, _network(name).least, strict=True)):
            break
    if not enough:
        short_of = max(
            (least * cost + extra) / part for least, cost, extra, part in zip(_network(name).least, costs, (0, encoding, encoding), parts)
        )
        raise ValueError(
            f"{run.minutes:g} minutes are too few: on this machine they would be {counts[0]} steps of the autoencoder, {counts[1]} of the world "
            f"model and {counts[2]} of its flow head; --minutes {math.ceil(run.minutes * short_of)} or more"
        )
    steps = {f"{stage}_steps": max(1, count) for stage, count in zip(("autoencoder", "world", "head"), counts, strict=True)}
    return replace(plan, network=name, seconds={stage: round(share * left, 1) for stage, share in SHARES.items()}, **steps)


def tried_out(run: OwnWorld) -> Tried:
    """Play some episodes. Raises `ValueError` for environments that can't be made or have neither pictures nor such actions."""
    env = make(run.collecting)
    try:
        tries = [_tried(run, env, sticky) for sticky in (STICKY if run.sticky is None else (run.sticky,))]
    finally:
        env.close()
    return max(tries, key=lambda tried: statistics.mean(tried.lengths))  # the first of those that are as long


def _tried(run: OwnWorld, env: Any, sticky: float) -> Tried:
    source = Source(lambda _: env, lambda rng: Sticky(env.action_space, run.odds, sticky, rng), env.fps)
    began, lengths = time.monotonic(), list[int]()
    while len(lengths) < 2 or (len(lengths) < TRIED_EPISODES and time.monotonic() - began < TRIED_SECONDS * 60 * run.minutes):
        policy = source.make_policy(np.random.default_rng([run.seed, len(lengths), 1]))
        lengths.append(len(record(env, policy, source, run.seed + len(lengths), run.steps)))
    seconds, space = (time.monotonic() - began) / sum(lengths), env.action_space
    size = 0 if space.shape == () else int(np.prod(space.shape))
    return Tried(sticky, lengths, seconds, 0 if size else int(space.n), size)


def measured(run: OwnWorld, network: Network, plan: Plan, tried: Tried) -> tuple[float, float, float, float]:
    """Seconds that a step of autoencoder, world model and flow head takes, and encoding a frame: a few of each, on noise."""
    training = autoencoder_training(run, network, 1)
    autoencoder, rng = Autoencoder(training.model).to(memory_format=torch.channels_last), ShardedRNG(torch.Generator(), 0, 1)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(autoencoder.parameters())
    frames = torch.randint(256, (training.batch, run.size, run.size, 3), dtype=torch.uint8)

    def learn() -> None:
        optimizer.zero_grad()
        reconstruction_loss(autoencoder, frames, rng)[0].backward()
        optimizer.step()

    world = world_training(run, network, plan)
    model = replace(world.model, actions=tried.actions, action_size=tried.action_size)
    model = model if run.position else replace(model, memory_features=0)
    length = max(plan.frames, GAP[0] + plan.ahead) + 2
    episode = _noise_episode(model, length, bool(run.position))
    trainer = Trainer(replace(world, model=model, steps=100), [episode] * ROWS)
    heads = head_training(run, network, plan)
    head_trainer = HeadTrainer(heads, Weights(autoencoder, WorldModel(model).eval(), episode, episode, {}), [episode] * ROWS)
    with_dreams = _seconds(head_trainer.train_step, 1, 0)
    with torch.no_grad():
        encoding = _seconds(lambda: autoencoder.encode(frames), 2) / len(frames)
    head = _seconds(head_trainer.train_step, 3)
    return _seconds(learn), _seconds(trainer.train_step), head + max(0.0, with_dreams - head) / heads.refresh, encoding


def _noise_episode(model: WorldModelConfig, frames: int, poses: bool) -> Segment:
    numbers = model.action_size
    action = torch.rand(frames, numbers) if numbers else torch.randint(model.actions, (frames,))
    pose = torch.tensor([0.0, 0, 1, 0]).repeat(frames, 1) if poses else torch.full((frames, 4), torch.nan)
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


def autoencoder_training(run: OwnWorld, network: Network, steps: int) -> AutoencoderTraining:
    model = AutoencoderConfig(run.size, run.size // PATCHES, network.widths, latent_channels=network.model.latent_channels)
    every = max(1, steps // 5)
    return AutoencoderTraining(
        run.collecting.out, run.out / "autoencoder", model=model, steps=steps, save_every=every, seed=run.seed, threads=run.threads
    )


def world_training(run: OwnWorld, network: Network, plan: Plan) -> WorldTraining:
    """Mostly as in a dream: from a clean past. The flow head samples anyway, so only little of it is the model's own rollout."""
    stages = tuple(
        replace(stage, frames=plan.frames, clips=clips)
        for stage, clips in zip(CURRICULUM, (1, min(3, plan.clips), plan.clips), strict=True)
    )
    return WorldTraining(
        run.collecting.out,
        run.out / "autoencoder" / "autoencoder.safetensors",
        run.out / "world",
        model=network.model,
        curriculum=stages,
        steps=plan.world_steps,
        frames_a_step=ROWS * plan.frames,
        warmup=max(1, min(100, plan.world_steps // 10)),
        teacher_forcing=0.8,
        self_rollout=0.1,
        back=0.4 if run.position else 0.0,
        odometry_updates=4 if run.position else 0,
        save_every=max(1, plan.world_steps // 10),
        seed=run.seed,
        threads=run.threads,
    )


def head_training(run: OwnWorld, network: Network, plan: Plan) -> HeadTraining:
    return HeadTraining(
        run.out / "without_flow_head",
        (run.collecting.out,),
        run.out / "heads",
        steps=plan.head_steps,
        warmup=max(1, min(300, plan.head_steps // 10)),
        flow_width=network.flow_width,
        dreams=DreamOptions(ahead=plan.ahead),
        refresh=50,
        save_every=max(1, plan.head_steps // 5),
        seed=run.seed,
        threads=run.threads,
    )


def _evaluation(run: OwnWorld, data: Path) -> Evaluation:
    """What the episodes are long enough for: half of them, at least."""
    length = int(statistics.median_high(len(read_arrays(path)["action"]) for path in episode_paths(data)))
    context = max(2, min(20, length // 3))
    ahead = max(1, min(50, length - context))
    tests = ("next_frame", "open_loop", "reward", *(("imagination",) if run.position else ()))
    sizes = dict(clips=1, context=context, ahead=ahead, imagination=(context, ahead), steps=4)
    return Evaluation(
        data, weights=run.out / "weights", out=run.out / "evaluation.json", figures=run.out / "pictures", tests=tests, **sizes
    )


def _collected(collecting: GymCollecting) -> None:
    collected = collect_gym(collecting)
    if collected.stopped:
        raise KeyboardInterrupt
    if collected.failed:
        raise ValueError(f"{len(collected.failed)} of the episodes failed, see above; the same command tries them again")


def _network(name: str) -> Network:
    return TINY if name == "tiny" else NETWORKS[name]


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def command_line(command: str, settings: Any) -> str:
    """The command line that says what settings, a dataclass, differ in from their defaults."""
    return shlex.join(["lssvwm-gym", *command.split(), *_flags(settings)])


def _flags(settings: Any, default: Any = None, prefix: str = "--") -> Iterator[str]:
    for field in fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name, _default(field))
        flag = prefix + ("import" if field.name == "imports" else field.name.replace("_", "-"))
        if value == usual:
            continue
        if is_dataclass(value):
            yield from _flags(value, usual, f"{flag}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for number, (one, other) in enumerate(zip(value, usual, strict=True)):
                yield from _flags(one, other, f"{flag}.{number}.")
        elif isinstance(value, bool):
            yield flag if value else prefix + "no-" + field.name.replace("_", "-")
        else:
            yield from (flag, *map(str, value if isinstance(value, tuple) else (value,)))


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
