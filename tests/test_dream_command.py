"""`lssvwm-gym dream`: all stages by one command, what it plans, what it refuses, and that it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env

import lssvwm_gym
from lssvwm_gym.cli import COMMANDS, main
from lssvwm_gym.data.episode import EpisodeError
from lssvwm_gym.io.tensors import load_tensors
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.own_world import OwnWorld, Plan, command_line, dream, planned, stages
from lssvwm_gym.own_world import plan as planning
from lssvwm_gym.own_world.plan import SHARES, Costs, made_plan, tried_out
from lssvwm_gym.training.from_data import fitted, typical_motion


class Stairs(gym.Env[Any, Any]):
    """Goes up a step at a time and ends where the same action was taken three times running; shows how far it has come."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = Box(0, 9, (1,))

    def __init__(self, space: str = "discrete", blind: bool = False, steps: int = 3, render_mode: str | None = None) -> None:
        self.action_space = {"discrete": Discrete(4), "many": MultiDiscrete([2, 2])}[space]
        self.blind, self.steps, self.render_mode = blind, steps, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken: list[int] = []
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append(action)
        last = self.taken[-self.steps :]
        return np.zeros(1, np.float32), 1.0, len(last) == self.steps and len(set(last)) == 1, False, {}

    def render(self) -> Any:
        return None if self.blind else np.full((20, 30, 3), len(self.taken), np.uint8)


@pytest.fixture(autouse=True)
def _stairs():
    gym.register("Stairs-v0", Stairs)
    yield
    gym.registry.pop("Stairs-v0")


def asked(out: Path, env: str = "Stairs-v0", **settings: Any) -> OwnWorld:
    return OwnWorld(env, out, **{"network": "tiny", "minutes": 0.2, "episodes": 3, "steps": 30, "threads": 1, **settings})


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_its_dream_is_an_environment(tmp_path, stopped_dream, capsys):
    """Pendulum, whose actions are numbers: stopped between two stages, and in another."""
    run, finished = asked(tmp_path / "own", "Pendulum-v1"), tmp_path / "own" / "autoencoder" / "autoencoder.safetensors"
    stopped_dream(run)
    plan, made = (run.out / "plan.json").read_text(), finished.stat().st_mtime_ns
    next((run.out / "data" / "train").glob("*.npz")).unlink()  # an episode that was not whole
    weights = dream(run)
    said = capsys.readouterr().out
    assert ((run.out / "plan.json").read_text(), finished.stat().st_mtime_ns) == (plan, made)
    assert len(list((run.out / "data" / "train").glob("*.npz"))) == 3
    assert f"[3/8] {finished} is there already" in said
    assert "all that is left" in said
    assert load_tensors(run.out / "world" / "world.safetensors")[1]["config"]["action_size"] == 1
    assert json.loads((run.out / "evaluation.json").read_text())["scores"].keys() >= {"next_frame", "open_loop", "reward"}
    assert (run.out / "pictures" / "open_loop.png").exists()
    env = lssvwm_gym.load(weights)
    with pytest.warns(UserWarning, match="symmetric"):
        check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space == Box(-2, 2, (1,))
    with pytest.raises(EpisodeError, match=r"made with minutes 0.2, not 9; dream into another folder"):
        dream(dataclasses.replace(run, minutes=9))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": "Nowhere-v0"}, "Nowhere-v0 can't be made"),
        ({"kwargs": '{"blind": true}'}, "not uint8"),
        ({"kwargs": '{"space": "many"}'}, "actions are MultiDiscrete"),
        ({"kwargs": '{"steps": 1}'}, "too early to dream on from anything"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        dream(asked(tmp_path / "own", **settings))
    assert not list((tmp_path / "own").iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": 0}, "minutes must be above 0"),
        ({"minutes": float("nan")}, "minutes must be above 0"),
        ({"size": 65}, "multiple of 16"),
        ({"position": "x"}, "give both or none"),
        ({"kwargs": "no"}, "JSON object"),
        ({"sticky": 1.0}, "sticky is a chance"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        asked(tmp_path, **settings)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"has data, but no dream\.json"):
        dream(asked(tmp_path))


def test_a_bad_plan_is_one_line(tmp_path):
    (tmp_path / "dream.json").write_text(json.dumps({}))
    with pytest.raises(EpisodeError, match=r"dream\.json: the episodes there were made with env None, not Stairs-v0"):
        planned(asked(tmp_path))
    (tmp_path / "dream.json").unlink()
    planned(asked(tmp_path))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"plan\.json: doesn't say how"):
        main(shlex.split(command_line("dream", asked(tmp_path)))[1:])


def test_what_ends_early_is_played_the_way_it_lasts(tmp_path):
    assert tried_out(asked(tmp_path, minutes=5)).sticky == 0
    assert tried_out(asked(tmp_path, kwargs='{"steps": 99}')).sticky == 0.75
    assert tried_out(asked(tmp_path, sticky=0.5)).sticky == 0.5


def test_the_time_is_shared_out(tmp_path, monkeypatch):
    """By what a step costs, with the larger network where there is time for it."""
    for seconds, network in ((0.001, "large"), (0.01, "medium"), (0.1, "small")):
        monkeypatch.setattr(planning, "measured", lambda *_, cost=seconds: Costs(cost, 2 * cost, cost / 2, 1e-6))
        plan = made_plan(asked(tmp_path, network="auto", minutes=3))
        assert plan.network == network
        spent = {"autoencoder": plan.autoencoder_steps, "world": 2 * plan.world_steps, "heads": plan.head_steps / 2}
        assert {name: seconds * steps for name, steps in spent.items()} == pytest.approx(
            {name: plan.seconds[name] for name in spent}, rel=0.05
        )
    monkeypatch.setattr(planning, "measured", lambda *_: Costs(0.1, 1, 0.1, 0.01))
    with pytest.raises(
        ValueError, match=r"--minutes 2 is too few: at least 200 steps of the autoencoder, 120 of .* take 5 minutes on this machine"
    ):
        made_plan(asked(tmp_path, network="auto", minutes=2))
    assert sum(SHARES.values()) + 3 * SHARES["between"] == pytest.approx(1)


PLAN = Plan("small", 9, 4, 0.0, 12, 3, 5, 4, 100, 200, 300, dict.fromkeys(SHARES, 1.0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"imports": ("stairs", "floor"), "kwargs": '{"steps": 4}', "odds": (1.0, 2.0), "crop": True, "size": 96, "threads": 0},
        {"position": "agent.pos", "angle": "agent.dir", "plane": (1, -3), "unit": "degrees", "seed": 7},
    ],
)
def test_the_commands_that_are_printed_are_those_that_run(tmp_path, settings):
    steps = stages(asked(tmp_path, **settings), PLAN)
    for stage in (next(steps) for _ in range(7)):
        module, kind, function, _ = COMMANDS[stage.command]
        words = shlex.split(command_line(stage.command, stage.settings))
        assert words[: 1 + len(stage.command.split())] == ["lssvwm-gym", *stage.command.split()]
        module = importlib.import_module(module)
        assert tyro.cli(getattr(module, kind), args=words[1 + len(stage.command.split()) :]) == stage.settings
        assert stage.function is getattr(module, function) or function == "collect_gym"


