"""PPO in dreams on one device: what it learns, where it goes on, and what its files hold."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_world import OPENINGS, WALK_FRAMES, WALKS
from torch.utils._pytree import tree_leaves

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")
pytest.importorskip("tensorboard", reason="needs lssvwm_gym[agents]")

from agents import behavior_cloning as imitation
from agents.behavior_cloning import leads_to_reward, watched
from agents.dreams import DreamRows, Moment, bank_before_rewards, bank_of_starts
from agents.policy import Policy, PolicyConfig, RunningNorm, draw, load_policy, save_policy
from agents.ppo_torch import Args, Learner, Rollout, begin_with, main, opened_bank, resume, save, with_defaults
from agents.real_rows import RealRows
from agents.seen import OBSERVATIONS
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, open_dream
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import commit, first_state, imagine, remember
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import take_rows

ROWS, LIMIT = 4, 8
SMALL = Args(
    num_envs=ROWS,
    bank=6,
    walk_every=0,
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
def rows(dream, bank):
    return DreamRows(dream, bank, ROWS, "features", LIMIT)


def actions(value=1):
    return torch.full((ROWS,), value)


# learning


class Bandit:
    """Pays for action 2 in the state where a number is positive and for action 0 where it is not; episodes of 5 steps."""

    def __init__(self, rows=16):
        self.generator = torch.Generator().manual_seed(0)
        self.rows, self.age, self.observation = rows, 0, self._drawn(rows)

    def __len__(self):
        return self.rows

    def _drawn(self, rows):
        return torch.randn(rows, 5, generator=self.generator)

    def step(self, action):
        reward = (action == torch.where(self.observation[:, 0] > 0, 2, 0)).float()
        self.observation, self.age = self._drawn(self.rows), self.age + 1
        over = self.age % 5 == 0
        ended = torch.arange(self.rows if over else 0)
        return Moment(reward, torch.full((self.rows,), float(over)), ended, self.observation[ended], torch.zeros(len(ended)))

    def take_totals(self):
        return 0.0, 0


def test_ppo_learns_what_pays():
    torch.manual_seed(0)
    args = replace(SMALL, rollout_steps=32, epochs=4, learning_rate=3e-3, total_steps=12 * 512, target_kl=None)
    learner = Learner(args, CONFIG, torch.device("cpu"))
    paid = [numbers["reward_per_step"] for numbers in learner.learn(Bandit(), 0.0)]
    assert len(paid) == 12
    assert paid[0] < 0.45
    assert paid[-1] > 0.75


def test_advantages_are_the_sums_they_stand_for():
    args = replace(SMALL, gamma=0.9, gae_lambda=0.8)
    learner = Learner(args, CONFIG, torch.device("cpu"))
    steps = 6
    reward, value, ended = torch.randn(steps, 2), torch.randn(steps, 2), torch.zeros(steps, 2)
    ended[2, 0] = ended[4, 1] = 1
    following = torch.randn(2)
    nothing = torch.zeros(steps, 2)
    found = learner.advantages(Rollout(nothing, nothing, nothing, value, reward, ended, torch.zeros(())), following)
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


def test_a_row_whose_time_is_up_is_worth_what_would_have_followed(dream, bank):
    args = replace(SMALL, rollout_steps=LIMIT, reward_scale=3.0)
    envs = DreamRows(dream, bank, ROWS, "features", LIMIT)
    learner = Learner(args, PolicyConfig("memory-maze", "features", envs.shape, 6, 16), torch.device("cpu"))
    moments = []
    step = envs.step
    envs.step = lambda action: moments.append(step(action)) or moments[-1]
    rollout = learner.rollout(envs)
    assert rollout.ended.sum(0).tolist() == [1.0] * ROWS
    for t, moment in enumerate(moments):
        expected = 3 * moment.reward
        if len(moment.rows):
            expected[moment.rows] += args.gamma * learner.policy(moment.last)[1]
        assert torch.allclose(rollout.reward[t], expected.detach())


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


# rows of dreams


def test_a_step_is_what_the_models_functions_say(dream, rows):
    before, generator = rows.state, rows.generator.clone_state()
    rows.steps[:] = 0
    moment = rows.step(actions(3))
    noise = torch.randn(rows.state.latent.shape, generator=generator)
    model = dream.weights.world_model
    after = commit(model, before, actions(3), imagine(model, before, actions(3), SAMPLING_STEPS["fast"], noise=noise))
    assert all(map(torch.equal, tree_leaves(rows.state), tree_leaves(after)))
    assert torch.equal(moment.reward, model.reward_head(after.features).argmax(-1).float())
    assert torch.equal(rows.observation, after.features)
    assert (moment.ended.sum(), len(moment.rows)) == (0, 0)


def test_a_row_that_begins_anew_leaves_the_others_alone(dream, bank, rows):
    untouched = DreamRows(dream, bank, ROWS, "features", 10 * LIMIT)
    untouched.steps[:] = 0
    assert rows.steps.tolist() == [0, 2, 4, 6]
    alike = torch.ones(ROWS, dtype=torch.bool)
    for step in range(LIMIT):
        others = untouched.state
        moment = rows.step(actions())
        if step == 1:
            assert moment.rows.tolist() == [3]
        untouched.step(actions())
        alike[moment.rows] = False
        if step == 1:  # until here both drew the same noise
            for mine, theirs in zip(tree_leaves(rows.state), tree_leaves(untouched.state), strict=True):
                assert torch.equal(mine[alike], theirs[alike])
            assert torch.equal(moment.last, untouched.observation[moment.rows])
            fresh = take_rows(rows.state, moment.rows)
            assert any(all(torch.equal(a[0], b[i]) for a, b in zip(tree_leaves(fresh), tree_leaves(bank), strict=True)) for i in range(5))
            assert torch.equal(rows.observation, rows.state.features)
        assert others is not untouched.state
    assert not alike.any()
    assert rows.state.world.age.tolist() == [6, 6 + 2, 6 + 4, 6 + 6]


def test_a_bank_is_not_worn_out(dream, bank):
    before = [leaf.clone() for leaf in tree_leaves(bank)]
    envs = DreamRows(dream, bank, ROWS, "latent", 2)
    for _ in range(5):
        envs.step(actions())
    assert all(map(torch.equal, before, tree_leaves(bank)))


def test_an_expected_reward_is_learned_from_but_not_counted(dream, bank):
    likeliest, expected = (DreamRows(dream, bank, ROWS, "features", LIMIT, reward) for reward in ("likeliest", "expected"))
    for _ in range(LIMIT):
        as_paid, mean = likeliest.step(actions()).reward, expected.step(actions()).reward
        assert set(as_paid.tolist()) <= {0.0, 1.0}
        assert ((mean > 0.5) == as_paid.bool()).all()
        assert torch.equal(likeliest.earned, expected.earned)
    assert likeliest.take_totals() == expected.take_totals()


def test_only_whole_episodes_are_counted(rows):
    paid = torch.zeros(ROWS)
    for _ in range(LIMIT):
        paid += rows.step(actions(4)).reward
    earned, episodes = rows.take_totals()
    assert (earned, episodes) == (float(paid[0]), 1)
    assert rows.take_totals() == (0.0, 0)


def test_a_bank_holds_openings_and_moments_of_walks(dream):
    bank = bank_of_starts(dream, 50, 100)
    assert sorted(bank.world.age.tolist()) == sorted([6] * OPENINGS + [n for n in range(50, WALK_FRAMES + 1, 50) for _ in range(2 * WALKS)])
    assert len(bank_of_starts(dream, 50, 7).seed) == 7
    assert set(bank_of_starts(dream, 10, 100, least=25).world.age.tolist()) == set(range(30, WALK_FRAMES + 1, 10))
    assert set(bank_of_starts(dream, 0, 100, least=25).world.age.tolist()) == {6}  # nothing remembers that much


def test_worlds_that_end_episodes_are_begun_anew(tmp_path):
    from tiny_world import write_tiny_weights

    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path, termination=True))
    dream.weights.world_model.termination_head[-1].bias.data += 100.0
    envs = DreamRows(dream, bank_of_starts(dream, 0, 6), ROWS, "features", LIMIT)
    moment = envs.step(actions())
    assert moment.terminated.tolist() == [1.0] * ROWS
    assert envs.steps.tolist() == [0] * ROWS


def test_every_tensor_of_a_step_is_made_on_the_device_of_the_model(dream, bank):
    """On a machine without a GPU: where the default is another device, whatever names none ends up there and can't be mixed in."""
    for observation in OBSERVATIONS:
        envs = DreamRows(dream, bank, ROWS, observation, 2)
        envs.step(actions())  # some tables are made once, on the CPU, and moved
        taken = actions()
        with torch.device("meta"):
            for _ in range(3):
                moment = envs.step(taken)
            assert {leaf.device.type for leaf in (*tree_leaves(envs.state), *moment, envs.observation)} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_acting_never_waits_for_the_gpu(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cuda", tiny_weights)
    envs = DreamRows(dream, bank_of_starts(dream, 0, 6), ROWS, "features", 2)
    learner = Learner(replace(SMALL, device="cuda"), PolicyConfig("memory-maze", "features", envs.shape, 6, 16), dream.device)
    learner.rollout(envs)  # sets up libraries and tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.rollout(envs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# runs


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_run_goes_on_exactly(tiny_weights, tmp_path, observation):
    args = replace(SMALL, weights=tiny_weights, observation=observation)
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
    main(replace(SMALL, weights=tiny_weights, out=tmp_path, time_limit=2.0))
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
        (dict(observation="smell"), "observation must be one of pixels"),
        (dict(reward="double"), "reward must be one of likeliest"),
        (dict(num_envs=0), "num_envs must be at least 1"),
        (dict(rollout_steps=0), "rollout_steps must be at least 1"),
        (dict(minibatches=100), "too few for 100 minibatches"),
    ],
)
def test_wrong_arguments_are_named(tiny_weights, tmp_path, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(SMALL, weights=tiny_weights, out=tmp_path, **wrong))


