"""The stages, each a command of its own, one after the other."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.data.collect_gym import GymCollecting, collect_gym
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate
from lssvwm_gym.own_world.plan import planned
from lssvwm_gym.own_world.recordings import link_recordings
from lssvwm_gym.own_world.settings import NETWORKS, OwnWorld, Plan, autoencoder_training, command_line, head_training, world_training
from lssvwm_gym.training.autoencoder import train_autoencoder
from lssvwm_gym.training.heads import train_heads
from lssvwm_gym.training.world_model import train_world

ORDER = ("collect", "between", "autoencoder", "world", "between", "heads", "between", "between")  # of the stages; recordings begin later
FINISHED = ("autoencoder/autoencoder.safetensors", "world/world.safetensors", "heads/world.safetensors")  # models


class DreamStage(NamedTuple):
    """A command, the function behind it, and what is there once it is done."""

    command: str
    settings: Any
    function: Callable[[Any], Any]
    done: Path | None = None


def dream(run: OwnWorld) -> Path:
    """Make the dream, as far as it is not yet made, and return its folder of weights.

    Raises, before anything is trained, `ValueError` for an environment without pictures or with other actions than Discrete or Box,
    recordings that are too few, too short or of several kinds, too little time, or a folder with something else; `WorkerPoolError` where
    the environment can't be made in another process.
    """
    if run.threads:
        torch.set_num_threads(run.threads)
    plan, began, order = planned(run), time.monotonic(), ORDER[2 if run.data else 0 :]
    if run.data:
        link_recordings(run)
    for number, stage in enumerate(stages(run, plan)):
        place = f"[{number + 1}/{len(order)}]"
        if stage.done is not None and stage.done.exists():
            print(f"{place} {stage.done} is there already", flush=True)
            continue
        left = [plan.seconds[name] for name in order[number:]]
        end = time.strftime("%H:%M", time.localtime(time.time() + sum(left)))
        print(f"{place} takes about {_clock(left[0])}, all that is left {_clock(sum(left))}, until {end}:")
        print(command_line(stage.command, stage.settings), flush=True)
        stage.function(stage.settings)
    print(f'done in {_clock(time.monotonic() - began)}: gymnasium.make("LSSVWM-Dream-v0", weights="{run.out / "weights"}")')
    return run.out / "weights"


def stages(run: OwnWorld, plan: Plan) -> Iterator[DreamStage]:
    """One after the other; those before have been done when the next is asked for."""
    out, network = run.out, NETWORKS[plan.network]
    if not run.data:
        collecting = replace(run.collecting, episodes=plan.episodes, sticky=plan.sticky, workers=run.workers, first_seed=run.seed)
        yield DreamStage("collect gym", collecting, _collected)
        test = replace(collecting, out=run.test, episodes=plan.test_episodes, first_seed=run.seed + plan.episodes)
        yield DreamStage("collect gym", test, _collected)
    autoencoder, world, heads = (out / name for name in FINISHED)
    training = replace(autoencoder_training(run, network, plan.autoencoder_steps), val=run.test)
    yield DreamStage("train autoencoder", training, train_autoencoder, autoencoder)
    yield DreamStage("train world", world_training(run, network, plan), train_world, world)
    packaging = Packaging(autoencoder, world, out / "without_flow_head", run.train, short_context_frames=plan.context_frames, seed=run.seed)
    yield DreamStage("package", packaging, package, packaging.out / "config.json")
    yield DreamStage("train heads", head_training(run, network, plan), train_heads, heads)
    packaging = replace(packaging, world_model=heads, out=out / "weights")
    yield DreamStage("package", packaging, package, packaging.out / "config.json")
    yield DreamStage("evaluate", _evaluation(run, plan), evaluate)


def _evaluation(run: OwnWorld, plan: Plan) -> Evaluation:
    """What the episodes are long enough for: half of them, at least."""
    lengths = [len(read_arrays(path)["action"]) for path in episode_paths(run.test)]
    length = int(statistics.median_high(lengths))
    context = max(2, min(20, length // 3))
    ahead = max(1, min(50, length - context))
    imagination = plan.poses and sum(one >= context + ahead for one in lengths) >= 4  # of which halves are compared
    return Evaluation(
        run.test,
        weights=run.out / "weights",
        out=run.out / "evaluation.json",
        figures=run.out / "pictures",
        tests=("next_frame", "open_loop", "reward", "ends", *(("imagination",) if imagination else ())),
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
