"""Tests of memory on cases whose outcome is known: ages of views, drift by hand, pictures."""

import math

import pytest
import torch
from PIL import Image
from real_walks import write_real_walks

from experiments.compare_variants import retrieval_sheet
from lssvwm_gym.evaluation import figures
from lssvwm_gym.evaluation.context import Evaluation, open_context
from lssvwm_gym.evaluation.memory import (
    _revisits,
    psnr_by_age,
    retrieval,
    revisit,
    view_steps,
)
from lssvwm_gym.evaluation.prediction import _by_age, _pose_errors, frames_since_seen
from lssvwm_gym.models.world_model import MotionHead, OdometryHead


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny_weights):
    folder = write_real_walks(tmp_path_factory.mktemp("real"))
    return open_context(Evaluation(folder, weights=tiny_weights, clips=1, context=20, retrieval=(20,), memories=("own", "estimated_poses")))


def picture_of(path):
    with Image.open(path) as picture:
        return picture.convert("RGB")


def pose_at(x, y, degrees):
    return torch.tensor([x, y, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def in_space(x, y, degrees, height, tilt):
    return torch.cat([pose_at(x, y, degrees), torch.tensor([height, math.radians(tilt)])])


def test_the_revisit_curve_counts_frames_since_the_view_was_seen():
    since = 2.0 * torch.arange(1, 400).expand(2, -1)  # a way back of 399 frames whose PSNR is the age of the view
    curve = psnr_by_age(since)
    assert list(curve) == [10, 50, 100, 200, 400, 600, 800]
    assert all(curve[age].allclose(torch.tensor(float(age))) for age in (10, 50, 600))
    assert curve[800].allclose(torch.tensor(797.0))  # of 796 and 798: there is nothing older
    assert list(psnr_by_age(since[:, :14])) == [10]


def test_the_fall_is_from_50_to_800_frames_clip_by_clip():
    falling = torch.linspace(40, 20, 499).expand(2, -1) + torch.tensor([[0.0], [7.0]])
    fall = _revisits(falling, "revisiting 500 frames")["revisiting 500 frames, own memory: fall from 50 to 800 frames since seen (dB)"]
    assert fall.mean == pytest.approx(20 * 375 / 498, abs=1e-3)
    assert fall.error == pytest.approx(0, abs=1e-4)  # a clip that is better everywhere falls as much as the other


def test_estimated_poses_cost_nothing_where_the_pose_head_is_right(bench, monkeypatch):
    def cost(slip):
        motions = iter(revisit(bench, 20).past.motion.unbind(1))
        monkeypatch.setattr(MotionHead, "forward", lambda *_: next(motions))
        monkeypatch.setattr(OdometryHead, "forward", lambda *seen: seen[4] + slip)
        return abs(retrieval(bench)["revisiting 20 frames, cost of estimated poses (dB)"].mean)

    right, wrong = cost(0.0), cost(0.4)
    assert right < 0.0001 < 0.001 < wrong, (right, wrong)


def test_single_views_are_far_from_the_turning_point():
    assert view_steps(49) == []
    assert (view_steps(99)[0], view_steps(99)[-1], len(view_steps(99))) == (50, 99, 8)


def test_a_view_was_seen_before_where_place_and_heading_were_the_same():
    past = torch.stack([pose_at(0, 0, 0), pose_at(1, 0, 0), pose_at(1, 0, 90), pose_at(0, 0, 5)])[None]
    future = torch.stack([pose_at(0.2, 0, 0), pose_at(1, 0.2, 80), pose_at(1, 0, 200), pose_at(0.3, 0, 0), pose_at(1, 0, 14)])[None]
    assert frames_since_seen(past, future, 0.25).tolist() == [[1, 3, 0, 0, 7]]
    assert frames_since_seen(past, future, 0.35).tolist() == [[1, 3, 0, 4, 7]]


def test_in_space_a_view_is_seen_again_at_the_same_height_and_tilt_only():
    past = torch.stack([in_space(0, 0, 0, 5, 0), in_space(0, 0, 0, 5, 30)])[None]
    future = torch.stack([in_space(0, 0, 0, 5.2, 5), in_space(0, 0, 0, 6, 0), in_space(0, 0, 0, 5, 60), in_space(0, 0, 90, 5, 0)])[None]
    assert frames_since_seen(past, future, 0.25).tolist() == [[2, 0, 0, 0]]


def test_drift_in_space_counts_height_and_tilt():
    true = torch.stack([in_space(0, 0, 0, 0, 0)] * 11)[None]
    off = _pose_errors(torch.stack([in_space(0.3, 0, 0, 0.4, -20)] * 11)[None], true, "real")
    assert off["real, step 10: position error (world units)"].mean == pytest.approx(0.5)
    assert off["real, step 10: tilt error (degrees)"].mean == pytest.approx(20, abs=1e-3)


def test_what_was_seen_before_is_scored_apart():
    quality = torch.tensor([[30.0, 20.0, 10.0, 12.0], [5.0, 5.0, 5.0, 7.0]])
    since = torch.tensor([[99, 100, 0, 0], [0, 0, 0, 0]])
    scores = {name.removeprefix("x PSNR of frames "): (s.mean, s.clips) for name, s in _by_age(quality, since, "x").items()}
    assert scores.pop("x share of frames seen before") == (0.25, 2)
    assert scores == {"seen before": (25, 1), "new": (8.25, 2), "seen 1 to 99 frames ago": (30, 1), "seen 100 to 299 frames ago": (20, 1)}


def test_drift_is_measured_at_its_steps_in_world_units_and_degrees():
    true = torch.stack([pose_at(t, 0, 170) for t in range(151)])[None]
    believed = torch.stack([pose_at(t, 0.01 * t, 170 + 0.2 * t) for t in range(151)])[None]
    off = {name.removeprefix("real, "): s.mean for name, s in _pose_errors(believed, true, "real").items()}
    assert off["step 10: position error (world units)"] == pytest.approx(0.1, abs=1e-4)
    assert off["step 100: heading error (degrees)"] == pytest.approx(20, abs=1e-2)  # across 180 degrees
    assert off["step 150: heading error (degrees)"] == pytest.approx(30, abs=1e-2)
    assert len(off) == 6


def test_models_are_compared_on_one_sheet(tmp_path):
    truth = torch.randint(256, (2, 40, 64, 64, 3), dtype=torch.uint8)
    path = retrieval_sheet(tmp_path / "new" / "sheet.png", truth, {"ours": truth, "baseline": 255 - truth})
    picture = picture_of(path)
    assert picture.size == (150 + 8 * 128, 16 + 2 * (3 * 128 + 8))
    assert picture.getpixel((150, 16)) == tuple(truth[0, 0, 0, 0].tolist())
    assert picture.getpixel((150, 16 + 128)) == tuple(truth[0, 0, 0, 0].tolist())
    assert picture.getpixel((150, 16 + 256)) == tuple((255 - truth[0, 0, 0, 0]).tolist())
    assert picture.getpixel((150 + 8 * 128 - 1, 16)) == tuple(truth[0, 39, 0, 63].tolist())  # the last step
    with pytest.raises(ValueError, match="'short' has frames"):
        retrieval_sheet(tmp_path / "sheet.png", truth, {"short": truth[:, 1:]})


def test_revisit_curves_of_several_reports_are_drawn_together(tmp_path):
    reports = {}
    for model in ("ours", "baseline"):
        points = {
            f"revisiting 400 frames, own memory: PSNR {age} frames since seen": dict(mean=30.0, error=1.0, clips=3) for age in (100, 50)
        }
        reports[model] = {"scores": {"retrieval": points}}
    assert figures.revisits(reports["ours"]) == {400: [(50, 30.0, 1.0), (100, 30.0, 1.0)]}
    assert picture_of(figures.revisit_curve(tmp_path / "curve.png", reports)).size[0] > 400
    with pytest.raises(ValueError, match="the report 'empty' has no revisit curve"):
        figures.revisit_curve(tmp_path / "curve.png", {"empty": {"scores": {}}})
