"""Weights that say themselves which world they dream: the record, the ids, the commands, and worlds whose actions are numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny_world import write_tiny_weights

import lssvwm_gym
from lssvwm_gym.checkpoints.checkpoint import load_weights, read_weights, save_weights
from lssvwm_gym.checkpoints.model_card import CARD, Naming, card, described, write_card
from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.data.episode import Episode, episode_paths, write_episode
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate
from lssvwm_gym.evaluation.rollouts import cut_clips, prefill_clips, read_encoded
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.play import Playing, play
from lssvwm_gym.play.settings import open_game
from lssvwm_gym.training.autoencoder import AutoencoderTraining, train_autoencoder
from lssvwm_gym.training.world_model import check_data
from lssvwm_gym.worlds import WORLDS, WorldError, WorldSpec, chosen_world, read_world, write_world

POND = WorldSpec("LSSVWM-Pond-v0", "pond", 64, ("stay", "swim"), {"w": 1}, 5, (0.0, 2.5), 4, Path("nowhere"), length_scale=0.5)


@pytest.fixture
def pond(tmp_path) -> Path:
    """A folder of weights with its record."""
    write_tiny_weights(tmp_path / "pond", actions=2, openings=0, walks=0)
    write_world(tmp_path / "pond", POND)
    return tmp_path / "pond"


@pytest.fixture
def raft(tmp_path) -> Path:
    """A world whose actions are two numbers."""
    folder = write_tiny_weights(tmp_path / "raft", actions=0, action_size=2, openings=3)
    world = dataclasses.replace(POND, id="LSSVWM-Raft-v0", name="raft", actions=("along", "across"), keys={}, low=(-1, 0), high=(1, 2))
    write_world(folder, world)
    return folder


@pytest.fixture(autouse=True)
def _forget():
    known, ids = dict(WORLDS), set(gymnasium.registry)
    yield
    WORLDS.clear()
    WORLDS.update(known)
    for id in set(gymnasium.registry) - ids:
        gymnasium.registry.pop(id)


def test_a_record_comes_back_as_it_was(tmp_path):
    for world in (*WORLDS.values(), POND):
        write_world(tmp_path / world.name, world)
        assert read_world(tmp_path / world.name) == dataclasses.replace(world, weights=tmp_path / world.name, real_id=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "lssvwm_gym World 2"}, "its format is not"),
        ({"code": "print(1)"}, r"unknown \['code'\]"),
        ({"real_id": "os:Env-v0"}, r"unknown \['real_id'\]"),
        ({"weights": "/etc"}, r"unknown \['weights'\]"),
        ({"id": "os:LSSVWM-Pond-v0"}, "id is 'os:LSSVWM-Pond-v0', not"),
        ({"id": "Pond"}, "id is 'Pond', not"),
        ({"name": "../pond"}, "name is"),
        ({"image_size": 64.0}, "image_size is '64.0', not a int"),
        ({"image_size": 10**9}, "image_size is 1000000000, not 8..4096"),
        ({"fps": True}, "fps is 'True'"),
        ({"fps": 0}, "fps is 0"),
        ({"actions": []}, "actions need names"),
        ({"actions": ["a", "a"]}, "actions need names, each its own"),
        ({"actions": ["a"] * 9999}, "no list of at most"),
        ({"actions": ["a\u001b[2J", "b"]}, "can't be printed"),
        ({"actions": ["a" * 101, "b"]}, "not a str of 1 to 100 letters"),
        ({"actions": "ab"}, "actions is no list"),
        ({"keys": {"w": 2}}, r"keys \['w'\] stand for none"),
        ({"keys": ["w"]}, "keys is no object"),
        ({"reward_values": [float("nan")]}, "reward_values is nan"),
        ({"length_scale": float("inf")}, "length_scale is inf"),
        ({"milestones": [["log"]]}, "has 1 entries where 2 belong"),
        ({"low": [0.0, 0.0]}, "don't bound"),
        ({"low": [0.0, 0.0], "high": [1.0, 0.0]}, "don't bound"),
    ],
)
def test_a_hostile_record_is_one_clear_error(pond, change, said):
    record = json.loads((pond / "world.json").read_text()) | change
    (pond / "world.json").write_text(json.dumps(record))
    with pytest.raises(WorldError, match=said) as error:
        read_world(pond)
    assert str(pond / "world.json") in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 2}', "[" * 5000, "\x00", "null"])
def test_what_is_no_record_is_refused(pond, text):
    (pond / "world.json").write_text(text)
    with pytest.raises(WorldError, match=r"world\.json"):
        gymnasium.make("LSSVWM-Dream-v0", weights=pond)


def test_any_folder_with_a_record_is_made(pond):
    env = gymnasium.make("LSSVWM-Dream-v0", weights=pond, profile="fast", render_mode="rgb_array")
    assert env.action_space == gymnasium.spaces.Discrete(2)
    env.reset(seed=0, options={"start": "cold"})
    assert [env.step(1)[3] for _ in range(4)] == [False, False, False, True]
    assert env.render().shape == (64, 64, 3)
    envs = gymnasium.make_vec("LSSVWM-Dream-v0", 3, weights=pond, profile="fast")
    assert (envs.num_envs, envs.max_episode_steps) == (3, 4)
    assert gymnasium.make_vec("LSSVWM-Dream-v0", 3, weights=pond, max_episode_steps=2).max_episode_steps == 2


def test_without_a_folder_or_a_record_it_says_what_is_missing(tiny_weights):
    with pytest.raises(WorldError, match="Give the folder of its weights"):
        gymnasium.make("LSSVWM-Dream-v0")
    with pytest.raises(WorldError, match=r"has no world\.json"):
        gymnasium.make("LSSVWM-Dream-v0", weights=tiny_weights)


def test_a_folder_is_registered_once(pond):
    world = lssvwm_gym.register(pond)
    assert lssvwm_gym.register(str(pond)) == world
    env = gymnasium.make("LSSVWM-Pond-v0", profile="fast")
    env.reset(seed=0, options={"start": "cold"})
    assert [env.step(0)[3] for _ in range(4)] == [False, False, False, True]
    with pytest.raises(ValueError, match="environment of the id LSSVWM-Pond-v0 already"):
        lssvwm_gym.register(dataclasses.replace(world, name="puddle"))
    with pytest.raises(ValueError, match="environment of the id CartPole-v1 already"):
        lssvwm_gym.register(dataclasses.replace(world, name="puddle", id="CartPole-v1"))


def test_weights_that_know_their_world_need_no_name(pond, tiny_weights):
    assert chosen_world("", pond).name == "pond"
    assert chosen_world("memory-maze", pond).name == "memory-maze"
    assert chosen_world("", tiny_weights).name == "memory-maze"
    with pytest.raises(ValueError, match="no world named 'sea'"):
        chosen_world("sea")
    game = open_game(Playing(weights=pond, profile="fast", start="cold", seed=0))
    assert game.world.name == "pond"
    game.close()


def test_the_real_world_of_a_record_is_told_by_the_package_alone(tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "copy")
    write_world(folder, WORLDS["memory-maze"])
    assert chosen_world("", folder).real_id == WORLDS["memory-maze"].real_id


def test_numbers_as_actions(raft):
    env = gymnasium.make("LSSVWM-Dream-v0", weights=raft, profile="fast")
    assert env.action_space == gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")  # its bounds are what they are
        check_env(env.unwrapped, skip_render_check=True)
    frames = []
    for action in ([1, 0], [-1, 2], [1, 0]):
        env.reset(seed=1)
        frames.append(env.step(np.array(action, np.float32))[0])
    assert (frames[0] == frames[2]).all()
    assert (frames[0] != frames[1]).any()
    env.reset(seed=1, options={"start": "cold"})
    for wrong in ([2, 0], [0, 0, 0], [np.nan, 0], 1, "left", None):
        with pytest.raises(ValueError, match="along, across"):
            env.unwrapped.step(wrong)


def test_numbers_as_actions_in_a_batch_and_from_an_episode(raft, tmp_path):
    envs = gymnasium.make_vec("LSSVWM-Dream-v0", 2, weights=raft, profile="fast")
    envs.reset(seed=3)
    frames, *_ = envs.step(np.array([[1, 0], [0, 1]], np.float32))
    assert frames.shape == (2, 64, 64, 3)
    frames = np.random.default_rng(0).integers(256, size=(9, 64, 64, 3), dtype=np.uint8)
    for name, action in (("good", np.ones((9, 2), np.float32)), ("bad", np.zeros(9, np.uint8))):
        write_episode(tmp_path / name, Episode(frames, action, np.zeros(9, np.float32)), fps=5)
    env = DreamEnv(read_world(raft), weights=raft)
    env.reset(seed=0, options={"episode": tmp_path / "good.npz"})
    with pytest.raises(ValueError, match="actions must be 2 numbers a frame"):
        env.reset(seed=0, options={"episode": tmp_path / "bad.npz"})
    with pytest.raises(ValueError, match="2 numbers, for which there are no keys"):
        play(Playing(weights=raft))


def test_weights_of_another_kind_of_action_are_refused(pond, raft):
    with pytest.raises(ValueError, match="weights of 0 actions, but a dream of pond needs 2"):
        DreamEnv(read_world(pond), weights=raft)
    with pytest.raises(ValueError, match="weights of 0 numbers an action, but a dream of raft needs 2"):
        DreamEnv(read_world(raft), weights=pond)


@pytest.fixture
def recordings(tmp_path) -> Path:
    """Three episodes without poses, as `collect gym` leaves them."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        frames = rng.integers(256, size=(20, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        reward = np.where(np.arange(20) == 7, 0.8, 0).astype(np.float32)
        write_episode(tmp_path / f"data/{seed:06d}", Episode(frames, rng.integers(2, size=20).astype(np.uint8), reward), fps=4)
    collection = dict(env="ale:ALE/Pong-v5", kwargs="{}", pixels="render", size=64, crop=False, fps=12, steps=19, poses=False)
    (tmp_path / "data/collecting.json").write_text(json.dumps(collection | {"actions": ["noop", "go-left"], "low": [], "high": []}))
    return tmp_path / "data"


