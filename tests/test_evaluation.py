"""Measuring: scores of known pictures, walks back, whose memory is used, and the whole command on a small folder."""

import json

import numpy as np
import pytest
import torch

from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.evaluation.evaluate import Evaluation, _memory_of, evaluate
from lssvwm_gym.evaluation.metrics import precision_recall_f1, psnr, rank_correlation, score, ssim
from lssvwm_gym.evaluation.rollouts import cut_clips, dream_along, read_real_episodes, remember_clips, there_and_back
from lssvwm_gym.models.pose import advance
from lssvwm_gym.models.weights import load_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three short episodes with poses, as a collector would write them."""
    folder = tmp_path_factory.mktemp("real")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        pose, poses = torch.tensor([1.0, 1.0, 1.0, 0.0]), []
        for _ in range(60):
            poses.append(pose)
            pose = advance(pose, torch.tensor([0.1, 0.0, float(rng.normal() * 0.2)]))
        position = torch.stack(poses).numpy()
        frames = rng.integers(256, size=(60, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        reward = (rng.random(60) < 0.1).astype(np.float32)
        extras = {"agent_pos": position[:, :2], "agent_dir": position[:, 2:]}
        write_episode(folder / f"{seed:06d}", Episode(frames, rng.integers(6, size=60).astype(np.uint8), reward, extras), fps=4)
    return folder


@pytest.fixture(scope="module")
def weights(tiny_weights):
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def clips(folder, weights):
    return cut_clips(read_real_episodes(folder, weights), 20, 2)


def test_psnr_and_ssim_of_known_pictures():
    black = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    assert psnr(black, black + 51).allclose(torch.tensor(13.9794))  # an error of 0.2: -20 log10 0.2
    assert (psnr(black, black) == 60).all()
    assert ssim(black, black).allclose(torch.tensor(1.0))


def test_the_border_is_left_out():
    truth = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)
    framed = truth.clone()
    framed[:, :, :2] = framed[:, :, -2:] = framed[:, :, :, :2] = framed[:, :, :, -2:] = 255
    assert (psnr(framed, truth, border=2) == 60).all()
    assert (psnr(framed, truth, border=1) < 20).all()


def test_standard_error_is_over_clips_not_frames():
    values = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    assert (score(values).mean, score(values).clips) == (3.0, 3)
    assert score(values).error == pytest.approx(2 / 3**0.5)


def test_f1_counts_hits_misses_and_false_alarms():
    truth = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    precision, recall, f1 = precision_recall_f1(torch.tensor([1, 1, 0, 0, 1, 0]).bool(), truth)
    assert (precision, recall, f1) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))
    assert precision_recall_f1(torch.zeros(6).bool(), truth) == (0, 0, 0)


def test_clips_are_cut_where_they_say(clips):
    assert clips.frames.shape[:2] == (6, 20)
    assert clips.pose[:, 0].allclose(torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-5)
    assert advance(clips.pose[:, :-1], clips.motion[:, 1:]).allclose(clips.pose[:, 1:], atol=1e-5)


def test_there_and_back_ends_where_it_began(clips):
    walk = there_and_back(clips, unknown_action=6)
    assert len(walk) == 39
    assert torch.equal(walk.frames, walk.frames.flip(1))
    assert (walk.action[:, 20:] == 6).all()
    assert advance(walk.pose[:, :-1], walk.motion[:, 1:]).allclose(walk.pose[:, 1:], atol=1e-5)


def test_a_dream_along_true_motion_ends_at_the_true_pose(clips, weights):
    state = remember_clips(weights.world_model, clips[:10])
    _, end = dream_along(weights.world_model, state, clips[10:], 1, true_motion=True)
    assert end.pose.allclose(clips.pose[:, -1], atol=0.02)


def test_a_strangers_memory_is_another_episodes(clips, weights):
    state = remember_clips(weights.world_model, clips[:10])
    strange, empty = _memory_of(state, 2), _memory_of(state, None)
    for mine, theirs, none in zip(state.world.layers, strange.world.layers, empty.world.layers, strict=True):
        assert torch.equal(theirs.ssm[2], mine.ssm[0])
        assert (none.ssm == 0).all()
        assert torch.equal(theirs.keys, mine.keys)


def test_the_whole_command_writes_every_score(folder, tiny_weights, tmp_path):
    run = Evaluation(data=folder, weights=tiny_weights, out=tmp_path / "scores.json", clips=1, context=20, ahead=10, retrieval=(15,))
    evaluate(run)
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["data"]["episodes"] == 3
    assert set(report["scores"]) == {"reconstruction", "next_frame", "open_loop", "reward", "retrieval"}
    assert report["scores"]["retrieval"]["15 back, own memory: PSNR"]["clips"] == 3


def test_bad_settings_say_what_there_is(folder, tiny_weights):
    with pytest.raises(ValueError, match="no test named dance; there are reconstruction"):
        evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("dance",)))
    with pytest.raises(ValueError, match="no world named mars; there are memory-maze"):
        evaluate(Evaluation(data=folder, world="mars"))
    with pytest.raises(ValueError, match="no episode has the 500 frames"):
        evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("open_loop",), context=450))


def test_rank_correlation_sees_order_only():
    quality = torch.tensor([[30.0, 25.0], [24.0, 10.0]])
    assert rank_correlation(-(quality**3), quality) == pytest.approx(-1)


def test_uncertainty_is_compared_with_quality_where_there_is_one(folder, tiny_weights, tmp_path):
    for steps in (1, 2):
        report = evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("open_loop",), steps=steps, clips=1, context=10, ahead=4))
        assert ("rank correlation of uncertainty and PSNR" in report["scores"]["open_loop"]) == (steps > 1)
