"""Measuring: scores of known pictures, walks back, whose memory is used, and the whole command on a small folder."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from real_walks import write_real_walks

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.data.episode import episode_paths
from lssvwm_gym.evaluation.context import SUITES
from lssvwm_gym.evaluation.evaluate import TESTS, Evaluation, evaluate, open_context
from lssvwm_gym.evaluation.metrics import masked_score, precision_recall_f1, psnr, rank_correlation, score, ssim
from lssvwm_gym.evaluation.rollouts import (
    cut_clips,
    dream_along,
    memory_of,
    prefill_clips,
    prefill_without_poses,
    read_encoded,
    with_reversal,
)
from lssvwm_gym.models.geometry import integrate_motion
from lssvwm_gym.models.rollout import first_state
from lssvwm_gym.models.world_model import MotionHead, OdometryHead

PICTURES = {"open_loop", "retrieval", "recall", "reasoning", "map", "revisit_curve"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_walks(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def weights(tiny_weights):
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def clips(folder, weights):
    return cut_clips(read_encoded(episode_paths(folder), weights), 20, 2)


def picture_of(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


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


def test_clips_without_such_frames_do_not_count():
    values, mask = torch.tensor([[1.0, 9.0], [5.0, 5.0], [2.0, 4.0]]), torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    assert (masked_score(values, mask).mean, masked_score(values, mask).clips) == (2.0, 2)
    assert masked_score(values, mask & False) is None


def test_f1_counts_hits_misses_and_false_alarms():
    truth = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    precision, recall, f1 = precision_recall_f1(torch.tensor([1, 1, 0, 0, 1, 0]).bool(), truth)
    assert (precision, recall, f1) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))
    assert precision_recall_f1(torch.zeros(6).bool(), truth) == (0, 0, 0)


def test_clips_are_cut_where_they_say(clips):
    assert clips.frames.shape[:2] == (6, 20)
    assert clips.pose[:, 0].allclose(torch.tensor([0.0, 0.0, 1.0, 0.0]), atol=1e-5)
    assert integrate_motion(clips.pose[:, :-1], clips.motion[:, 1:]).allclose(clips.pose[:, 1:], atol=1e-5)


def test_there_and_back_ends_where_it_began(clips):
    walk = with_reversal(clips, unknown_action=6)
    assert len(walk) == 39
    assert torch.equal(walk.frames, walk.frames.flip(1))
    assert (walk.action[:, 20:] == 6).all()
    assert integrate_motion(walk.pose[:, :-1], walk.motion[:, 1:]).allclose(walk.pose[:, 1:], atol=1e-5)


def test_a_dream_along_true_motion_ends_at_the_true_pose(clips, weights):
    state = prefill_clips(weights.world_model, clips[:10])
    dream, end = dream_along(weights.world_model, state, clips[10:], 1, true_motion=True)
    assert end.pose.allclose(clips.pose[:, -1], atol=0.02)
    assert dream.pose.allclose(clips.pose[:, 10:], atol=0.02)


def test_reckoning_needs_no_poses_and_is_right_where_the_pose_head_is(clips, weights, monkeypatch):
    model, lost = weights.world_model, clips.pose * float("nan")
    blind = replace(clips, pose=lost, motion=lost[..., :3])
    state, _, poses = prefill_without_poses(model, blind)
    assert poses.isfinite().all()
    assert torch.equal(poses[:, 0], first_state(model, torch.zeros(6)).pose)  # a dream begins at its own origin
    assert (poses[:, -1] - clips.pose[:, -1])[:, :2].norm(dim=-1).max() > 0.1  # random weights don't know where they go
    motions = iter(clips.motion.unbind(1))
    monkeypatch.setattr(MotionHead, "forward", lambda *_: next(motions))
    state, _, poses = prefill_without_poses(model, blind, odometry=False)
    assert poses.allclose(clips.pose, atol=0.02)
    assert state.features.allclose(prefill_clips(model, clips).features, atol=0.1)


def test_what_is_seen_corrects_what_was_reckoned(clips, weights, monkeypatch):
    slips = torch.tensor([0.1, -0.05, 0.2]).expand(6, 3)
    motions = iter(clips.motion.unbind(1))
    monkeypatch.setattr(MotionHead, "forward", lambda *_: next(motions))
    monkeypatch.setattr(OdometryHead, "forward", lambda *frames_and_motions: frames_and_motions[4] + slips)
    poses = prefill_without_poses(weights.world_model, clips).pose
    expected = [clips.pose[:, 0]]
    for motion in clips.motion[:, 1:].unbind(1):
        expected.append(integrate_motion(expected[-1], motion + slips[:, :3]))
    assert poses.allclose(torch.stack(expected, 1), atol=0.02)


def test_a_strangers_memory_is_another_episodes(clips, weights):
    state = prefill_clips(weights.world_model, clips[:10])
    strange, empty = memory_of(state, 2), memory_of(state, None)
    for mine, theirs, none in zip(state.world.layers, strange.world.layers, empty.world.layers, strict=True):
        for part, value in mine._asdict().items():
            if part in ("keys", "values"):
                assert torch.equal(getattr(theirs, part), value)
                assert torch.equal(getattr(none, part), value)
            else:
                assert torch.equal(getattr(theirs, part)[2], value[0])
                assert (getattr(none, part) == 0).all()
    assert torch.equal(strange.world.age, state.world.age)
    assert torch.equal(strange.pose, state.pose)
    assert state.world.spatial_memory.latents.any()


@pytest.fixture(scope="module")
def measured(folder, tiny_weights, tmp_path_factory):
    """A report of all tests, and the folder with its JSON and its pictures."""
    out = tmp_path_factory.mktemp("measured")
    run = Evaluation(folder, weights=tiny_weights, out=out / "scores.json", figures=out, clips=1, context=10, ahead=5)
    sizes = dict(retrieval=(10, 52), reasoning=(30, 10), drift=30)
    evaluate(Evaluation(**{**vars(run), **sizes}))
    return json.loads((out / "scores.json").read_text()), out


def test_the_whole_command_writes_every_score(measured):
    report, _ = measured
    scores = report["scores"]
    assert report["data"]["episodes"] == 3
    assert tuple(scores) == SUITES["memory-maze"]["tests"]
    assert "skipped" not in report
    assert scores["retrieval"]["revisiting 10 frames, own memory: PSNR"]["clips"] == 3
    assert {key.split(", ")[1] for key in scores["retrieval"] if key.startswith("revisiting 52 frames, cost")} == {
        f"cost of {name} (dB)" for name in ("stranger's memory", "emptied memory", "shuffled poses", "estimated poses", "estimated motions")
    }
    assert "revisiting 52 frames, own memory: fall from 50 to 100 frames since seen (dB)" in scores["retrieval"]
    assert "revisiting 52 frames, single views: PSNR" in scores["retrieval"]
    assert "revisiting 10 frames, single views: PSNR" not in scores["retrieval"]
    assert scores["drift"]["real frames, step 30: position error (world units)"]["clips"] == 3
    assert "30 context + 10 generated frames, true poses: PSNR" in scores["reasoning"]
    assert "dreamed frames, step 21: heading error (degrees)" in scores["drift"]


def test_costs_are_differences(measured):
    scores = measured[0]["scores"]["retrieval"]
    for name in ("shuffled poses", "estimated poses"):
        lost = scores["revisiting 52 frames, own memory: PSNR"]["mean"] - scores[f"revisiting 52 frames, {name}: PSNR"]["mean"]
        assert scores[f"revisiting 52 frames, cost of {name} (dB)"]["mean"] == pytest.approx(lost, abs=1e-4)


def test_there_is_a_picture_of_everything(measured):
    pictures = {path.stem: picture_of(path).size for path in measured[1].glob("*.png")}
    assert pictures.keys() == PICTURES
    assert pictures["retrieval"] == (150 + 8 * 128, 16 + 3 * (8 * 128 + 8))  # truth, autoencoder, six memories


def test_only_the_chosen_memories_are_measured(folder, tiny_weights):
    run = Evaluation(data=folder, weights=tiny_weights, tests=("retrieval",), clips=1, retrieval=(10,), memories=("own",))
    variants = {key.split(", ")[1].split(":")[0] for key in evaluate(run)["scores"]["retrieval"]}
    assert variants == {"own memory", "last frame repeated"}


def test_a_stranger_must_be_of_another_episode(tiny_weights, tmp_path):
    run = Evaluation(write_real_walks(tmp_path, 1), weights=tiny_weights, tests=("retrieval",), retrieval=(10,), memories=("stranger",))
    with pytest.raises(ValueError, match="a stranger's memory needs two episodes"):
        evaluate(run)


def test_a_test_that_fails_costs_none_before_it(folder, tiny_weights, tmp_path):
    out = tmp_path / "scores.json"
    with pytest.raises(ValueError, match="no episode has the 800 frames"):
        evaluate(Evaluation(folder, weights=tiny_weights, out=out, tests=("reward", "reasoning")))
    assert set(json.loads(out.read_text())["scores"]) == {"reward"}


def test_one_test_can_be_run_by_a_script(folder, tiny_weights):
    bench = open_context(Evaluation(folder, weights=tiny_weights))
    assert set(TESTS["reward"](bench)) == {"precision", "recall", "F1", "rewards"}


def test_bad_settings_say_what_there_is(folder, tiny_weights):
    with pytest.raises(ValueError, match="no test named dance; there are reconstruction"):
        evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("dance",)))
    with pytest.raises(ValueError, match="no world named 'mars'; there are memory-maze"):
        evaluate(Evaluation(data=folder, world="mars"))
    with pytest.raises(ValueError, match="no memory named good; there are own, stranger"):
        Evaluation(data=folder, memories=("own", "good"))
    with pytest.raises(ValueError, match=r"retrieval must be at least 2, got \(100, 1\)"):
        Evaluation(data=folder, retrieval=(100, 1))
    with pytest.raises(ValueError, match="drift needs more than 101 frames, and has 60"):
        evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("drift",)))
    with pytest.raises(ValueError, match="no episode has the 500 frames"):
        evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("open_loop",), context=450))


def test_rank_correlation_sees_order_only():
    quality = torch.tensor([[30.0, 25.0], [24.0, 10.0]])
    assert rank_correlation(-(quality**3), quality) == pytest.approx(-1)


def test_uncertainty_is_compared_with_quality_where_there_is_one(folder, tiny_weights, tmp_path):
    for steps in (1, 2):
        report = evaluate(Evaluation(data=folder, weights=tiny_weights, tests=("open_loop",), steps=steps, clips=1, context=10, ahead=4))
        assert ("rank correlation of uncertainty and PSNR" in report["scores"]["open_loop"]) == (steps > 1)


def test_who_stands_still_still_has_a_pose(folder, weights):
    """And who has none is told so, whatever stands in its place."""
    episodes = read_encoded(episode_paths(folder), weights)
    still = cut_clips(episodes, 1, 1)
    assert prefill_clips(weights.world_model, still).pose_known.tolist() == [1, 1, 1]
    lost = [replace(e, pose=torch.full_like(e.pose, torch.nan)) for e in episodes]
    clips = cut_clips(lost, 5, 1)
    assert prefill_clips(weights.world_model, clips).pose_known.tolist() == [0, 0, 0]
    assert clips.pose.isfinite().all()
