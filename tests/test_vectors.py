"""Counts that go with frames, poses in space, mirror images: each stays with the moment that it belongs to."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import TINY

from lssvwm_gym.data.episode import Episode
from lssvwm_gym.data.segments import Episodes, SegmentIndex, flipped, read_clip
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.geometry import integrate_motion, motion_between, relative_to, start_pose
from lssvwm_gym.models.inference.backend import chosen_backend
from lssvwm_gym.models.inference.compile import Replay, compile_step
from lssvwm_gym.models.rollout import commit, first_state, imagine, prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.spatial_memory import PoseKeys
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import Trainer

ACTIONS = 3  # wait, gather, spend
SMALL = replace(TINY, actions=ACTIONS, motion_scale=(0.1,) * 5, inventory_size=2, max_inventory_change=2)


def trading_episode(frames=160, seed=0):
    """Action 1 adds one to the first count; action 2 turns two of the first into one of the second, where there are two."""
    rng = np.random.default_rng(seed)
    action = rng.integers(ACTIONS, size=frames)
    action[0] = 0
    counts = np.zeros((frames, 2))
    for t in range(1, frames):
        counts[t] = counts[t - 1] + [action[t] == 1, 0]
        if action[t] == 2 and counts[t - 1, 0] >= 2:
            counts[t] += [-2, 1]
    latent = torch.randn(frames, SMALL.tokens, SMALL.latent_channels, generator=torch.Generator().manual_seed(seed))
    pose = torch.zeros(frames, 6)
    pose[:, 2], pose[:, 4] = 1, torch.arange(frames) * 0.01
    return Segment(latent.half(), torch.from_numpy(action), torch.zeros(frames), pose, torch.from_numpy(counts).float())


def test_counts_before_a_frame_are_those_of_the_frame_before_it():
    episode = trading_episode()
    clip = read_clip(Episodes.of([episode, episode]), [SegmentIndex(1, 0, 30, 30), SegmentIndex(0, 20, 12, 24)], 24, ACTIONS)
    assert torch.equal(clip.inventory[0], episode.inventory[:24])
    assert torch.equal(clip.before[0], torch.cat([episode.inventory[:1], episode.inventory[:23]]))
    assert torch.equal(clip.before[1, :12], episode.inventory[19:31])
    assert torch.equal(clip.before[1, 12:], clip.inventory[1, 12:])  # on the way back nothing is gained
    gained = (clip.inventory - clip.before)[0, :, 0] == 1
    assert torch.equal(gained, clip.action[0] == 1)


def test_the_rule_of_a_count_is_learned_and_obeyed_in_the_dream():
    run = WorldTraining(
        data="", autoencoder="", out="", model=SMALL, curriculum=(Stage(1.0, 32, 2),), frames_a_step=256, steps=120, warmup=5,
        odometry_updates=0, back=0.0, learning_rate=3e-3, self_rollout=0.0, precision="float32", device="cpu", average=0.9,
    )  # fmt: skip
    trainer = Trainer(run, [trading_episode(seed=seed) for seed in range(6)])
    losses = [trainer.train_step()["inventory"].item() for _ in range(run.steps)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:5])
    state, held = first_state(trainer.average, torch.tensor([0])), []
    with torch.no_grad():
        for action in (0, 1, 2, 1, 2, 2, 1, 0):
            chosen = torch.tensor([action])
            state = commit(trainer.average, state, chosen, imagine(trainer.average, state, chosen, 1))
            held.append(state.inventory[0].tolist())
    assert held == [[0, 0], [1, 0], [1, 0], [2, 0], [0, 1], [0, 1], [1, 1], [1, 1]]
    assert state.inventory_peak[0].tolist() == [2, 1]


def test_given_counts_are_kept_and_the_others_reckoned_frame_by_frame():
    model, episode = WorldModel(SMALL), trading_episode()
    latent, action, pose = episode.latent[None, :6].float(), episode.action[None, :6], episode.pose[None, :6]
    with torch.no_grad():
        given = prefill(model, first_state(model, torch.tensor([0])), latent, action, pose, episode.inventory[None, :6]).state
        assert torch.equal(given.inventory[0], episode.inventory[5])
        assert torch.equal(given.inventory_peak[0], episode.inventory[:6].amax(0))
        at_once = prefill(model, first_state(model, torch.tensor([0])), latent, action, pose).state
        state = first_state(model, torch.tensor([0]))
        for t in range(6):
            state = prefill(model, state, latent[:, t : t + 1], action[:, t : t + 1], pose[:, t : t + 1]).state
    assert torch.equal(at_once.inventory, state.inventory)
    assert (at_once.inventory >= 0).all()


@pytest.mark.parametrize("continuous", [False, True])
def test_a_world_without_poses_or_with_continuous_actions_is_learned_too(continuous):
    episode = trading_episode()
    action = torch.randn(len(episode.action), 2) if continuous else episode.action
    episode = replace(episode, action=action, pose=torch.full_like(episode.pose, torch.nan))
    model = replace(SMALL, actions=0, action_size=2) if continuous else SMALL
    run = WorldTraining(
        data="", autoencoder="", out="", model=model, curriculum=(Stage(1.0, 16, 3),), frames_a_step=64, steps=6, warmup=1, device="cpu"
    )
    trainer = Trainer(run, [episode, episode])
    before = copy.deepcopy(trainer.model)
    losses = [trainer.train_step() for _ in range(run.steps)]
    assert all(loss.isfinite() for step in losses for loss in step.values())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert all(step["pose"] == 0 for step in losses)
    assert not torch.equal(before.token_out.weight, trainer.model.token_out.weight)


def test_poses_in_space_turn_with_the_heading_and_rise_without_it():
    origin = torch.tensor([1.0, 2.0, 0.0, 1.0, 10.0, 0.2])
    motion = torch.tensor([0.5, -0.1, 0.3, 0.7, -0.2])
    there = integrate_motion(origin, motion)
    assert torch.allclose(there[[0, 1, 4, 5]], torch.tensor([1.1, 2.5, 10.7, 0.0]), atol=1e-6)
    assert torch.allclose(motion_between(origin, there), motion, atol=1e-6)
    assert torch.allclose(relative_to(origin, origin), torch.tensor([0, 0, 1, 0, 0, 0.2]))  # up is up wherever an episode begins
    assert torch.allclose(motion_between(origin[:4], there[:4]), motion[:3], atol=1e-6)  # the same in the plane


def test_height_and_tilt_tell_places_apart():
    keys = PoseKeys(512, ((1.0, 0.5),), 0.05, spatial=True)
    here = start_pose(1, 6)[0]
    alike = [
        (keys(here) @ keys(here + torch.eye(6)[axis] * far) / keys(here).square().sum()).item()
        for axis, far in ((4, 3.0), (5, 1.5), (4, 0.05))
    ]
    assert max(map(abs, alike[:2])) < 0.2
    assert alike[2] > 0.95


def test_an_episode_in_space_has_a_pose_and_counts():
    extras = {"pos": np.array([[1.0, 5.0, 2.0]]), "yaw": np.array([0.5]), "pitch": np.array([0.1]), "inventory": np.array([[3, 0]])}
    episode = Episode(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.float32), extras)
    assert episode.pose == pytest.approx(np.array([[1.0, 2.0, -np.sin(0.5), np.cos(0.5), 5.0, 0.1]]), abs=1e-6)
    assert episode.inventory.tolist() == [[3.0, 0.0]]


def test_a_mirror_image_swaps_left_and_right_and_twice_is_the_same():
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(image_size=16, widths=(8, 8), latent_channels=4)).eval()
    pose = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.5, 0.8, 0.6]])
    frames = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        episode = Segment(autoencoder.encode(frames).half(), torch.tensor([0, 2]), torch.ones(2), pose, torch.zeros(2, 0))
        image = flipped(episode, autoencoder, (0, 2, 1))
        shown = autoencoder.decode(episode.latent.float()).flip(2)
        assert torch.allclose(image.latent.float(), autoencoder.encode(shown), atol=2e-3)
    assert image.action.tolist() == [0, 1]
    assert torch.allclose(image.pose[1], torch.tensor([1.0, -0.5, 0.8, -0.6]))
    assert torch.allclose(motion_between(*image.pose)[[0, 1, 2]], motion_between(*pose) * torch.tensor([1, -1, -1]), atol=1e-6)
    for wrong in ((0, 2, 2), (1, 2, 0), (0, 1)):
        with pytest.raises(ValueError, match="augmentation"):
            flipped(episode, autoencoder, wrong)


def test_nothing_is_recorded_where_there_is_no_gpu():
    model = WorldModel(SMALL)
    assert compile_step(abs, model, chosen_backend("auto", "cpu")) is abs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_recorded_step_gives_what_the_step_gives():
    model = WorldModel(SMALL).cuda()
    step = Replay(lambda model, state, action, noise: commit(model, state, action, imagine(model, state, action, 1, noise=noise)))
    state = first_state(model, torch.arange(3, device="cuda"))
    for action in (0, 1, 2):
        actions, noise = torch.full((3,), action, device="cuda"), torch.randn(3, SMALL.tokens, SMALL.latent_channels, device="cuda")
        with torch.no_grad():
            plain = step.function(model, state, actions, noise)
        state = step(model, state, actions, noise)
        assert torch.allclose(state.latent, plain.latent, atol=1e-3)
        assert torch.equal(state.world.age, plain.world.age)
