"""What a map does not show is imagined first, and then painted: layouts, who is told of them, and how they are learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_flow_head import walled_episodes
from test_map_memory import KINDS, MIDDLE, at, room
from test_maze_map import recorded
from test_stepping import SIZES, random_model
from tiny_world import WITH_A_MAP, write_tiny_weights

from experiments import maze_layout, maze_motion
from lssvwm_gym.checkpoints.checkpoint import read_weights
from lssvwm_gym.data.segments import Episodes
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, save_tensors
from lssvwm_gym.models import rollout
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import start_pose
from lssvwm_gym.models.map_layout import (
    CHANCES,
    KIND,
    LAID,
    LAYOUT,
    SETTLED,
    LayoutModel,
    around,
    believed,
    colours_of,
    imagined_layout,
    is_sure,
    reached,
    read_layout_model,
)
from lssvwm_gym.models.map_memory import FIRM, SIDE, SURE, channels_of, shown
from lssvwm_gym.models.motion_heads import MapMotionHead, read_map_motion_head
from lssvwm_gym.models.rollout import commit, first_state, imagine, prefill, with_layout
from lssvwm_gym.models.state import join_rows, take_rows
from lssvwm_gym.training import dreamed_samples as training
from lssvwm_gym.training.dreamed_samples import DreamOptions, dreamed_samples, hindsight, really_came
from lssvwm_gym.training.grown import with_heads

CHANNELS = SIZES["latent_channels"]
MAP = {**WITH_A_MAP, "map_objects": KINDS}


def chances(rows: int) -> torch.Tensor:
    return torch.rand(rows, CHANCES + KINDS, generator=torch.Generator().manual_seed(0))


def random_layouts(bias: float = 0.0) -> LayoutModel:
    """Draws cells that are free as often as the bias says."""
    torch.manual_seed(0)
    model = LayoutModel(KINDS, 4).requires_grad_(False)
    model.out.bias[0] = bias
    return model


def test_a_layout_is_whole_and_its_objects_lie_on_free_cells():
    maps = torch.cat([room((0, 1, 2)), room(), 0 * room()])
    layout = imagined_layout(random_layouts(), maps, chances(3))
    assert set(layout[2:, 0].unique().tolist()) == {-SETTLED, SETTLED}
    assert torch.equal(layout[:2, 0], maps[:2, 0])  # what was known is as sure as before
    objects = layout[:, 1 : 1 + KINDS]
    assert (objects > 0).sum((2, 3)).tolist() == [[1, 1], [1, 1], [1, 1]]
    assert torch.equal(objects[0, 0], maps[0, 1])  # what the map shows already is not drawn again
    assert (layout[:, 0] > 0)[:, None].expand_as(objects)[objects > 0].all()
    alone = imagined_layout(random_layouts(), maps[1:2], chances(3)[1:2])
    assert torch.equal(alone, layout[1:2])
    assert not torch.equal(layout[1], layout[2])
    full, none = (imagined_layout(random_layouts(bias), maps, chances(3))[:, 0] for bias in (20.0, -20.0))
    assert (full[2] == SETTLED).all()
    assert torch.equal(full[0] > 0, maps[0, 0] > 0)  # what is known stays
    assert (none[2] == -SETTLED).all()


def test_what_is_known_for_sure_is_never_drawn_again():
    """Not even beside free cells that can't be reached; what few frames have shown may be."""
    maps = room()
    maps[0, 0, 2:5, 2:5] = 6.0  # an island
    sure = torch.cat([maps, 8 / 6 * maps])
    layout = imagined_layout(random_layouts(20.0), sure, chances(2))[:, 0]
    assert torch.equal(layout[1], sure[1, 0])
    assert (layout[0] > 0)[sure[0, 0] < 0].any()
    assert reached(torch.ones(1, SIDE, SIDE, dtype=torch.bool)).all()
    assert reached(maps[:, 0] > 0).sum() == 25