def test_the_device_decides_how_many_dreams_there_are():
    assert with_defaults(Args(), "cuda").num_envs == 1024
    assert with_defaults(Args(), "cpu").num_envs == 16
    assert with_defaults(SMALL, "cuda").num_envs == ROWS


# files


@pytest.mark.parametrize("shape", [(5,), (64, 64, 3)])
def test_a_policy_comes_back_from_its_file(tmp_path, shape):
    policy = Policy(replace(CONFIG, shape=shape))
    if len(shape) == 1:
        policy.eyes.count(torch.randn(9, 5))
    save_policy(tmp_path / "p.safetensors", policy, {"steps": 3})
    loaded, about = load_policy(tmp_path / "p.safetensors")
    seen = torch.randn(7, 5) if len(shape) == 1 else torch.randint(256, (7, *shape), dtype=torch.uint8)
    assert about == {"steps": 3}
    assert loaded.config == policy.config
    assert all(map(torch.equal, loaded(seen), policy(seen)))
    assert torch.equal(loaded.act(seen, greedy=True), policy(seen)[0].argmax(-1))


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
    bank = bank_before_rewards(dream, [episode], (4, 4), 5, 10)
    assert torch.equal(bank.latent[0], episode.latent[8].float())  # 4 frames on it is paid
    assert bank.world.age.tolist() == [5]
    expected = remember(
        dream.weights.world_model,
        first_state(dream.weights.world_model, torch.tensor([0])),
        episode.latent[None, 4:9].float(),
        torch.tensor([[6, 5, 0, 1, 2]]),  # what led to the first is unknown
        relative_to(episode.pose[None, 4:9], episode.pose[None, 4:5]),
    )
    assert torch.allclose(bank.features, expected.features, atol=1e-5)


