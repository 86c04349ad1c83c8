"""Rewards that are not real: how they are found, and what keeps an agent from learning to live on them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import WALK_FRAMES, same

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from experiments.check_rewards import COUNTER_MEASURES, Args, Dreams, ended_when_uncertain, likelier, main, pairs, rates, shorter
from experiments.conservative_rollouts import OTHER_NOISE, Agreement, ConservativeRollouts
from lssvwm_gym.envs import DreamVectorEnv

ROOT = Path(__file__).parent.parent
ROWS = 3


@pytest.fixture
def arguments(tiny_weights):
    return dict(world="memory-maze", num_envs=ROWS, weights=tiny_weights, profile="balanced", device="cpu")


def actions(steps):
    return np.random.default_rng(0).integers(0, 6, (steps, ROWS))


def test_short_episodes_are_those_of_a_shorter_environment(arguments):
    """Observations, rewards, ends, infos and last observations, over several episodes."""
    guarded, reference = ConservativeRollouts(DreamVectorEnv(**arguments), max_steps=4), DreamVectorEnv(max_episode_steps=4, **arguments)
    assert same(guarded.reset(seed=5), reference.reset(seed=5))
    for number, action in enumerate(actions(9)):
        ours, theirs = guarded.step(action), reference.step(action)
        assert ours[3].all() == (number % 4 == 3)
        assert same(ours, theirs)


class Told(DreamVectorEnv):
    """Dreams that say of themselves what a script does, a row (steps, rows) a step."""

    script: dict

    def step(self, actions):
        *moment, info = super().step(actions)
        told = {name: values[0] for name, values in self.script.items()}
        self.script = {name: values[1:] for name, values in self.script.items()}
        return *moment, {**info, **told}


@pytest.mark.parametrize(("name", "limit"), [("uncertainty", dict(max_uncertainty=0.5)), ("familiarity", dict(min_familiarity=0.5))])
def test_a_row_is_cut_where_the_model_is_unsure(arguments, name, limit):
    unsure = np.zeros((16, ROWS))
    unsure[2, 0] = 1  # for a step: nobody minds
    unsure[3:, 1] = 1  # from step 3 on: more than half of 8 steps are 5 of them
    unsure[0, 2] = 1  # at once
    dreams = Told(**arguments)
    dreams.script = {name: unsure if name == "uncertainty" else 1 - unsure}
    guarded = ConservativeRollouts(dreams, **limit)
    guarded.reset(seed=5)
    cut = np.stack([guarded.step(action)[3] for action in actions(16)])
    assert [np.flatnonzero(row).tolist() for row in cut.T] == [[], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [0]]


def test_rewards_count_where_a_twin_agrees(arguments):
    guarded, plain = ConservativeRollouts(DreamVectorEnv(**arguments), agree=True, tolerance=1), DreamVectorEnv(**arguments)
    guarded.reset(seed=5), plain.reset(seed=5)
    state = plain.clone_state().dream
    twin, agreement, paid = state._replace(seed=state.seed + OTHER_NOISE), Agreement(ROWS, 1), []
    for action in actions(12):
        twin, second, *_ = plain.dream.step(twin, torch.from_numpy(action))
        observation, reward, *_ = plain.step(action)
        ours = guarded.step(action)
        assert same(ours[0], observation)
        assert same(ours[1], agreement.rewards(reward, second.numpy()))
        paid.append((reward, second.numpy(), ours[1]))
    single, other, both = (np.stack(parts) for parts in zip(*paid, strict=True))
    assert 0 < both.sum() < single.sum()
    assert (single != other).any()


def test_an_agreement_pays_once_and_late():
    agreement = Agreement(1, 2)
    single, twin = [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2], [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    paid = [float(agreement.rewards(np.array([a], float), np.array([b], float))[0]) for a, b in zip(single, twin, strict=True)]
    assert paid == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 2]
    agreement.rewards(np.array([1.0]), np.array([0.0]))
    agreement.forget(np.array([True]))
    assert agreement.rewards(np.array([0.0]), np.array([1.0])) == 0


def test_every_episode_starts_where_it_is_told(arguments):
    start = {"context_frames": WALK_FRAMES}
    guarded = ConservativeRollouts(DreamVectorEnv(max_episode_steps=5, **arguments), max_steps=3, start=start)
    _, info = guarded.reset(seed=1)
    assert (info["age"] == WALK_FRAMES).all()
    for step, action in enumerate(actions(7), 1):
        info = guarded.step(action)[4]
        assert (info["age"] == WALK_FRAMES + step % 3).all()
    longer = ConservativeRollouts(DreamVectorEnv(max_episode_steps=3, **arguments), max_steps=5, start=start)
    longer.reset(seed=1)
    ages = [longer.step(action)[4]["age"][0] for action in actions(4)]
    assert ages == [WALK_FRAMES + step for step in (1, 2, 0, 1)]


def test_sb3_learns_behind_the_guard(arguments):
    sb3 = pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from lssvwm_gym.envs.sb3 import DreamVecEnv

    envs = DreamVecEnv(ConservativeRollouts(DreamVectorEnv(**arguments), max_steps=3, agree=True))
    envs.seed(0)
    envs.reset()
    for action in actions(3):
        _, _, done, infos = envs.step(action)
    assert done.all()
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["terminal_observation"].shape == (64, 64, 3)
    sb3.PPO("CnnPolicy", envs, n_steps=4, batch_size=4, n_epochs=1, device="cpu", seed=0).learn(12)


def test_what_cannot_be_guarded_is_refused(arguments):
    import gymnasium

    with pytest.raises(ValueError, match="wraps a DreamVectorEnv"):
        ConservativeRollouts(gymnasium.make_vec("CartPole-v1", 2))
    with pytest.raises(ValueError, match="max_steps must be a whole number, at least 1, not 0"):
        ConservativeRollouts(DreamVectorEnv(**arguments), max_steps=0)
    fast = ConservativeRollouts(DreamVectorEnv(**{**arguments, "profile": "fast"}), max_uncertainty=0.1)
    with pytest.raises(ValueError, match=r'tells no info\["uncertainty"\]'):
        fast.reset(seed=0)


def rewards(*times, steps=30):
    row = np.zeros((1, steps))
    row[0, list(times)] = 1
    return row


def dreams(**kinds):
    zeros = np.zeros((1, 30))
    return Dreams(**{name: kinds.get(name, zeros) for name in Dreams._fields})


def test_every_reward_has_at_most_one_partner():
    with_real, with_dreamed = pairs(rewards(3, 5, 20), rewards(4, 12, 22), 2)
    assert np.flatnonzero(with_real[0]).tolist() == [3, 20]
    assert np.flatnonzero(with_dreamed[0]).tolist() == [4, 22]
    with_real, with_dreamed = pairs(rewards(3, 5), rewards(1, 4), 2)
    assert (with_real.sum(), with_dreamed.sum()) == (2, 2)


def test_rates_are_what_they_are_called():
    ball = np.full((1, 30), 3.0)
    ball[0, 20] = 0.5
    found = rates(rewards(3, 5, 21), rewards(4, 12), ball, 2)
    assert found["dreamed"] == 3
    assert found["real"] == 2
    assert (found["precision"], found["recall"]) == (0.3333, 0.5)
    assert (found["first"], found["precision_of_first"]) == (1, 1.0)
    assert found["at_a_ball"] == 0.3333
    late = rates(rewards(3, 5, 21), rewards(4, 12), ball, 2, slice(10, 30))
    assert (late["dreamed"], late["real"], late["precision"], late["recall"]) == (1, 1, 0.0, 0.0)
    wanted_another = rates(rewards(9), rewards(4), ball, 2)  # by then another colour is wanted: the dream can't know which
    assert (wanted_another["first"], wanted_another["precision_of_first"]) == (0, None)


def test_counter_measures_leave_what_they_say():
    some = dreams(reward=rewards(3, 12, 25), twin=rewards(14), uncertainty=rewards(*range(8, 30)), familiarity=rewards(12, 25))
    some = some._replace(probability=rewards(4, 5, 6, 9))
    for kept, times in (
        (shorter(some, 12), [3]),
        (ended_when_uncertain(some, 0.55), [3]),
        (ended_when_uncertain(some, 0.7), [3, 12]),
        (COUNTER_MEASURES["where familiarity is above 0.5"](some, 2), [12, 25]),
        (COUNTER_MEASURES["two dreams agree"](some, 2), [12]),
        (COUNTER_MEASURES["two dreams agree"](some, 1), []),
        (likelier(some, 0.5), [4, 9]),
    ):
        assert np.flatnonzero(kept[0]).tolist() == times


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(episodes=0), "episodes must be at least 1"),
        (dict(context=900), "has 1000 steps, not 900"),
        (dict(policies=("clever",)), "a policy is random"),
        (dict(tolerance=-1), "tolerance must be at least 0"),
    ],
)
def test_wrong_arguments_end_it_before_it_begins(tiny_weights, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(Args(policies=("random",), weights=tiny_weights, device="cpu"), **wrong))


@pytest.mark.slow
@pytest.mark.simulator
def test_dreams_are_checked_in_the_real_maze(tiny_weights, tmp_path):
    pytest.importorskip("matplotlib", reason="needs lssvwm_gym[train]")
    out, plot = tmp_path / "checks.json", tmp_path / "checks.png"
    small = ["--policies", "random", "explorer", "--episodes", 2, "--context", 3, "--steps", 6, "--ages", 0, 3]
    command = [
        sys.executable,
        "-m",
        "experiments.check_rewards",
        *small,
        "--weights",
        tiny_weights,
        "--device",
        "cpu",
        "--out",
        out,
        "--plot",
        plot,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["policies"]) == ["random", "explorer"]
    numbers = result["policies"]["random"]
    assert numbers["steps 0 to 3"]["dreamed"] + numbers["steps 3 to 6"]["dreamed"] == numbers["none"]["dreamed"]
    assert sum(map(len, result["rewards_at_step"]["random"]["dreamed"])) == numbers["none"]["dreamed"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.simulator
def test_a_replay_repeats_the_walk():
    from experiments.check_rewards import MazeJob, play

    first = play(MazeJob("MemoryMaze9x9-Real-v0", 7, 6))
    again = play(MazeJob("MemoryMaze9x9-Real-v0", 7, 6, first.action))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = play(MazeJob("MemoryMaze9x9-Real-v0", 8, 6, first.action))
    assert not np.array_equal(first.frames, other.frames)
