"""The map of a world's lattice: what frames show is kept where it is, and seen again from elsewhere."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_stepping import SIZES, random_model
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import read_weights
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, save_tensors
from lssvwm_gym.models import rollout
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.map_memory import (
    COLUMNS,
    FIRM,
    HALF_VIEW,
    KIND,
    OBJECT,
    RAYS,
    ROWS,
    SIDE,
    GridPose,
    MapReader,
    MapReading,
    WantedHead,
    channels_of,
    drawn,
    grid_pose,
    misread,
    numbers_shown,
    read_map_reader,
    shown,
    told_in_view,
)
from lssvwm_gym.models.rollout import commit, first_state, imagine, prefill
from lssvwm_gym.models.state import take_rows
from lssvwm_gym.training.grown import with_heads

MIDDLE, KINDS, GRID, CHANNELS = SIDE // 2, 2, 4, SIZES["latent_channels"]
RED = torch.tensor([0.8, 0.1, 0.2])


def room(*objects: tuple[int, int, int]) -> torch.Tensor:
    """A map of a room of 5 x 5 cells around the middle, all of it known; objects are kinds and cells from there."""
    maps = torch.zeros(1, channels_of(KINDS), SIDE, SIDE)
    maps[0, 0] = -6.0
    maps[0, 0, MIDDLE - 2 : MIDDLE + 3, MIDDLE - 2 : MIDDLE + 3] = 6.0
    for kind, x, y in objects:
        maps[0, 1 + kind, MIDDLE + x, MIDDLE + y] = 5.0
    return maps


def pose_at(x: float, y: float, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[x, y, math.cos(angle), math.sin(angle)]], dtype=torch.float32)


def at(x: float, y: float, degrees: float) -> GridPose:
    return grid_pose(pose_at(x, y, degrees))


def rays_of(told: torch.Tensor) -> torch.Tensor:
    """(rays, numbers) of the only row, without those that columns share."""
    beside = told[0, :, : told.shape[2] - OBJECT * KINDS].unflatten(1, (-1, numbers_of_rays()))
    return beside[:, :, 2:-2].transpose(1, 2).flatten(0, 1)


def numbers_of_rays() -> int:
    return RAYS + 4


def reading(free: float = 0.0, objects: float = 0.0, colour: torch.Tensor = RED) -> MapReading:
    """Of a frame that shows every cell about the agent, all alike."""
    cells = torch.ones(1, ROWS, COLUMNS)
    return MapReading(20 * cells, 20 * cells, free * cells, objects * cells[:, None].expand(1, KINDS, -1, -1), torch.zeros(1, KINDS),
                      colour.expand(1, GRID * RAYS, 3))  # fmt: skip


def test_a_frame_that_shows_what_is_told_is_not_misread():
    """Walls, free cells and objects, from any way round; what nothing is known of, and cells out of view, cost nothing."""
    maps, here = room((1, 1, 0)), at(0, 0, 90)
    told = told_in_view(maps, KINDS, here)
    assert told.shape == (1, 1 + KINDS, ROWS, COLUMNS)
    assert not told[0, 1].any()  # where the first object lies is not known
    row, column = (told[0, 2] > 0).nonzero()[0].tolist()
    assert (row, column) == (1, COLUMNS // 2 - 1)  # beside the agent, which looks along y: to the right of it
    assert told[0, 0, :, COLUMNS // 2].tolist() == [6.0] * 4 + [-6.0] * (ROWS - 4)
    right = reading()._replace(free=told[:, 0], objects=told[:, 1:])
    assert misread(right, told) < 0.1
    wrong = right._replace(objects=-right.objects)
    assert misread(wrong, told) > 10
    unseen = wrong._replace(visible=-wrong.visible, middle=-wrong.middle)
    assert misread(unseen, told) < 1e-4
    assert misread(reading(free=-6.0), told_in_view(0 * maps, KINDS, here)) == 0


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rays_end_where_walls_are(degrees):
    """From the middle of a room, whichever way: the wall ahead is 2.5 cells away all along, since depth is along the axis of the view."""
    rays = rays_of(shown(room(), KINDS, at(0, 0, degrees), GRID))
    assert rays.shape == (GRID * RAYS, 15)
    depth = 0.2 / rays[:, 1] - 0.2
    assert torch.allclose(depth, torch.full_like(depth, 2.45), atol=0.1)
    assert (rays[:, 4] == 1).all()  # sure
    assert torch.equal(rays[:, 6].sign(), -torch.ones(GRID * RAYS))  # on the near side of the wall's cells
    corner = rays_of(shown(room(), KINDS, at(2, 0, degrees), GRID))[:, 1]  # beside a wall, or nearer to one, or further away
    assert not torch.allclose(corner, rays[:, 1], atol=0.02)


def test_an_object_is_where_it_lies_and_hidden_by_walls():
    def objects(maps: torch.Tensor, here: GridPose) -> torch.Tensor:
        return shown(maps, KINDS, here, GRID)[0, 0, -OBJECT * KINDS :].view(KINDS, OBJECT)

    maps = room((1, 2, 1))
    there, seen, ahead, left, _, beside = objects(maps, at(0, 0, 0))[1].tolist()
    assert there > 0.9
    assert seen > 0.9
    assert (ahead * 4, left * 4, beside) == pytest.approx((2, 1, 0.5), abs=1e-5)
    assert objects(maps, at(0, 0, 0))[0, :2].tolist() == [0, 0]  # the other kind lies nowhere
    assert objects(maps, at(0, 0, 180))[1, 1] == 0  # behind
    maps[0, 0, MIDDLE + 1, MIDDLE] = maps[0, 0, MIDDLE + 1, MIDDLE + 1] = -6.0
    assert objects(maps, at(0, 0, 0))[1, 1] == 0  # behind a wall
    rays = rays_of(shown(room((1, 2, 1)), KINDS, at(0, 0, 0), GRID))
    tangents = HALF_VIEW * (1 - (2 * torch.arange(GRID * RAYS) + 1) / (GRID * RAYS))
    assert tangents[rays[:, 12].argmax()] == pytest.approx(0.5, abs=HALF_VIEW / GRID / RAYS + 1e-6)  # on the ray that leads there
    assert (rays[:, 11] == 0).all()


def test_colours_are_those_of_one_side_of_a_wall():
    """Seen from the middle and remembered from beside; the same wall's other side, and other walls, are unknown."""
    maps = drawn(room(), reading(), at(0, 0, 0))
    again = rays_of(shown(maps, KINDS, at(0, 1, 0), GRID))
    known = again[:, 5] > 0.4
    assert 10 < known.sum() < GRID * RAYS
    assert torch.allclose(again[known, 8:11] / again[known, 5:6], RED.expand(int(known.sum()), 3), atol=1e-3)
    assert (rays_of(shown(maps, KINDS, at(0, 0, 90), GRID))[6:-6, 5] == 0).all()
    blue = drawn(maps, reading(colour=torch.tensor([0.0, 0.0, 1.0])), at(0, 0, 0))
    assert rays_of(shown(blue, KINDS, at(0, 0, 0), GRID))[:, 10].mean() > 0.3  # given frames go on being averaged