def test_beginnings_before_rewards_are_many_and_no_more_than_wanted(dream):
    episodes = [walked([3, 15, 25]), walked([14, 28], frames=31)]
    every = bank_before_rewards(dream, episodes, (2, 6), 8, 10)
    assert every.world.age.tolist() == [8] * 4  # too little comes before the reward at frame 3
    assert len(bank_before_rewards(dream, episodes, (2, 6), 8, 2).seed) == 2


@pytest.mark.parametrize("rewards", [[], [11]])
def test_recordings_that_pay_nothing_late_enough_are_refused(dream, rewards):
    with pytest.raises(ValueError, match="none of 1 episodes is paid for anything after 8 frames of context and 5 of lead"):
        bank_before_rewards(dream, [walked(rewards)], (5, 9), 8, 10)


def test_beginnings_of_both_kinds_share_the_bank(dream, monkeypatch, tmp_path):
    monkeypatch.setattr("agents.ppo_torch.latent_episodes", lambda *_: [walked([14, 20, 27])])
    args = replace(SMALL, data=tmp_path, rewarding=0.5, lead=(2, 5), context=5)
    bank = opened_bank(args, dream, 6)
    assert len(bank.seed) == 6
    assert (bank.world.age == 5).sum() == 3


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
    envs = RealRows("Corridor-v0", dream, 2, "features", 7, seed=3)
    yield envs
    envs.close()
    del gymnasium.registry["Corridor-v0"]


def test_real_rows_end_by_themselves_and_when_their_time_is_up(corridors):
    moments = [corridors.step(torch.tensor([1, 0])) for _ in range(7)]
    assert [moment.rows.tolist() for moment in moments] == [[], [], [], [], [0], [], [1]]
    assert moments[4].terminated.tolist() == [1]  # the corridor's end
    assert moments[6].terminated.tolist() == [0]  # out of time
    assert moments[4].ended.tolist() == [1, 0]
    assert [moment.reward.tolist() for moment in moments] == [[1, 0]] * 7
    assert corridors.take_totals() == (5, 2)
    assert corridors.take_totals() == (0, 0)


