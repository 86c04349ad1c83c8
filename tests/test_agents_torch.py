"""PPO in dreams on one device: what it learns, where it goes on, and what its files hold."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_minecraft import write_tiny_minecraft
from tiny_world import OPENINGS, WALK_FRAMES, WALKS, WITH_A_MAP, write_tiny_weights

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")
pytest.importorskip("tensorboard", reason="needs lssvwm_gym[agents]")

from agents.policies import Policy, PolicyConfig, RunningNorm, choose, draw, load_policy, save_policy
from agents.ppo import Args, Learner, main, resume, save, start_from, with_defaults
from agents.rollout import EpisodeReturns, Rollout
from agents.starts import BeforeRewards, bank_before_rewards, bank_of_starts, open_bank, rewarded_contexts
from experiments import behavior_cloning as imitation
from experiments.behavior_cloning import leads_to_reward, watched
from experiments.ppo_real import RealEnvs
from lssvwm_gym.data.segments import Segment
from lssvwm_gym.envs import DreamVectorEnv
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import first_state, prefill

ROOT = Path(__file__).parent.parent
ROWS, LIMIT = 4, 8
OBSERVATIONS = ("image", "features", "latent", "latent+features")
SMALL = Args(
    num_envs=ROWS,
    bank=6,
    compile="off",
    time_limit=None,
    before_rewards=0.0,
    context_every=0,
    episode_steps=LIMIT,
    rollout_steps=8,
    minibatches=2,
    epochs=2,
    hidden=16,
    profile="fast",
    device="cpu",
)
CONFIG = PolicyConfig("memory-maze", "features", (5,), 3, 16)


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


@pytest.fixture
def bank(dream):
    return bank_of_starts(dream, 0, 6)


@pytest.fixture
def envs(dream, bank):
    return DreamVectorEnv.from_bank(dream, bank, ROWS, LIMIT, observation="features", stagger=True)


def learner_of(args, envs):
    """A learner of `envs`, whose observations are features."""
    return Learner(args, PolicyConfig("memory-maze", "features", (256,), 6, 16), envs, torch.device(args.device))


# learning


class Bandit:
    """Rewards action 2 in the state where a number is positive and action 0 where it is not; episodes of 5 steps."""

    num_envs, episode_steps = 16, np.zeros(16, np.int64)

    def reset(self, *, seed):
        self.generator, self.age = torch.Generator().manual_seed(seed), 0
        return self._drawn(), {}

    def _drawn(self):
        self.observation = torch.randn(self.num_envs, 5, generator=self.generator)
        return self.observation

    def step(self, action):
        reward = (action == torch.where(self.observation[:, 0] > 0, 2, 0)).float()
        last, self.age = self._drawn(), self.age + 1
        truncated = torch.full((self.num_envs,), self.age % 5 == 0)
        return self._drawn(), reward, torch.zeros_like(truncated), truncated, {"final_obs": last} if truncated.any() else {}


def test_ppo_learns_what_pays():
    torch.manual_seed(0)
    args = replace(SMALL, rollout_steps=32, epochs=4, learning_rate=3e-3, total_steps=12 * 512, target_kl=None)
    learner = Learner(args, CONFIG, Bandit(), torch.device("cpu"))
    rewards = [numbers["reward_per_step"] for numbers in learner.learn(0.0)]
    assert len(rewards) == 12
    assert rewards[0] < 0.45
    assert rewards[-1] > 0.75


class Cue(Bandit):
    """Shows at the first of five steps, and never again, which of two actions is rewarded at all others."""

    def _drawn(self):
        if getattr(self, "age", 0) % 5 == 0:
            self.cue = torch.randint(2, (self.num_envs,), generator=self.generator)
        shown = torch.zeros(self.num_envs, 5)
        shown[:, 0] = (2.0 * self.cue - 1) if self.age % 5 == 0 else 0.0
        return shown

    def step(self, action):
        reward, self.age = (action == self.cue).float() * (self.age % 5 > 0), self.age + 1
        truncated = torch.full((self.num_envs,), self.age % 5 == 0)
        return self._drawn(), reward, torch.zeros_like(truncated), truncated, {"final_obs": torch.zeros(self.num_envs, 5)}


@pytest.mark.parametrize(("memory", "least", "most"), [(16, 0.7, 0.82), (0, 0.3, 0.5)])
def test_only_a_policy_with_a_memory_learns_what_has_to_be_remembered(memory, least, most):
    torch.manual_seed(0)
    args = replace(SMALL, rollout_steps=32, epochs=4, learning_rate=1e-2, total_steps=30 * 512, target_kl=None, memory=memory)
    learner = Learner(args, replace(CONFIG, memory=memory), Cue(), torch.device("cpu"))
    rewards = [numbers["reward_per_step"] for numbers in learner.learn(0.0)]
    assert least < rewards[-1] < most


def test_a_memory_along_a_rollout_is_that_of_its_steps(envs):
    args = replace(SMALL, memory=8, rollout_steps=2 * LIMIT)
    learner = Learner(args, PolicyConfig("memory-maze", "features", (256,), 6, 16, 8), envs, torch.device("cpu"))
    learner.rollout()
    rollout = learner.rollout()  # begins with a memory
    assert rollout.memory.abs().sum() > 0
    along = learner.policy.along(rollout.seen, rollout.memory, rollout.begins)
    chosen = along.log_probability.gather(-1, rollout.action[..., None])[..., 0]
    assert torch.allclose(chosen, rollout.log_probability, atol=1e-5)
    assert torch.allclose(along.value, rollout.value, atol=1e-5)
    forgotten = learner.policy.along(rollout.seen, None, rollout.begins).value
    assert not torch.allclose(forgotten[0], rollout.value[0], atol=1e-5)


def test_what_an_anchor_would_have_done_is_worked_out_along_whole_episodes(tmp_path):
    config = replace(CONFIG, memory=8)
    torch.manual_seed(0)
    save_policy(tmp_path / "start.safetensors", Policy(config), {})
    args = replace(SMALL, memory=8, rollout_steps=7, anchor=0.1)
    learner = Learner(args, config, Bandit(), torch.device("cpu"))
    start_from(learner, tmp_path / "start.safetensors")
    for _ in range(2):
        rollout = learner.rollout()
        expected = learner.policy.along(rollout.seen, rollout.memory, rollout.begins).log_probability
        assert torch.allclose(learner.anchor(rollout), expected, atol=1e-5)  # nothing was learned yet


def test_advantages_are_the_sums_they_stand_for():
    args = replace(SMALL, gamma=0.9, gae_lambda=0.8)
    learner = Learner(args, CONFIG, Bandit(), torch.device("cpu"))
    steps = 6
    reward, value, ended = torch.randn(steps, 2), torch.randn(steps, 2), torch.zeros(steps, 2)
    ended[2, 0] = ended[4, 1] = 1
    following = torch.randn(2)
    nothing = torch.zeros(steps, 2)
    rollout = Rollout(nothing, nothing, nothing, nothing, value, reward, ended, torch.zeros(2, 0), torch.zeros(()))
    found = learner.advantages(rollout, following)
    after = torch.cat([value[1:], following[None]])
    for row in range(2):
        for start in range(steps):
            total, weight = 0.0, 1.0
            for t in range(start, steps):
                over = bool(ended[t, row])
                total += weight * (reward[t, row] + (0 if over else 0.9 * after[t, row]) - value[t, row])
                weight *= 0.9 * 0.8
                if over:
                    break
            assert torch.allclose(found[start, row], torch.as_tensor(total), atol=1e-5)


def test_a_row_whose_time_is_up_is_worth_what_would_have_followed(envs):
    args = replace(SMALL, rollout_steps=LIMIT, reward_scale=3.0)
    learner, steps, step = learner_of(args, envs), [], envs.step
    envs.step = lambda action: steps.append(step(action)) or steps[-1]
    rollout = learner.rollout()
    assert rollout.done.sum(0).tolist() == [1.0] * ROWS
    for t, (_, reward, _, truncated, info) in enumerate(steps):
        expected = 3 * reward
        if truncated.any():
            expected[truncated] += args.gamma * learner.policy(info["final_obs"][truncated])[1]
        assert torch.allclose(rollout.reward[t], expected.detach(), atol=1e-6)


def test_an_episode_that_the_world_ends_is_worth_nothing_more(tmp_path):
    from tiny_world import write_tiny_weights

    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path, termination=True))
    dream.weights.world_model.termination_head.network[-1].bias.data += 100.0
    envs = DreamVectorEnv.from_bank(dream, bank_of_starts(dream, 0, 6), ROWS, LIMIT, observation="features")
    rollout = learner_of(SMALL, envs).rollout()
    assert rollout.done.bool().all()
    assert set(rollout.reward.unique().tolist()) <= {0.0, 1.0}


def test_milestones_are_learned_from_as_they_are_rewarded(tmp_path, monkeypatch):
    """Planks from two logs: the first time they are rewarded, in each of the episodes of two steps."""
    from tiny_minecraft import PLANKS, WORLD, recipes_are_followed

    from lssvwm_gym.models.inventory_head import InventoryHead

    monkeypatch.setattr(InventoryHead, "after", recipes_are_followed)
    dream = open_dream("minecraft", "fast", "cpu", write_tiny_minecraft(tmp_path))
    envs = DreamVectorEnv.from_bank(dream, bank_of_starts(dream, 0, 3), 2, 2, observation="features")
    learner = Learner(replace(SMALL, gamma=0.0), PolicyConfig("minecraft", "features", (256,), 14, 16), envs, torch.device("cpu"))
    monkeypatch.setattr("agents.ppo.draw", lambda log_probability, generator: torch.full((2,), PLANKS))
    worth = dict(WORLD.milestones)["planks"]
    assert worth > 1
    assert learner.rollout().reward.tolist() == [[worth, worth], [0.0, 0.0]] * 4
    assert learner.returns.take() == (4 * 2 * worth, 4 * 2)


def test_actions_are_drawn_by_their_probability():
    probability = torch.tensor([0.6, 0.3, 0.1, 0.0])
    drawn = draw(probability.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.bincount(minlength=4) / 20_000, probability, atol=0.02)


def test_the_running_norm_is_that_of_all_it_was_shown():
    norm, shown = RunningNorm(5), [torch.randn(n, 5) * 3 + 2 for n in (7, 1, 30)]
    for part in shown:
        norm.count(part)
    whole = torch.cat(shown)
    assert torch.allclose(norm.mean, whole.mean(0), atol=1e-5)
    assert torch.allclose(norm.variance, whole.var(0, correction=0), atol=1e-4)


# dreams


def test_only_whole_episodes_are_counted(envs):
    learner, earned, step = learner_of(replace(SMALL, rollout_steps=LIMIT), envs), torch.zeros(ROWS), envs.step

    def counted(action):
        after = step(action)
        earned.add_(after[1])
        return after

    envs.step = counted
    assert envs.episode_steps.tolist() == [0, 2, 4, 6]
    learner.rollout()
    assert learner.returns.take() == (float(earned[0]), 1)
    assert learner.returns.take() == (0.0, 0)
    learner.rollout()
    assert learner.returns.take()[1] == ROWS


def test_returns_are_those_of_their_episodes():
    returns = EpisodeReturns(np.array([0, 3]), torch.device("cpu"))
    for reward, done in (([1.0, 1.0], [0.0, 1.0]), ([2.0, 4.0], [1.0, 0.0]), ([8.0, 16.0], [0.0, 1.0])):
        returns.add(torch.tensor(reward), torch.tensor(done))
    assert returns.take() == (3.0 + 20.0, 2)  # the first episode of row 1 was not whole


def test_a_bank_holds_openings_and_moments_of_walks(dream):
    bank = bank_of_starts(dream, 50, 100)
    assert sorted(bank.world.age.tolist()) == sorted([6] * OPENINGS + [n for n in range(50, WALK_FRAMES + 1, 50) for _ in range(2 * WALKS)])
    assert len(bank_of_starts(dream, 50, 7).seed) == 7
    assert set(bank_of_starts(dream, 10, 100, least=25).world.age.tolist()) == set(range(30, WALK_FRAMES + 1, 10))
    assert set(bank_of_starts(dream, 0, 100, least=25).world.age.tolist()) == {6}  # nothing remembers that much


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_acting_never_waits_for_the_gpu(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cuda", tiny_weights)
    envs = DreamVectorEnv.from_bank(dream, bank_of_starts(dream, 0, 6), ROWS, 2, observation="features")
    learner = learner_of(replace(SMALL, device="cuda"), envs)
    learner.rollout()  # sets up libraries and tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.rollout()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# runs


@pytest.mark.parametrize(("observation", "memory"), [*((name, 0) for name in OBSERVATIONS), ("features", 8), ("map", 0)])
def test_a_run_goes_on_exactly(tiny_weights, tmp_path, observation, memory):
    how, weights = {"observation": observation}, tiny_weights
    if observation == "map":
        how, weights = {"map": True}, write_tiny_weights(tmp_path / "weights", **WITH_A_MAP)
    args = replace(SMALL, weights=weights, memory=memory, **how)
    main(replace(args, total_steps=128, out=tmp_path / "whole"))
    main(replace(args, total_steps=64, out=tmp_path / "parts"))
    main(replace(args, total_steps=128, out=tmp_path / "parts", resume=True))
    whole, _ = load_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    parts, header = load_tensors(tmp_path / "parts" / "checkpoint.safetensors")
    assert header["steps"] == 128
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_without_its_dreams_a_run_begins_new_episodes(tiny_weights, tmp_path, capsys):
    args = replace(SMALL, weights=tiny_weights, out=tmp_path, total_steps=32, save_dreams=0.0, keep_every=1)
    main(args)
    main(replace(args, resume=True, total_steps=64))
    assert "32 steps so far; goes on with new episodes" in capsys.readouterr().out
    assert [path.name for path in sorted(tmp_path.glob("policy-*"))] == ["policy-00000000032.safetensors", "policy-00000000064.safetensors"]


def test_a_run_ends_in_time_and_is_saved(tiny_weights, tmp_path):
    precision = torch.get_float32_matmul_precision()
    main(replace(SMALL, weights=tiny_weights, out=tmp_path, time_limit=2.0))
    assert torch.get_float32_matmul_precision() == precision  # the script asks for less, its function doesn't
    _, about = load_policy(tmp_path / "policy.safetensors")
    assert 0 < about["steps"] < SMALL.total_steps


def test_a_run_is_neither_overwritten_nor_mixed_up(tiny_weights, tmp_path):
    args = replace(SMALL, weights=tiny_weights, out=tmp_path, total_steps=32)
    main(args)
    with pytest.raises(SystemExit, match="add --resume"):
        main(args)
    with pytest.raises(SystemExit, match="of another world, model, observation or size"):
        main(replace(args, resume=True, observation="latent"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(observation="smell"), "observation must be one of image"),
        (dict(num_envs=0), "num_envs must be at least 1"),
        (dict(rollout_steps=0), "rollout_steps must be at least 1"),
        (dict(dtype="float64"), "dtype must be one of auto, float32, bfloat16"),
        (dict(minibatches=100), "too few for 100 minibatches"),
        (dict(memory=8, minibatches=5), "learns from whole rollouts: 4 dreams are too few for 5"),
    ],
)
def test_wrong_arguments_are_named(tiny_weights, tmp_path, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(SMALL, weights=tiny_weights, out=tmp_path, **wrong))


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-m", "agents.ppo"], [str(ROOT / "agents" / "ppo.py")]])
def test_a_script_runs_by_its_name_and_by_its_path(how):
    done = subprocess.run([sys.executable, *how, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--min-context" in done.stdout


def test_the_device_decides_how_many_dreams_there_are():
    assert with_defaults(Args(), "cuda").num_envs == 1024
    assert with_defaults(Args(), "cpu").num_envs == 32
    assert with_defaults(SMALL, "cuda").num_envs == ROWS


def test_the_old_name_of_an_observation_is_understood():
    with pytest.warns(DeprecationWarning, match="observation pixels is now called image"):
        assert with_defaults(replace(SMALL, observation="pixels"), "cpu").observation == "image"


def test_a_checkpoint_of_before_is_gone_on_with(tiny_weights, tmp_path):
    """Its names of parameters and of what is seen are those of version 0.1; its dreams are of another layout, so new ones begin."""
    args = replace(SMALL, weights=tiny_weights, observation="image", out=tmp_path, total_steps=32)
    main(args)
    path = tmp_path / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    before = {name.replace("policy.encoder.", "policy.encoder."): tensor for name, tensor in tensors.items()}
    before = {name: tensor for name, tensor in before.items() if not name.startswith(("dreams.", "returns."))}
    del header["kind"]
    save_tensors(path, before, {**header, "config": {**header["config"], "observation": "pixels"}})
    main(replace(args, resume=True, total_steps=64))
    assert load_tensors(path)[1]["steps"] == 64


# files


@pytest.mark.parametrize("shape", [(5,), (64, 64, 3)])
def test_a_policy_comes_back_from_its_file(tmp_path, shape):
    policy = Policy(replace(CONFIG, shape=shape))
    if len(shape) == 1:
        policy.encoder.count(torch.randn(9, 5))
    save_policy(tmp_path / "p.safetensors", policy, {"steps": 3})
    loaded, about = load_policy(tmp_path / "p.safetensors")
    seen = torch.randn(7, 5) if len(shape) == 1 else torch.randint(256, (7, *shape), dtype=torch.uint8)
    assert about == {"steps": 3}
    assert loaded.config == policy.config
    assert all(map(torch.equal, loaded(seen), policy(seen)))
    assert torch.equal(choose(loaded(seen).log_probability, greedy=True), policy(seen)[0].argmax(-1))


def changed(header=None, tensors=None):
    policy = Policy(CONFIG)
    found = {"kind": "lssvwm_gym policy", "config": {**vars(CONFIG), "shape": [5]}, "about": {}}
    return {**policy.state_dict(), **(tensors or {})}, {**found, **(header or {})}


HOSTILE = {
    "another kind": changed({"kind": "a letter"}),
    "no sizes": changed({"config": None}),
    "a size missing": changed({"config": {"world": "memory-maze"}}),
    "an unknown size": changed({"config": {**vars(CONFIG), "legs": 4}}),
    "a huge layer": changed({"config": {**vars(CONFIG), "hidden": 10**9}}),
    "a text as size": changed({"config": {**vars(CONFIG), "hidden": "16"}}),
    "a huge picture": changed({"config": {**vars(CONFIG), "shape": [4096, 4096, 3]}}),
    "another shape": changed(tensors={"actor.0.weight": torch.zeros(2, 2)}),
    "a tensor more": changed(tensors={"more": torch.zeros(2)}),
    "not numbers": changed(tensors={"actor.0.weight": torch.full((16, 5), torch.nan)}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_policy_file_gives_one_clear_error(tmp_path, case):
    path = tmp_path / "policy.safetensors"
    save_tensors(path, *HOSTILE[case])
    with pytest.raises(TensorFileError, match=r"policy\.safetensors: "):
        load_policy(path)


def test_a_file_that_is_no_policy_gives_one_clear_error(tmp_path):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(TensorFileError, match="no such file"):
        load_policy(path)
    path.write_bytes(b"\x80\x04not a policy")
    with pytest.raises(TensorFileError, match="not a safetensors file"):
        load_policy(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(TensorFileError, match="not a safetensors file written by"):
        load_policy(path)


# beginnings


def walked(rewards, frames=30):
    """An episode of noise that is paid at the given frames."""
    generator = torch.Generator().manual_seed(frames)
    latent = torch.randn(frames, 16, 4, generator=generator)
    heading = torch.linspace(0, 3, frames)
    pose = torch.stack([heading, heading.square(), heading.cos(), heading.sin()], -1)
    reward = torch.zeros(frames).index_fill(0, torch.tensor(rewards, dtype=torch.int64), 1.0)
    return Segment(latent.half(), torch.arange(frames) % 6, reward, pose, torch.zeros(frames, 0))


def test_dreams_begin_shortly_before_what_a_recording_was_paid_for(dream):
    episode = walked([12])
    bank = bank_before_rewards(dream, [episode], BeforeRewards((4, 4), 5), 1)
    assert torch.equal(bank.latent[0], episode.latent[8].float())  # 4 frames on it is paid
    assert bank.world.age.tolist() == [5]
    expected = prefill(
        dream.weights.world_model,
        first_state(dream.weights.world_model, torch.tensor([0])),
        episode.latent[None, 4:9].float(),
        torch.tensor([[6, 5, 0, 1, 2]]),  # what led to the first is unknown
        relative_to(episode.pose[None, 4:9], episode.pose[None, 4:5]),
    ).state
    assert torch.allclose(bank.features, expected.features, atol=1e-5)


def test_each_reward_is_begun_before_as_often_as_another(dream):
    episodes = [walked([3, 15, 25]), walked([14, 28], frames=31)]
    bank = bank_before_rewards(dream, episodes, BeforeRewards((2, 6), 8), 40)
    assert bank.world.age.tolist() == [8] * 40  # too little comes before the reward at frame 3
    latents = torch.cat([episode.latent for episode in episodes]).float()
    began = Counter((latents == latent).flatten(1).all(1).nonzero().item() for latent in bank.latent)
    per_reward = [sum(began[number] for number in range(t - 6, t - 1)) for t in (15, 25, 30 + 14, 30 + 28)]
    assert per_reward == [10] * 4
    assert len(began) > 12  # and at many distances


@pytest.mark.parametrize("rewards", [[], [11]])
def test_recordings_that_pay_nothing_late_enough_are_refused(dream, rewards):
    with pytest.raises(ValueError, match="none of 1 episodes has a reward after 8 frames of context and 5 of lead"):
        bank_before_rewards(dream, [walked(rewards)], BeforeRewards((5, 9), 8), 10)


def test_beginnings_of_both_kinds_share_the_bank(dream, monkeypatch, tmp_path):
    monkeypatch.setattr("agents.starts.latent_episodes", lambda *_: [walked([14, 20, 27])])
    bank = open_bank(replace(SMALL, data=tmp_path, before_rewards=0.5, lead=(2, 5), context=5), dream)
    assert len(bank.seed) == 6
    assert (bank.world.age == 5).sum() == 3
    made_up, others = (open_bank(replace(SMALL, made_up=1.0, seed=seed), dream) for seed in (0, 1))
    assert made_up.world.age.tolist() == dream.reset(torch.zeros(6, dtype=torch.int64), {"start": "cold"}).world.age.tolist()
    assert len({tuple(latent.flatten()[:3].tolist()) for latent in (*made_up.latent, *others.latent)}) == 12  # each is another world


def test_the_rewards_of_contexts_are_those_that_the_model_sees(dream, monkeypatch):
    contexts = dream.weights.long_contexts
    probability = torch.zeros(WALK_FRAMES)
    monkeypatch.setattr("agents.starts.reward_probability", lambda world, logits: probability.expand(logits.shape[:2]))
    assert not open_bank(replace(SMALL, before_rewards=1.0), dream).world.age.eq(5).any()  # none is seen: as if none were wanted
    probability[12] = 0.9
    episodes = rewarded_contexts(dream, BeforeRewards((3, 3), 5))
    assert [episode.reward.nonzero().tolist() for episode in episodes] == [[[12]]] * contexts.batch
    bank = open_bank(replace(SMALL, before_rewards=1.0, lead=(3, 3), context=5), dream)
    assert bank.world.age.tolist() == [5] * SMALL.bank
    assert {tuple(latent.flatten()[:3].tolist()) for latent in bank.latent} == {
        tuple(latent.float().flatten()[:3].tolist()) for latent in contexts.latent[:, 9]
    }


def test_the_rewards_of_a_world_with_milestones_are_first_items(tmp_path):
    dream = open_dream("minecraft", "fast", "cpu", write_tiny_minecraft(tmp_path))
    inventory = torch.zeros(8, 9)
    inventory[3:, 0], inventory[5:, 6], inventory[6:, 1], inventory[7, 0] = 1, 1, 2, 0  # a log, dirt, planks
    contexts = Segment(torch.zeros(1, 8, 16, 4), torch.zeros(1, 8, dtype=torch.int64), inventory=inventory[None])
    dream = replace(dream, weights=replace(dream.weights, long_contexts=contexts))
    (episode,) = rewarded_contexts(dream, BeforeRewards((2, 4), 3))
    assert episode.reward.tolist() == [0, 0, 0, 1, 0, 0, 1, 0]
    assert rewarded_contexts(dream, BeforeRewards((2, 4), 7)) == []  # too short


@pytest.mark.parametrize("wrong", [{"before_rewards": 1.5}, {"made_up": -0.1}, {"lead": (5, 3)}, {"lead": (0, 3)}, {"context": 0}])
def test_beginnings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        with_defaults(replace(SMALL, **wrong), "cpu")


# real environments


class Corridor(gymnasium.Env):
    """Frames as bright as the steps taken since the seed's first brightness; pays for going forward and ends after `over` such steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)
    over = 5

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bright, self.gone = int(self.np_random.integers(100)), 0
        return self._frame(), {}

    def step(self, action):
        self.gone += int(action == 1)
        self.bright += 20
        return self._frame(), float(action == 1), self.gone == self.over, False, {}

    def _frame(self):
        return np.full((64, 64, 3), self.bright, np.uint8)


