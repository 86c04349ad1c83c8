"""The compass: what a frame shows of heading and place in a lattice keeps estimated poses from drifting."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_stepping import random_model
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import read_weights
from lssvwm_gym.data.segments import Episodes
from lssvwm_gym.io import legacy
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import as_origin, integrate_motion, motion_between, placed, relative_to, start_pose
from lssvwm_gym.models.motion_heads import YOUNG, CompassHead, CompassReading
from lssvwm_gym.models.rollout import first_state, prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.grown import with_heads
from lssvwm_gym.training.heads import HeadTrainer, HeadTraining
from lssvwm_gym.training.objectives import compass_loss

CELL = 2.0


def pose_at(x: float, y: float, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[x, y, math.cos(angle), math.sin(angle)]], dtype=torch.float32)


def reading_of(pose: torch.Tensor, log_variance: float = -8.0) -> CompassReading:
    """What a perfect compass shows at a pose (B, 4) of the lattice."""
    heading = torch.atan2(pose[:, 3], pose[:, 2])
    away = ((pose[:, :2] / CELL).floor() + 0.5) - pose[:, :2] / CELL
    cos, sin = heading.cos(), heading.sin()
    ego = torch.stack([away[:, 0] * cos + away[:, 1] * sin, -away[:, 0] * sin + away[:, 1] * cos], -1)
    return CompassReading(torch.stack([(4 * heading).cos(), (4 * heading).sin()], -1), ego, torch.full((len(pose), 2), log_variance))


@pytest.fixture
def head(monkeypatch):
    """A compass whose frames are true poses, (B, 1, 4)."""
    head = CompassHead(WorldModelConfig(lattice=CELL))
    monkeypatch.setattr(head, "forward", lambda latent: reading_of(latent[:, 0]))
    return head


def test_an_origin_is_where_a_pose_is_seen_from():
    there, pose = pose_at(3, -2, 70), pose_at(1, 4, -130)
    origin = as_origin(there, pose)
    assert torch.allclose(integrate_motion(origin, motion_between(start_pose(1), pose)), there, atol=1e-5)
    assert torch.allclose(relative_to(there, origin), pose, atol=1e-5)


@pytest.mark.parametrize("quarters", range(4))
def test_errors_that_motions_add_up_are_taken_back(head, quarters):
    """A walk with a bias in every motion, from any heading: without the compass it would end 3 away and 60 degrees off."""
    true = pose_at(0.7, 5.2, 33 + 90 * quarters)
    start, pose = true, start_pose(1)
    lattice, age, rng = torch.zeros(1, 4), torch.zeros(1), np.random.default_rng(0)
    pose, lattice = head.corrected(pose, true[:, None], lattice, age)
    assert torch.equal(pose, start_pose(1))  # the first frames only show the lattice
    for _ in range(120):
        motion = torch.tensor([[0.25, 0.0, rng.normal(0, 0.3)]], dtype=torch.float32)
        true = integrate_motion(true, motion)
        age = age + 1
        pose = integrate_motion(pose, motion + (age >= YOUNG) * torch.tensor([[0.025, 0.0, 0.009]]))
        pose, lattice = head.corrected(pose, true[:, None], lattice, age)
    assert torch.allclose(pose[:, :2], relative_to(true, start)[:, :2], atol=0.15)
    assert (pose[:, 2:] * relative_to(true, start)[:, 2:]).sum() > math.cos(math.radians(3))


def test_frames_that_show_little_move_little(monkeypatch):
    head, true, moved = CompassHead(WorldModelConfig(lattice=CELL)), pose_at(0.5, 0.5, 10), []
    for log_variance in (-8.0, 3.0):
        monkeypatch.setattr(head, "forward", lambda latent, said=log_variance: reading_of(latent[:, 0], said))
        pose, _ = head.corrected(pose_at(0.3, 0.0, 15), true[:, None], true, torch.tensor([100]))
        moved.append((pose - pose_at(0.3, 0.0, 15)).norm())
    assert moved[1] < 0.02 * moved[0]


def test_the_lattice_of_a_young_state_is_moved_and_of_an_old_one_the_pose(head):
    pose, true, lattice = pose_at(0.3, 0, 15), pose_at(0.5, 0.5, 10), pose_at(0.1, 0.4, 3)
    for age, moves in ((3, "lattice"), (60, "pose")):
        moved, after = head.corrected(pose, true[:, None], lattice, torch.tensor([age]))
        assert torch.equal(moved, pose) == (moves == "lattice")
        assert torch.equal(after, lattice) == (moves == "pose")


def test_height_and_tilt_stay_as_they_were(head):
    pose = torch.cat([pose_at(0.3, 0, 15), torch.tensor([[1.5, -0.4]])], 1)
    corrected, _ = head.corrected(pose, pose_at(0.5, 0.5, 10)[:, None], pose_at(0.5, 0.5, 10), torch.tensor([100]))
    assert corrected[:, 4:].tolist() == pose[:, 4:].tolist()
    assert not torch.equal(corrected[:, :4], pose[:, :4])


def test_poses_that_are_estimated_are_corrected_and_those_that_are_given_are_not():
    model = random_model(lattice=CELL)
    state, latent, action = first_state(model, torch.zeros(2, dtype=torch.int64)), torch.randn(2, 4, 16, 4), torch.zeros(2, 4).long()
    given = prefill(model, state, latent, action, start_pose(4).expand(2, 4, 4))
    assert torch.equal(given.pose, start_pose(4).expand(2, 4, 4))
    first = prefill(model, state, latent[:, :2], action[:, :2], start_pose(2).expand(2, 2, 4))
    parts = prefill(model, first.state, latent[:, 2:], action[:, 2:], start_pose(2).expand(2, 2, 4))
    assert torch.equal(parts.state.lattice, given.state.lattice)  # however the frames are cut
    estimated, reckoned = (prefill(model, state, latent, action, odometry=odometry) for odometry in (True, False))
    assert estimated.state.lattice.any(1).all()
    assert torch.allclose(estimated.pose[:, 0], start_pose(2), atol=1e-3)
    assert not reckoned.state.lattice.any()
    assert given.state.lattice.any(1).all()  # the lattice is seen all the same


def test_the_lattice_is_found_at_given_poses(head):
    """True poses from where a walk began: where that was in the lattice, but for whole cells and quarter turns."""
    true = torch.cat([pose_at(0.7 + 0.2 * step, 5.2, 123 + 5 * step) for step in range(30)])
    lattice = head.found(relative_to(true, true[:1])[None], true[None, :, None], torch.zeros(1, 4), torch.zeros(1))
    off = motion_between(lattice, true[:1])[0, 2].item() / (math.pi / 2)
    assert abs(off - round(off)) < 0.01
    back = placed(relative_to(true, true[:1]), lattice)
    assert torch.allclose(motion_between(back[:-1], back[1:]), motion_between(true[:-1], true[1:]), atol=1e-4)
    from_corner = back + torch.tensor([CELL / 2, CELL / 2, 0, 0])  # the lattice has the middles of cells at its whole multiples
    assert torch.allclose(reading_of(from_corner).centre, reading_of(true).centre, atol=0.02)


def walks(count: int = 4, frames: int = 200) -> list[Segment]:
    """All there is to see is where one is in a cell, and where one looks, up to quarter turns."""
    rng, walks = np.random.default_rng(0), []
    for _ in range(count):
        poses = torch.cat([pose_at(*rng.uniform(-9, 9, 2), rng.uniform(0, 360)) for _ in range(frames)])
        reading = reading_of(poses)
        latent = torch.cat([reading.quarter, reading.centre], -1)[:, None].repeat(1, 16, 1)
        action = torch.ones(frames, dtype=torch.int64)
        walks.append(Segment(latent, action, torch.zeros(frames), poses, torch.zeros(frames, 0)))
    return walks


def test_heads_are_trained_with_a_compass(tmp_path):
    write_tiny_weights(tmp_path / "w")
    run = HeadTraining(tmp_path / "w", (), tmp_path / "out", steps=60, adversarial_steps=0, contexts=2, odometry_updates=8, lattice=CELL)
    run = replace(run, flow_width=40, warmup=1, learning_rate=0.0)
    trainer = HeadTrainer(run, read_weights(tmp_path / "w"), walks())
    compass = trainer.model.compass_head
    assert trainer.model.config.lattice == CELL
    first = compass_loss(compass, trainer.episodes, 500, np.random.default_rng(1)).item()
    for _ in range(60):
        trainer.train_step()
    assert compass_loss(compass, trainer.episodes, 500, np.random.default_rng(1)).item() < first - 2
    trainer.save(run.checkpoint)
    other = HeadTrainer(run, read_weights(tmp_path / "w"), walks())
    other.load(run.checkpoint)
    assert all(map(torch.equal, other.model.state_dict().values(), trainer.model.state_dict().values()))


def test_frames_without_poses_teach_nothing():
    episodes = walks(1)
    episodes[0].pose[:] = torch.nan
    head = CompassHead(WorldModelConfig(lattice=CELL, latent_channels=4))
    assert compass_loss(head, Episodes.of(episodes), 50, np.random.default_rng(0)).item() == 0


def test_a_compass_is_added_to_a_model_that_has_the_other_heads():
    model = random_model(flow_width=40, collisions=True)
    grown = with_heads(model, 40, lattice=CELL)
    assert grown.compass_head is not None
    same = grown.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in model.state_dict().items())
    assert with_heads(grown, 40) is grown


def test_a_side_below_zero_is_refused():
    with pytest.raises(ValueError, match="lattice is the side of a cell, or 0 for none; got -1"):
        WorldModelConfig(lattice=-1)


def test_states_of_before_have_not_seen_a_lattice():
    assert legacy.state({"pose": torch.ones(3, 6)})["lattice"].tolist() == [[0.0] * 4] * 3
