"""Plans: what is proposed, what it is worth, and that the best of it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from agents.policies import Policy, PolicyConfig, save_policy
from experiments import planner as planning_module
from experiments.agents_by_name import open_agent
from experiments.mpc import Args, main
from experiments.planner import MANOEUVRES, Futures, Planner, Planning, manoeuvres, roll, scored
from lssvwm_gym.envs.simulator import open_dream

ROOT = Path(__file__).parent.parent
ALONE = Planning(futures=6, horizon=4, keep=2, led=0.0, confirm=0, batch=4)  # no policy needed


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


@pytest.fixture
def frames():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 2, 64, 64, 3), dtype=np.uint8))


def paying(pays):
    """A stand-in for `roll` whose futures pay what `pays` says of their actions (N, H)."""

    def rolled(dream, state, action, generator, leader=None):
        reward = pays(action)
        return Futures(action, reward, torch.zeros_like(reward), torch.zeros(*action.shape, 16, 4))

    return rolled


def test_futures_are_dreams_of_their_actions(dream):
    state = dream.reset(torch.tensor([3]))
    action = torch.tensor([[1, 1, 2], [4, 0, 5]])
    futures = roll(dream, state, action, torch.Generator().manual_seed(0))
    assert torch.equal(futures.action, action)
    assert futures.reward.shape == futures.posterior_variance.shape == (2, 3)
    again = roll(dream, state, action, torch.Generator().manual_seed(0))
    assert torch.equal(futures.latent, again.latent)
    noise = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    from lssvwm_gym.models.rollout import commit, imagine
    from lssvwm_gym.models.state import take_rows

    model, rows = dream.weights.world_model, take_rows(state, torch.tensor([0, 0]))
    with torch.no_grad():
        first = commit(model, rows, action[:, 0], imagine(model, rows, action[:, 0], 1, noise=noise))
    assert torch.equal(futures.latent[:, 0], first.latent)
    expected = model.reward_head(first.features).softmax(-1)[:, 1]  # the second value pays 1, the first nothing
    assert torch.allclose(futures.reward[:, 0], expected)


def test_a_leader_decides_where_nothing_is_proposed(dream):
    state = dream.reset(torch.tensor([3]))
    wanted = torch.tensor([[-1, 2], [1, -1]])
    futures = roll(dream, state, wanted, torch.Generator(), lambda now: torch.full((len(now.seed),), 5))
    assert futures.action.tolist() == [[5, 2], [1, 5]]


def test_a_future_is_worth_its_rewards_and_its_news():
    reward = torch.tensor([[0.0, 1.0], [0.05, 0.0]])
    futures = Futures(torch.zeros(2, 2), reward, torch.tensor([[0.0, 0.0], [1.0, 0.5]]), torch.zeros(0))
    worth = scored(futures, Planning(discount=0.5, doubt=0.1, curiosity=0.2))
    assert worth.tolist() == pytest.approx([0.5, 0.2 + 0.2 * 0.5 * 0.5])
    assert scored(futures, Planning(discount=0.5, doubt=0.01, curiosity=0.0)).tolist() == pytest.approx([0.5, 0.05])


def test_manoeuvres_last():
    drawn = manoeuvres(200, 30, np.random.default_rng(0)).numpy()
    assert drawn.shape == (200, 30)
    assert set(np.unique(drawn)) == set(MANOEUVRES)
    assert (drawn[:, 1:] == drawn[:, :-1]).mean() > 0.75


def test_the_best_future_is_chosen(dream, monkeypatch):
    monkeypatch.setattr(planning_module, "roll", paying(lambda action: (action == 3).float()))
    player = Planner(dream, 1, 0, replace(ALONE, futures=240, horizon=8))
    plan = player.plan(player.state)
    assert plan.score == pytest.approx(float(scored(paying(lambda a: (a == 3).float())(None, None, plan.action[None], None), ALONE)[0]))
    assert (plan.action == 3).sum() >= 6


def test_what_pays_once_only_is_not_believed(dream, monkeypatch):
    calls = []

    def pays(action):
        calls.append(len(action))
        lucky = len(calls) == 1  # where the futures are rolled; then they are confirmed
        return (action == 1).float() * 0.5 + (action == 3).float() * (5.0 if lucky else 0.0)

    monkeypatch.setattr(planning_module, "roll", paying(pays))
    many = replace(ALONE, futures=40, batch=40, horizon=4)
    believing = Planner(dream, 1, 0, many)
    assert (believing.plan(believing.state).action == 3).any()
    calls.clear()
    doubting = Planner(dream, 1, 0, replace(many, confirm=40))
    assert (doubting.plan(doubting.state).action == 1).all()
    assert calls == [40, 40]


def test_a_decision_ends_in_time(dream, monkeypatch):
    asked = []
    monkeypatch.setattr(planning_module, "roll", paying(lambda action: (asked.append(len(action)), action.float())[1]))
    hurried = Planner(dream, 1, 0, replace(ALONE, futures=40, confirm=8, seconds=1e-9))
    hurried.plan(hurried.state)
    assert asked == [4]  # one batch, and no second look


@contextmanager
def all_that_is_seen_pays(dream, value):
    """The model is everybody's: what is changed in it is put back to the bit."""
    bias = dream.weights.world_model.reward_head[-1].bias.data
    before = bias.clone()
    bias[value] += 1e4
    try:
        yield
    finally:
        bias.copy_(before)