@pytest.fixture
def corridors(dream):
    gymnasium.register("Corridor-v0", Corridor)
    envs = RealEnvs("Corridor-v0", dream, 2, "features", 7)
    yield envs
    envs.close()
    del gymnasium.registry["Corridor-v0"]


def test_real_environments_end_by_themselves_and_when_their_time_is_up(corridors):
    corridors.reset(seed=3)
    steps = [corridors.step(torch.tensor([1, 0])) for _ in range(7)]
    assert [(terminated.tolist(), truncated.tolist()) for _, _, terminated, truncated, _ in steps] == [
        *[([False, False], [False, False])] * 4,
        ([True, False], [False, False]),  # the corridor's end
        ([False, False], [False, False]),
        ([False, False], [False, True]),  # out of time
    ]
    assert [reward.tolist() for _, reward, *_ in steps] == [[1, 0]] * 7


def test_real_environments_show_the_last_observation_of_what_ended_and_the_first_of_what_follows(corridors):
    corridors.reset(seed=3)
    for _ in range(5):
        follows, *_, info = corridors.step(torch.tensor([1, 0]))
    assert info["final_obs"].shape == follows.shape
    assert info["final_obs"][0].any()
    assert not info["final_obs"][1].any()
    assert not torch.equal(info["final_obs"][0], follows[0])
    state = corridors.envs.estimator.state
    assert state.world.age.tolist() == [1, 6]
    assert torch.equal(state.features[0], follows[0])


