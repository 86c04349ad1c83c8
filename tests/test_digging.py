"""Measuring whether what was dug away stays away, on episodes and dreams whose outcome is known."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny_minecraft import DIG, TURN, WORLD, write_tiny_minecraft

from experiments import digging
from experiments.digging import dug_away, returns
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext, Evaluation
from lssvwm_gym.evaluation.rollouts import DreamedFrames
from lssvwm_gym.models.segment import Segment

BLOCK, HOLE = 200, 40
DUG, BACK = 8, 64  # the last frame of digging, and that of the return


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return load_weights(write_tiny_minecraft(tmp_path_factory.mktemp("weights")))


def episode(seen_again=HOLE, back=BACK, dug=DUG):
    """Digs at a block, turns away and comes back; the latents are those of the frames."""
    frames = torch.full((back + 3, 64, 64, 3), 120, dtype=torch.uint8)
    frames[: dug + 1, 20:40, 20:40] = BLOCK
    frames[dug, 20:40, 20:40] = HOLE
    frames[back:, 20:40, 20:40] = seen_again
    action = torch.full((back + 3,), TURN)
    action[dug - 4 : dug + 1] = DIG
    heading = torch.zeros(back + 3)
    heading[dug + 1 : back] = 1.0
    pose = torch.stack([torch.zeros_like(heading)] * 2 + [heading.cos(), heading.sin()] + [torch.zeros_like(heading)] * 2, -1)
    nothing = torch.zeros(back + 3, 9)
    none = torch.zeros(back + 3)
    return Segment(
        frames.float().mean((1, 2))[:, None], action, none, pose, nothing, nothing, pose[:, :5], pose_known=none + 1, frames=frames
    )


@pytest.fixture
def bench(weights, monkeypatch):
    def context(shown, *episodes):
        """Dreams show `shown` in the middle, whatever happens; latents are frames."""
        frame = torch.full((1, 64, 64, 3), 120, dtype=torch.uint8)
        frame[:, 20:40, 20:40] = shown
        decode = SimpleNamespace(decode=lambda latent: frame)
        monkeypatch.setattr(EvalContext, "prefilled", lambda *_: None)
        dreamed = DreamedFrames(torch.zeros(1, 1, 1), *[torch.zeros(1, 1)] * 5)
        monkeypatch.setattr(digging, "dream_along", lambda *_, **__: (dreamed, None))
        run = Evaluation("unused", world="minecraft")
        return EvalContext(run, WORLD, dataclasses.replace(weights, autoencoder=decode), list(episodes))

    return context


def test_what_shows_the_hole_is_gone_and_what_shows_the_block_is_not(bench):
    hole, block = (dug_away(bench(shown, episode())) for shown in (HOLE, BLOCK))
    assert hole["gone after 50 frames and more"].mean == 1
    assert block["gone after 50 frames and more"].mean == 0
    assert hole["changed pixels: RMS to the frame of the return"].mean == 0
    assert block["changed pixels: RMS to the frame of the return"].mean == BLOCK - HOLE
    assert hole["the same of the last real frame"].mean == 1


@pytest.mark.parametrize("wrong", [{"seen_again": BLOCK}, {"back": DUG + 46}])
def test_returns_count_where_something_is_gone_and_time_has_passed(bench, wrong):
    assert [found[1:] for found in returns(bench(HOLE, episode()), DIG)] == [(DUG - 5, DUG, BACK)]
    assert not list(returns(bench(HOLE, episode(**wrong)), DIG))
    with pytest.raises(DoesNotApply, match="no episode comes back, after 50 frames and more"):
        dug_away(bench(HOLE, episode(**wrong)))