def test_what_frames_show_corrects_the_map():
    """A frame moves what is known, some that agree undo it; what may be out of view is no news."""
    known = drawn(room((0, 1, 0)), reading(), at(0, 0, 0))
    claim = reading(free=-6.0, objects=-6.0, colour=torch.zeros(3))
    changed = drawn(known, claim, at(0, 0, 0))
    free, lies = changed[0, :2, MIDDLE + 1, MIDDLE].tolist()
    assert FIRM < free < known[0, 0, MIDDLE + 1, MIDDLE] - 1
    assert FIRM < lies < known[0, 1, MIDDLE + 1, MIDDLE] - 0.2
    for _ in range(4):
        changed = drawn(changed, claim, at(0, 0, 0))
    assert changed[0, 0, MIDDLE + 1, MIDDLE] < -FIRM
    hardly = drawn(known, claim._replace(visible=0.2 + 0 * claim.visible), at(0, 0, 0))
    assert (hardly[:, 0] - known[:, 0]).abs().max() <= 1  # where the agent stands
    unseen = drawn(torch.zeros_like(known), claim._replace(visible=0.2 + 0 * claim.visible), at(0, 0, 0))
    assert -FIRM < unseen[:, 0].min() < 0
    empty = drawn(torch.zeros_like(known), reading(free=-4.0), at(0, 0, 0))
    assert (empty[0, 0] < -4).sum() == ROWS * COLUMNS
    assert empty[0, 0, MIDDLE, MIDDLE] == pytest.approx(empty[0, 0, MIDDLE, MIDDLE + 1].item() + 1)  # where the agent stands it is free


