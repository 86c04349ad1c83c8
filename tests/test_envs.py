"""One dream as a Gymnasium environment: what it promises and what it refuses."""

import copy
import logging
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny_world import OPENING_FRAMES, same, write_tiny_weights

from lssvwm_gym.envs import DreamEnv, open_dream
from lssvwm_gym.envs.simulator import _announce
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.models.rollout import first_state, prefill
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]
ID = WORLD.id


@pytest.fixture
def env(tiny_weights):
    return DreamEnv("memory-maze", weights=tiny_weights, profile="fast", device="cpu", render_mode="rgb_array")


def play(env, actions):
    """Everything that steps return."""
    return [env.step(action) for action in actions]


# --- the contract


def test_gymnasium_checker_is_content(tiny_weights, recwarn):
    check_env(gymnasium.make(ID, weights=tiny_weights, render_mode="rgb_array", profile="fast").unwrapped, skip_render_check=False)
    assert not recwarn.list


def test_module_and_id_in_one_string_needs_no_import(tiny_weights):
    code = f"""
import gymnasium
env = gymnasium.make("lssvwm_gym:{ID}", weights={str(tiny_weights)!r}, profile="fast")
assert env.reset(seed=0)[0].shape == (64, 64, 3)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_spaces_metadata_and_keys_are_the_worlds(env):
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == gymnasium.spaces.Discrete(6)
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 4}
    assert env.get_keys_to_action()[tuple(sorted((ord("w"), ord("a"))))] == WORLD.actions.index("forward_left")


def test_the_same_seed_dreams_the_same_and_resets_differ(env):
    actions = [1, 2, 3, 1, 0]
    first, then = (env.reset(seed=3), play(env, actions)), (env.reset(), play(env, actions))
    assert same(first, (env.reset(seed=3), play(env, actions)))
    assert same(then, (env.reset(), play(env, actions)))
    assert not same(first, then)


def test_actions_matter_and_so_does_the_profile(tiny_weights):
    frames = {}
    for profile in ("fast", "balanced", "quality"):
        env = DreamEnv("memory-maze", weights=tiny_weights, profile=profile)
        for action in (0, 1):
            env.reset(seed=0)
            frames[profile, action] = env.step(action)[0].tobytes()
    assert len(set(frames.values())) == len(frames)


def test_info_holds_numbers_only(env):
    for _, info in [env.reset(seed=0), env.step(1)[::4]]:
        assert type(info["age"]) is int
        assert type(info["reward_probability"]) is float
        assert 0 <= info["reward_probability"] <= 1
        assert info["estimated_pose"].dtype == np.float32
        assert np.hypot(*info["estimated_pose"][2:]) == pytest.approx(1, abs=0.01)
        assert 0 <= info["familiarity"] <= 1


def test_a_place_is_familiar_once_it_was_seen(tiny_weights):
    dream = open_dream("memory-maze", weights=tiny_weights)
    model, frame = dream.weights.world_model, torch.randn(1, 1, 16, 4)
    here, noop = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]), torch.tensor([[0]])
    seen = prefill(model, first_state(model, torch.tensor([0])), frame, noop, here).state
    assert dream.info(seen)["familiarity"].item() == pytest.approx(0, abs=1e-4)
    assert dream.info(prefill(model, seen, frame, noop, here).state)["familiarity"] > 0.9
    assert dream.info(prefill(model, seen, frame, noop, here + torch.tensor([5.0, 5, 0, 0])).state)["familiarity"] < 0.5


def test_only_frames_dreamed_in_several_passes_are_uncertain(tiny_weights):
    env = DreamEnv("memory-maze", weights=tiny_weights, profile="balanced")
    assert env.reset(seed=0)[1]["uncertainty"] == 0
    assert env.step(1)[4]["uncertainty"] > 0
    fast = DreamEnv("memory-maze", weights=tiny_weights, profile="fast")
    assert "uncertainty" not in fast.reset(seed=0)[1]
    assert "uncertainty" not in fast.step(1)[4]


def test_age_counts_frames_in_memory(env):
    assert env.reset(seed=0)[1]["age"] == OPENING_FRAMES
    assert env.step(0)[4]["age"] == OPENING_FRAMES + 1


def test_reward_is_what_the_committed_frame_pays(env):
    """Both values occur, and each agrees with the probability of that very moment."""
    env.reset(seed=0)
    rewards, probabilities = zip(*((s[1], s[4]["reward_probability"]) for s in play(env, [1, 3] * 60)), strict=True)
    assert set(rewards) == {0.0, 1.0}
    assert [reward > 0 for reward in rewards] == [probability > 0.5 for probability in probabilities]


def test_an_episode_ends_where_the_model_says_so(tmp_path):
    env = DreamEnv("memory-maze", weights=write_tiny_weights(tmp_path, termination=True), profile="fast")
    bias = env.dream.weights.world_model.termination_head.network[-1].bias
    for logit, ends in ((50, True), (-50, False)):
        bias.fill_(logit)
        env.reset(seed=0)
        assert env.step(0)[2] is ends


def test_truncation_comes_from_gymnasium(tiny_weights):
    env = gymnasium.make(ID, weights=tiny_weights, profile="fast", max_episode_steps=3)
    env.reset(seed=0)
    assert [step[3] for step in play(env, [0, 0, 0])] == [False, False, True]
    assert gymnasium.spec(ID).max_episode_steps == WORLD.max_episode_steps


@pytest.mark.slow
def test_two_thousand_steps_stay_finite(env):
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(2000):
        _, reward, _, _, info = env.step(env.action_space.sample())
        assert np.isfinite([reward, info["reward_probability"], *info["estimated_pose"]]).all()


def test_recording_a_video_sees_the_observations(tiny_weights, tmp_path):
    pytest.importorskip("moviepy", reason="gymnasium's RecordVideo needs moviepy")
    env = gymnasium.make(ID, weights=tiny_weights, profile="fast", render_mode="rgb_array", max_episode_steps=3)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "videos"))
    env.reset(seed=0)
    play(env, [0, 1, 2])
    env.close()
    assert list(tmp_path.rglob("*.mp4"))


def test_render_shows_the_observation_and_nothing_returned_is_shared(env):
    frame, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), frame)
    frame[:] = 0
    assert env.render().any()


def test_render_without_a_mode_says_how_to_get_one(tiny_weights):
    env = DreamEnv("memory-maze", weights=tiny_weights)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None


def test_copies_share_the_weights_but_not_the_dream(env):
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    assert twin.dream is env.dream
    assert same(play(env, [1, 2]), play(twin, [1, 2]))


def test_the_device_is_named_in_repr_and_logged_once(tiny_weights, caplog):
    _announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="lssvwm_gym"):
        envs = [DreamEnv("memory-maze", weights=tiny_weights) for _ in range(2)]
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"device='{chosen}" in repr(envs[0])
    assert [record.getMessage() for record in caplog.records] == [f"dreaming on {chosen}"]


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(world="atlantis"), "world must be one of memory-maze"),
        (dict(profile="best"), "profile must be one of fast, balanced, quality, not 'best'"),
        (dict(render_mode="human"), "render_mode must be None or one of rgb_array, not 'human'"),
        (dict(device="abacus"), "device must be 'auto', 'cpu' or a device of this machine"),
    ],
)
def test_wrong_arguments_are_named(tiny_weights, arguments, message):
    with pytest.raises(ValueError, match=message):
        DreamEnv(**{"world": "memory-maze", "weights": tiny_weights, **arguments})


def test_weights_of_another_world_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights of 9 actions, but a dream of memory-maze needs 6"):
        open_dream("memory-maze", weights=write_tiny_weights(tmp_path, actions=9))
    with pytest.raises(ValueError, match=r"needs 6; its world\.json says that they dream take-cover"):
        open_dream("memory-maze", weights=WORLDS["take-cover"].weights)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(TensorFileError, match=r"config\.json: no such file"):
        open_dream("memory-maze", weights=tmp_path)
    with pytest.raises(TensorFileError, match=r"nowhere: no such folder; a folder of weights"):
        open_dream("memory-maze", weights=tmp_path / "nowhere")


@pytest.mark.parametrize("action", [6, -1, np.int64(7)])
def test_an_unknown_action_is_refused_with_the_names_of_all(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is no action; there are 0 noop, 1 forward"):
        env.step(action)


@pytest.mark.parametrize("action", [1.0, "forward", None, [1], np.array([1])])
def test_an_action_of_the_wrong_type_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="must be a whole number"):
        env.step(action)


@pytest.mark.parametrize("method", ["step", "render", "clone_state"])
def test_reset_comes_first(env, method):
    with pytest.raises(gymnasium.error.ResetNeeded, match=method):
        getattr(env, method)(*[0] * (method == "step"))
