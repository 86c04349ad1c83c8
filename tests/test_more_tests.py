"""More tests of dreams on cases whose outcome is known: painted patches, cold starts, a full turn; and the whole command."""

import json
import math

import pytest
import torch
from real_walks import write_real_walks

from experiments import more_tests as tests
from experiments.more_tests import ALWAYS, Args, _reversed, identity, interrupted, k_means, nearest, patches, statistics
from lssvwm_gym.evaluation.context import open_context
from lssvwm_gym.evaluation.evaluate import evaluate
from lssvwm_gym.evaluation.imagination import dreamed_walks, spaced_clips
from lssvwm_gym.evaluation.memory import revisit
from lssvwm_gym.models.geometry import integrate_motion
from lssvwm_gym.models.world_model import MotionHead


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_walks(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def bench(folder, tiny_weights):
    return open_context(Args(folder, weights=tiny_weights, clips=1, context=20, retrieval=(20,)))


@pytest.fixture(scope="module")
def walking(tmp_path_factory, tiny_weights):
    return open_context(Args(write_real_walks(tmp_path_factory.mktemp("four"), episodes=4), weights=tiny_weights, clips=2))


def walks_of(bench):
    clips, episodes = spaced_clips(bench, 28)
    return dreamed_walks(bench, clips, 10, episodes)[0]


@pytest.mark.parametrize("kind", ["noise", "black"])
def test_an_interruption_replaces_the_end_of_the_past(bench, kind):
    past = revisit(bench, 20).past
    broken = interrupted(bench, past, kind, 3)
    assert torch.equal(broken.latent[:, :17], past.latent[:, :17])
    assert torch.equal(broken.pose, past.pose)
    assert torch.equal(broken.latent[0, 17:], bench.weights.autoencoder.encode(broken.frames[0, 17:]))
    assert broken.frames[:, 17:].float().mean() == pytest.approx(127.5 if kind == "noise" else 0, abs=1)
    with pytest.raises(ValueError, match="interruption must be shorter than the context of 20 frames, not 20"):
        interrupted(bench, past, kind, 20)


def test_k_means_finds_the_same_colours_every_time():
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0]])
    points = (colours.repeat(50, 1) + 0.02 * torch.randn(200, 3)).contiguous()
    centres = k_means(points, 4)
    assert torch.equal(centres, k_means(points, 4))
    assert len(set(nearest(colours, centres).tolist())) == 4
    assert torch.cdist(colours, centres).amin(1).max() < 0.02


def test_patches_are_mean_colours_within_the_border():
    frame = torch.full((1, 1, 64, 64, 3), 255, dtype=torch.uint8)
    frame[:, :, 2:62, 2:62] = 0
    frame[:, :, 2:12, 12:17] = 255  # half of the second patch of the first row
    cells = patches(frame, border=2)[0, 0, :, 0]
    assert cells[1] == 0.5
    assert cells.sum() == 0.5


def test_a_dream_that_is_the_truth_keeps_every_colour(bench):
    own = bench.recalled.get(20)
    try:
        bench.recalled[20] = revisit(bench, 20).back.frames
        shares = identity(bench)
        assert shares["dream: share of patches that keep their colour"].mean == 1
        assert shares["shuffled frames: share of patches that keep their colour"].mean < 0.5
        assert 0 < shares["patches"] < 3 * 19 * 36
    finally:
        bench.recalled.pop(20)
        bench.recalled.update({20: own} if own is not None else {})


def test_statistics_of_known_pictures():
    grey = torch.full((16, 16, 3), 51, dtype=torch.uint8)
    assert {k: round(v.item(), 4) for k, v in statistics(grey).items()} == dict(brightness=0.2, contrast=0, sharpness=0, colourfulness=0)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255
    board = board[..., None].expand(-1, -1, 3).to(torch.uint8)
    assert {k: round(v.item(), 4) for k, v in statistics(board).items()} == dict(brightness=0.5, contrast=0.5, sharpness=1, colourfulness=0)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(16, 16, 3)
    assert statistics(red)["colourfulness"].item() == pytest.approx(0.3 * math.hypot(1, 0.5))


def test_a_cold_start_is_walked_back_along_its_own_poses(bench):
    clips = revisit(bench, 20).past
    back = _reversed(clips, clips.pose, unknown_action=6)
    assert torch.equal(back.pose, clips.pose.flip(1)[:, 1:])
    assert integrate_motion(clips.pose[:, -1], back.motion[:, 0]).allclose(clips.pose[:, -2], atol=1e-5)
    assert (back.action == 6).all()


def test_a_full_turn_ends_where_the_heading_has_gone_round(walking, monkeypatch):
    walks, turned = walks_of(walking), []
    monkeypatch.setattr(tests, "moving_actions", lambda episodes, scale: ([1, 4], 2))
    monkeypatch.setattr(MotionHead, "forward", lambda *_: torch.tensor([0.0, 0.0, 0.4]).expand(8, 3))
    monkeypatch.setattr(tests, "_views_again", lambda context, walks, dream, *rest: turned.append((dream, rest[-1])) or {})
    tests._full_turn(walking, walks)
    (dream, rows) = turned[0]
    assert dream.latent.shape[1] == math.ceil(2 * math.pi / 0.4)
    assert rows.all()


def test_the_whole_command_makes_them_beside_the_worlds_own(folder, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(tests, "LONGEST_TURN", 20)
    out = tmp_path / "scores.json"
    sizes = dict(
        context=10, retrieval=(10,), imagination=(10, 18), known_places=(20, 12), elsewhere=(0, 4), interruption=(1, 3), cold_start=6
    )
    names = (*ALWAYS, "known_places", "stability", "retrieval")
    run = Args(folder, weights=tiny_weights, out=out, figures=tmp_path, clips=1, tests=names, memories=("own",), **sizes)
    evaluate(run)
    scores = json.loads(out.read_text())["scores"]
    assert tuple(scores) == names
    assert scores["interruption"]["uninterrupted: PSNR"] == scores["retrieval"]["revisiting 10 frames, own memory: PSNR"]
    assert scores["interruption"]["3 of noise: cost (dB)"]["mean"] != 0
    assert {"one sample, frames 11 to 12: PSNR", "mean of 8 samples, frames 1 to 10: PSNR"} <= scores["known_places"].keys()
    assert {"there and back, 4 steps elsewhere: PSNR", "autoencoder: PSNR"} <= scores["stability"].keys()
    assert {"interruption", "cold_start"} <= {path.stem for path in tmp_path.glob("*.png")}
    assert Args(folder, weights=tiny_weights).tests[-4:] == ("drift", *ALWAYS)
    with pytest.raises(ValueError, match=r"elsewhere must be at least 0, got \(-1,\)"):
        Args(folder, elsewhere=(-1,))
