"""The small world of examples/small_world.py: its episodes, what a window can see, and that scans recall beyond it."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

SMALL_WORLD = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "small_world.py"))
SmallWorld, draw_episodes, make_model, predict = (SMALL_WORLD[name] for name in ("SmallWorld", "draw_episodes", "make_model", "predict"))


def test_episodes_are_what_a_camera_sees_of_a_round_wall():
    columns = 5
    episodes = draw_episodes(np.random.default_rng(0), 3, 80, columns, 10**6, 20)
    column = episodes.latent[..., 3:].argmax(-1)
    moves = torch.tensor(SMALL_WORLD["MOVES"])[episodes.action[:, 1:]]
    assert (column[:, 1:] == (column[:, :-1] + moves.unsqueeze(-1)) % columns).all()
    assert (episodes.action[:, 0] == 4).all()
    for row in range(3):
        wall, last = {}, {}
        for t in range(80):
            for token in range(4):
                tile = (token // 2, int(column[row, t, token]))
                colour = tuple(episodes.latent[row, t, token, :3].tolist())
                assert wall.setdefault(tile, colour) == colour
                assert episodes.since[row, t, token] == (t - last[tile] if tile in last else 0)
            last |= {(token // 2, int(column[row, t, token])): t for token in range(4)}


def test_walks_stay_within_reach():
    positions, actions = SMALL_WORLD["walk"](np.random.default_rng(1), 200, 4, 10)
    assert set(positions) == {0, 1, 2, 3}
    assert len(positions) == len(actions) == 200


@pytest.mark.parametrize(("variant", "sees_it"), [("ours", True), ("one-block", True), ("small-blocks", True), ("sliding-window", False)])
def test_only_a_scan_can_see_what_two_windows_have_left(variant, sees_it):
    """Two layers of a window of 16 frames reach 32 frames back."""
    run = SmallWorld()
    torch.manual_seed(0)
    model = make_model(run, variant)
    for parameter in model.parameters():  # nothing begins at zero, as the adaptive norms do
        parameter.data += 0.02 * torch.randn_like(parameter)
    episodes = draw_episodes(np.random.default_rng(0), 1, 40, run.columns, 10**6, 0)
    other = episodes._replace(latent=episodes.latent.clone())
    other.latent[:, :4, :, :3] *= -1  # other colours in the first frames
    with torch.no_grad():
        one, two = (predict(model, each, torch.Generator().manual_seed(0))[:, 37:] for each in (episodes, other))
    assert (one != two).any().item() == sees_it


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="no variant named 'large'; there are ours, "):
        SMALL_WORLD["model_config"](SmallWorld(), "large")


def test_variants_have_about_as_many_weights():
    sizes = [sum(weight.numel() for weight in make_model(SmallWorld(), name).layers.parameters()) for name in SmallWorld().variants]
    assert max(sizes) < 1.06 * min(sizes)


def test_scans_recall_what_a_sliding_window_has_lost():
    """Half a minute of training; the test's tiles were out of view for 32 to 63 frames, training episodes have 48 and then 96."""
    run = SmallWorld(columns=5, steps=240, test_frames=160)
    ours, window = (SMALL_WORLD["recall"](run, SMALL_WORLD["train"](run, name, 0)) for name in ("ours", "sliding-window"))
    assert ours[32] > 0.8
    assert window[32] < 0.25  # chance is 1/8
    assert ours[0] < 0.25  # nothing tells the colour of a tile that was never seen