def test_a_learner_learns_in_real_environments_and_goes_on_with_new_episodes(corridors, dream, tmp_path):
    args = replace(SMALL, num_envs=2, out=tmp_path, total_steps=32)
    learner = learner_of(args, corridors)
    numbers = list(learner.learn(0.0))
    assert learner.steps == 32
    assert sum(update["episodes"] for update in numbers) >= 4
    save(args, learner, dream)
    resume(args, learner, dream)
    assert corridors.envs.estimator.state.world.age.tolist() == [1, 1]


def test_real_environments_are_seen_through_the_model(dream):
    with pytest.raises(ValueError, match="seen through the model: observation must be one of"):
        RealEnvs("Corridor-v0", dream, 2, "image", 7)


# imitation


def test_frames_that_lead_to_a_reward():
    reward = torch.tensor([0.0, 1, 0, 0, 0, 1, 0])
    assert leads_to_reward(reward, 2).tolist() == [True, False, False, True, True, False, False]
    assert leads_to_reward(reward, 0).all()


def test_what_is_imitated_is_what_a_dream_would_show(dream):
    """Frame by frame, from an empty state, at the recorded poses."""
    episode = walked([12])
    seen = watched(dream, episode, "latent+features")
    assert seen.shape == (30, 64 + 256)
    state = first_state(dream.weights.world_model, torch.tensor([0]))
    pose = relative_to(episode.pose[None], episode.pose[None, :1])
    for t in range(4):
        led = torch.tensor([[6 if t == 0 else int(episode.action[t])]])
        state = prefill(dream.weights.world_model, state, episode.latent[None, t : t + 1].float(), led, pose[:, t : t + 1]).state
        assert torch.allclose(seen[t], torch.cat([state.latent.flatten(), state.features.flatten()]), atol=1e-4)