def test_each_cell_is_drawn_by_those_before_it():
    """A network by which a cell is as the one beside it: drawn all at once, half of the neighbours would differ."""
    model = random_layouts()
    for parameter in model.parameters():
        parameter.zero_()
    for channel in (0, 1 + KINDS):  # free cells; the first colour
        model.cells.weight[0, channel, 1] = torch.tensor(
            [1.0, 0.0, 1.0]
        )  # a channel that is their sum, through convolutions that add nothing
        model.cells.weight[1] = -model.cells.weight[0]
        model.out.weight[channel, :2, 0, 0] = torch.tensor([40.0, -40.0])
        layout = imagined_layout(model, torch.zeros(4, channels_of(KINDS), SIDE, SIDE), chances(4))
        same = (layout[:, 0, :, 1:] == layout[:, 0, :, :-1]).float().mean()
        model.cells.weight.zero_()
        assert same > 0.65 if channel == 0 else same < 0.6


def test_walls_have_colours_of_the_palette():
    """The one that the map shows on any side of a wall is kept, and free cells have none."""
    model, maps = random_layouts(), room()
    model.palette[:] = torch.rand(len(model.palette), 3, generator=torch.Generator().manual_seed(1)) + 0.1
    sides = maps[:, 1 + KINDS :].view(1, 4, 4, SIDE, SIDE)
    red = model.palette[3]
    sides[0, :3, 1, MIDDLE + 3, MIDDLE], sides[0, 3, 1, MIDDLE + 3, MIDDLE] = 0.9 * red, 5.0
    assert torch.allclose(colours_of(maps)[0, :, MIDDLE + 3, MIDDLE], 0.9 * red)
    assert (colours_of(maps).sum(1) > 0).sum() == 1
    assert model.painted(colours_of(maps))[0, :, MIDDLE + 3, MIDDLE].argmax() == 3
    layout = imagined_layout(model, maps, chances(1))
    both, walls = layout[:, 1 + KINDS :].view(1, 4, 4, SIDE, SIDE), layout[0, 0] < 0
    colour = both[0, :3, 0]
    assert torch.allclose(both[0, :3, 1, MIDDLE + 3, MIDDLE], 0.9 * red)  # the side that was seen
    assert torch.allclose(both[0, :, 0, MIDDLE + 3, MIDDLE], torch.cat([red, torch.tensor([LAID])]))
    assert not colour[:, ~walls].any()
    away = torch.cdist(colour[:, walls].T, model.palette)
    assert away.amin(1).max() < 1e-3
    assert len(away.argmin(1).unique()) > 3


def test_what_was_imagined_stays():
    """A layout has all that was known when it was drawn; frames that are dreamed after it don't change it."""
    maps = room((0, 1, 0))
    layout = torch.zeros_like(maps)
    assert torch.equal(believed(maps, layout), maps)
    layout[0, 0] = -maps[0, 0].sign() * LAYOUT  # the opposite everywhere
    layout[0, 2, MIDDLE, MIDDLE + 1] = LAYOUT
    both = believed(maps, layout)
    assert torch.equal(both[:, 0], layout[:, 0])
    assert torch.equal(both[:, 1], maps[:, 1])  # a layout that knows nothing of the first object, and of colours
    assert torch.equal(both[:, 2], layout[:, 2])
    assert torch.equal(both[:, 1 + KINDS :], maps[:, 1 + KINDS :])
    assert not torch.equal(shown(both, KINDS, at(0, 0, 90), 4), shown(maps, KINDS, at(0, 0, 90), 4))


def test_around_is_seen_from_where_one_looks():
    """Of a room whose corner cell is where one stands: walls behind and to the right, whichever way that is."""
    maps = room()
    maps[:, 0] *= 1.25  # surely
    there = around(maps, at(-2, -2, 0))[0]
    assert there[:9].tolist() == [-1, -1, -1, -1, 1, 1, -1, 1, 1]  # behind, there, ahead: to the right, there, to the left
    assert around(maps, at(-2, -2, 90))[0, :9].tolist() == [-1, -1, -1, 1, 1, -1, 1, 1, -1]
    assert torch.allclose(around(maps, at(-2.2, -1.9, 0))[0, 9:], torch.tensor([-0.2, 0.1, 1.0, 0.0]), atol=1e-6)
    assert not around(maps, at(100, 100, 0))[0, :9].any()
    assert is_sure(around(maps, at(-2, -2, 0))).all()
    assert not is_sure(around(0.5 * maps, at(-2, -2, 0))).any()


