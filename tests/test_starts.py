"""Where a dream starts, and every way to ask for it wrongly."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from tiny_world import OPENING_FRAMES, OPENINGS, WALK_FRAMES, WALKS, random_starts, same, write_tiny_weights
from torch.utils._pytree import tree_leaves, tree_map

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.data.episode import Episode, EpisodeError, write_episode
from lssvwm_gym.envs import DreamEnv, open_dream
from lssvwm_gym.envs.simulator import CONTEXTS_KEPT, Dream
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import first_state, prefill
from lssvwm_gym.worlds import WORLDS


@pytest.fixture
def env(tiny_weights):
    return DreamEnv("memory-maze", weights=tiny_weights, profile="fast", device="cpu")


@pytest.fixture
def episode_path(tmp_path):
    pytest.importorskip("av")
    return write(tmp_path / "walk", 40)


def write(path, frames, side=64, poses=True, **changed):
    rng = np.random.default_rng(0)
    heading = rng.uniform(0, 6, frames)
    extras = {"agent_pos": rng.uniform(0, 9, (frames, 2)), "agent_dir": np.stack([np.cos(heading), np.sin(heading)], 1)}
    arrays = dict(
        frames=rng.integers(0, 256, (frames, side, side, 3), np.uint8),
        action=rng.integers(0, 6, frames),
        reward=np.zeros(frames, np.float32),
        extras=extras if poses else {},
    )
    write_episode(path, Episode(**{**arrays, **changed}), fps=4)
    return path.with_suffix(".npz")


def dreams_on(env):
    """What the next frames are, after whatever start."""
    return [env.step(action) for action in (1, 2, 3)]


def test_by_default_the_seed_draws_an_opening(env):
    shown = {env.reset(seed=seed)[0].tobytes() for seed in range(40)}
    openings = env.dream.weights.short_contexts.latent[:, -1].float()
    assert shown == {frame.numpy().tobytes() for frame in env.dream.weights.autoencoder.decode(openings)}


def test_an_option_of_none_is_one_not_given(env):
    assert same(env.reset(seed=1), env.reset(seed=1, options={"context_id": None, "start": None}))


@pytest.mark.parametrize("clip", [0, np.int64(OPENINGS - 1)])
def test_clip_names_an_opening_and_shows_its_last_frame(env, clip):
    shown, info = env.reset(seed=9, options={"context_id": clip})
    last = env.dream.weights.short_contexts.latent[[clip], -1].float()
    assert np.array_equal(shown, env.dream.weights.autoencoder.decode(last)[0].numpy())
    assert info["age"] == OPENING_FRAMES


def test_the_whole_opening_is_remembered_with_its_poses_seen_from_the_first(env):
    _, info = env.reset(options={"context_id": 2})
    openings, model, state = env.dream.weights.short_contexts, env.dream.weights.world_model, env.clone_state().dream
    pose = relative_to(openings.pose[[2]], openings.pose[[2], :1])
    expected = prefill(model, first_state(model, state.seed), openings.latent[[2]].float(), openings.action[[2]], pose).state
    assert np.array_equal(info["estimated_pose"], pose[0, -1].numpy())
    assert all(torch.equal(a, b) for a, b in zip(state.world.layers[1], expected.world.layers[1], strict=True))


def test_a_start_draws_no_seed_of_its_own(env):
    """The clip that a seed would have drawn anyway dreams on in the same way."""
    frame, _ = env.reset(seed=5)
    drawn = dreams_on(env)
    named = [dreams_on(env) for clip in range(OPENINGS) if np.array_equal(env.reset(seed=5, options={"context_id": clip})[0], frame)]
    assert any(same(drawn, dream) for dream in named)


@pytest.mark.parametrize("frames", [1, 130, WALK_FRAMES])  # 130 is more than is remembered in one go
def test_context_frames_start_deep_inside_a_walk(env, frames):
    shown, info = env.reset(seed=0, options={"context_frames": frames})
    lasts = env.dream.weights.long_contexts.latent[:, frames - 1].float().split(1)  # decoded alone: products differ by batch size
    assert any(np.array_equal(shown, env.dream.weights.autoencoder.decode(last)[0].numpy()) for last in lasts)
    assert info["age"] == frames


def test_a_walk_is_remembered_once(tiny_weights, monkeypatch):
    dream = Dream(WORLDS["memory-maze"], load_weights(tiny_weights), "fast")
    asked, remembered = [], Dream.prefill
    monkeypatch.setattr(Dream, "prefill", lambda self, seeds, past: asked.append(past.latent.shape) or remembered(self, seeds, past))
    first, again = (dream.reset(torch.arange(6), {"context_frames": 20}) for _ in range(2))
    assert [shape[:2] for shape in asked] == [(1, 20)] * WALKS
    assert all(map(torch.equal, tree_leaves(first), tree_leaves(again)))
    assert first.seed.tolist() == list(range(6))
    alone = dream.reset(torch.tensor([3]), {"context_frames": 20})  # to the bit, with how many others it is begun
    assert all(torch.equal(mine, all_of_them[3:4]) for mine, all_of_them in zip(tree_leaves(alone), tree_leaves(first), strict=True))
    kept = tree_map(torch.clone, first)
    dream.step(first, torch.zeros(6, dtype=torch.int64))
    assert all(map(torch.equal, tree_leaves(kept), tree_leaves(dream.reset(torch.arange(6), {"context_frames": 20}))))
    for frames in range(1, CONTEXTS_KEPT + 2):
        dream.reset(torch.tensor([0]), {"context_frames": frames})
    assert dream._after_context.cache_info().currsize == CONTEXTS_KEPT


def test_a_cold_start_imagines_the_first_frame_too(env):
    shown = {seed: env.reset(seed=seed, options={"start": "cold"})[0].tobytes() for seed in (0, 1)}
    assert shown[0] != shown[1]
    again, info = env.reset(seed=0, options={"start": "cold"})
    assert shown[0] == again.tobytes()
    assert info["age"] == 1
    assert info["estimated_pose"].tolist() == [0, 0, 1, 0]


def test_an_episode_of_your_own_is_remembered(env, episode_path):
    assert env.reset(options={"episode": episode_path})[1]["age"] == 32
    assert env.reset(options={"episode": str(episode_path), "context_frames": 40})[1]["age"] == 40
    assert env.clone_state().dream.pose_known.item() == 1
    assert env.clone_state().dream.pose.abs().max() > 1


def test_an_episode_shorter_than_the_default_is_remembered_whole(env, tmp_path):
    pytest.importorskip("av")
    assert env.reset(options={"episode": write(tmp_path / "short", 3)})[1]["age"] == 3


def test_in_an_episode_without_poses_the_model_finds_its_own_way(env, tmp_path):
    pytest.importorskip("av")
    _, info = env.reset(options={"episode": write(tmp_path / "blind", 5, poses=False)})
    assert np.abs(info["estimated_pose"] - [0, 0, 1, 0]).max() > 0.01  # these weights are random: it goes somewhere
    dreams_on(env)
    state = env.clone_state().dream
    assert state.pose_known.item() == 1
    assert state.world.spatial_memory.latents.any()


def test_starts_without_poses_are_followed_too(env):
    blind = random_starts(1, 4)
    blind.pose[:] = torch.nan
    dream = dataclasses.replace(env.dream, weights=dataclasses.replace(env.dream.weights, short_contexts=blind))
    state = dream.reset(torch.tensor([0]))
    state = dream.step(state, torch.tensor([1])).state
    assert dream.info(state)["estimated_pose"].isfinite().all()
    assert state.world.spatial_memory.latents.any()


def test_a_world_without_poses_reports_none(tmp_path):
    env = DreamEnv("memory-maze", weights=write_tiny_weights(tmp_path, memory_features=0))
    for options in ({}, {"start": "cold"}):
        assert set(env.reset(options=options)[1]) == {"age", "reward_probability", "uncertainty"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clp": 1}, r"no options \{clp\}; it takes one of \{\}, \{context_frames\}, \{context_id\}"),
        ({"start": "cold", "context_id": 1}, r"can't combine the options \{start, context_id\}"),
        ({"start": "cold", "context_frames": 1}, r"can't combine the options \{start, context_frames\}"),
        ({"context_id": 1, "context_frames": 3}, r"can't combine the options \{context_id, context_frames\}; it takes one of"),
        ({"context_id": 1, "episode": "walk.npz"}, r"can't combine the options \{context_id, episode\}"),
        ({"reset_mask": np.ones(1, bool)}, r"no options \{reset_mask\}"),
        ({"start": "warm"}, "start can only be 'cold', not 'warm'"),
        (
            {"context_id": OPENINGS},
            rf"context_id must be a whole number 0..{OPENINGS - 1} \(there are {OPENINGS} short contexts\), not {OPENINGS}",
        ),
        ({"context_id": -1}, "not -1"),
        ({"context_id": 1.0}, "not 1.0"),
        ({"context_id": True}, "not True"),
        ({"context_frames": 0}, rf"context_frames must be a whole number 1..{WALK_FRAMES}"),
        ({"context_frames": WALK_FRAMES + 1}, f"the long contexts have {WALK_FRAMES} frames"),
        ({"episode": 3}, "path of a recorded episode, not 3"),
        ({"episode": "nowhere.npz"}, r"nowhere\.npz: no such file"),
    ],
)
def test_wrong_options_are_named(env, options, message):
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(side=32), r"frames of \(32, 32\) pixels; this world's are \(64, 64\)"),
        (dict(action=np.full(5, 6)), r"actions must be whole numbers 0\.\.5"),
        (dict(action=np.zeros(5, np.float32)), r"actions must be whole numbers 0\.\.5"),
        (dict(action=np.zeros((5, 2), np.int64)), r"actions must be whole numbers 0\.\.5"),
    ],
)
def test_an_episode_of_another_world_is_refused(env, tmp_path, changed, message):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=message):
        env.reset(options={"episode": write(tmp_path / "foreign", 5, **changed)})


def test_more_frames_than_the_episode_has_are_refused(env, episode_path):
    with pytest.raises(ValueError, match=r"walk\.npz has 40 frames"):
        env.reset(options={"episode": episode_path, "context_frames": 41})


def test_an_episode_that_is_none_is_refused(env, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"not an episode")
    with pytest.raises(EpisodeError, match=r"broken\.npz"):
        env.reset(options={"episode": tmp_path / "broken.npz"})


def test_weights_without_starts_can_dream_from_nothing_only(tmp_path):
    env = DreamEnv(WORLDS["memory-maze"], weights=write_tiny_weights(tmp_path, openings=0, walks=0))
    with pytest.raises(ValueError, match=r"without short contexts: reset with options=\{'start': 'cold'\}"):
        env.reset()
    with pytest.raises(ValueError, match="without long contexts"):
        env.reset(options={"context_frames": 3})
    env.reset(options={"start": "cold"})


def test_rows_start_alike_alone_and_together(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    seeds = torch.arange(4)
    for options in ({}, {"context_frames": 20}, {"start": "cold"}):
        together = dream.reset(seeds, options)
        for row in seeds:
            alone = dream.reset(row[None], options)
            assert torch.equal(alone.pose[0], together.pose[row])
            assert torch.allclose(alone.latent[0], together.latent[row], atol=1 / 64)


def test_new_contexts_in_a_folder_are_noticed(tmp_path):
    folder, other = (write_tiny_weights(tmp_path / name, openings=count) for name, count in (("one", 2), ("other", 3)))
    assert load_weights(folder).short_contexts.batch == 2
    shutil.copy(other / "contexts.safetensors", folder)
    assert load_weights(folder).short_contexts.batch == 3