def test_what_is_imitated_carries_what_was_carried(tmp_path):
    dream = open_dream("minecraft", "fast", "cpu", write_tiny_minecraft(tmp_path))
    inventory = torch.arange(12.0)[:, None].expand(12, 9)
    pose = torch.tensor([0.0, 0, 0, 1, 0, 0]).expand(12, 6)
    episode = Segment(torch.randn(12, 16, 4), torch.zeros(12, dtype=torch.int64), torch.zeros(12), pose, inventory)
    seen = watched(dream, episode, "features+inventory")
    assert seen.shape == (12, 256 + 9)
    assert torch.equal(seen[:, 256:], inventory)


def test_a_policy_learns_what_was_done(dream, monkeypatch, tmp_path, tiny_weights):
    """The action to come is told by the last one, which the features know of."""
    monkeypatch.setattr("experiments.behavior_cloning.latent_episodes", lambda *_: [walked([12, 27]), walked([9], frames=40)])
    args = imitation.Args(tmp_path, weights=tiny_weights, out=tmp_path, within=20, epochs=60, batch=16, hidden=32, learning_rate=3e-3)
    imitation.main(args)
    policy, about = load_policy(tmp_path / "policy.safetensors")
    seen, action = imitation.examples(args, dream, tmp_path)
    assert about["frames"] == len(seen) == 12 + 15 + 9
    assert imitation.agreement(policy, seen, action) > 0.8
    learner = Learner(SMALL, policy.config, Bandit(), torch.device("cpu"))
    start_from(learner, tmp_path / "policy.safetensors")
    assert torch.equal(learner.policy.actor[0].weight, policy.actor[0].weight)