def test_a_map_that_is_sure_tells_the_motion():
    """By the last action, too; where it isn't, the frame tells it, and the map stops it at walls all the same."""
    model = random_model(**MAP)
    state = first_state(model, torch.arange(2))
    assert state.last_action.tolist() == [model.config.actions] * 2
    latent, action = torch.randn(2, 20, 16, CHANNELS), torch.arange(20).remainder(5).expand(2, -1)
    state = prefill(model, state, latent, action, start_pose(2)[:, None].expand(-1, 20, -1)).state
    assert state.last_action.tolist() == [4, 4]
    far = torch.full_like(state.layout[:, 0], 2 * SURE)
    sure = state._replace(layout=torch.cat([far[:, None], state.layout[:, 1:]], 1))
    told = rollout.estimated_motion(model, sure, action[:, 1])
    assert not torch.equal(told, rollout.estimated_motion(model, sure._replace(last_action=action[:, 2]), action[:, 1]))
    assert torch.equal(told, rollout.estimated_motion(model, sure._replace(latent=0 * sure.latent), action[:, 1]))
    unsure = sure._replace(layout=torch.cat([0.4 * far[:, None], state.layout[:, 1:]], 1))
    seen = model.motion_head(unsure.latent, unsure.motion, action[:, 1])
    assert torch.allclose(rollout.estimated_motion(model, unsure, action[:, 1]), seen, atol=1e-6)
    assert first_state(random_model(**{**MAP, "layout_width": 0}), torch.arange(2)).last_action.shape == (2, 0)


def test_a_dream_imagines_a_layout_and_is_told_of_it():
    """Another for each seed, the same for the same; it lasts while the dream does, and is drawn anew after more real frames."""
    model = random_model(**MAP)
    latent, action = torch.randn(2, 20, 16, CHANNELS), torch.ones(2, 20, dtype=torch.int64)
    state = prefill(model, first_state(model, torch.arange(2)), latent, action).state
    assert (state.layout[:, 0].abs() > FIRM).all()
    assert not torch.equal(state.layout[0], state.layout[1])
    assert torch.equal(with_layout(model, take_rows(state, torch.tensor([1]))).layout, state.layout[1:])
    imagined = imagine(model, state, action[:, 0], 1)
    after = commit(model, state, action[:, 0], imagined)
    assert torch.equal(after.layout, state.layout)
    assert not torch.equal(with_layout(model, after).layout, state.layout)
    blank = prefill(model, first_state(model, torch.arange(2)), latent, action, imagines=False).state
    assert not blank.layout.any()
    assert torch.equal(blank.map, state.map)
    assert not torch.allclose(imagine(model, blank, action[:, 0], 1).latent, imagined.latent)
    lost = first_state(model, torch.arange(2), pose_known=False)
    assert not rollout.standing(model, with_layout(model, lost), lost.pose)[0].any()


def test_a_dream_from_nothing_stands_in_a_free_cell(tmp_path):
    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path / "weights", **MAP))
    state = dream.reset(torch.tensor([3, 4]), {"start": "cold"})
    assert torch.allclose(state.lattice[:, 2:].norm(dim=1), torch.ones(2))
    assert not state.lattice[:, :2].any()
    assert not torch.equal(state.lattice[0], state.lattice[1])
    assert (state.layout[:, 0].abs() >= LAYOUT).all()
    assert torch.equal(dream.reset(torch.tensor([4]), {"start": "cold"}).layout, state.layout[1:])
    contexts = dream.reset(torch.tensor([3, 4]), {"context_frames": 20})
    assert not torch.equal(contexts.layout[0], contexts.layout[1])


def test_states_of_before_have_no_layout():
    assert legacy.state({"world.age": torch.zeros(3, dtype=torch.int64)})["layout"].shape == (3, 0)
    model = random_model(**{**MAP, "layout_width": 0})
    state = with_layout(model, first_state(model, torch.arange(2)))
    assert state.layout.shape == (2, 0)
    assert not rollout.standing(model, state, state.pose)[0].any()
    with pytest.raises(ValueError, match="a layout of width 4 needs a map that it completes, and a head for collisions"):
        WorldModelConfig(layout_width=4)


