"""The map that a policy draws of a maze: what frames show is kept where it is, and what is told leads to the balls."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from tiny_world import WITH_A_MAP, write_tiny_weights

from agents import maze_map
from agents.maze_map import COLOURS, MEMORY, NUMBERS, OBSERVATION, SHAPE, packed, unpacked
from agents.policies import Policy, PolicyConfig, load_policy, save_policy
from agents.ppo import Args as Learning
from agents.ppo import Learner, with_defaults
from agents.starts import dreams
from experiments import maze_reader
from experiments.agents_by_name import followed, open_agent
from experiments.maze_reader import Args, frames_of, reading_loss, score, targets
from lssvwm_gym.data.episode import Episode, EpisodeError, write_episode
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models import map_memory
from lssvwm_gym.models.map_memory import SIDE, MapReader, MapReading, fused, grid_pose, turned
from lssvwm_gym.real_envs.experts.maze_explorer import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, RIGHT
from lssvwm_gym.real_envs.experts.maze_seeker import visible_from

LAYOUT = np.array(
    [
        [1, 1, 1, 1, 1, 0, 1, 1, 1],
        [1, 0, 0, 0, 1, 0, 1, 1, 1],
        [1, 0, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1, 0, 0, 0, 1],
        [1, 1, 1, 0, 1, 0, 1, 1, 1],
        [1, 1, 1, 0, 1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
    ],
    np.uint8,
)
BALLS = np.array([[8.5, 0.5], [0.5, 8.5], [8.5, 7.5]], np.float32)


class Toy:
    """An agent in a maze without inertia, whose frames are read without error."""

    def __init__(self, x: float, y: float, degrees: float) -> None:
        self.start = np.array([x, y]), math.radians(degrees)
        self.place, self.heading = self.start
        self.wanted, self.touched = 0, 0

    def arrays(self) -> dict[str, np.ndarray]:
        heading = np.array([[math.cos(self.heading), math.sin(self.heading)]], np.float32)
        colour = np.array([maze_reader.BALLS[self.wanted]], np.float32)
        return dict(agent_pos=self.place[None].astype(np.float32), agent_dir=heading, target_color=colour,
                    target_pos=BALLS[self.wanted][None], targets_pos=BALLS, maze_layout=LAYOUT)  # fmt: skip

    def reading(self) -> MapReading:
        """In logits of the cells about the agent."""
        target = targets(maze_reader.frames_of_episode(self.arrays(), torch.zeros(1, 16, 32), Path()), 0.0)[1]
        logits = [12 * part - 6 for part in (target.visible, target.middle, target.free, target.balls)]
        return MapReading(*logits, 12 * torch.eye(COLOURS)[target.wanted], torch.zeros(1, 0, 3))

    def pose(self, quarters: int = 1) -> torch.Tensor:
        """On the map: the first cell is its middle, and north need not be where it is in the maze."""
        x, y = self.place - np.floor(self.start[0]) - 0.5
        turn = quarters * math.pi / 2
        heading = self.heading + turn
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        return torch.tensor([[x, y, math.cos(heading), math.sin(heading)]], dtype=torch.float32)

    def step(self, action: int) -> None:
        self.heading += math.radians({LEFT: 18, FORWARD_LEFT: 18, RIGHT: -18, FORWARD_RIGHT: -18}.get(action, 0))
        there = self.place + 0.25 * np.array([math.cos(self.heading), math.sin(self.heading)]) * (
            action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT)
        )
        column, row = np.floor(there).astype(int)
        if 0 <= row < 9 and 0 <= column < 9 and LAYOUT[row, column]:
            self.place = there
        if np.linalg.norm(self.place - BALLS[self.wanted]) < 0.4:
            self.wanted, self.touched = (self.wanted + 1) % 3, self.touched + 1


class Mapped:
    """Maps of mazes that toys, the rows, see without error."""

    def __init__(self, *toys: Toy) -> None:
        self.toys, self.maps = toys, torch.zeros(len(toys), 1 + COLOURS, SIDE, SIDE)

    def observation(self, quarters: int = 1) -> torch.Tensor:
        readings = MapReading(*(torch.cat(parts) for parts in zip(*(toy.reading() for toy in self.toys), strict=True)))
        poses = torch.cat([toy.pose(quarters) for toy in self.toys])
        self.maps = fused(self.maps, readings, grid_pose(poses))
        return torch.cat([self.maps.flatten(1), readings.wanted, poses], 1)

    def told(self, memory: torch.Tensor, quarters: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        return maze_map.told(self.observation(quarters), memory)


@pytest.mark.parametrize("quarters", range(4))
def test_what_is_told_leads_to_one_ball_after_the_other(quarters):
    """From nothing known, whichever way the map lies: five balls in 500 steps; one who turns at random touches none."""
    toy, state = Toy(0.5, 4.4, 20), torch.zeros(1, MEMORY)
    mapped = Mapped(toy)
    for _ in range(500):
        told, state = mapped.told(state, quarters)
        toy.step(int(followed(told)[0]))
    assert toy.touched >= 5


def test_what_was_seen_is_on_the_map():
    toy, state = Toy(0.5, 4.4, 0), torch.zeros(1, MEMORY)
    mapped = Mapped(toy)
    for _ in range(150):
        told, state = mapped.told(state, 0)
        toy.step(int(followed(told)[0]))
    known = unpacked(state)
    middle = SIDE // 2
    true = np.zeros((SIDE, SIDE), bool)  # by x and y, the cell (0, 4) in the middle
    true[middle : middle + 9, middle - 4 : middle + 5] = LAYOUT.T
    sure = known.free[0].abs().numpy() > maze_map.SURE
    assert sure.sum() > 60
    assert ((known.free[0].numpy() > 0) == true)[sure].all()
    for colour, (x, y) in enumerate(BALLS.astype(int)):
        there = known.balls[0, colour, x + middle, y - 4 + middle]
        assert known.balls[0, colour].max() == max(there, torch.zeros(()))  # found there, or nowhere


def test_sure_readings_outweigh_vague_ones():
    toy, state = Toy(2.5, 4.4, 0), torch.zeros(1, MEMORY)
    mapped = Mapped(toy)
    sure = toy.reading()
    vague = sure._replace(free=-sure.free / 10)
    for reading, times in ((vague, 10), (sure, 1), (vague, 10)):
        toy.reading = lambda reading=reading: reading
        for turn in range(times):
            toy.heading = math.radians(9 * (-1) ** turn)  # one who stands still would take what is ahead for a wall
            _, state = mapped.told(state, 0)
    free = unpacked(state).free[0]
    assert free[SIDE // 2 + 1, SIDE // 2] > 2  # ahead it is free, as one sure reading said among twenty vague ones
    assert free[SIDE // 2 + 1, SIDE // 2 + 1] < -2  # and beside that is a wall


def test_a_cell_that_cannot_be_entered_is_a_wall():
    toy, state = Toy(2.5, 4.4, 0), torch.zeros(1, MEMORY)
    mapped = Mapped(toy)
    _, state = mapped.told(state, 0)
    ahead = int(unpacked(state).ahead[0])
    before = unpacked(state).free[0].flatten()[ahead]
    free = toy.reading()
    toy.reading = lambda: free._replace(visible=free.visible - 20)  # it sees no more
    for _ in range(4):
        _, state = mapped.told(state, 0)  # and stays where it is
    assert unpacked(state).free[0].flatten()[ahead] < before - 2


def test_rows_are_apart_and_memories_are_numbers():
    told, state = Mapped(Toy(0.5, 4.4, 0), Toy(8.5, 8.5, 170)).told(torch.zeros(2, MEMORY))
    assert told.shape == (2, NUMBERS)
    assert told.isfinite().all()
    assert torch.equal(packed(unpacked(state)), state)
    alone, after = Mapped(Toy(8.5, 8.5, 170)).told(torch.zeros(1, MEMORY))
    assert torch.equal(alone[0], told[1])
    assert torch.equal(after[0], state[1])


def test_poses_are_cells_and_quarter_turns():
    degrees = torch.tensor([0.0, 44.0, 46.0, 180.0, -100.0])
    heading = degrees.deg2rad()
    here = grid_pose(torch.stack([torch.full((5,), 1.3), torch.full((5,), -0.6), heading.cos(), heading.sin()], 1))
    assert here.cell.tolist() == [[1, -1]] * 5
    assert here.quarter.tolist() == [0, 0, 1, 2, 3]
    assert torch.atan2(here.rest[:, 3], here.rest[:, 2]).rad2deg().round().tolist() == [0, 44, -44, 0, -10]
    assert torch.allclose(here.rest[2, :2], torch.tensor([0.4, -0.3]), atol=1e-5)  # 0.3 east and 0.4 north, facing north
    assert torch.equal(turned(torch.tensor([[1, 0]] * 4), torch.arange(4)), torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]]))


CONFIG = PolicyConfig("memory-maze", OBSERVATION, (sum(SHAPE),), 6, 16, map=True)


def test_a_policy_with_a_map_decides_on_what_it_tells(tmp_path):
    policy = Policy(CONFIG).eval()
    observation = torch.randn(3, *CONFIG.shape)
    told, memory = policy.see(observation)
    assert (told.shape, memory.shape, policy.memory_size) == ((3, NUMBERS), (3, MEMORY), MEMORY)
    whole, parts = policy(observation), policy.along(told[None], memory)
    assert torch.equal(whole.log_probability, parts.log_probability[0])
    assert torch.equal(whole.memory, memory)
    save_policy(tmp_path / "policy.safetensors", policy, {})
    again, _ = load_policy(tmp_path / "policy.safetensors")
    assert again.config == CONFIG
    assert torch.equal(again(observation).log_probability, whole.log_probability)


def test_a_map_and_an_lstm_share_the_memory():
    policy = Policy(replace(CONFIG, memory=8)).eval()
    observation, memory = torch.randn(2, *CONFIG.shape), None
    for _ in range(3):
        _, _, memory = policy(observation, memory)
    assert memory.shape == (2, 16 + MEMORY)
    alone = None
    for _ in range(3):
        _, alone = policy.see(observation, alone)
    assert torch.equal(memory[:, 16:], alone[:, 16:])
    assert memory[:, :16].abs().sum() > 0


def test_a_policy_with_a_map_sees_that_and_no_other_does():
    with pytest.raises(ValueError, match=r"a policy with a map sees map\+wanted\+pose, and no other does; got features"):
        PolicyConfig("memory-maze", "features", (256,), 6, map=True)
    with pytest.raises(ValueError, match=r"no other does; got map\+wanted\+pose"):
        replace(CONFIG, map=False)
    with pytest.raises(ValueError, match=r"maps of 9 x 9 mazes are observations of shape \(1771,\), not \(99,\)"):
        replace(CONFIG, shape=(99,))


def test_a_model_without_a_map_cannot_show_one(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    with pytest.raises(ValueError, match="needs a world model that draws a map, and that of memory-maze draws none"):
        observed_shape(dream, OBSERVATION)
    with pytest.raises(ValueError, match="draws none"):
        open_agent("follower", dream, 1, 0)


def test_a_doubt_fades():
    """What was met against the map counts for a while, and less and less."""
    told, doubt = Mapped(Toy(2.5, 4.4, 0)), 4 * torch.ones(1, 1 + COLOURS, SIDE, SIDE)
    observation, memory = told.observation(), packed(unpacked(torch.zeros(1, MEMORY))._replace(doubt=doubt))
    corner = [unpacked(memory := maze_map.told(observation, memory)[1]).doubt[0, 0, 0, 0].item() for _ in range(20)]
    assert corner == sorted(corner, reverse=True)
    assert corner[-1] < 0.9 * corner[0] < 4


def test_lines_of_sight_end_at_walls_and_at_the_edge_of_the_view():
    free = np.pad(LAYOUT > 0, 1)
    points = np.array([[3.5, 4.5], [0.5, 8.5], [1.5, 3.5], [-2.0, 4.5]])
    east = visible_from(
        np.array([[0.5, 4.5]], np.float32), np.array([[1.0, 0.0]], np.float32), points, free, maze_reader.HALF_VIEW, maze_reader.SIGHT
    )
    assert east.tolist() == [[True, False, False, False]]
    south = visible_from(
        np.array([[0.5, 4.5]], np.float32), np.array([[0.0, 1.0]], np.float32), points, free, maze_reader.HALF_VIEW, maze_reader.SIGHT
    )
    assert south.tolist() == [[False, True, False, False]]


def recorded(folder: Path, frames: int = 40, **more: np.ndarray) -> Path:
    """An episode of a toy that turns where it is; each frame shows the heading by its brightness."""
    toy, rows = Toy(2.5, 4.5, 0), []
    for _ in range(frames):
        rows.append(toy.arrays())
        toy.step(LEFT)
    moving = {name: np.concatenate([row[name] for row in rows]) for name in ("agent_pos", "agent_dir", "target_color", "target_pos")}
    pictures = np.linspace(0, 255, frames).astype(np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    arrays = moving | {"targets_pos": BALLS, "maze_layout": LAYOUT} | more
    folder.mkdir(exist_ok=True)
    write_episode(folder / "0.npz", Episode(pictures, np.full(frames, LEFT), np.zeros(frames, np.float32), arrays), fps=4)
    return folder


def test_a_reader_learns_what_frames_show(tmp_path, tiny_weights):
    """In a few steps it says better than at first what is in view; from recordings and their mirror images."""
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    args = Args((recorded(tmp_path / "train"),), out=tmp_path / "out", steps=30, batch=32, report_every=30)
    frames = frames_of(args, dream, args.data, mirrored=True)
    assert len(frames.wanted) == 80
    assert frames.mirrored.sum() == 40
    config = dream.weights.world_model.config
    reader = MapReader(config.tokens, config.latent_channels)
    before = score(reader, frames)
    ((step, loss),) = maze_reader.train(reader, args, frames)
    after = score(reader, frames)
    assert step == 30
    assert math.isfinite(loss)
    assert after["visible"] > max(before["visible"], 0.9)
    again = frames_of(args, dream, args.data, mirrored=True)  # from what was kept
    assert torch.equal(again.latent, frames.latent)


def test_mirror_images_show_left_what_is_right():
    toy = Toy(2.5, 4.4, 10)
    frames = maze_reader.frames_of_episode(toy.arrays(), torch.zeros(1, 16, 32), Path())
    here, target = targets(frames, 0.0)
    there, mirrored = targets(frames._replace(mirrored=torch.ones(1, dtype=torch.bool)), 0.0)
    assert torch.equal(mirrored.visible, target.visible.flip(-1))
    assert torch.equal(there.rest, here.rest * torch.tensor([1.0, -1, 1, -1]))
    perfect = MapReading(*(100 * (2 * part - 1) for part in target[:4]), 100 * torch.eye(COLOURS)[target.wanted], torch.zeros(1, 0, 3))
    assert reading_loss(perfect, target) < 1e-3 < reading_loss(perfect, mirrored)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"maze_layout": np.ones((11, 11), np.uint8)}, r"maps are of 9 x 9"), ({"target_pos": None}, "a map is read from target_pos")],
)
def test_recordings_that_do_not_tell_are_named(more, said):
    arrays = {name: array for name, array in (Toy(2.5, 4.5, 0).arrays() | more).items() if array is not None}
    with pytest.raises(EpisodeError, match=said):
        maze_reader.frames_of_episode(arrays, torch.zeros(1, 16, 32), Path("one.npz"))


@pytest.fixture(scope="module")
def with_a_map(tmp_path_factory):
    return open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path_factory.mktemp("map"), seed=7, **WITH_A_MAP))


def test_a_follower_goes_where_its_map_leads(with_a_map):
    agent = open_agent("follower", with_a_map, 2, 0)
    first = agent.act(torch.randn(2, *CONFIG.shape), None)
    assert agent.observation == OBSERVATION
    assert first.dtype == np.int64
    assert first.shape == (2,)


def test_the_cells_of_a_map_are_counted():
    toy, state = Toy(0.5, 4.4, 20), torch.zeros(1, MEMORY)
    mapped = Mapped(toy)
    policy, counts = Policy(CONFIG), []
    for _ in range(60):
        told, state = mapped.told(state)
        counts.append(policy.cells_known(state).item())
        toy.step(int(followed(told)[0]))
    assert counts[0] < 20 < counts[-1] == (unpacked(state).free.abs() > maze_map.SURE).sum()
    assert Policy(PolicyConfig("memory-maze", "features", (5,), 6, 16)).cells_known(torch.zeros(2, 0)).tolist() == [0, 0]


def test_curiosity_is_a_part_of_the_reward_and_not_of_returns(with_a_map):
    dream = with_a_map
    args = Learning(num_envs=2, episode_steps=8, rollout_steps=4, map=True, observation=OBSERVATION, hidden=16)
    rollouts = []
    for curiosity in (0.0, 0.5):
        envs = dreams(args, dream, dream.reset(torch.arange(3)))
        torch.manual_seed(0)
        learner = Learner(replace(args, curiosity=curiosity), CONFIG, envs, dream.device)
        learner.envs._steps[:] = 0  # both from their beginning on, so that none ends
        rollouts.append(learner.rollout())
    plain, curious = rollouts
    assert torch.equal(plain.action, curious.action)
    assert torch.equal(plain.reward_per_step, curious.reward_per_step)
    more = (curious.reward - plain.reward) / 0.5
    assert torch.equal(more, more.round())
    assert more.min() >= 0
    assert more.sum() > 0
    assert not more[0].any()  # what is known at the beginning is no discovery
    with pytest.raises(ValueError, match="it needs --map"):
        with_defaults(Learning(curiosity=0.1), "cpu")


def test_balls_are_counted_in_real_and_dreamed_frames(tmp_path, capsys):
    """Of an episode that has them all in view from where it begins; a reader that sees a ball everywhere finds them in every frame."""
    from experiments import balls_recalled

    reader = MapReader()
    with torch.no_grad():
        reader.cells[-1].weight.zero_()
        reader.cells[-1].bias.fill_(1.0)
    save_tensors(tmp_path / "reader.safetensors", reader.state_dict(), {"kind": map_memory.KIND})
    near = np.array([[3.5, 4.5], [4.5, 4.5], [5.5, 4.5]], np.float32)
    folder = recorded(tmp_path / "test", targets_pos=near)
    args = balls_recalled.Args(folder, tmp_path / "reader.safetensors", context=20, steps=3, out=tmp_path / "out.json")
    balls_recalled.main(args)
    assert "balls in 9 real views, 9 dreamed, 9 both" in capsys.readouterr().out
    assert json.loads(args.out.read_text())["views_of_balls"] == {"in_real_frames": 9, "in_dreamed_frames": 9, "in_both": 9}
    with pytest.raises(SystemExit, match="fewer than the 60 frames of context and steps"):
        balls_recalled.main(replace(args, context=57))