def test_collected_episodes_name_the_world(recordings, pond):
    world = described(Naming(), recordings, load_weights(pond))
    assert world is not None
    assert (world.id, world.name, world.actions, world.fps, world.max_episode_steps) == (
        "LSSVWM-Pong-v0",
        "pong",
        ("noop", "go-left"),
        12,
        19,
    )
    assert world.reward_values == (0.0, 0.8)
    assert world.keys == {"1": 0, "2": 1, "a": 1}
    named = described(Naming(name="tennis", actions=("up", "down"), fps=3, reward=2.0, max_episode_steps=7), recordings, load_weights(pond))
    assert named is not None
    assert (named.id, named.actions, named.fps, named.reward_values, named.max_episode_steps) == (
        "LSSVWM-tennis-v0",
        ("up", "down"),
        3,
        (0.0, 2.0),
        7,
    )


def test_recordings_that_say_nothing_name_no_world(recordings, pond):
    (recordings / "collecting.json").unlink()
    assert described(Naming(), recordings, load_weights(pond)) is None
    world = described(Naming(name="tennis"), recordings, load_weights(pond))
    assert world is not None
    assert (world.actions, world.fps, world.max_episode_steps) == (("action 0", "action 1"), 15, 19)
    assert described(Naming(world="memory-maze"), recordings, load_weights(pond)) == WORLDS["memory-maze"]
    with pytest.raises(ValueError, match="no world named 'sea'"):
        described(Naming(world="sea"), recordings, load_weights(pond))
    with pytest.raises(ValueError, match="3 names of actions, but the model was trained with 2"):
        described(Naming(name="tennis", actions=("a", "b", "c")), recordings, load_weights(pond))