def recorded(action: torch.Tensor, pose: torch.Tensor | None = None) -> Segment:
    pose = torch.full((len(action), 4), torch.nan) if pose is None else pose
    return Segment(torch.zeros(len(action), 16, 4), action, torch.zeros(len(action)), pose, torch.zeros(len(action), 0))


def collected(folder: Path, **changed: Any) -> Path:
    said = dict(env="Stairs-v0", kwargs="{}", pixels="render", size=64, crop=False, fps=7, steps=9, poses=False, actions=["up", "down"])
    (folder / "collecting.json").write_text(json.dumps(said | changed))
    return folder


def test_sizes_that_nobody_gave_are_those_of_the_recordings(tmp_path):
    config, seen = WorldModelConfig(), recorded(torch.tensor([0, 1]))
    assert fitted(config, tmp_path, [seen]) == WorldModelConfig(memory_features=0)
    assert fitted(config, tmp_path, [recorded(torch.tensor([0, 8]))]).actions == 9
    assert fitted(config, tmp_path, [recorded(torch.zeros(2, 3))]) == WorldModelConfig(actions=0, action_size=3, memory_features=0)
    assert fitted(config, collected(tmp_path), [seen]).actions == 2
    assert fitted(WorldModelConfig(actions=5), tmp_path, [seen]).actions == 5


def test_the_typical_motion_is_that_of_the_recordings(tmp_path):
    turned = torch.arange(5) * 0.5
    pose = torch.stack([3 * turned.cumsum(0), 0 * turned, turned.cos(), turned.sin()], 1)
    ahead = torch.stack([2.0 * torch.arange(5), torch.zeros(5), torch.ones(5), torch.zeros(5)], 1)
    assert typical_motion([recorded(torch.zeros(5).long(), ahead)]) == (2.0, 0.2, 0.02)
    assert typical_motion([recorded(torch.zeros(5).long(), pose)])[2] == pytest.approx(0.5, abs=1e-3)
    seen = [recorded(torch.zeros(5).long(), ahead)]
    assert fitted(WorldModelConfig(), collected(tmp_path, poses=True), seen).motion_scale == (2.0, 0.2, 0.02)
    assert fitted(WorldModelConfig(motion_scale=(1.0, 1.0, 1.0)), tmp_path, seen).motion_scale == (1.0, 1.0, 1.0)
    (tmp_path / "collecting.json").unlink()
    assert fitted(WorldModelConfig(), tmp_path, seen) == WorldModelConfig()


def test_the_typical_motion_in_space_is_read_from_any_recordings(tmp_path):
    """Poses in space have five numbers a motion: nobody's default would do."""
    step = torch.arange(5.0)
    ahead = torch.stack([0 * step, 2 * step, 0 * step, torch.ones(5), 3 * step, 0.5 * step], 1)
    seen = [recorded(torch.zeros(5).long(), ahead)]
    assert fitted(WorldModelConfig(), tmp_path, seen).motion_scale == (2.0, 0.2, 0.02, 3.0, 0.5)
    level = [recorded(torch.zeros(5).long(), ahead * torch.tensor([1, 1, 1, 1, 0, 0]))]
    assert fitted(WorldModelConfig(), tmp_path, level).motion_scale == (2.0, 0.2, 0.02, 0.2, 0.02)
    given = WorldModelConfig(motion_scale=(1.0, 1.0, 1.0, 1.0, 1.0))
    assert fitted(given, tmp_path, seen).motion_scale == given.motion_scale