def test_a_plan_is_followed_for_a_while(dream, frames, monkeypatch):
    monkeypatch.setattr(planning_module, "roll", paying(lambda action: torch.zeros(action.shape)))
    player = Planner(dream, 2, 0, ALONE)
    done, plans = [], []
    with all_that_is_seen_pays(dream, 0):
        for frame in frames[:6]:
            done.append(player.act(frame, None))
            plans.append(list(player.plans))
    assert [plans[step][0] is plans[step + 1][0] for step in range(5)] == [True, False, True, False, True]
    assert [action[1] for action in done] == [int(plans[step][1].action[step % 2]) for step in range(6)]
    assert len(player.seconds) == len(player.hoped) == 2 * 3
    left_over = plans[1][0].action[2:]
    assert player._proposed(3, left_over)[0, : len(left_over)].tolist() == left_over.tolist()


def test_a_reward_ends_a_plan(dream, frames, monkeypatch):
    monkeypatch.setattr(planning_module, "roll", paying(lambda action: torch.zeros(action.shape)))
    player = Planner(dream, 1, 0, replace(ALONE, keep=4))
    with all_that_is_seen_pays(dream, 1):
        for frame in frames[:3]:
            player.act(frame[:1], None)
    assert len(player.seconds) == 3


def test_the_planner_sees_what_a_policy_would(dream, frames):
    """Its state is that of the frames and of its own actions."""
    from lssvwm_gym.models.rollout import prefill

    player, state, last = Planner(dream, 2, 0, ALONE), dream.empty(torch.zeros(2, dtype=torch.int64)), torch.tensor([6, 6])
    for frame in frames[:4]:
        with torch.no_grad():
            state = prefill(
                dream.weights.world_model, state, dream.weights.autoencoder.encode(frame).half().float()[:, None], last[:, None]
            ).state
        last = torch.from_numpy(player.act(frame, None))
    assert torch.equal(player.state.features, state.features)
    assert player.hoped_for(1).shape == (64, 64, 3)


def test_a_policy_leads_some_futures(dream, tmp_path, monkeypatch):
    torch.manual_seed(1)
    save_policy(tmp_path / "policy.safetensors", Policy(PolicyConfig("memory-maze", "features", (256,), 6, 16)), {})
    player = Planner(dream, 1, 0, replace(ALONE, led=0.5, policy=tmp_path / "policy.safetensors"))
    assert (player._proposed(8, None) < 0).all(1).tolist() == [True] * 4 + [False] * 4
    assert player.plan(player.state).action.min() >= 0
    save_policy(tmp_path / "policy.safetensors", Policy(PolicyConfig("memory-maze", "features", (255,), 6, 16)), {})
    with pytest.raises(ValueError, match=r"of shape \(255,\)"):
        Planner(dream, 1, 0, replace(ALONE, led=0.5, policy=tmp_path / "policy.safetensors"))


def test_wrong_settings_are_refused(dream):
    for wrong, said in (
        (dict(futures=0), "futures must be at least 1"),
        (dict(keep=30), "keep can't be more than the horizon"),
        (dict(led=2.0), "led must be 0 to 1"),
        (dict(seconds=0.0), "seconds must be more than 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Planning(**wrong)
    with pytest.raises(ValueError, match="none can be random"):
        open_agent("planner@0.5", dream, 1, 0, ALONE)


@pytest.mark.parametrize(
    ("wrong", "said"), [(dict(episodes=0), "episodes must be at least 1"), (dict(beside=("planner",)), "name each agent beside")]
)
def test_wrong_arguments_end_it_before_it_begins(tiny_weights, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(Args(planning=ALONE, weights=tiny_weights), **wrong))


@pytest.mark.slow
@pytest.mark.simulator
def test_it_plans_in_the_real_maze(tiny_weights, tmp_path):
    out, video = tmp_path / "plan.json", tmp_path / "plan.mp4"
    planning = ["--planning.futures", 2, "--planning.horizon", 4, "--planning.keep", 3, "--planning.led", 0]
    command = [sys.executable, "-m", "experiments.mpc", "--episodes", 2, "--steps", 5, *planning, "--weights", tiny_weights]
    done = subprocess.run(list(map(str, [*command, "--out", out, "--video", video])), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [len(result["players"][player]["returns"]) for player in ("planner", "random")] == [2, 2]
    assert result["command"].startswith("python -m experiments.mpc --episodes 2")
    assert result["decisions"] >= 4
    from lssvwm_gym.data.episode import read_video

    assert read_video(video).shape == (5, 256, 512, 3)
