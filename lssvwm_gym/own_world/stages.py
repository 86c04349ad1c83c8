"""The stages, each a command of its own, one after the other."""

import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.data.collect_gym import GymCollecting, collect_gym
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate
from lssvwm_gym.own_world.plan import planned
from lssvwm_gym.own_world.settings import NETWORKS, OwnWorld, Plan, autoencoder_training, head_training, world_training
from lssvwm_gym.training.autoencoder import train_autoencoder
from lssvwm_gym.training.heads import train_heads
from lssvwm_gym.training.world_model import train_world

ORDER = ("collect", "between", "autoencoder", "world", "between", "heads", "between", "between")  # of the stages


class DreamStage(NamedTuple):
    """A command, the function behind it, and what is there once it is done."""

    command: str
    settings: Any
    function: Callable[[Any], Any]
    done: Path | None = None


def dream(run: OwnWorld) -> Path:
    """Make the dream, as far as it is not yet made, and return its folder of weights.

    Raises `ValueError` for an environment without pictures or with other actions than Discrete or Box, too little time, and a folder with
    something else, all before anything is trained; `WorkerPoolError` where the environment can't be made in another process.
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


def stages(run: OwnWorld, plan: Plan) -> Iterator[DreamStage]:
    """One after the other; those before have been done when the next is asked for."""
    out, train = run.out, run.collecting.out
    network = NETWORKS[plan.network]
    collecting = replace(run.collecting, episodes=plan.episodes, sticky=plan.sticky, workers=run.workers, first_seed=run.seed)
    yield DreamStage("collect gym", collecting, _collected)
    test = replace(collecting, out=out / "data" / "test", episodes=plan.test_episodes, first_seed=run.seed + plan.episodes)
    yield DreamStage("collect gym", test, _collected)
    autoencoder = out / "autoencoder" / "autoencoder.safetensors"
    world, heads = (out / name / "world.safetensors" for name in ("world", "heads"))
    training = replace(autoencoder_training(run, network, plan.autoencoder_steps), val=test.out)
    yield DreamStage("train autoencoder", training, train_autoencoder, autoencoder)
    yield DreamStage("train world", world_training(run, network, plan), train_world, world)
    packaging = Packaging(autoencoder, world, out / "without_flow_head", train, short_context_frames=plan.context_frames, seed=run.seed)
    yield DreamStage("package", packaging, package, packaging.out / "config.json")
    yield DreamStage("train heads", head_training(run, network, plan), train_heads, heads)
    packaging = replace(packaging, world_model=heads, out=out / "weights")
    yield DreamStage("package", packaging, package, packaging.out / "config.json")
    yield DreamStage("evaluate", _evaluation(run, test.out), evaluate)


def _evaluation(run: OwnWorld, data: Path) -> Evaluation:
    """What the episodes are long enough for: half of them, at least."""
    length = int(statistics.median_high(len(read_arrays(path)["action"]) for path in episode_paths(data)))
    context = max(2, min(20, length // 3))
    ahead = max(1, min(50, length - context))
    tests = ("next_frame", "open_loop", "reward", "ends", *(("imagination",) if run.position else ()))
    return Evaluation(
        data,
        weights=run.out / "weights",
        out=run.out / "evaluation.json",
        figures=run.out / "pictures",
        tests=tests,
        steps=4,
        clips=1,
        context=context,
        ahead=ahead,
        imagination=(context, ahead),
    )


def _collected(collecting: GymCollecting) -> None:
    collected = collect_gym(collecting)
    if collected.stopped:
        raise KeyboardInterrupt
    if collected.failed:
        raise ValueError(f"{len(collected.failed)} of the episodes failed, see above; the same command tries them again")


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def command_line(command: str, settings: Any) -> str:
    """The command line that says what settings, a dataclass, differ in from their defaults."""
    return shlex.join(["lssvwm-gym", *command.split(), *_flags(settings)])


def _flags(settings: Any, default: Any = None, prefix: str = "--") -> Iterator[str]:
    for field in fields(settings):
        usual: Any = field.default if field.default_factory is MISSING else field.default_factory()
        value, usual = getattr(settings, field.name), getattr(default, field.name, usual)
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
