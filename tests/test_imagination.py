"""Dreams against real places in distribution: measures on sets whose outcome is known, walks by hand, and the whole command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from real_walks import write_real_walks

from lssvwm_gym.evaluation import distributions as sets
from lssvwm_gym.evaluation import imagination as tests
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate, open_context
from lssvwm_gym.models.geometry import integrate_motion
from lssvwm_gym.models.motion_heads import moving_actions
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import MotionHead

SIZES = dict(imagination=(10, 18), known_places=(20, 12), elsewhere=(0, 4), clips=2)
NAMES = ("imagination", "known_places", "stability")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_walks(tmp_path_factory.mktemp("real"), episodes=4)


@pytest.fixture(scope="module")
def bench(folder, tiny_weights):
    return open_context(Evaluation(folder, weights=tiny_weights, **SIZES))


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def walks_of(bench):
    clips, episodes = tests._clips(bench, 28)
    return tests.dreamed_walks(bench, clips, 10, episodes)[0]


def test_distances_of_equal_sets_are_0_and_of_moved_ones_known():
    features = drawn(0, 8, 50, 6)
    assert sets.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert sets.frechet_distance(features, features + 2) == pytest.approx(4 * 6, abs=1e-6)
    assert sets.frechet_distance(features, 3 * features) > 6 * 3.5  # (3 - 1)^2 for each of six variances of about 1
    other = drawn(1, 8, 50, 6)
    assert sets.kernel_distance(features, features) == pytest.approx(0)
    assert abs(sets.kernel_distance(features, other)) < 0.05 < 1 < sets.kernel_distance(features, other + 1)


def test_kernel_distance_is_of_different_episodes():
    """Frames of one episode are all alike: taken as independent, they would make equal distributions look far apart."""
    found = torch.tensor([sets.kernel_distance(*(drawn(2 * seed + k, 8, 1, 6).expand(8, 20, 6) for k in (0, 1))) for seed in range(100)])
    assert abs(found.mean()) < 2.5 * found.std() / 10


def test_recall_of_one_repeated_frame_is_low_and_precision_of_noise_too():
    real, same = drawn(0, 6, 60, 4), drawn(1, 6, 60, 4)
    assert min(sets.precision(real, same), sets.recall(real, same)) > 0.8
    repeated = real[:, :1].mean(0, keepdim=True) + 1e-3 * drawn(2, 6, 60, 4)
    assert (sets.precision(real, repeated), sets.recall(real, repeated)) == (1.0, 0.0)
    assert sets.precision(real, 20 * same) < 0.1


def test_neighbours_are_of_other_episodes():
    """Copies of a frame within its episode make no reach: the nearest neighbour is as far as the next episode."""
    real = torch.arange(4.0).view(4, 1, 1).expand(4, 9, 1)
    assert sets.precision(real, real + 1.4) == 0.75  # that of the last episode is near the frames of its own place only
    assert sets.precision(real, real + 100) == 0.0


def test_errors_are_over_episodes():
    values = torch.tensor([0.0, 2.0, 4.0, 6.0]).view(4, 1, 1).expand(4, 10, 1)
    found = sets.jackknife(lambda a, b: a.mean().item() - b.mean().item(), values, torch.zeros(4, 10, 1))
    assert (found.mean, found.clips) == (3.0, 4)
    assert found.error == pytest.approx(values[:, 0, 0].std().item() / 2)  # of a mean, what it always is
    assert math.isnan(sets.jackknife(lambda a, b: 0.0, values[:2], values[:2]).error)


def test_a_network_tells_different_sets_apart_and_equal_ones_not():
    state = torch.random.get_rng_state()
    real, same = drawn(0, 8, 1, 40, 4, 4), drawn(1, 8, 1, 40, 4, 4)
    apart = {name: sets.area_under_curve(*sets.told_apart(real, other, 0)) for name, other in (("same", same), ("moved", same + 1))}
    assert abs(apart["same"] - 0.5) < 0.1
    assert apart["moved"] > 0.97
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stacks_hold_successive_frames():
    latent = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 4, 3)
    assert sets.stacks_of(latent, 1).shape == (1, 12, 4, 3)
    stacks = sets.stacks_of(latent, 8)
    assert stacks.shape == (1, 2, 4, 24)
    assert stacks[0, 1, 0, :8].tolist() == list(range(4, 12))


def test_untrained_features_see_colour_and_motion_and_are_always_the_same():
    frames = torch.zeros(1, 2, 8, 16, 16, 3)
    frames[:, 1] = 200
    moving = frames[:, :1].clone()
    moving[:, :, ::2] = 200
    features, moved = (sets.untrained_features(one, lambda clip: clip) for one in (frames, moving))
    assert features.shape == (1, 2, 3, sum(sets.WIDTHS))
    assert torch.equal(features, sets.untrained_features(frames, lambda clip: clip))
    assert len({round(one.mean().item(), 4) for one in (features[:, 0], features[:, 1], moved)}) == 3


def test_windows_go_as_far_as_the_dream():
    assert dict(tests.windows(30)) == {"frames 1 to 30": slice(0, 30)}
    assert list(dict(tests.windows(54))) == ["frames 1 to 50", "all 54 frames"]
    assert dict(tests.windows(280)) == {
        "frames 1 to 50": slice(0, 50),
        "frames 51 to 200": slice(50, 200),
        "frames 201 to 280": slice(200, 280),
        "all 280 frames": slice(0, 280),
    }
    assert list(dict(tests.windows(1000)))[-2:] == ["frames 501 to 1000", "all 1000 frames"]


def test_actions_that_lead_ahead_are_found_by_what_they_did():
    def along(action, motion):
        pose = [torch.tensor([[0.0, 0.0, 1.0, 0.0]])]
        for forward, turn in motion:
            pose.append(integrate_motion(pose[-1], torch.tensor([[forward, 0.0, turn]])))
        return Segment(torch.zeros(len(pose), 1, 1), torch.tensor([0, *action]), pose=torch.cat(pose))

    motion = [(0, 0), (0, 0), (0.25, 0), (0.2, 0.3), (0, 0.3), (0, 0.3), (0, -0.1), (0, -0.1)]  # blocked, then ahead; a turn coasts once
    assert moving_actions([along([1, 1, 1, 2, 2, 2, 3, 3], motion)], 0.15) == ([1], 2)
    assert moving_actions([along([1, 1, 1, 1, 1, 1, 1, 1], motion)], 0.15) == ([1], None)


def test_cells_are_counted_once():
    path = torch.tensor([[[0.1, 0.1], [0.9, 0.2], [1.2, 0.2], [0.5, 0.5], [-0.1, 0.5]]])
    assert tests.cells_visited(path, 1.0).tolist() == [3]


def test_blocked_steps_and_ways_are_counted_in_real_places_and_dreams(bench, monkeypatch):
    monkeypatch.setattr(tests, "moving_actions", lambda episodes, scale: ([1, 4], 2))
    walks = walks_of(bench)
    ahead = torch.zeros(walks.dream.motion.shape)
    ahead[..., 0] = 0.3
    blocked = ahead.clone()
    blocked[:, ::3, 0] = 0.04
    walks = replace(walks, real=replace(walks.real, motion=ahead), dream=walks.dream._replace(motion=blocked))
    found = tests._behaviour(bench, walks)
    forward = torch.isin(walks.real.action, torch.tensor([1, 4]))
    share = walks.by_episode((blocked[..., 0] < 0.05).float() * forward).sum(1) / walks.by_episode(forward).sum(1)
    assert found["real, frames 1 to 18: share of forward steps blocked"].mean == 0
    assert found["dreamed, frames 1 to 18: share of forward steps blocked"].mean == pytest.approx(share.mean().item())
    assert found["real: distance covered in 100 steps (world units)"].mean == pytest.approx(30)
    assert found["dreamed: distance covered in 100 steps (world units)"].mean == pytest.approx(100 * (0.3 * 2 + 0.04) / 3)
    assert found["real: rewards in 1,000 steps"].mean == pytest.approx(1000 * walks.real.reward.mean().item())
    assert not any("against walls" in name for name in found)
    runs = torch.zeros_like(walks.real.reward)
    runs[::2] = 1.0  # rewarded in each step: the half whose steps are blocked
    stuck = ahead.clone()
    stuck[::2, :, 0] = 0.0
    half = replace(walks, real=replace(walks.real, motion=stuck, reward=runs), episodes=len(runs))
    found = tests._behaviour(bench, half)
    name = "real: rewards in 1,000 steps of players that run against walls"
    assert (found[name].mean, found[name].clips) == (1000, len(runs[::2]))


def test_clips_of_an_episode_do_not_overlap(bench):
    assert tests._clips(bench, 28)[0].batch == 8
    assert tests._clips(bench, 40)[0].batch == 4
    with pytest.raises(ValueError, match="no episode has the 61 frames"):
        tests._clips(bench, 61)


def test_dreams_have_the_same_noise_however_many_run_together(bench, monkeypatch):
    together = walks_of(bench).dream
    monkeypatch.setattr(tests, "ROWS", 3)
    apart = walks_of(bench).dream
    assert apart.latent.allclose(together.latent, atol=0.02)
    assert not apart.latent[0].allclose(apart.latent[3], atol=0.1)


def test_a_full_turn_ends_where_the_heading_has_gone_round(bench, monkeypatch):
    walks, turned = walks_of(bench), []
    monkeypatch.setattr(tests, "moving_actions", lambda episodes, scale: ([1, 4], 2))
    monkeypatch.setattr(MotionHead, "forward", lambda *_: torch.tensor([0.0, 0.0, 0.4]).expand(8, 3))
    monkeypatch.setattr(tests, "_views_again", lambda context, walks, dream, *rest: turned.append((dream, rest[-1])) or {})
    tests._full_turn(bench, walks)
    (dream, rows) = turned[0]
    assert dream.latent.shape[1] == math.ceil(2 * math.pi / 0.4)
    assert rows.all()


@pytest.fixture(scope="module", autouse=True)
def _short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "STEPS", 60)
        patch.setattr(tests, "LONGEST_TURN", 20)
        yield


@pytest.fixture(scope="module")
def measured(folder, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    sizes = dict(out=out / "scores.json", figures=out, tests=NAMES, other_data=write_real_walks(out / "others", 5, 60))
    evaluate(Evaluation(folder, weights=tiny_weights, **SIZES, **sizes))
    return json.loads((out / "scores.json").read_text()), out


def test_the_whole_command_measures_imagination(measured):
    report, out = measured
    scores = report["scores"]
    assert tuple(scores) == NAMES
    assert report["other_data"]["episodes"] == 5
    imagined = scores["imagination"]
    assert imagined["episodes of the floor, of other data"] == 4
    for name in ("latents", "stacks of 4"):
        for measure in sets.DISTANCES:
            assert {f"{name}, frames 1 to 18: {measure}, {kind}" for kind in ("dreamed", "floor")} <= imagined.keys()
    assert imagined["single frames, frames 1 to 18: AUC, dreamed"]["mean"] > 0.9  # random weights dream of nothing real
    assert all(value["clips"] == 4 and math.isfinite(value["mean"]) for value in imagined.values() if isinstance(value, dict))
    assert {"one sample, frames 11 to 12: PSNR", "mean of 8 samples, frames 1 to 10: PSNR"} <= scores["known_places"].keys()
    assert {"there and back, 4 steps elsewhere: PSNR", "autoencoder: PSNR"} <= scores["stability"].keys()
    with Image.open(out / "imagination.png") as picture:
        assert picture.size == (150 + 17 * 128, 16 + 8 * (128 + 8))


def test_without_other_places_the_floor_is_halves(folder, tiny_weights, tmp_path):
    scores = evaluate(Evaluation(folder, weights=tiny_weights, tests=("imagination",), **SIZES))["scores"]["imagination"]
    assert scores["episodes of the floor, halves of the same"] == 2
    few = dict(weights=tiny_weights, tests=("imagination",), **SIZES)
    with pytest.raises(ValueError, match="halves of 3 episodes are too few for a floor: name other real ones with --other-data"):
        evaluate(Evaluation(write_real_walks(tmp_path / "few"), **few))
    with pytest.raises(ValueError, match="has 3 episodes of 28 frames, and a floor for 4 needs as many"):
        evaluate(Evaluation(folder, other_data=tmp_path / "few", **few))


def test_imagination_goes_by_poses_and_is_only_measured_when_asked_for(bench, tiny_weights, folder):
    lost = [replace(episode, pose=torch.full_like(episode.pose, torch.nan)) for episode in bench.episodes]
    report = evaluate(Evaluation(folder, weights=tiny_weights, tests=("imagination",)), replace(bench, episodes=lost))
    assert report["skipped"] == {"imagination": "the episodes have no poses"}
    assert not set(NAMES) & set(Evaluation(folder, weights=tiny_weights).tests)
    with pytest.raises(ValueError, match=r"imagination must be at least 2, got \(20, 1\)"):
        Evaluation(folder, imagination=(20, 1))
