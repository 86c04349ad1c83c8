"""Thousands of dreams for training: a batch whose rows begin with states of a bank and never leave their device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_minecraft import write_tiny_minecraft
from tiny_world import write_tiny_weights
from torch.utils._pytree import tree_leaves

from lssvwm_gym.envs import DreamVectorEnv, open_dream
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.rewards import reward
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.models.rollout import commit, imagine
from lssvwm_gym.models.state import join_rows, take_rows

ROWS, LIMIT = 4, 8


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


@pytest.fixture
def bank(dream):
    return bank_of(dream)


def bank_of(dream):
    return join_rows([dream.reset(torch.tensor([seed]), {"context_id": 0}) for seed in range(5)])


def rows_of(dream, bank, **settings):
    return DreamVectorEnv.from_bank(dream, bank, ROWS, **{"max_episode_steps": LIMIT, "observation": "features", **settings})


def actions(value=1):
    return torch.full((ROWS,), value)


def same_leaves(one, other):
    return all(map(torch.equal, tree_leaves(one), tree_leaves(other)))


def test_a_step_is_what_the_models_functions_say(dream, bank):
    envs, model = rows_of(dream, bank, seed=3), dream.weights.world_model
    envs.reset()
    before, generator = envs.clone_state().dream, torch.Generator()
    generator.set_state(envs.state_dict()["generator"])
    seen, rewards, terminated, truncated, info = envs.step(actions(3))
    noise = torch.randn(before.latent.shape, generator=generator)
    after = commit(model, before, actions(3), imagine(model, before, actions(3), PROFILES["fast"].model_steps, noise=noise))
    assert same_leaves(envs.clone_state().dream, after)
    assert torch.equal(rewards, model.reward_head(after.features).argmax(-1).float())
    assert torch.equal(seen, after.features)
    assert not (terminated | truncated).any()
    assert info["age"].tolist() == [7] * ROWS


def test_a_row_that_ends_begins_with_a_state_of_the_bank_and_leaves_the_others_alone(dream, bank):
    envs, untouched = rows_of(dream, bank, stagger=True), rows_of(dream, bank, max_episode_steps=None)
    envs.reset(), untouched.reset()
    assert envs.episode_steps.tolist() == [0, 2, 4, 6]
    for step in range(2):
        seen, _, _, truncated, info = envs.step(actions())
        others, *_ = untouched.step(actions())
        assert truncated.tolist() == [False, False, False, step == 1]
    assert envs.episode_steps.tolist() == [2, 4, 6, 0]
    assert torch.equal(seen[:3], others[:3])  # until here both drew the same noise
    assert same_leaves(take_rows(envs.clone_state().dream, torch.arange(3)), take_rows(untouched.clone_state().dream, torch.arange(3)))
    assert torch.equal(info["final_obs"][3], others[3])
    assert info["_final_obs"].tolist() == [False, False, False, True]
    fresh = take_rows(envs.clone_state().dream, torch.tensor([3]))
    assert any(same_leaves(fresh, take_rows(bank, torch.tensor([row]))) for row in range(5))
    assert torch.equal(seen[3], fresh.features[0])


@pytest.mark.parametrize("observation", ["features", "image"])
def test_a_bank_and_states_kept_are_not_worn_out(dream, bank, observation):
    envs, before = rows_of(dream, bank, observation=observation, max_episode_steps=2), [leaf.clone() for leaf in tree_leaves(bank)]
    seen, _ = envs.reset(seed=1)
    first, kept = seen.clone(), envs.clone_state()
    copied = [leaf.clone() for leaf in tree_leaves(kept.dream)]
    for _ in range(5):
        envs.step(actions())
    assert same_leaves(before, bank)
    assert same_leaves(copied, kept.dream)
    assert torch.equal(seen, first)
    assert torch.equal(envs.restore_state(kept), first)
    envs.step(actions()), envs.step(actions())
    assert same_leaves(copied, kept.dream)


def test_the_same_seed_draws_the_same_and_another_does_not(dream, bank):
    def course(seed):
        envs = rows_of(dream, bank)
        return [envs.reset(seed=seed)[0], *(envs.step(actions(step % 6))[0] for step in range(2 * LIMIT))]

    assert same_leaves(course(1), course(1))
    assert not same_leaves(course(1), course(2))


def test_what_is_saved_goes_on_exactly(dream, bank):
    envs, other = rows_of(dream, bank, stagger=True), rows_of(dream, bank, stagger=True, seed=9)
    envs.reset(), other.reset()
    envs.step(actions())
    saved = envs.state_dict()
    expected = [envs.step(actions(step % 6)) for step in range(2 * LIMIT)]
    other.load_state_dict(saved)
    assert same_leaves(expected, [other.step(actions(step % 6)) for step in range(2 * LIMIT)])
    few = DreamVectorEnv.from_bank(dream, bank, 2, LIMIT, observation="features")
    few.reset()
    with pytest.raises(TensorFileError, match=r"another kind or number: .*state"):
        few.load_state_dict(saved)


def test_arrays_begin_with_states_of_a_bank_too(dream, bank):
    arrays, tensors = (rows_of(dream, bank, output=output) for output in ("numpy", "torch"))
    assert np.array_equal(arrays.reset(seed=2)[0], tensors.reset(seed=2)[0])
    for step in range(LIMIT + 1):
        seen, rewards, *_ = arrays.step(np.full(ROWS, step % 6))
        assert np.array_equal(seen, tensors.step(actions(step % 6))[0])
        assert rewards.dtype == np.float64
    arrays.reset(options={"reset_mask": np.array([True, False, False, False])})


def test_worlds_that_end_episodes_begin_anew(tmp_path):
    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path, termination=True))
    dream.weights.world_model.termination_head.network[-1].bias.data += 100.0
    envs = rows_of(dream, bank_of(dream))
    envs.reset()
    _, _, terminated, truncated, info = envs.step(actions())
    assert (terminated.all(), truncated.any()) == (True, False)
    assert (info["final_info"]["age"] == 7).all()
    assert (info["age"] == 6).all()
    assert not envs.episode_steps.any()


def test_milestones_are_rewarded_as_the_environment_does(tmp_path):
    """One function says what a step is worth: in a batch of arrays, of tensors, from a bank, and in futures that a planner imagines."""
    dream = open_dream("minecraft", "fast", "cpu", write_tiny_minecraft(tmp_path))
    before = dream.reset(torch.arange(3))
    name, worth = dream.world.milestones[1]
    which = dream.world.inventory.index(name)
    peak = torch.zeros_like(before.inventory_peak)
    peak[0, which], peak[1, which] = 2, 0
    had = peak.clone()
    had[0, which] = 1  # a count that rose before is worth nothing more
    logits = torch.full((3, len(dream.world.reward_values)), -9.0)
    logits[:, -1] = 9
    paid = [
        reward(dream.world, before._replace(inventory_peak=had.clone()), before._replace(inventory_peak=after), logits, expected)
        for expected in (False, True)
        for after in (peak, torch.maximum(peak, torch.eye(len(peak[0]))[which]))
    ]
    assert [part.tolist() for part in paid] == 2 * [[0.0, 0.0, 0.0], [0.0, worth, worth]]
    assert paid[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "reset", "message"),
    [
        ({"max_episode_steps": None, "stagger": True}, {}, "stagger needs max_episode_steps"),
        ({"output": "jax"}, {}, "output must be one of numpy, torch"),
        ({}, {"options": {"start": "cold"}}, "take no options but reset_mask, not start"),
        ({}, {"seed": [1, 2, 3, 4]}, "have one seed, a whole number"),
        ({}, {"seed": -1}, "not below 0, not -1"),
    ],
)
def test_what_a_bank_cannot_do_is_refused(dream, bank, settings, reset, message):
    with pytest.raises(ValueError, match=message):
        rows_of(dream, bank, **settings).reset(**reset)


def test_a_bank_has_one_seed_and_rows_have_none(dream, bank):
    envs = rows_of(dream, bank)
    envs.reset(seed=1)
    before = envs.clone_state().random
    envs.reset(seed=2)
    assert envs.clone_state().random == before


def test_every_tensor_of_a_step_is_made_on_the_device_of_the_model(dream, bank):
    """On a machine without a GPU: where the default is another device, whatever names none ends up there and can't be mixed in."""
    for observation in ("all", "image", "features", "latent", "latent+features"):
        envs = rows_of(dream, bank, observation=observation, max_episode_steps=2)
        envs.reset()
        envs.step(actions())  # some tables are made once, on the CPU, and moved
        taken = actions()
        with torch.device("meta"):
            for _ in range(3):
                returned = envs.step(taken)
        assert {leaf.device.type for leaf in tree_leaves(returned)} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_never_waits_for_the_gpu(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cuda", tiny_weights)
    envs = rows_of(dream, bank_of(dream), max_episode_steps=2, stagger=True)
    envs.reset()
    action = torch.ones(ROWS, dtype=torch.int64, device="cuda")
    for _ in range(3):  # sets up libraries and tables
        envs.step(action)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            envs.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