def test_a_model_grows_layouts(tmp_path):
    """With those of a file, and the motions among them; its frames are as before."""
    model = read_weights(write_tiny_weights(tmp_path / "weights", **{**MAP, "layout_width": 0})).world_model
    save_tensors(tmp_path / "layouts.safetensors", random_layouts().state_dict(), {"kind": KIND})
    motions = MapMotionHead(model.config)
    grown = with_heads(model, 0, layouts=read_layout_model(tmp_path / "layouts.safetensors"), motions=motions)
    assert grown.config == replace(model.config, layout_width=4)
    assert torch.equal(grown.layout_model.cells.weight, random_layouts().cells.weight)
    assert torch.equal(grown.map_motion_head.out.weight, motions.out.weight)
    assert torch.equal(grown.motion_head.motions.weight, model.motion_head.motions.weight)
    assert with_heads(grown, 0) is grown
    for half in ({"motions": motions}, {"layouts": random_layouts()}):
        with pytest.raises(ValueError, match="layouts and motions go together: give --layouts and --motions"):
            with_heads(model, 0, **half)
    for tensors, header in (({"a": torch.zeros(1)}, {"kind": KIND}), (random_layouts().state_dict(), {"kind": "else"})):
        save_tensors(tmp_path / "other.safetensors", tensors, header)
        with pytest.raises(TensorFileError, match="no whole lssvwm_gym maze layouts"):
            read_layout_model(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="layout_model of another world"):
        with_heads(model, 0, layouts=LayoutModel(5, 4), motions=motions)


def test_a_palette_is_of_the_colours_that_walls_have():
    """In light and shade each is one colour."""
    torch.manual_seed(0)
    true = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.9]])
    wall = true[torch.randint(3, (2, SIDE, SIDE))].permute(0, 3, 1, 2) * (0.8 + 0.4 * torch.rand(2, 1, SIDE, SIDE))
    nothing = torch.zeros(2, 0)
    found = maze_layout.palette_of(maze_layout.Maps(nothing, nothing, nothing, nothing, wall), 3)
    assert torch.cdist(true, found).amin(1).max() < 0.05


def test_heads_learn_from_hindsight(monkeypatch):
    """What whole clips show is the layout of most rows; ways back, by unknown actions, teach the flow head and not the others."""
    model, episodes = random_model(**MAP), Episodes.of(walled_episodes())
    monkeypatch.setattr(training, "HINDSIGHT", 1.0)
    monkeypatch.setattr(training, "NEAR", 1e9)
    options = DreamOptions(rows=6, ahead=8, recorded=1.0, back=0.0)
    forth = dreamed_samples(options, model, episodes, np.random.default_rng(0))
    assert len(really_came(forth).latent) == len(forth.latent)
    back = dreamed_samples(replace(options, back=1.0), model, episodes, np.random.default_rng(0))
    unknown = back.evidence.action == model.config.actions
    assert 0.2 < unknown.float().mean()
    assert torch.equal(unknown, back.motion.isnan().all(1))
    assert forth.counts.all()
    assert forth.told.any((1, 2, 3)).all()
    assert forth.rest[:, :2].abs().max() <= 0.5
    monkeypatch.setattr(training, "NEAR", 0.0)
    astray = dreamed_samples(replace(options, recorded=0.0), model, episodes, np.random.default_rng(0))
    assert 0 < astray.counts.mean() < 1  # where the recorded frame can't follow, what is told is asked for all the same
    assert astray.motion[astray.counts[:, 0] == 0].isnan().all()
    clip = training.read_clip(episodes, [training.SegmentIndex(0, 0, 20, 20)], 20, model.config.actions)
    seen = hindsight(model, clip, np.random.default_rng(0))
    assert set(seen[:, 0].unique().tolist()) <= {-SETTLED, 0.0, SETTLED}
    assert set(seen[:, 1 : 1 + KINDS].unique().tolist()) <= {0.0, LAYOUT}
    assert 0 <= seen[:, 1 + KINDS :].min()
    assert seen[:, 0].any()
    without = random_model(**{**MAP, "layout_width": 0})
    assert hindsight(without, clip, np.random.default_rng(0)).shape == (1, 0)


