"""Policies tried in dreams and in the real world, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from real_walks import write_real_walks
from tiny_minecraft import write_tiny_minecraft

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from agents.agent import from_file
from agents.policies import Policy, PolicyConfig, save_policy
from docs._scripts.update_numbers import agents
from experiments import check_transfer
from experiments.agents_by_name import open_agent
from experiments.check_transfer import Args, PolicyReturns, bag, beginnings, main, table, trials
from experiments.trials import correlation_of_returns, mean_and_error, real_episode, summary
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.spaces import action_space
from lssvwm_gym.envs.wrappers import observed

ROOT = Path(__file__).parent.parent


def run_transfer(*arguments):
    command = [sys.executable, "-m", "experiments.check_transfer", *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


@pytest.fixture
def policy_file(tmp_path):
    torch.manual_seed(1)
    save_policy(tmp_path / "policy.safetensors", Policy(PolicyConfig("memory-maze", "features", (256,), 6, 16)), {})
    return tmp_path / "policy.safetensors"


@pytest.mark.slow
@pytest.mark.simulator
def test_policies_are_tried_in_both_worlds(tiny_weights, policy_file, tmp_path):
    out, video = tmp_path / "transfer.json", tmp_path / "transfer.mp4"
    policies = ["random", "explorer", str(policy_file)]
    small = ["--episodes", 2, "--batch", 1, "--steps", 5, "--profile", "fast", "--device", "cpu", "--workers", 2]
    done = run_transfer("--policies", *policies, *small, "--weights", tiny_weights, "--out", out, "--video", video)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 jobs" in done.stdout
    result = json.loads(out.read_text())
    assert result["command"].startswith("python -m experiments.check_transfer --policies random explorer")
    assert [entry["policy"] for entry in result["policies"]] == policies
    assert [len(entry["real"]["returns"]) for entry in result["policies"]] == [2, 2, 2]
    assert [len(entry["dream"]["returns"]) for entry in result["policies"]] == [2, 0, 2]
    assert result["policies"][1]["dream"] == {"mean": None, "standard_error": None, "returns": []}
    from lssvwm_gym.data.episode import read_video

    assert read_video(video).shape == (3 * 6, 256, 512, 3)


def test_a_dream_alone_can_be_tried(tiny_weights, policy_file, tmp_path):
    policies = ("random", str(policy_file))
    args = Args(policies, episodes=3, steps=4, real=False, weights=tiny_weights, device="cpu")
    results = []
    for name in ("a", "b"):
        main(replace(args, out=tmp_path / name))
        results.append(json.loads((tmp_path / name).read_text())["policies"])
    assert results[0] == results[1]
    assert len(results[0][0]["dream"]["returns"]) == 3


def test_the_real_world_alone_can_be_tried(tiny_weights, monkeypatch):
    args = Args(("random",), episodes=2, steps=4, dream=False, weights=tiny_weights, device="cpu")
    assert {trial.where for trial in trials(args)} == {"real"}
    with pytest.raises(SystemExit, match="nothing is left to try policies in"):
        main(replace(args, real=False))


def test_dreams_and_the_game_begin_with_the_same_bags(tmp_path, monkeypatch):
    weights = write_tiny_minecraft(tmp_path / "weights")
    policies = ("player:recipes", "player:dig", "random")
    args = Args(policies, episodes=3, steps=4, real=False, world="minecraft", weights=weights, device="cpu", bags=True, dream_seed=7)
    dream = open_dream("minecraft", args.profile, "cpu", weights)
    state = beginnings(dream, next(trials(args)))
    bags = [list(bag(number)["inventory"]) for number in range(3)]
    assert state.inventory.int().tolist() == state.inventory_peak.int().tolist() == bags
    assert state.seed.tolist() == [7, 8, 9]
    given = []

    def real(env, agent, seed, walked, show, options):
        given.append((seed, list(options["inventory"])))
        return 0.0

    monkeypatch.setattr(check_transfer, "real_episode", real)
    monkeypatch.setattr(check_transfer.gymnasium, "make", lambda *_, **__: SimpleNamespace(close=lambda: None))
    main(replace(args, policies=policies[:1], real=True, seed=50, out=tmp_path / "out.json"))
    assert given == [(50 + number, one) for number, one in enumerate(bags)]
    for wrong, said in ((dict(world="memory-maze", weights=None), "drawn for the block world"), (dict(data=tmp_path), "leave --data out")):
        with pytest.raises(SystemExit, match=said):
            main(replace(args, **wrong))
    with pytest.raises(SystemExit, match=r"player:craft.*not 'player:nobody'"):
        main(replace(args, policies=("player:nobody",)))


class Bag(gymnasium.Env):
    """Three frames beside an inventory; each step pays 2."""

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.seen, {}

    def step(self, action):
        self.steps += 1
        return self.seen, 2.0, self.steps == 2, False, {}

    @property
    def seen(self):
        return {"image": np.full((8, 8, 3), self.steps, np.uint8), "inventory": np.zeros(4, np.int32)}


def test_of_a_world_with_an_inventory_the_picture_is_shown_and_filmed():
    shown, frames = [], []

    class Watcher:
        observation = "image"

        def act(self, observation, info):
            shown.append(observation)
            return np.zeros(1, np.int64)

    assert real_episode(Bag(), Watcher(), 0, show=frames.append) == 4.0
    assert [frame[0, 0, 0] for frame in frames] == [0, 1, 2]
    assert [observation.shape for observation in shown] == [(1, 8, 8, 3)] * 2


class Corridor(gymnasium.Env):
    """What the explorer needs to know of a maze with one way, in which each step pays 1."""

    def reset(self, *, seed=None, options=None):
        self.taken = []
        return self.seen, self.info

    def step(self, action):
        self.taken.append(int(action))
        return self.seen, 1.0, False, len(self.taken) == 9, self.info

    seen = np.zeros((8, 8, 3), np.uint8)

    @property
    def info(self):
        layout = np.zeros((9, 9), np.uint8)
        layout[4, 1:8] = 1
        here = np.array([4.5, 4.5], np.float32)
        return {"agent_pos": here, "agent_dir": np.array([0.0, 1.0], np.float32), "target_pos": here + 2, "maze_layout": layout}


def test_the_explorer_shows_the_maze_before_a_policy_takes_over():
    class Still:
        observation = "image"

        def act(self, observation, info):
            return np.zeros(1, np.int64)

    env, walks = Corridor(), []
    for seed in (3, 3, 9, 10):
        frames = []
        assert real_episode(env, Still(), seed, 6, frames.append) == 3.0  # what the explorer earned doesn't count
        assert len(frames) == 4
        assert env.taken[6:] == [0, 0, 0]
        walks.append(env.taken[:6])
    assert any(walks[0])
    assert walks[0] == walks[1]
    assert len({tuple(walk) for walk in walks}) == 3


def test_dreams_can_begin_after_recorded_walks(tiny_weights, tmp_path):
    walks = write_real_walks(tmp_path / "walks", episodes=2)
    args = Args(("random",), episodes=3, steps=4, real=False, weights=tiny_weights, device="cpu", data=walks, context=7)
    (trial,) = trials(args)
    dream = open_dream("memory-maze", args.profile, "cpu", tiny_weights)
    state = beginnings(dream, trial)
    assert state.world.age.tolist() == [7] * 3
    assert state.seed.tolist() == [0, 1, 2]
    of_its_own = dream.reset(torch.tensor([2]), {"episode": walks / "000000.npz", "context_frames": 7})
    assert torch.equal(state.latent[2], of_its_own.latent[0])  # the third takes the first walk again, and goes on otherwise
    assert not torch.equal(state.latent[1], state.latent[2])
    main(replace(args, out=tmp_path / "out.json"))
    assert len(json.loads((tmp_path / "out.json").read_text())["policies"][0]["dream"]["returns"]) == 3
    (trial,) = trials(replace(args, data=None, made_up=True))
    nothing = beginnings(dream, trial)
    assert torch.equal(nothing.latent, dream.reset(torch.tensor([0, 1, 2]), {"start": "cold"}).latent)
    assert len(nothing.latent.flatten(1).unique(dim=0)) == 3
    for wrong, said in (
        (dict(made_up=True), "begins with nothing: leave --data"),
        (dict(context=61), "context must be from 1 to the 60 frames of .*000000.npz"),
        (dict(data=tmp_path), "no episode"),
    ):
        with pytest.raises(SystemExit, match=said):
            main(replace(args, **wrong))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(policies=("clever",)), "a policy is random, wander, explorer, seeker, planner, follower, or a file"),
        (dict(policies=("gone.safetensors",)), r"gone\.safetensors: no such file"),
        (dict(policies=("random", "random")), "name each policy once"),
        (dict(episodes=0), "episodes must be at least 1"),
        (dict(workers=0), "workers must be at least 1"),
        (dict(steps=1001), "has at most 1000 steps"),
        (dict(steps=500, walked=501), "has at most 1000 steps, not 1001 of which 501 are walked first"),
        (dict(walked=-1), "walked must be at least 0"),
    ],
)
def test_wrong_arguments_end_it_before_it_begins(tiny_weights, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(Args(weights=tiny_weights, device="cpu"), **wrong))


def test_a_policy_of_another_world_or_model_is_refused(dream, tmp_path):
    for config, said in (
        (PolicyConfig("minecraft", "features", (256,), 6, 16), "acts in minecraft"),
        (PolicyConfig("memory-maze", "features", (255,), 6, 16), r"this model's is \(256,\)"),
    ):
        path = tmp_path / "policy.safetensors"
        save_policy(path, Policy(config), {})
        with pytest.raises(ValueError, match=said):
            open_agent(str(path), dream, 1, 0)


@pytest.fixture
def saved_sb3(dream, tmp_path):
    """Writes a policy of Stable-Baselines3 that has learned nothing; its file."""
    pytest.importorskip("sb3_contrib", reason="needs lssvwm_gym[agents]")
    from agents import sb3_policies

    def save(algorithm, observation, frames):
        config = sb3_policies.SB3PolicyConfig("memory-maze", algorithm, observation, frames, hidden=16, lstm=8)
        space = sb3_policies._channels_first(sb3_policies.seen_space(dream, observation, frames))
        kind = sb3_policies.algorithm_of(config).policy_aliases[sb3_policies.policy_name(config, space)]
        policy = kind(space, action_space(dream.world), lambda _: 0.0, **sb3_policies.policy_arguments(config))
        sb3_policies.save_sb3_policy(tmp_path / "sb3.safetensors", policy, config, {})
        return tmp_path / "sb3.safetensors"

    return save


def test_a_policy_of_sb3_sees_the_last_frames(dream, saved_sb3):
    player = open_agent(str(saved_sb3("ppo", "image", 2)), dream, 2, 0)
    asked, predict = [], player._policy.predict
    player._policy.predict = lambda seen, *rest, **how: (asked.append(seen), predict(seen, *rest, **how))[1]
    frames = torch.randint(256, (3, 2, 64, 64, 3), dtype=torch.uint8)
    for frame in frames:
        assert player.act(frame, None).shape == (2,)
    assert player.observation == "image"
    assert np.array_equal(asked[0][..., 3:], frames[0])
    assert not asked[0][..., :3].any()
    assert np.array_equal(asked[2][..., :3], frames[1])


def test_a_policy_of_sb3_remembers(dream, saved_sb3):
    from agents.sb3_policies import load_sb3_policy

    path = saved_sb3("recurrent_ppo", "features", 1)
    policy, memory = load_sb3_policy(path, dream)[0], None
    player = open_agent(f"{path}@greedy", dream, 2, 0)
    for step, seen in enumerate(torch.randn(4, 2, 256)):
        expected, memory = policy.predict(seen.numpy(), memory, np.full(2, step == 0), deterministic=True)
        assert np.array_equal(player.act(seen, None), expected)
        assert all(np.array_equal(a, b) for a, b in zip(player._memory, memory, strict=True))
    assert player.observation == "features"


@pytest.mark.parametrize(("algorithm", "observation"), [("ppo", "all"), ("recurrent_ppo", "features")])
def test_a_policy_of_sb3_plays_a_game(dream, saved_sb3, algorithm, observation):
    player = from_file(dream, str(saved_sb3(algorithm, observation, 2)), 0)
    snapshot = SimpleNamespace(state=SimpleNamespace(dream=dream.reset(torch.tensor([0]))))
    assert {player(snapshot) for _ in range(5)} <= set(range(6))


def test_a_policy_of_sb3_where_that_is_missing_names_the_extra(dream, saved_sb3, monkeypatch):
    path = saved_sb3("ppo", "features", 1)
    monkeypatch.setitem(sys.modules, "agents.sb3_policies", None)
    with pytest.raises(ImportError, match=r"sb3\.safetensors: a policy of Stable-Baselines3 needs pip install 'lssvwm_gym\[agents\]'"):
        from_file(dream, str(path), 0)


@pytest.mark.parametrize("name", ["random", "wander"])
def test_scripts_act_within_the_world_and_repeat(dream, name):
    first, second = (open_agent(name, dream, 4, 7) for _ in range(2))
    seen = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    for _ in range(30):
        actions = first.act(seen, None)
        assert actions.shape == (4,)
        assert 0 <= actions.min() <= actions.max() < 6
        assert np.array_equal(actions, second.act(seen, None))


def test_actions_are_random_with_probability_epsilon(dream, policy_file):
    seen = torch.zeros(400, 256)
    greedy, epsilon = open_agent(f"{policy_file}@greedy", dream, 400, 0), open_agent(f"{policy_file}@0.6", dream, 400, 0)
    likeliest = greedy.act(seen, None)
    assert len(set(likeliest.tolist())) == 1
    assert np.array_equal(likeliest, greedy.act(seen, None))
    assert len(set(open_agent(str(policy_file), dream, 400, 0).act(seen, None).tolist())) > 1
    random = open_agent("wander@0.6", dream, 400, 0).act(seen, None) != open_agent("wander", dream, 400, 0).act(seen, None)
    assert abs(random.mean() - 0.6 * 5 / 6) < 0.08
    assert epsilon.observation == "features"
    never = open_agent("wander@0", dream, 400, 0).act(seen, None)
    assert np.array_equal(never, open_agent("wander", dream, 400, 0).act(seen, None))


@pytest.mark.parametrize("name", ["wander@often", "wander@1.5", "wander@nan", "wander@", "wander@greedy", "clever@0.5"])
def test_a_modifier_that_does_not_exist_is_refused(dream, name):
    with pytest.raises(ValueError, match=r"behind wander@ comes greedy|is for policies from files|a policy is random"):
        open_agent(name, dream, 1, 0)


@pytest.mark.parametrize("path", sorted((ROOT / "agents" / "policies").glob("*.safetensors")), ids=lambda path: path.stem)
def test_policies_that_ship_act_in_the_shipped_dream(path):
    shipped = open_dream("memory-maze", "fast", "cpu")
    player = open_agent(str(path), shipped, 2, 0)
    seen = observed(shipped, shipped.reset(torch.tensor([0, 1])), player.observation)
    actions = player.act(seen, None)
    assert actions.shape == (2,)
    assert set(actions) <= set(range(6))


def test_an_at_in_a_file_name_is_part_of_it(dream, policy_file):
    named = policy_file.rename(policy_file.with_name("policy@200.safetensors"))
    assert open_agent(str(named), dream, 1, 0).observation == "features"
    assert open_agent(f"{named}@0.5", dream, 1, 0).observation == "features"


def test_numbers_are_what_they_are_called():
    assert summary([1.0, 3.0]) == {"mean": 2.0, "standard_error": 1.0, "returns": [1.0, 3.0]}
    assert summary([2.0])["standard_error"] is None
    assert [mean_and_error(summary(returns)) for returns in ([1.0, 3.0], [2.0], [])] == ["2.00 ± 1.00", "2.00", "-"]
    tried = {"a": PolicyReturns([0.0, 1.0], [0.0]), "b": PolicyReturns([1.0, 2.0], [2.0]), "c": PolicyReturns([], [5.0])}
    assert correlation_of_returns(list(tried.values())) == {"policies": 2, "linear": None, "rank": None, "rank_interval": None}
    three = correlation_of_returns([*tried.values(), ([3.0, 4.0], [4.0])])
    assert three["linear"] == pytest.approx(np.corrcoef([0.5, 1.5, 3.5], [0, 2, 4])[0, 1], abs=1e-5)
    assert three["policies"] == 3
    assert correlation_of_returns([([1.0], [float(n)]) for n in range(3)])["rank"] is None
    assert "1.50 ± 0.50" in table(tried)


def test_the_rank_correlation_asks_for_the_order_only():
    dream, real = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 30.0)
    tried = [PolicyReturns([a, a], [b, b]) for a, b in zip(dream, real, strict=True)]
    found = correlation_of_returns(tried)
    assert found["rank"] == pytest.approx(1.0)
    assert found["linear"] < 0.8
    assert found["rank_interval"] == pytest.approx([1.0, 1.0])
    tied = [one._replace(real=[0.0, 0.0]) if number in (1, 2) else one for number, one in enumerate(tried)]  # three of them earn nothing
    from scipy.stats import spearmanr

    assert correlation_of_returns(tied)["rank"] == pytest.approx(spearmanr(dream, (0.0, 0.0, 0.0, *real[3:])).statistic, abs=1e-5)
    noisy = [one._replace(dream=[0.0, 2 * one.dream[0]]) for one in tried]
    low, high = correlation_of_returns(noisy)["rank_interval"]
    assert low < 0.9 < high <= 1.0
    assert "of ranks 1.000" in table({str(number): one for number, one in enumerate(tried)})


def test_returns_of_separate_runs_stand_in_one_row():
    """Of dreams alone and of the real maze alone, beside a policy that one run has tried in both."""
    apart = [
        [{"policy": "random", "dream": summary(dreamed), "real": summary(real)}] for dreamed, real in (([], [1.0, 3.0]), ([5.0, 7.0], []))
    ]
    both = [{"policy": "wander", "dream": summary([0.0, 1.0]), "real": summary([0.0, 2.0])}, {"policy": "unknown"}]
    rows = agents([{"policies": policies} for policies in (*apart, both)]).splitlines()[2:]
    assert [row.split(" | ")[-2:] for row in rows] == [["0.50 ± 0.50", "1.00 ± 1.00 |"], ["6.00 ± 1.00", "2.00 ± 1.00 |"]]