def test_bounds_that_no_environment_names_are_those_of_the_recordings(raft, tmp_path):
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    action = np.array([[9, 9], [-2, 0], [3, 0], [1, 0], [0, 0]], np.float32)  # the first is a placeholder
    write_episode(tmp_path / "data/0", Episode(frames, action, np.zeros(5, np.float32)), fps=4)
    world = described(Naming(name="raft"), tmp_path / "data", load_weights(raft))
    assert world is not None
    assert (world.low, world.high) == ((-2.0, 0.0), (3.0, 1.0))
    assert world.keys == {}


def test_what_ships_is_a_dream_with_a_card(recordings, pond, tmp_path):
    weights = load_weights(pond)
    save_tensors(
        tmp_path / "world.safetensors", weights.world_model.state_dict(), {"config": dataclasses.asdict(weights.world_model.config)}
    )
    out = tmp_path / "shipped"
    packaging = Packaging(pond, tmp_path / "world.safetensors", out, recordings, short_contexts=2, short_context_frames=4, long_contexts=1)
    package(packaging)
    env = lssvwm_gym.load(out, profile="fast")
    env.reset(seed=0, options={"context_frames": 20})
    assert env.unwrapped.dream.world.name == "pong"
    assert "noop, go-left" in (out / "README.md").read_text()
    (recordings / "collecting.json").unlink()
    package(packaging)
    assert not (out / "world.json").exists()  # which would be another world's
    with pytest.raises(ValueError, match="no episode has the 50 frames of a context"):
        package(dataclasses.replace(packaging, short_context_frames=50))