def test_generated_mazes_are_the_simulators():
    """What looks along a path show of them is right, and balls lie in rooms, where one can walk to."""
    maps = maze_layout.generated(maze_layout.Args((Path(),), generated=20), 3)
    assert maps.shown.shape == (20, 4, SIDE, SIDE)
    assert maps.ball.shape == (20, 3)
    known = maps.shown[:, 0] != 0
    assert torch.equal((maps.shown[:, 0] > 0)[known], maps.free[known])
    assert known.flatten(1).sum(1).unique().numel() > 5
    assert maps.free[:, MIDDLE, MIDDLE].all()
    assert maps.free.flatten(1).gather(1, maps.ball).all()
    seen = maps.shown[:, 1:] > FIRM
    assert seen.any()
    assert torch.equal(seen.flatten(2).int().argmax(2)[seen.flatten(2).any(2)], maps.ball[seen.flatten(2).any(2)])
    open_squares = torch.nn.functional.avg_pool2d(maps.free[:, None].float(), 2, 1, padding=1) == 1
    rooms = torch.nn.functional.max_pool2d(open_squares.float(), 2, 1)[:, 0].flatten(1)
    assert rooms.gather(1, maps.ball).all()


def test_layouts_are_learned_from_recordings(tmp_path):
    """Maps along a recording lie where its maze does; in a few steps what they don't show is guessed better than at first."""
    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path / "weights", **WITH_A_MAP))
    args = maze_layout.Args((recorded(tmp_path / "train"),), out=tmp_path / "out", width=8, steps=40, batch=16, report_every=40)
    maps = maze_layout.maps_of(args, dream, args.data)
    assert len(maps.ball) == len(maps.shown) == 13  # before the first frame, and after 1, 2, ... 40
    assert maps.shown[0, 0].nonzero().tolist() == [[MIDDLE, MIDDLE]]
    assert maps.free[:, MIDDLE, MIDDLE].all()
    assert 0 < maps.free[0].sum() < 81
    assert maps.free.flatten(1).gather(1, maps.ball).all()  # balls lie on free cells
    turned = maze_layout.turned_over(maps)
    assert turned.free.flatten(1).gather(1, turned.ball).all()
    model = LayoutModel(3, args.width)
    with pytest.raises(SystemExit, match="too few walls to tell which colours"):
        maze_layout.palette_of(maps._replace(wall=0 * maps.wall), 10)
    before = maze_layout.score(model, maps)
    ((step, losses),) = maze_layout.train(model, args, maps)
    assert step == 40
    assert np.isfinite(list(losses.values())).all()
    assert maze_layout.score(model, maps)["val_cells"] < 0.7 * before["val_cells"]
    with pytest.raises(ValueError, match="data needs at least one folder"):
        maze_layout.Args(())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no episode"):
        maze_layout.main(replace(args, data=(tmp_path / "empty",)))


def test_motions_are_learned_from_recordings(tmp_path):
    """In a few steps better than at first; mirror images are of mirrored walls, and nothing of another kind is read as motions."""
    torch.manual_seed(0)
    folder, config = recorded(tmp_path / "train"), WorldModelConfig()
    args = maze_motion.Args((folder,), val=(folder,), out=tmp_path / "out", steps=60, batch=32)
    (steps,) = maze_motion.steps_of(args.data)
    assert len(steps.action) == len(steps.motion) > 20
    assert is_sure(steps.around).all()
    assert (steps.around[:, 4] == 1).all()  # the agent is never in a wall
    kinds = maze_motion.pools([steps])
    assert sum(len(kind.action) for kind in kinds.values()) == len(steps.action)
    many = maze_motion.mirrored(join_rows([steps] * 8))
    assert {tuple(row) for row in many.around[:, 9:11].abs().tolist()} == {tuple(row) for row in steps.around[:, 9:11].abs().tolist()}
    assert not torch.equal(many.motion[:, 2], torch.cat([steps.motion] * 8)[:, 2])
    head = MapMotionHead(config)
    before = maze_motion.score(head, steps)
    maze_motion.train(head, args, [steps])
    after = maze_motion.score(head, steps)
    assert after.keys() <= {"touching", "free"}
    assert all(after[kind][0] < 0.5 * before[kind][0] for kind in after)
    maze_motion.main(replace(args, steps=1))
    path = args.out / "motions.safetensors"
    assert read_map_motion_head(path, config).out.weight.shape == (3, 96)
    with pytest.raises(TensorFileError, match=r"motions\.safetensors"):
        read_map_motion_head(path, replace(config, actions=9))
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "else"})
    with pytest.raises(TensorFileError, match="no whole lssvwm_gym maze motions"):
        read_map_motion_head(path, config)
    with pytest.raises(ValueError, match="data needs at least one folder"):
        maze_motion.Args(())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no episode"):
        maze_motion.main(replace(args, data=(tmp_path / "empty",)))