def test_what_lies_off_the_map_is_left_out():
    maps = torch.zeros(1, channels_of(KINDS), SIDE, SIDE)
    far = drawn(maps, reading(free=6.0), at(MIDDLE + 20.0, 0, 0))
    assert torch.equal(far[:, 0].nonzero(), torch.tensor([[0, SIDE - 1, MIDDLE]]))  # its own cell, on the rim
    told = shown(maps, KINDS, at(100.0, -100.0, 45), GRID)
    assert told.isfinite().all()
    assert told.shape == (1, GRID, numbers_shown(KINDS))


MAP = dict(flow_width=20, lattice=1.0, map_objects=KINDS, collisions=True)


def test_a_dream_draws_its_map_and_is_told_of_it():
    """Given frames and imagined ones are drawn, each row's on its own map; a pose that nobody knows is drawn nowhere."""
    model = random_model(**MAP)
    latent, action = torch.randn(2, 20, 16, CHANNELS), torch.ones(2, 20, dtype=torch.int64)
    state = prefill(model, first_state(model, torch.arange(2)), latent, action).state
    assert state.map.shape == (2, channels_of(KINDS), SIDE, SIDE)
    assert state.map.flatten(1).any(1).all()
    again = prefill(model, first_state(model, torch.arange(2)), latent[:, :7], action[:, :7]).state
    again = prefill(model, again, latent[:, 7:], action[:, 7:]).state
    assert torch.allclose(again.map, state.map, atol=1e-4)
    imagined = imagine(model, state, action[:, 0], 1)
    assert not torch.equal(commit(model, state, action[:, 0], imagined).map, state.map)
    blank = state._replace(map=torch.zeros_like(state.map))
    assert not torch.allclose(imagine(model, blank, action[:, 0], 1).latent, imagined.latent)
    alone = take_rows(state, torch.tensor([1]))
    assert torch.allclose(commit(model, alone, action[:1, 0], imagine(model, alone, action[:1, 0], 1)).map,
                          take_rows(commit(model, state, action[:, 0], imagined), torch.tensor([1])).map, atol=1e-4)  # fmt: skip
    lost = first_state(model, torch.arange(2), pose_known=False)
    assert not commit(model, lost, action[:, 0], imagine(model, lost, action[:, 0], 1)).map.any()


def test_known_places_are_the_heads_mean(monkeypatch):
    """With a map the flow head says the mean, at the level of pure noise, of views asked for by pose alone, too; without one, the model."""
    monkeypatch.setattr(rollout, "OPEN", (2.0, 3.0))  # everything counts as known
    for sizes, own in ((MAP, False), ({**MAP, "map_objects": 0}, True)):
        model = random_model(**sizes)
        state = prefill(
            model, first_state(model, torch.arange(2)), torch.randn(2, 20, 16, CHANNELS), torch.ones(2, 20, dtype=torch.int64)
        ).state
        action, noise = torch.tensor([1, model.config.actions]), torch.randn(2, 16, CHANNELS)
        motion = rollout.estimated_motion(model, state, action)
        inputs = rollout.next_inputs(state, action, motion, rollout.next_pose(state, motion))
        evidence = rollout.frame_evidence(model, state, inputs, model.condition(inputs, state.world), noise.flip(1))
        context = model.flow_head.for_steps(model.flow_head.context(evidence), 8)
        expected = evidence.mean if own else model.flow_head(noise, torch.ones(2), context)
        for steps in (1, 4):
            got = imagine(model, state, action, steps, noise=noise).latent
            assert torch.allclose(got, rollout.rounded(expected, rollout.LATENT_STEPS), atol=2 / rollout.LATENT_STEPS)


def test_states_of_before_have_no_map():
    assert legacy.state({"world.age": torch.zeros(3, dtype=torch.int64)})["map"].shape == (3, 0)
    with pytest.raises(ValueError, match="a map of 2 kinds of objects needs a lattice to lie in and a flow head"):
        WorldModelConfig(map_objects=KINDS)


