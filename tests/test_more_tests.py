"""More tests of dreams on cases whose outcome is known: painted patches, cold starts; and the whole command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from real_walks import write_real_walks

from experiments import rewards_ahead
from experiments.more_tests import ALWAYS, Args, _reversed, identity, interrupted, k_means, nearest, patches, statistics
from lssvwm_gym.evaluation.context import open_context
from lssvwm_gym.evaluation.evaluate import evaluate
from lssvwm_gym.evaluation.memory import revisit
from lssvwm_gym.evaluation.rollouts import clips_at
from lssvwm_gym.models.geometry import integrate_motion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_walks(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def bench(folder, tiny_weights):
    return open_context(Args(folder, weights=tiny_weights, clips=1, context=20, retrieval=(20,)))


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


def paid_at(bench, *frames):
    """The bench with the rewards of its episodes moved to these frames."""
    episodes = []
    for episode in bench.episodes:
        reward = torch.zeros_like(episode.reward).index_fill(0, torch.tensor(frames, dtype=torch.int64), 1.0)
        episodes.append(replace(episode, reward=reward))
    return replace(bench, episodes=episodes)


def test_rewards_ahead_are_dreamed_or_not(folder, tiny_weights, monkeypatch):
    bench = paid_at(open_context(Args(folder, weights=tiny_weights, context=5, clips=1)), 12, 50, 55)
    told = []

    def foretold(model, state, clips, steps):
        """A dream that pays right in time, but never more than 10 frames ahead, and once where nothing is."""
        told.append((state.world.age.tolist(), len(clips)))
        pays = torch.zeros(clips.reward.shape, dtype=torch.bool)
        pays[:, -rewards_ahead.NEAR - 1] = len(clips) - rewards_ahead.NEAR <= 10
        pays[:, 0] |= len(clips) > 40
        return pays

    monkeypatch.setattr(rewards_ahead, "predicted_rewards", foretold)
    results = rewards_ahead.reward_ahead(bench)
    assert results["rewards"] == 6  # in each of three episodes; frame 12 has too little before it
    assert told == [([45 - lead + 1] * 6, lead + 3) for lead in (40, 20, 10, 5, 2)]
    shares = {int(name.split()[0]): value.mean for name, value in results.items() if name.endswith("of rewards dreamed")}
    assert shares == {40: 0, 20: 0, 10: 1, 5: 1, 2: 1}
    assert results["40 frames ahead: share of dreamed rewards that are real"] == 0.5  # of frames 11 and 16, 11 is near 12


def test_a_dream_pays_by_its_own_frames(folder, tiny_weights):
    bench = paid_at(open_context(Args(folder, weights=tiny_weights, context=5, clips=1)), 50)
    results = rewards_ahead.reward_ahead(bench)
    shares = [value.mean for name, value in results.items() if name.endswith("of rewards dreamed")]
    assert len(shares) == 5
    assert all(0 <= share <= 1 for share in shares)
    real = torch.zeros(1, 9)
    real[0, 4] = 1
    assert rewards_ahead._widened(real > 0)[0].tolist() == [False, True, True, True, True, True, True, True, False]


def test_rewards_are_foreseen_after_a_long_past_too(folder, tiny_weights, monkeypatch):
    monkeypatch.setattr(rewards_ahead, "LONG", 9)
    bench = paid_at(open_context(Args(folder, weights=tiny_weights, context=5, clips=1)), 47, 50)
    asked = []
    monkeypatch.setattr(rewards_ahead, "clips_at", lambda places, frames: asked.append((len(places), frames)) or clips_at(places, frames))
    results = rewards_ahead.reward_ahead(bench)
    assert (results["rewards"], results["9 context frames, rewards"]) == (6, 3)  # frame 47 has not 9 + 40 before it
    monkeypatch.setattr(rewards_ahead, "MAX_FRAMES", 2 * 45)
    in_parts = rewards_ahead.reward_ahead(bench)
    assert asked == [(6, 49), (3, 53)] + [(2, 49)] * 3 + [(1, 53)] * 3
    assert in_parts["rewards"] == 6
    monkeypatch.setattr(rewards_ahead, "LONG", 5)  # no longer than the usual one
    assert not any(name.startswith("5 context frames") for name in rewards_ahead.reward_ahead(bench))


def test_where_nothing_is_paid_late_enough_there_is_nothing_to_foresee(folder, tiny_weights):
    report = evaluate(Args(folder, weights=tiny_weights, tests=("reward_ahead",)))
    assert report["skipped"] == {"reward_ahead": "no reward has 140 frames before it"}


def test_the_whole_command_makes_them_beside_the_worlds_own(folder, tiny_weights, tmp_path):
    out = tmp_path / "scores.json"
    sizes = dict(context=10, retrieval=(10,), interruption=(1, 3), cold_start=6)
    names = (*ALWAYS[-3:], "retrieval")
    run = Args(folder, weights=tiny_weights, out=out, figures=tmp_path, clips=1, tests=names, memories=("own",), **sizes)
    evaluate(run)
    scores = json.loads(out.read_text())["scores"]
    assert tuple(scores) == names
    assert scores["interruption"]["uninterrupted: PSNR"] == scores["retrieval"]["revisiting 10 frames, own memory: PSNR"]
    assert scores["interruption"]["3 of noise: cost (dB)"]["mean"] != 0
    assert {"interruption", "cold_start"} <= {path.stem for path in tmp_path.glob("*.png")}
    assert Args(folder, weights=tiny_weights).tests[-1 - len(ALWAYS) :] == ("drift", *ALWAYS)
    with pytest.raises(ValueError, match=r"interruption must be at least 1, got \(0,\)"):
        Args(folder, interruption=(0,))