def test_real_rows_show_the_last_observation_of_what_ended_and_the_first_of_what_follows(corridors, dream):
    for _ in range(5):
        moment = corridors.step(torch.tensor([1, 0]))
    follows = corridors.observation[0]
    assert moment.last.shape == (1, *corridors.shape)
    assert not torch.equal(moment.last[0], follows)
    state = corridors.envs.onlooker.state
    assert state.world.age.tolist() == [1, 6]
    assert torch.equal(state.features[0], follows)


def test_a_learner_learns_in_real_rows_and_goes_on_with_new_episodes(corridors, dream, tmp_path):
    args = replace(SMALL, num_envs=2, out=tmp_path, total_steps=32)
    learner = Learner(args, PolicyConfig("memory-maze", "features", corridors.shape, 6, 16), torch.device("cpu"))
    numbers = list(learner.learn(corridors, 0.0))
    assert learner.steps == 32
    assert sum(update["episodes"] for update in numbers) >= 4
    save(args, learner, corridors, dream)
    resume(args, learner, corridors, dream)
    assert corridors.envs.onlooker.state.world.age.tolist() == [1, 1]


def test_real_rows_are_seen_through_the_model(dream):
    with pytest.raises(ValueError, match="seen through the model: observation must be one of"):
        RealRows("Corridor-v0", dream, 2, "pixels", 7)


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
        state = remember(dream.weights.world_model, state, episode.latent[None, t : t + 1].float(), led, pose[:, t : t + 1])
        assert torch.allclose(seen[t], torch.cat([state.latent.flatten(), state.features.flatten()]), atol=1e-4)


def test_a_policy_learns_what_was_done(dream, monkeypatch, tmp_path, tiny_weights):
    """The action to come is told by the last one, which the features know of."""
    monkeypatch.setattr("agents.behavior_cloning.latent_episodes", lambda *_: [walked([12, 27]), walked([9], frames=40)])
    args = imitation.Args(tmp_path, weights=tiny_weights, out=tmp_path, within=20, epochs=60, batch=16, hidden=32, learning_rate=3e-3)
    imitation.main(args)
    policy, about = load_policy(tmp_path / "policy.safetensors")
    seen, action = imitation.examples(args, dream, tmp_path)
    assert about["frames"] == len(seen) == 12 + 15 + 9
    assert imitation.agreement(policy, seen, action) > 0.8
    learner = Learner(SMALL, policy.config, torch.device("cpu"))
    begin_with(learner, tmp_path / "policy.safetensors")
    assert torch.equal(learner.policy.actor[0].weight, policy.actor[0].weight)


def test_pictures_are_imitated_as_dreams_show_them(dream, monkeypatch, tmp_path, tiny_weights):
    """Each of six views is followed by its own action."""
    views = 5 * torch.randn(6, 16, 4, generator=torch.Generator().manual_seed(0))
    episodes = [walked([12, 27]), walked([]), walked([9], frames=40)]
    episodes = [replace(episode, latent=views[(episode.action + 1) % 6].half()) for episode in episodes]
    monkeypatch.setattr("agents.behavior_cloning.latent_episodes", lambda *_: episodes)
    args = imitation.Args(
        tmp_path, weights=tiny_weights, out=tmp_path, observation="pixels", within=20, epochs=60, batch=16, hidden=32, learning_rate=3e-3
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
    assert not torch.equal(fresh.eyes.out.weight, policy.eyes.out.weight)  # eyes learn, too


def test_nothing_to_imitate_is_refused(monkeypatch, tmp_path, tiny_weights):
    monkeypatch.setattr("agents.behavior_cloning.latent_episodes", lambda *_: [walked([])])
    with pytest.raises(SystemExit, match=r"no frame in .* is followed by a reward within 60: imitate all with --within 0"):
        imitation.main(imitation.Args(tmp_path, weights=tiny_weights, out=tmp_path))


def test_a_start_of_another_kind_is_refused(tmp_path):
    save_policy(tmp_path / "policy.safetensors", Policy(CONFIG), {})
    with pytest.raises(SystemExit, match=r"is a policy of .*; this run needs one of"):
        begin_with(Learner(SMALL, replace(CONFIG, hidden=8), torch.device("cpu")), tmp_path / "policy.safetensors")


def test_the_critic_learns_alone_at_first(rows):
    learner = Learner(replace(SMALL, critic_first=1), PolicyConfig("memory-maze", "features", rows.shape, 6, 16), torch.device("cpu"))
    before = [p.detach().clone() for p in learner.policy.parameters()]
    moved = []
    for _ in range(2):
        rollout = learner.rollout(rows)
        learner.update(rollout, learner.advantages(rollout, torch.zeros(ROWS)))
        learner.updates += 1
        moved.append([not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True)])
    actor = [name.startswith("actor") for name, _ in learner.policy.named_parameters()]
    assert moved[0] == [not acts for acts in actor]
    assert all(moved[1])