def test_a_model_grows_a_map(tmp_path):
    """With the reader of a file; its frames are as before until the head has learned what the map shows."""
    folder = write_tiny_weights(tmp_path / "weights", flow_width=20, lattice=1.0, collisions=True)
    model = read_weights(folder).world_model
    reader = MapReader(model.config.tokens, model.config.latent_channels, KINDS, width=8, hidden=12)
    with pytest.raises(ValueError, match=r"map_reader of another world: wrong shape of position \(16, 8\), not \(16, 64\)"):
        with_heads(model, 0, reader=reader)
    reader = MapReader(model.config.tokens, model.config.latent_channels, KINDS)
    save_tensors(tmp_path / "reader.safetensors", reader.state_dict(), {"kind": KIND})
    read = read_map_reader(tmp_path / "reader.safetensors")
    grown = with_heads(model, 0, reader=read)
    assert grown.config == replace(model.config, map_objects=KINDS)
    assert all(torch.equal(a, b) for a, b in zip(grown.map_reader.state_dict().values(), reader.state_dict().values(), strict=True))
    state, action = first_state(grown, torch.arange(2)), torch.ones(2, dtype=torch.int64)
    before = imagine(model, first_state(model, torch.arange(2)), action, 1)
    assert torch.allclose(imagine(grown, state, action, 1).latent, before.latent, atol=2 / 64)


def test_a_file_that_holds_no_reader(tmp_path):
    path = tmp_path / "reader.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "else"})
    with pytest.raises(TensorFileError, match="no whole lssvwm_gym maze reader"):
        read_map_reader(path)
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": KIND})
    with pytest.raises(TensorFileError, match="no whole lssvwm_gym maze reader"):
        read_map_reader(path)


def test_a_world_with_a_map_is_dreamed_saved_and_read(tmp_path):
    """Weights with a map are a world like any other; a first imagined frame finds the lattice, and so a dream from nothing has a map."""
    folder = write_tiny_weights(tmp_path / "weights", flow_width=20, lattice=1.0, collisions=True, map_objects=KINDS)
    assert json.loads((folder / "config.json").read_text())["world_model"]["map_objects"] == KINDS
    dream = open_dream("memory-maze", "fast", "cpu", folder)
    state = dream.reset(torch.tensor([3, 4]), {"start": "cold"})
    assert state.lattice.any(1).all()
    assert state.map.flatten(1).any(1).all()
    assert not torch.equal(dream.step(state, torch.tensor([1, 1])).state.map, state.map)


def test_what_is_wanted_is_drawn_and_lasts(monkeypatch):
    """One kind is, in the last real frame; a dream draws the next by what the head says, and the frame is told of it."""
    model = random_model(**MAP)
    latent, actions = torch.randn(8, 20, 16, CHANNELS), torch.ones(8, 20, dtype=torch.int64)
    state = prefill(model, first_state(model, torch.arange(8)), latent, actions).state
    assert state.wanted.sum(1).tolist() == [1] * 8
    action, drawn_kinds = torch.ones(8, dtype=torch.int64), []
    for logits in ([9.0, -9.0], [-9.0, 9.0], [0.0, 0.0]):
        monkeypatch.setattr(model.wanted_head, "forward", lambda told, wanted, said=logits: torch.tensor(said).expand(8, -1))
        imagined = imagine(model, state, action, 1)
        drawn_kinds.append(imagined.wanted[:, 1])
        assert torch.equal(commit(model, state, action, imagined).wanted, imagined.wanted)
    assert drawn_kinds[0].tolist() == [0] * 8
    assert drawn_kinds[1].tolist() == [1] * 8
    assert 0 < drawn_kinds[2].sum() < 8
    other = imagine(model, state, action, 1, noise=frame_noise(state, model))
    monkeypatch.setattr(model.wanted_head, "forward", lambda told, wanted: torch.tensor([9.0, -9.0]).expand(8, -1))
    first = imagine(model, state, action, 1, noise=frame_noise(state, model))
    changed = (other.wanted != first.wanted).any(1)
    assert torch.equal((other.latent != first.latent).flatten(1).any(1), changed)
    assert not WantedHead(KINDS)(torch.randn(3, GRID, numbers_shown(KINDS)), torch.zeros(3, KINDS)).any()  # nothing wanted yet: any may be