def test_a_new_decoder_ships_with_the_starts_that_there_are(pond, recordings, tmp_path):
    write_world(pond, POND)
    config = dataclasses.replace(load_weights(pond).autoencoder.config, decoder_widths=(4, 8))
    training = dict(data=recordings, encoder=pond, model=config, steps=2, batch=2, warmup=1)
    decoder = train_autoencoder(AutoencoderTraining(out=tmp_path / "decoder", **training))
    packaging = Packaging(decoder, pond, tmp_path / "shipped")
    new, old = package(packaging), load_weights(pond)
    assert torch.equal(new.long_contexts.latent, old.long_contexts.latent)
    assert new.autoencoder.config == config
    shipped = read_weights(tmp_path / "shipped")
    frames = torch.randint(256, (2, config.image_size, config.image_size, 3), dtype=torch.uint8)
    assert torch.equal(shipped.autoencoder.encode(frames), old.autoencoder.encode(frames))
    assert lssvwm_gym.load(tmp_path / "shipped", profile="fast").unwrapped.dream.world.name == POND.name

    other = train_autoencoder(AutoencoderTraining(out=tmp_path / "other", **training | {"encoder": None}))
    with pytest.raises(ValueError, match="has another encoder than"):
        package(dataclasses.replace(packaging, autoencoder=other))
    with pytest.raises(ValueError, match="has no contexts: name a folder with real episodes"):
        package(dataclasses.replace(packaging, world_model=decoder))


def test_contexts_are_stored_in_bytes_and_stay_as_they_are_from_then_on(tmp_path):
    first = load_weights(write_tiny_weights(tmp_path / "pond", actions=2))
    latent = torch.randn_like(first.long_contexts.latent.float()).half()
    save_weights(tmp_path / "bytes", dataclasses.replace(first, long_contexts=dataclasses.replace(first.long_contexts, latent=latent)))
    read = read_weights(tmp_path / "bytes")
    largest = latent.float().abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    assert ((read.long_contexts.latent.float() - latent.float()).abs() <= largest / 127 / 2 + 1e-3).all()
    assert torch.equal(read.long_contexts.pose, first.long_contexts.pose)
    file = tmp_path / "bytes/contexts.safetensors"
    assert file.stat().st_size < latent.numel() + first.short_contexts.latent.numel() + 20_000
    save_weights(tmp_path / "again", read)
    assert (read_weights(tmp_path / "again").long_contexts.latent - read.long_contexts.latent).abs().max() <= 0.004  # of float16's rounding


def test_a_card_written_by_hand_stays(pond):
    text = card(POND, load_weights(pond), pond)
    assert write_card(pond, text)
    assert write_card(pond, text)
    (pond / "README.md").write_text("mine")
    assert not write_card(pond, text)
    assert (pond / "README.md").read_text() == "mine"
    assert CARD in text


def test_without_poses_the_next_frames_are_measured_and_places_are_not(recordings, pond, capsys):
    report = evaluate(Evaluation(recordings, weights=pond, clips=1, context=4, ahead=3, tests=("next_frame", "open_loop", "drift")))
    assert report["world"] == "LSSVWM-Pond-v0"
    assert report["skipped"] == {"drift": "the episodes have no poses"}
    assert np.isfinite(report["scores"]["next_frame"]["estimated motion PSNR"]["mean"])
    assert np.isfinite(report["scores"]["open_loop"]["frame 3: dream PSNR"]["mean"])


def test_clips_without_poses_leave_no_trace_of_any(recordings, pond):
    weights = load_weights(pond)
    clips = cut_clips(read_encoded(episode_paths(recordings), weights), 6, 1)
    state = prefill_clips(weights.world_model, clips)
    assert state.features.isfinite().all()
    assert (state.pose_known == 0).all()
    assert (state.posterior_variance == 1).all()


def episode(action: torch.Tensor, told: bool = True) -> Segment:
    frames = len(action)
    pose = torch.zeros(frames, 4) if told else torch.full((frames, 4), torch.nan)
    return Segment(torch.zeros(frames, 16, 4), action, torch.zeros(frames), pose, torch.zeros(frames, 0))


@pytest.mark.parametrize(
    ("config", "episodes", "said"),
    [
        (WorldModelConfig(actions=2), [episode(torch.tensor([0, 2]))], "--model.actions 3 or more"),
        (WorldModelConfig(), [episode(torch.zeros(2, 3))], "--model.actions 0 --model.action-size 3"),
        (WorldModelConfig(actions=0, action_size=3), [episode(torch.tensor([0, 1]))], "--model.actions N --model.action-size 0"),
        (WorldModelConfig(), [episode(torch.tensor([0, 1]), told=False)], "--model.memory-features 0"),
        (WorldModelConfig(), [episode(torch.tensor([0, 1])), episode(torch.zeros(2, 3))], "of several worlds"),
    ],
)
def test_training_refuses_what_it_could_not_learn(config, episodes, said):
    with pytest.raises(ValueError, match=said):
        check_data(config, episodes)


def test_training_takes_what_fits():
    check_data(WorldModelConfig(), [episode(torch.tensor([0, 5])), episode(torch.tensor([0, 1]), told=False)])
    check_data(WorldModelConfig(actions=0, action_size=3), [episode(torch.zeros(2, 3))])
    check_data(WorldModelConfig(memory_features=0), [episode(torch.tensor([0, 5]), told=False)])