def test_pictures_are_imitated_as_dreams_show_them(dream, monkeypatch, tmp_path, tiny_weights):
    """Each of six views is followed by its own action."""
    views = 5 * torch.randn(6, 16, 4, generator=torch.Generator().manual_seed(0))
    episodes = [walked([12, 27]), walked([]), walked([9], frames=40)]
    episodes = [replace(episode, latent=views[(episode.action + 1) % 6].half()) for episode in episodes]
    monkeypatch.setattr("experiments.behavior_cloning.latent_episodes", lambda *_: episodes)
    args = imitation.Args(
        tmp_path, weights=tiny_weights, out=tmp_path, observation="image", within=20, epochs=60, batch=16, hidden=32, learning_rate=3e-3
    )
    before = torch.random.get_rng_state()
    imitation.main(args)
    torch.random.set_rng_state(before)
    policy, _ = load_policy(tmp_path / "policy.safetensors")
    seen, action = imitation.examples(args, dream, tmp_path)
    assert (seen.shape, seen.dtype) == ((12 + 15 + 9, 64, 64, 3), torch.uint8)
    assert torch.equal(seen[0], dream.weights.autoencoder.decode(episodes[0].latent[:1].float())[0])
    assert imitation.agreement(policy, seen, action) > 0.5
    torch.manual_seed(args.seed)
    fresh = Policy(policy.config)
    assert not torch.equal(fresh.encoder.out.weight, policy.encoder.out.weight)  # eyes learn, too


