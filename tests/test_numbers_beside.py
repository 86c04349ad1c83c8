"""Numbers beside the picture, such as health or speed: collected, learned as changes, drawn, fed back and observed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Text
from gymnasium.utils.env_checker import check_env
from tiny_world import same, write_tiny_weights

import lssvwm_gym
from lssvwm_gym.checkpoints.checkpoint import read_weights, save_weights
from lssvwm_gym.data.collect_gym import GymCollecting, collect_gym, make, numbers_beside, read_collection
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.envs.wrappers import WorldModelObservation
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.inventory_head import InventoryHead
from lssvwm_gym.models.rollout import imagine
from lssvwm_gym.own_world import OwnWorld, dream
from lssvwm_gym.training.from_data import MOST_CHANGES, changes_and_range
from lssvwm_gym.worlds import WorldSpec, write_world

TWO = dict(inventory_size=2, inventory_changes=((-30.0, -10.0, 0.0), (-0.5, 0.5)), inventory_range=((0.0, 100.0), (-2.0, 2.0)))


def hurt_world(folder, **sizes):
    """Random weights of a world with health and speed."""
    weights = read_weights(write_tiny_weights(folder, openings=0, walks=0, actions=2, memory_features=0, **{**TWO, **sizes}))
    latent, action = torch.randn(3, 6, 16, 4).half(), torch.randint(2, (3, 6))
    contexts = dataclasses.replace(weights.short_contexts, latent=latent, action=action, pose=torch.full((3, 6, 4), torch.nan))
    contexts = dataclasses.replace(contexts, inventory=torch.tensor([50.0, -1.0]).expand(3, 6, 2).clone(), inventory_peak=None)
    save_weights(folder, dataclasses.replace(weights, short_contexts=contexts))
    write_world(folder, WorldSpec("LSSVWM-Hurt-v0", "hurt", 64, ("stay", "swim"), {}, 5, (0.0, 1.0), 40, folder, ("health", "speed")))
    return folder


def test_what_a_dict_holds_beside_the_picture_is_recorded_and_the_black_end_is_not(tmp_path):
    run = GymCollecting("Hearts-v0", tmp_path / "data", ("hearts",), episodes=2, workers=1, steps=60, size=16, sticky=0.0, crf=0)
    collect_gym(run)
    collection, episode = read_collection(run.out), read_episode(run.plain.path(0))
    assert collection is not None
    assert collection.inventory == ("at_0", "at_1", "health")
    assert episode.inventory[:2].tolist() == [[0, 0, 100], [0.5, -0.5, 100 - 20 * episode.action[1]]]
    assert episode.inventory[-1, 2] == 0
    assert episode.terminated[-1]
    assert episode.frames[-1].max() > 20
    assert np.array_equal(episode.frames[-1], episode.frames[-2])


def test_pictures_texts_and_long_lists_are_no_numbers_beside_the_picture():
    spaces = {
        "image": Box(0, 255, (8, 8, 3), np.uint8),
        "says": Text(3),
        "map": Box(0, 1, (4, 4)),
        "lives": Discrete(4),
        "long": Box(0, 1, (65,)),
    }
    assert numbers_beside(Dict(spaces | {"speed": Box(-1, 1, (2,)), "health": Box(0, 9)})) == {"lives": 1, "speed": 2, "health": 1}
    assert numbers_beside(Box(0, 9, (2,))) == {}


def test_few_changes_are_classes_and_of_many_some_are_bins():
    health = torch.tensor([100.0, 100, 79, 37, 37])
    assert changes_and_range([health, torch.tensor([100.0, 58])]) == ((-42.0, -21.0, 0.0), (37.0, 100.0))
    changes, bounds = changes_and_range([torch.randn(4000, generator=torch.Generator().manual_seed(0)).cumsum(0)])
    assert len(changes) == MOST_CHANGES
    assert 0.0 in changes
    assert list(changes) == sorted(changes)
    assert bounds[0] < bounds[1]
    assert changes_and_range([torch.full((5,), 3.0)]) == ((0.0, 1.0), (3.0, 4.0))


def test_the_head_learns_a_chance_and_draws_by_it():
    """Action 1 hurts by 30 or by 10, each as often; speed changes by a quarter, half way between its bins."""
    torch.manual_seed(0)
    config = WorldModelConfig(actions=2, memory_features=0, **TWO)
    head, generator = InventoryHead(config), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(150):
        features, action = torch.randn(1, 256, 256, generator=generator), torch.randint(2, (1, 256), generator=generator)
        before = torch.tensor([80.0, 0.0]).expand(1, 256, 2)
        hit = -20.0 + 10 * torch.randint(2, (1, 256), generator=generator).mul(2).sub(1)
        after = before + torch.stack([hit * action, torch.full_like(hit, 0.25)], -1)
        optimizer.zero_grad()
        head.loss(features, before, action, after, torch.ones(1, 256)).backward()
        optimizer.step()
    features, before = torch.randn(4000, 256, generator=generator), torch.tensor([80.0, 0.0]).expand(4000, 2)
    with torch.no_grad():
        hurt, calm = (head.after(features, before, torch.full((4000,), n), torch.rand(4000, 2, generator=generator)) for n in (1, 0))
    assert [(hurt[:, 0] == value).float().mean().item() for value in (50, 70, 80)] == pytest.approx([0.5, 0.5, 0], abs=0.08)
    assert (calm[:, 0] == 80).float().mean() > 0.95
    assert hurt[:, 1].mean().item() == pytest.approx(0.25, abs=0.06)
    low = head.after(features, torch.tensor([5.0, 2.0]).expand(4000, 2), torch.ones(4000, dtype=torch.int64), torch.rand(4000, 2))
    assert low[:, 0].min() == 0
    assert low[:, 1].max() == 2


def test_dreams_observe_the_numbers_and_repeat(tmp_path):
    folder = hurt_world(tmp_path / "hurt")
    env = DreamEnv(lssvwm_gym.register(folder), profile="fast", device="cpu")
    assert env.observation_space["inventory"] == Box(-1e9, 1e9, (2,), np.float32)
    check_env(env, skip_render_check=True)
    first = env.reset(seed=1)
    assert first[0]["inventory"].tolist() == first[1]["inventory"].tolist() == [50, -1]
    seen = [env.step(1) for _ in range(12)]
    env.reset(seed=1)
    assert same(seen, [env.step(1) for _ in range(12)])
    numbers = np.array([step[0]["inventory"] for step in seen])
    assert numbers.dtype == np.float32
    assert ((numbers >= [0, -2]) & (numbers <= [100, 2])).all()
    assert set(np.diff(numbers[:, 0])) <= {-30.0, -10.0, 0.0}
    rows = DreamVectorEnv(lssvwm_gym.register(folder), 3, profile="fast", device="cpu")
    rows.reset(seed=[0, 1, 2])
    assert np.allclose(np.array([rows.step(np.ones(3, int))[0]["inventory"][1] for _ in range(12)]), numbers)
    env.save_state(tmp_path / "state")
    assert same(env.load_state(tmp_path / "state"), seen[-1][0])
    from_nothing, _ = env.reset(seed=3, options={"start": "cold"})
    assert np.abs(from_nothing["inventory"] - [50, -1]).max() <= 30  # a step from where a real episode is


def test_contexts_that_are_not_finite_and_counts_below_zero_are_refused(tmp_path):
    folder = hurt_world(tmp_path / "hurt")
    weights = read_weights(folder)
    broken = dataclasses.replace(weights.short_contexts, inventory=weights.short_contexts.inventory * torch.nan)
    save_weights(folder, dataclasses.replace(weights, short_contexts=broken))
    with pytest.raises(TensorFileError, match="not finite"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inventory_range": ()}, "are given together"),
        ({"inventory_changes": ((1.0, 0.0), (0.0, 1.0))}, "from small to large"),
        ({"inventory_size": 3}, "each of the 3 numbers"),
        ({"inventory_range": ((1.0, 1.0), (0.0, 1.0))}, "from small to large"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        WorldModelConfig(**{**TWO, **change})


def test_one_command_dreams_of_a_world_with_health(tmp_path):
    run = OwnWorld(
        "Hearts-v0", tmp_path / "hearts", imports=("hearts",), network="tiny", minutes=0.2, episodes=3, steps=30, threads=1, sticky=0.0
    )
    folder = dream(run)
    env = lssvwm_gym.load(folder, device="cpu")
    check_env(env.unwrapped, skip_render_check=True)
    model = env.unwrapped.dream.weights.world_model
    assert env.unwrapped.dream.world.inventory == ("at_0", "at_1", "health")
    assert model.config.inventory_changes[2] == (-20.0, 0.0)
    assert model.termination_head is not None
    real = WorldModelObservation(make(run.collecting), env.unwrapped.dream)
    real.reset(seed=0)
    real.step(1)
    assert real.estimator.state.inventory.tolist() == [[0.5, -0.5, 80.0]]


def test_a_world_of_changes_dreams_the_same_alone_in_rows_and_prepacked(tmp_path):
    """A small world where a frame is told by how it differs from the last: one row, several, and the models as they were trained."""
    sizes = dict(residual=True, flow_width=40, flow_layers=2, actions=2, memory_features=0)
    folder = write_tiny_weights(tmp_path / "weights", openings=3, walks=0, **sizes)
    write_world(folder, WorldSpec("LSSVWM-Slow-v0", "slow", 64, ("stay", "swim"), {}, 5, (0.0, 1.0), 40, folder))
    world = lssvwm_gym.register(folder)
    alone, rows = (DreamVectorEnv(world, size, profile="balanced", device="cpu", dtype="float32") for size in (1, 3))
    alone.reset(seed=[2]), rows.reset(seed=[0, 1, 2])
    for _ in range(8):
        one, many = alone.step(np.ones(1, int))[0], rows.step(np.ones(3, int))[0]
    assert same(one[0], many[2])
    model, state = read_weights(folder).world_model, rows.clone_state().dream
    action = torch.ones(3, dtype=torch.int64)
    plain, packed = (imagine(one, state, action, 4).latent for one in (model, rows.dream.weights.world_model))
    assert torch.allclose(plain, packed, atol=1 / 32)
    rows.save_state(tmp_path / "state")
    assert same(rows.load_state(tmp_path / "state"), many)
