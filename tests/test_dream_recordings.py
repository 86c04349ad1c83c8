"""`lssvwm-gym dream --data`: from recordings of each layout to an environment, what is refused, and that recordings stay as they are."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from test_minari import pictures as minari_pictures
from test_minari import write_dataset
from test_public import public_arrays
from test_teco import some_actions, write_dmlab, write_mp4, write_trajectory
from test_vpt import recorded, write_recording

import lssvwm_gym
from lssvwm_gym.cli import main
from lssvwm_gym.data.collect_gym import read_collection
from lssvwm_gym.data.convert.human_actions import action_names
from lssvwm_gym.data.convert.vpt import ITEMS
from lssvwm_gym.data.episode import Episode, EpisodeError, episode_paths, read_arrays, write_episode
from lssvwm_gym.own_world import OwnWorld, dream, planned
from lssvwm_gym.own_world import plan as planning
from lssvwm_gym.own_world import recordings as looking
from lssvwm_gym.own_world.plan import Costs, made_plan
from lssvwm_gym.own_world.recordings import link_recordings
from lssvwm_gym.own_world.settings import NETWORKS, world_training
from lssvwm_gym.own_world.stages import ORDER, _evaluation
from lssvwm_gym.training.world_model import Trainer

FRAMES = 24


def asked(source: Path, layout: str = "", **settings: Any) -> OwnWorld:
    tiny = {"out": source.parent / "dreamed", "network": "tiny", "minutes": 0.2, "threads": 1}
    return OwnWorld(data=source, layout=layout, **{**tiny, **settings})  # type: ignore[arg-type]


def linked(source: Path, layout: str = "", **settings: Any) -> OwnWorld:
    """As far as the plan and the folders of the episodes."""
    run = asked(source, layout, **settings)
    planned(run)
    link_recordings(run)
    return run


def names(folder: Path) -> list[str]:
    return [path.stem for path in episode_paths(folder)]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_ctime_ns) for path in files}


def marsh(folder: Path, tests: int = 1) -> Path:
    for number in range(3):
        write_trajectory(folder / f"train/{number}/a.mp4", some_actions(number, FRAMES))
    for number in range(tests):
        write_trajectory(folder / f"test/{number}/a.mp4", some_actions(9 + number, FRAMES))
    return folder


def played(folder: Path) -> Path:
    """Recordings of people in Minecraft, of different lengths, with as many for tests as imagination is compared on."""
    for name, length in (("train/a", FRAMES), ("train/b", FRAMES + 9), ("train/c", FRAMES + 1), *((f"test/{n}", FRAMES) for n in range(4))):
        write_recording(folder / f"{name}.mp4", *recorded(length))
    return folder


def episode(length: int, seed: int = 0, side: int = 64, **extras: np.ndarray) -> Episode:
    rng = np.random.default_rng(seed)
    frames = np.zeros((length, side, side, 3), np.uint8) + rng.integers(0, 250, (length, 1, 1, 3), np.uint8)
    return Episode(frames, rng.integers(0, 3, length), np.zeros(length, np.float32), extras)


def ours(folder: Path, *lengths: int, **extras: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        given = {name: array[:length] for name, array in extras.items()}
        write_episode(folder / f"{number:06d}", episode(length, number, **given), 5)
    return folder


def opened(run: OwnWorld) -> gym.Env:
    env = lssvwm_gym.load(run.out / "weights")
    check_env(env.unwrapped, skip_render_check=True)
    return env


@pytest.mark.slow
def test_teco_becomes_an_environment(tmp_path, capsys):
    source = marsh(tmp_path / "marsh")
    before = snapshot(source)
    line = f"dream --data {source} --layout teco-minecraft --frame-skip 2 --out {tmp_path}/dreamed --network tiny --minutes 0.2 --threads 1"
    main(shlex.split(line))
    run, said = asked(source, "teco-minecraft", frame_skip=2), capsys.readouterr().out
    assert f"lssvwm-gym convert --source {source} --out {run.out / 'converted'} --layout teco-minecraft --crf 8 --frame-skip 2" in said
    assert "[6/6] takes about" in said
    env = opened(run)
    world = env.unwrapped.dream.world
    assert env.action_space == Discrete(10)
    assert world.id == "LSSVWM-marsh-v0"
    assert world.actions[:3] == ("placeholder", "forward, forward", "forward, left")
    assert (world.fps, world.max_episode_steps) == (2, (FRAMES - 1) // 2)
    model = env.unwrapped.dream.weights.world_model.config
    assert model.residual
    assert not model.has_spatial_memory
    assert json.loads((run.out / "evaluation.json").read_text())["scores"].keys() == {"next_frame", "open_loop", "reward"}
    assert snapshot(source) == before


@pytest.mark.slow
def test_vpt_becomes_an_environment_with_poses_in_space_and_an_inventory(tmp_path):
    source = played(tmp_path / "Find a cave!")
    run = asked(source, "vpt", crop=True)
    dream(run)
    env = opened(run)
    world, model = env.unwrapped.dream.world, env.unwrapped.dream.weights.world_model.config
    assert world.name == "find-a-cave"
    assert world.actions == action_names()
    assert env.observation_space["inventory"] == Box(-1e9, 1e9, (len(ITEMS),), np.float32)
    assert world.inventory == ITEMS
    assert model.has_spatial_memory
    assert not model.residual
    assert len(model.motion_scale) == 5
    assert model.motion_scale[0] > 0.1
    assert model.inventory_changes[0] == (0.0, 1.0)  # a log more, every tick
    assert env.reset(seed=0)[0]["inventory"][ITEMS.index("log")] > 0
    scores = json.loads((run.out / "evaluation.json").read_text())["scores"]
    assert scores.keys() == {"next_frame", "open_loop", "reward", "imagination"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`eval_env` is set to None", "ignore:env_spec is None")
def test_minari_becomes_an_environment(tmp_path, monkeypatch):
    taken = np.random.default_rng(0).random((FRAMES, 2)).astype(np.float32)
    space = Box(-1, 2, (2,), np.float32)
    source = write_dataset(tmp_path, monkeypatch, minari_pictures(np.arange(FRAMES) % 5), taken, action_space=space, episodes=3)
    run = asked(source, "minari")
    dream(run)
    with pytest.warns(UserWarning, match="symmetric"):
        env = opened(run)
    assert env.action_space == Box(-1, 2, (2,), np.float32)  # as the dataset says, not what was drawn
    model = env.unwrapped.dream.weights.world_model.config
    assert model.termination
    assert model.reward_bins
    assert env.unwrapped.dream.world.name == "test"


@pytest.mark.slow
def test_our_own_episodes_go_on_where_they_were_stopped(tmp_path, stopped_dream, capsys):
    source = ours(tmp_path / "own", *[FRAMES] * 4)
    before, run = snapshot(source), asked(source)
    stopped_dream(run)
    assert snapshot(source) == before
    held, plan = names(run.test), (run.out / "plan.json").read_text()
    write_episode(source / "later", episode(FRAMES), 5)  # is not mixed in
    dream(run)
    assert (names(run.test), (run.out / "plan.json").read_text()) == (held, plan)
    assert sorted([*names(run.train), *held]) == [f"{number:06d}" for number in range(4)]
    assert f"[1/6] {run.out / 'autoencoder' / 'autoencoder.safetensors'} is there already" in capsys.readouterr().out
    assert opened(run).action_space == Discrete(3)
    with pytest.raises(EpisodeError, match=r"made with data .*own, not .*other; dream into another folder"):
        dream(dataclasses.replace(run, data=tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give one of them"),
        ({"env": "CartPole-v1", "data": Path("there")}, "give one of them"),
        ({"env": "CartPole-v1", "layout": "vpt", "cut": True}, "layout, cut can't be set with --env"),
        (
            {"data": Path("there"), "steps": 9, "position": "x", "imports": ("minigrid",)},
            "imports, steps, position can't be set with --data",
        ),
        ({"data": Path("there"), "frame_skip": 2, "crop": True}, "frame_skip, crop are for recordings of a --layout"),
        ({"data": Path("there"), "layout": "minari", "frame_skip": 2}, "frame_skip can't be set with the layout minari"),
        ({"data": Path("there"), "layout": "teco-dmlab", "frame_skip": 6}, "frame_skip is at most 5"),
    ],
)
def test_settings_of_the_other_kind_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        OwnWorld(**settings)


def test_folders_that_hold_too_little_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "empty").mkdir()
    single = marsh(tmp_path / "single/train/0", tests=0) / "train/0"
    short = ours(tmp_path / "short", 30, 7, 7, 7)
    for run, said in (
        (asked(tmp_path / "nowhere"), "nowhere: no such folder"),
        (asked(tmp_path / "nowhere", "videos"), "nowhere: no such folder"),
        (asked(tmp_path / "empty"), "holds no episodes .* other recordings need their --layout"),
        (asked(tmp_path / "empty", "teco-minecraft"), r"holds no \.mp4 or \.npz"),
        (asked(tmp_path / "empty", "minari"), "holds no Minari dataset"),
        (asked(single, "teco-minecraft"), "holds a single recording; a dream needs one to learn from and another to evaluate on"),
        (asked(ours(tmp_path / "one", 30)), "1 episodes, the longest of 30 frames; a dream needs two of 8 frames and more"),
        (asked(short), "4 episodes, the longest of 30 frames"),
    ):
        with pytest.raises(ValueError, match=said):
            dream(dataclasses.replace(run, out=tmp_path / "dreamed"))
        assert not list((tmp_path / "dreamed").iterdir())


def test_most_episodes_must_be_long_enough(tmp_path):
    source = ours(tmp_path / "short", 30, 30, *[7] * 9)
    with pytest.raises(ValueError, match=r"short ends after 7 frames, of 10 episodes: too early to dream on from anything"):
        dream(asked(source))


def broken(folder: Path, **changed: np.ndarray) -> None:
    arrays = {name: array for name, array in {**read_arrays(folder / "000001.npz"), **changed}.items() if array is not None}
    np.savez(folder / "000001.npz", **arrays)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"action": np.zeros(19, int)}, "000001.npz: action has 19 entries for 20 frames"),
        ({"action": np.full(20, -1)}, r"actions are whole numbers from 0 \(T,\) or floats \(T, A\), not int64 \(20,\)"),
        ({"action": np.zeros((20, 2), int)}, r"not int64 \(20, 2\)"),
        ({"reward": np.full(20, np.nan)}, "reward has entries that are not finite"),
        ({"reward": None}, "no array named reward"),
        ({"inventory": np.zeros(20)}, "inventory must be numbers"),
        ({"inventory": np.zeros((20, 2))}, r"of several worlds: .* are \(0, 4, 2\) and \(0, 4, 0\)"),
        ({"action": np.zeros((20, 2))}, r"of several worlds: .* are \(2, 4, 0\) and \(0, 4, 0\)"),
    ],
)
def test_episodes_that_could_not_be_learned_from_are_named_at_once(tmp_path, changed, said):
    source = ours(tmp_path / "own", 20, 20, 20)
    broken(source, **changed)
    with pytest.raises(EpisodeError, match=said):
        planned(asked(source))


def test_frames_of_another_size_are_refused(tmp_path):
    write_episode(ours(tmp_path / "own", 20, 20) / "000001", episode(20, side=96), 5)
    with pytest.raises(EpisodeError, match=r"000001.mp4: frames are 96x96 pixels, not 64x64: --size"):
        planned(asked(tmp_path / "own"))


def test_a_folder_for_tests_is_kept_and_else_some_are_held_out(tmp_path, monkeypatch):
    run = linked(marsh(tmp_path / "split", tests=6), "teco-minecraft")
    assert names(run.train) == ["0-a", "1-a", "2-a"]
    assert (len(names(run.test)), read_arrays(run.test / names(run.test)[0])["action"].shape) == (4, (FRAMES,))
    source = ours(tmp_path / "own", *[10] * 60)
    run = linked(source, out=tmp_path / "held")
    assert (len(names(run.train)), len(names(run.test))) == (57, 3)
    assert json.loads((run.out / "plan.json").read_text())["test_episodes"] == 3
    assert not set(names(run.train)) & set(names(run.test))
    assert names(linked(source, out=tmp_path / "again").test) == names(run.test)
    monkeypatch.setattr(looking, "MOST_FRAMES", 105)
    assert len(names(linked(source, out=tmp_path / "less").train)) == 10
    assert len(names(linked(source, out=tmp_path / "first", episodes=20).train)) == 19


def test_episodes_of_one_name_and_of_one_frame(tmp_path, capsys):
    source = ours(tmp_path / "own", 20, 20, 1)
    assert names(linked(source).train)[-1] != "000002"
    assert "1 episodes of a single frame are left out" in capsys.readouterr().err
    ours(source / "train", 20)
    with pytest.raises(EpisodeError, match="1 of its episodes have the name of one in train"):
        planned(asked(source, out=tmp_path / "again"))


def test_converting_goes_on_where_it_was_and_what_is_broken_is_said(tmp_path):
    source = marsh(tmp_path / "marsh")
    (source / "train/1/a.npz").unlink()
    run = asked(source, "teco-minecraft")
    with pytest.raises(EpisodeError, match="1 of 4 recordings can't be converted"):
        dream(run)
    made = {path: path.stat().st_mtime_ns for path in (run.out / "converted").rglob("*.npz")}
    with pytest.raises(EpisodeError, match=r"made with data .*marsh, not .*other; dream into another folder"):
        planned(asked(marsh(tmp_path / "other"), "teco-minecraft"))
    write_trajectory(source / "train/1/a.mp4", some_actions(1, FRAMES))
    linked(source, "teco-minecraft")
    assert (len(made), len(names(run.train))) == (3, 3)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    source.rename(tmp_path / "elsewhere")  # is needed no more
    planned(run)
    link_recordings(run)
    assert len(read_arrays(run.train / "1-a.npz")["action"]) == FRAMES


def test_broken_recordings_can_be_left_out(tmp_path):
    source = marsh(tmp_path / "marsh")
    (source / "train/1/a.npz").unlink()
    with pytest.raises(EpisodeError, match="--skip-broken"):
        planned(asked(source, "teco-minecraft"))
    assert names(linked(source, "teco-minecraft", skip_broken=True).train) == ["0-a", "2-a"]


def test_what_the_layout_and_the_episodes_tell_of_their_world(tmp_path):
    for number in range(3):
        write_dmlab(tmp_path / f"dmlab/train/{number}.npz", np.random.default_rng(number).integers(0, 3, 25))
    world = read_collection(linked(tmp_path / "dmlab/train", "teco-dmlab", frame_skip=2).train)
    assert (world.env, world.fps, world.steps, world.poses) == ("dmlab", 8, 12, False)
    assert world.actions[:4] == ("class 0, class 0", "class 0, class 1", "class 0, class 2", "class 1, class 0")

    (tmp_path / "maze").mkdir()
    for name in "abc":
        np.savez(tmp_path / "maze" / name, **public_arrays(20))
    run = linked(tmp_path / "maze", "memory-maze", out=tmp_path / "of_maze")
    world = read_collection(run.train)
    assert (world.actions[1], len(world.actions), world.poses) == ("forward", 6, True)
    assert planned(run).poses

    for name in "ab":
        write_mp4(tmp_path / f"films/{name}.mp4", np.zeros((20, 90, 120, 3), np.uint8), fps=10)
    world = read_collection(linked(tmp_path / "films", "videos", out=tmp_path / "of_films", fps=7).train)
    assert (world.actions, world.fps) == (("action 0",), 7)


def test_what_collecting_json_says_of_our_own_episodes_is_kept(tmp_path):
    source = ours(tmp_path / "own", 20, 20, 20, inventory=np.zeros((20, 2)))
    run = linked(source)
    assert read_collection(run.train).actions == ("action 0", "action 1", "action 2")
    assert read_collection(run.train).inventory == ("number 0", "number 1")
    said = dataclasses.asdict(read_collection(run.train)) | {"env": "Stairs-v0", "actions": ["up", "down", "stay"], "fps": 9}
    (source / "collecting.json").write_text(json.dumps(said | {"inventory": ["health", "speed"]}))
    world = read_collection(linked(source, out=tmp_path / "again").train)
    assert (world.env, world.actions, world.inventory, world.fps) == ("Stairs-v0", ("up", "down", "stay"), ("health", "speed"), 9)


def test_poses_decide_how_it_is_trained_and_evaluated(tmp_path):
    turned = np.arange(20.0)
    poses = {"agent_pos": np.stack([turned, turned], 1), "agent_dir": np.stack([np.cos(turned), np.sin(turned)], 1)}
    for given in ({}, poses):
        source = ours(tmp_path / str(len(given)) / "train", 20, 20, **given).parent
        ours(source / "test", 20, 20, 20, 20, **given)
        run = linked(source, out=tmp_path / f"dream{len(given)}")
        plan = planned(run)
        training = world_training(run, NETWORKS["tiny"], plan)
        assert (plan.poses, training.model.residual, training.back > 0) == (bool(given), not given, bool(given))
        assert ("imagination" in _evaluation(run, plan).tests) == bool(given)
        next(run.test.glob("*.npz")).unlink()  # halves of three are too few
        assert "imagination" not in _evaluation(run, plan).tests


def test_the_time_to_play_is_trained_instead(tmp_path, monkeypatch):
    run = asked(ours(tmp_path / "own", 30, 30, 30), network="auto", minutes=5)
    monkeypatch.setattr(planning, "measured", lambda *_: Costs(0.01, 0.02, 0.01, 1e-6))
    plan = made_plan(run)
    assert sum(plan.seconds[name] for name in ORDER[2:]) == pytest.approx(300, rel=0.02)
    assert plan.world_steps * 0.02 == pytest.approx(plan.seconds["world"], rel=0.02)
    monkeypatch.setattr(planning, "measured", lambda *_: Costs(0.1, 1, 0.1, 0.01))
    with pytest.raises(ValueError, match=r"--minutes 2 is too few: .* take 4 minutes"):
        made_plan(dataclasses.replace(run, minutes=2))


def test_what_steps_cost_is_measured_with_poses_in_space_too(tmp_path, monkeypatch):
    space = {"pos": np.random.default_rng(0).random((20, 3)), "yaw": np.zeros(20), "pitch": np.zeros(20)}
    learned = []
    monkeypatch.setattr(planning, "Trainer", lambda run, episodes: learned.append((run.model, episodes[0])) or Trainer(run, episodes))
    run = asked(ours(tmp_path / "own", *[20] * 3, **space))
    tried = planning.recorded(run)
    assert min(planning.measured(run, NETWORKS["tiny"], planned(run), tried)[:3]) > 0
    assert (len(learned[0][0].motion_scale), learned[0][1].pose.shape[1]) == (5, 6)
    assert learned[0][0].has_spatial_memory


def test_a_dream_of_an_environment_that_was_begun_before_goes_on(tmp_path):
    """Its files say nothing of recordings."""
    run = OwnWorld("CartPole-v1", tmp_path, network="tiny", minutes=0.2, position="state", angle="state")
    planned(OwnWorld("CartPole-v1", tmp_path / "new", network="tiny", minutes=0.2))
    plan = json.loads((tmp_path / "new" / "plan.json").read_text())
    asked_before = json.loads((tmp_path / "new" / "dream.json").read_text()) | {"position": "state", "angle": "state"}
    assert not asked_before.keys() & {"data", "layout", "frame_skip"}
    del plan["poses"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "dream.json").write_text(json.dumps(asked_before))
    assert planned(run).poses