def test_nothing_to_imitate_is_refused(monkeypatch, tmp_path, tiny_weights):
    monkeypatch.setattr("experiments.behavior_cloning.latent_episodes", lambda *_: [walked([])])
    with pytest.raises(SystemExit, match=r"no frame in .* is followed by a reward within 60: imitate all with --within 0"):
        imitation.main(imitation.Args(tmp_path, weights=tiny_weights, out=tmp_path))


def test_a_start_of_another_kind_is_refused(tmp_path):
    save_policy(tmp_path / "policy.safetensors", Policy(CONFIG), {})
    with pytest.raises(SystemExit, match=r"is a policy of .*; this run needs one of"):
        start_from(Learner(SMALL, replace(CONFIG, hidden=8), Bandit(), torch.device("cpu")), tmp_path / "policy.safetensors")


def test_a_policy_is_held_to_the_one_that_it_began_with(envs, tmp_path):
    """One action is the best everywhere, so what learns leaves its start; the more that costs, the nearer it stays."""
    save_policy(tmp_path / "policy.safetensors", learner_of(SMALL, envs).policy, {})
    away = []
    for anchor in (0.0, 30.0):
        learner = learner_of(replace(SMALL, anchor=anchor, learning_rate=3e-3, target_kl=None), envs)
        start_from(learner, tmp_path / "policy.safetensors")
        for _ in range(8):
            rollout = learner.rollout()
            learner.update(rollout, (rollout.action == 0).float())
        seen = learner.observation
        now, then = learner.policy(seen)[0], learner.start(seen)[0]
        away.append((now.exp() * (now - then)).sum(-1).mean().item())
    assert 0 <= away[1] < 0.2 * away[0]


def test_nothing_to_be_held_to_is_refused(tmp_path, tiny_weights):
    with pytest.raises(SystemExit, match="--anchor holds a policy to the one that --start names"):
        main(replace(SMALL, anchor=0.1, start=None, weights=tiny_weights, out=tmp_path))


def test_the_critic_learns_alone_at_first(envs):
    learner = learner_of(replace(SMALL, critic_first=1), envs)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    moved = []
    for _ in range(2):
        rollout = learner.rollout()
        learner.update(rollout, learner.advantages(rollout, torch.zeros(ROWS)))
        learner.updates += 1
        moved.append([not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True)])
    actor = [name.startswith("actor") for name, _ in learner.policy.named_parameters()]
    assert moved[0] == [not acts for acts in actor]
    assert all(moved[1])
