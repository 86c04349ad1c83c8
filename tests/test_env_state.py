"""State as a value: going back, branching, and a state on disk."""

import json

import numpy as np
import pytest
import torch
from tiny_world import same, write_tiny_weights

from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors

ACTIONS = [1, 2, 3, 0, 5]


@pytest.fixture
def env(tiny_weights):
    env = DreamEnv("memory-maze", weights=tiny_weights, profile="fast", device="cpu")
    env.reset(seed=0)
    return env


@pytest.fixture
def envs(tiny_weights):
    envs = DreamVectorEnv("memory-maze", 3, max_episode_steps=4, weights=tiny_weights, profile="fast", device="cpu")
    envs.reset(seed=0)
    return envs


def future(env):
    """Steps, an end, and the episode after."""
    if isinstance(env, DreamVectorEnv):
        return [env.step(np.full(env.num_envs, action)) for action in ACTIONS]
    return [env.step(action) for action in ACTIONS], env.reset(), env.step(1)


@pytest.fixture(params=["env", "envs"])
def either(request):
    return request.getfixturevalue(request.param)


def test_restoring_goes_on_bit_for_bit(either):
    future(either)
    moment, first = either.clone_state(), future(either)
    either.restore_state(moment)
    assert same(first, future(either))
    either.restore_state(moment)  # the state itself has not changed
    assert same(first, future(either))


def test_restoring_needs_no_reset(either, tiny_weights):
    moment, first = either.clone_state(), future(either)
    rows = dict(num_envs=3, max_episode_steps=4) if isinstance(either, DreamVectorEnv) else {}
    fresh = type(either)("memory-maze", weights=tiny_weights, profile="fast", device="cpu", **rows)
    fresh.restore_state(moment)
    assert same(first, future(fresh))


def test_a_saved_state_goes_on_bit_for_bit(either, tmp_path):
    future(either)
    either.save_state(tmp_path / "moment.safetensors")
    first = future(either)
    either.reset(seed=99)
    either.load_state(tmp_path / "moment.safetensors")
    assert same(first, future(either))


def test_restoring_returns_the_observation_of_that_moment(either):
    shown = future(either)[-1][0]
    moment = either.clone_state()
    future(either)
    assert np.array_equal(either.restore_state(moment), shown)


def test_rows_of_a_batch_go_on_alone(env, envs):
    envs.step(np.array([1, 2, 3]))
    moment = envs.clone_state()
    frames, rewards, *_ = envs.step(np.array([4, 4, 4]))
    env.restore_state(moment.rows([1]))
    frame, reward, *_ = env.step(4)
    assert np.abs(frame.astype(int) - frames[1]).max() <= 1
    assert reward == rewards[1]


def test_a_branch_keeps_one_future_and_dreams_others(env):
    many = env.branch(3)
    assert many.num_envs == 3
    here = [env.step(action)[0] for action in ACTIONS]
    there = [many.step(np.full(3, action))[0] for action in ACTIONS]
    assert all(np.abs(a.astype(int) - b[0]).max() <= 1 for a, b in zip(here, there, strict=True))
    last = there[-1]
    assert len({row.tobytes() for row in last}) == 3


def test_with_the_same_noise_only_actions_tell_branches_apart(env):
    many = env.branch(3, same_noise=True)
    for action in ACTIONS:
        frames, *_ = many.step(np.full(3, action))
        assert all(np.array_equal(frames[0], frame) for frame in frames)
    frames, *_ = many.step(np.array([0, 1, 1]))
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[1], frames[2])


def test_branches_of_a_batch_lie_side_by_side(envs):
    frames, *_ = envs.step(np.array([1, 2, 3]))
    many = envs.branch(2)
    assert many.num_envs == 6
    assert np.array_equal(many.restore_state(many.clone_state()), frames.repeat(2, axis=0))
    state = many.clone_state()
    assert state.dream.seed[::2].equal(envs.clone_state().dream.seed)
    assert len(set(state.dream.seed.tolist())) == 6
    assert len({json.dumps(random) for random in state.random}) == 6


def test_steps_before_the_branch_count(env):
    env.step(0)
    many = env.branch(2, max_episode_steps=4)
    assert [many.step(np.zeros(2, int))[3].tolist() for _ in range(3)] == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("n", [0, -1])
def test_a_branch_of_nothing_is_refused(env, n):
    with pytest.raises(ValueError, match=f"at least 1, not {n}"):
        env.branch(n)


def test_a_state_of_another_model_is_refused(either, tmp_path):
    either.save_state(tmp_path / "moment.safetensors")
    rows = dict(num_envs=3) if isinstance(either, DreamVectorEnv) else {}
    other = type(either)("memory-maze", weights=write_tiny_weights(tmp_path / "other", seed=1), device="cpu", **rows)
    with pytest.raises(ValueError, match="a state of other weights"):
        other.restore_state(either.clone_state())
    with pytest.raises(TensorFileError, match=r"moment.safetensors: a state of LSSVWM-MemoryMaze-v0 with weights \w+, but this"):
        other.load_state(tmp_path / "moment.safetensors")


def test_a_state_of_another_number_of_rows_is_refused(env, envs, tmp_path):
    envs.save_state(tmp_path / "moment.safetensors")
    with pytest.raises(ValueError, match="a state of 3 rows for an environment of 1"):
        env.load_state(tmp_path / "moment.safetensors")
    with pytest.raises(ValueError, match="a state of 1 rows for an environment of 3"):
        envs.restore_state(env.clone_state())


def test_files_that_are_no_states_are_refused(env, tmp_path):
    path = tmp_path / "moment.safetensors"
    with pytest.raises(TensorFileError, match="no such file"):
        env.load_state(path)
    path.write_bytes(b"not a state")
    with pytest.raises(TensorFileError, match=r"moment\.safetensors"):
        env.load_state(path)
    save_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(TensorFileError, match="not a saved state"):
        env.load_state(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors, header: tensors.pop("frame"),
        lambda tensors, header: tensors.pop("pose"),
        lambda tensors, header: tensors.update(pose=torch.zeros(1, 5)),
        lambda tensors, header: tensors.update(frame=torch.zeros(1, 5, dtype=torch.uint8)),
        lambda tensors, header: tensors.update(more=torch.zeros(1)),
        lambda tensors, header: header.update(steps=[1, 2]),
        lambda tensors, header: header.update(steps="many"),
        lambda tensors, header: header.update(random=[{}]),
        lambda tensors, header: header.update(random=[]),
        lambda tensors, header: header.pop("steps"),
        lambda tensors, header: header.pop("weights"),
    ],
)
def test_a_spoilt_state_is_refused(env, tmp_path, spoil):
    path = tmp_path / "moment.safetensors"
    env.save_state(path)
    tensors, header = load_tensors(path)
    spoil(tensors, header)
    save_tensors(path, tensors, header)
    with pytest.raises(TensorFileError, match=r"moment\.safetensors"):
        env.load_state(path)
