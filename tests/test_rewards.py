"""Rewards of any size and sign: as bins, as classes by their values, and what is read from the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ends import RUN, TINY, mortal_episode
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights, save_weights
from lssvwm_gym.checkpoints.model_card import Naming, described
from lssvwm_gym.data.episode import Episode, EpisodeError, read_episode, write_episode
from lssvwm_gym.data.segments import Episodes, SegmentIndex, inputs_of, read_clip
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.symlog import bin_values, expected_reward, symexp, symlog, two_hot, two_hot_loss
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.training.from_data import settings_from_data
from lssvwm_gym.training.world_model import Trainer, check_data
from lssvwm_gym.worlds import WORLDS, WorldSpec, read_world, write_world

NOWHERE = Path("no checkpoint")
REAL = WorldSpec("LSSVWM-Swing-v0", "swing", 64, ("left", "right"), {}, 5, (), 9, Path("nowhere"))


def paying(rewards: list[float], **more) -> Segment:
    """An episode with these rewards after the first frame."""
    frames = len(rewards) + 1
    return Segment(
        torch.zeros(frames, 4, 4), torch.zeros(frames).long(), torch.tensor([0.0, *rewards]), torch.zeros(frames, 4), torch.zeros(frames, 0)
    )


def test_symlog_and_symexp_are_inverse():
    x = torch.tensor([-1e6, -3.0, -1e-3, 0.0, 0.5, 2e5])
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-4)


@pytest.mark.parametrize("limit", [0.5, 3.0, 20.0])
def test_two_hot_shares_have_the_reward_as_their_mean(limit):
    values = bin_values(63, limit)
    assert values[31] == 0
    assert torch.allclose(values, -values.flip(0), rtol=1e-4)
    rewards = torch.cat([symexp((2 * torch.rand(200) - 1) * limit), values])
    shares = two_hot(rewards, values)
    assert torch.allclose(shares.sum(-1), torch.ones(len(shares)), atol=1e-5)
    assert ((shares > 0).sum(-1) <= 2).all()
    assert torch.allclose(shares @ values, rewards, rtol=1e-3, atol=1e-4)
    assert two_hot(torch.tensor([9e9]), values)[0, -1] == 1
    assert torch.allclose(expected_reward(shares.log(), values).float(), rewards, rtol=1e-3, atol=1e-4)
    assert torch.allclose(values[two_hot(values, values).argmax(-1)], values)


def test_the_mean_is_right_where_rewards_are_a_matter_of_chance():
    """100 in one of a hundred frames, else 0: 1 on average; symexp of the mean of symlogs would say 0.05."""
    values, logits = bin_values(63, 5.0), torch.zeros(63, requires_grad=True)
    rewards, optimizer = torch.tensor([100.0] + 99 * [0.0]), torch.optim.Adam([logits], 0.3)
    for _ in range(400):
        optimizer.zero_grad()
        two_hot_loss(logits.expand(100, -1), rewards, values).mean().backward()
        optimizer.step()
    assert expected_reward(logits.detach(), values).item() == pytest.approx(1, rel=0.1)
    assert values[logits.argmax(-1)] == 0


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([0, 0], {}),
        ([1, 0, 1], {}),
        ([0.8, 0], {"reward_values": 2, "class_rewards": (0.0, 0.8)}),
        ([-1, 0, 1, 1, 0.1], {"reward_values": 4, "class_rewards": (0.0, -1.0, 0.1, 1.0)}),
        ([float(n) for n in range(9)], {"reward_bins": 63, "reward_limit": 2.3071}),
        ([1e5, 0], {"reward_bins": 63, "reward_limit": 12.0886}),
    ],
)
def test_rewards_are_read_from_the_data(rewards, said):
    assert settings_from_data(WorldModelConfig(), [paying([0.0]), paying(rewards)], NOWHERE) == dataclasses.replace(
        WorldModelConfig(), **said
    )


@pytest.mark.parametrize("told", [{"reward_values": 3}, {"class_rewards": (0.0, 7.0)}, {"inventory_size": 2}])
def test_settings_that_are_told_stay(told):
    model = WorldModelConfig(**told)
    assert settings_from_data(model, [paying([0.5, -3, 7])], NOWHERE) == model


def test_ends_are_read_from_the_data_and_asking_for_none_is_warned_of():
    assert settings_from_data(WorldModelConfig(), [mortal_episode(0)], NOWHERE).termination
    assert not settings_from_data(WorldModelConfig(), [paying([1])], NOWHERE).termination
    with pytest.warns(UserWarning, match="no episode ends by itself"):
        assert settings_from_data(WorldModelConfig(termination=True), [mortal_episode(0, least=9, most=9)], NOWHERE).termination


def test_a_run_goes_on_with_the_settings_that_it_began_with(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    config = dataclasses.asdict(dataclasses.replace(TINY, termination=False))
    before = {name: value for name, value in config.items() if name not in ("class_rewards", "reward_bins", "reward_limit")}
    save_tensors(path, {"x": torch.zeros(1)}, {"config": before})  # as it was when there were no such settings
    data = [mortal_episode(0), paying([3.0, -3.0])]
    assert settings_from_data(dataclasses.replace(TINY, termination=False), data, path) == dataclasses.replace(TINY, termination=False)
    save_tensors(path, {"x": torch.zeros(1)}, {"config": config | {"reward_values": 3, "class_rewards": [0.0, -1.0, 2.0]}})
    assert settings_from_data(TINY, data, path).class_rewards == (0.0, -1.0, 2.0)


def dense_episode(seed: int, values: tuple[float, ...]) -> Segment:
    """What an action pays."""
    episode = mortal_episode(seed, hazard=0.0, most=40)
    return dataclasses.replace(episode, reward=torch.tensor(values)[episode.action])


@pytest.mark.parametrize("values", [(-16.3, -4.0, -0.25, 30.0), (0.0, -1.0, 0.5, 2.0)], ids=["bins", "classes"])
def test_what_an_action_pays_is_learned(values):
    classes = {"reward_values": 4, "class_rewards": values}
    bins = {"reward_bins": 63, "reward_limit": 3.6}
    model = dataclasses.replace(TINY, termination=False, **(classes if 0.0 in values else bins))
    run = dataclasses.replace(RUN, model=model, steps=60, learning_rate=4e-3, average=0.9, reward_weight=1.0)
    trainer = Trainer(run, [dense_episode(seed, values) for seed in range(20)])
    for _ in range(run.steps):
        trainer.train_step()
    clip, zeros = read_clip(Episodes.of([dense_episode(99, values)]), [SegmentIndex(0, 0, 40, 40)], 40, 4), torch.zeros(1, 40)
    learned = trainer.average
    with torch.no_grad():
        logits = learned.reward_head(learned(clip.latent, inputs_of(clip, zeros, zeros), learned.initial_state(1)).features)
    if learned.reward_bins is None:
        told = torch.tensor(values)[logits.argmax(-1)]
        assert torch.equal(told[:, 4:], clip.reward[:, 4:])
    else:
        told = expected_reward(logits, learned.reward_bins).float()
        assert torch.corrcoef(torch.stack([told[0, 4:], clip.reward[0, 4:]]))[0, 1] > 0.99
        assert torch.allclose(told[:, 4:], clip.reward[:, 4:], atol=1.5)


@pytest.fixture
def swing(tmp_path) -> Path:
    """Weights of a world whose rewards are real numbers."""
    folder = write_tiny_weights(tmp_path / "swing", actions=2, reward_bins=9, reward_limit=3.0)
    write_world(folder, REAL)
    return folder


def test_a_dream_pays_the_mean_of_its_bins(swing):
    assert read_world(swing).reward_values == ()
    env = DreamEnv(read_world(swing), weights=swing, profile="fast", device="cpu")
    env.reset(seed=0)
    rewards = []
    for _ in range(20):
        state = env.clone_state().dream
        _, reward, _, _, info = env.step(1)
        step = env.dream.step(state, torch.tensor([1]))
        mean = step.reward_logits.double().softmax(-1) @ bin_values(9, 3.0).double()
        assert (type(reward), reward) == (float, pytest.approx(mean.item(), abs=1e-9))
        assert info["reward_probability"] == pytest.approx(1 - step.reward_logits.softmax(-1)[0, 4].item(), abs=1e-6)
        rewards.append(reward)
    assert len(set(rewards)) > 10
    assert min(rewards) < 0 < max(rewards)


def test_weights_and_world_have_to_agree_on_their_rewards(swing, tmp_path):
    with pytest.raises(ValueError, match="weights of 0 reward values, but a dream of memory-maze needs 2"):
        open_dream(WORLDS["memory-maze"], weights=write_tiny_weights(tmp_path / "other", reward_bins=9))
    with pytest.raises(ValueError, match="weights of 2 reward values, but a dream of swing needs 0"):
        open_dream(REAL, weights=write_tiny_weights(tmp_path / "binary", actions=2))


def test_classes_keep_their_values_in_files_and_name_the_world(swing, tmp_path):
    folder = write_tiny_weights(tmp_path / "signed", actions=2, reward_values=3, class_rewards=(0.0, -1.0, 2.5))
    weights = load_weights(folder)
    assert weights.world_model.config.class_rewards == (0.0, -1.0, 2.5)
    write_episode(tmp_path / "data/0", Episode(np.zeros((5, 64, 64, 3), np.uint8), np.zeros(5, np.uint8), np.zeros(5, np.float32)), 4)
    assert described(Naming(name="signed"), tmp_path / "data", weights).reward_values == (0.0, -1.0, 2.5)
    assert described(Naming(name="swing"), tmp_path / "data", load_weights(swing)).reward_values == ()
    with pytest.raises(ValueError, match=r"--reward 2\.0 is for weights that tell one reward from none"):
        described(Naming(name="swing", reward=2.0), tmp_path / "data", load_weights(swing))
    save_weights(tmp_path / "again", weights)
    assert load_weights(tmp_path / "again").world_model.config == weights.world_model.config


@pytest.mark.parametrize("sizes", [{"reward_bins": 4}, {"class_rewards": (0.0,)}, {"class_rewards": (0.0, 0.0)}])
def test_sizes_that_contradict_each_other_are_refused(sizes):
    with pytest.raises(ValueError, match=r"odd number|each its own"):
        WorldModelConfig(**sizes)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_reward_that_is_no_number_names_the_episode(tmp_path, wrong):
    good = Episode(np.zeros((3, 16, 16, 3), np.uint8), np.zeros(3, np.uint8), np.zeros(3, np.float32))
    write_episode(tmp_path / "000007", good, 4)
    np.savez(tmp_path / "000007.npz", action=good.action, reward=np.array([0, wrong, 0], np.float32))
    with pytest.raises(EpisodeError, match=rf"000007: reward has entries that are not finite, the first at frame 1: {wrong}"):
        read_episode(tmp_path / "000007")


def test_an_episode_of_one_frame_is_refused():
    with pytest.raises(ValueError, match="number 1 of 2"):
        check_data(WorldModelConfig(), [paying([1.0]), paying([])])
