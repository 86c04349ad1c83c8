"""Many dreams in one batch: every row is a `DreamEnv`, whatever its neighbours do."""

import contextlib
import copy
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same, write_tiny_weights
from torch.utils._pytree import tree_leaves, tree_map

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]
ROWS, LIMIT = 3, 4


@pytest.fixture
def arguments(tiny_weights):
    return dict(world="memory-maze", weights=tiny_weights, profile="fast", device="cpu", render_mode="rgb_array")


@pytest.fixture
def envs(arguments):
    return DreamVectorEnv(num_envs=ROWS, max_episode_steps=LIMIT, **arguments)


def actions(steps, rows=ROWS):
    return np.random.default_rng(0).integers(0, 6, (steps, rows))


def alike(a, b):
    """Equal but for the last bit of a sum: frames within one grey level, poses and probabilities nearly, all else exactly."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == object:
        return alike(list(a), list(b))
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == np.uint8:
        return np.abs(a.astype(int) - b).max() <= 1
    return np.allclose(a, b, atol=0.002) if a.dtype.kind == "f" else np.array_equal(a, b)


@pytest.mark.parametrize("seed", [7, [5, None, 3], None])
def test_a_batch_is_what_gymnasium_makes_of_single_environments(envs, arguments, seed):
    """Observations, rewards, ends and infos, keys and dtypes too, over several episodes."""
    singles = [lambda: TimeLimit(DreamEnv(**arguments), LIMIT)] * ROWS
    reference = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    if seed == [5, None, 3]:  # None goes on with the row's own generator, whatever it was
        envs.reset(seed=1), reference.reset(seed=1)
    elif seed is None:
        seed = list(range(ROWS))
    assert alike(envs.reset(seed=seed), reference.reset(seed=seed))
    for action in actions(2 * LIMIT + 1):
        assert alike(envs.step(action), reference.step(action))
    assert alike(envs.reset(), reference.reset())
    assert envs.single_observation_space == reference.single_observation_space
    assert envs.observation_space == reference.observation_space
    assert envs.action_space == reference.action_space


def test_a_row_is_the_single_environment_of_its_seed(envs, arguments):
    for row in range(ROWS):
        alone = DreamEnv(**arguments)
        assert alike(envs.reset(seed=10)[0][row], alone.reset(seed=10 + row)[0])
        for step, action in enumerate(actions(2 * LIMIT)):
            frames, rewards, _, _, info = envs.step(action)
            frame, reward, _, _, known = alone.step(action[row])
            if (step + 1) % LIMIT == 0:
                assert alike(info["final_obs"][row], frame)
                info, frame = info["final_info"], alone.reset()[0]
            assert alike(frames[row], frame)
            assert reward == rewards[row]
            assert alike(info["estimated_pose"][row], known["estimated_pose"])


def test_a_row_does_not_depend_on_the_number_of_rows(arguments):
    few, many = (DreamVectorEnv(num_envs=rows, max_episode_steps=LIMIT, **arguments) for rows in (2, 6))
    few.reset(seed=0), many.reset(seed=0)
    for action in actions(2 * LIMIT, 6):
        a, b = few.step(action[:2]), many.step(action)
        assert alike(a[0], b[0][:2])
        assert np.array_equal(a[1], b[1][:2])


def test_resetting_one_row_leaves_the_others_alone(envs):
    mask = np.array([False, True, False])
    envs.reset(seed=0)
    untouched = [envs.step(action) for action in actions(3)]
    envs.reset(seed=0)
    for action in actions(2):
        before, *_ = envs.step(action)
    after, info = envs.reset(options={"reset_mask": mask})
    assert same(after[~mask], before[~mask])
    assert not np.array_equal(after[mask], before[mask])
    assert same(info["_age"], mask)
    frames, rewards, *_ = envs.step(actions(3)[2])
    assert alike(frames[~mask], untouched[2][0][~mask])
    assert same(rewards[~mask], untouched[2][1][~mask])


def test_a_masked_row_takes_its_seed_and_options(envs, arguments):
    envs.reset(seed=0)
    options = {"reset_mask": np.array([False, False, True]), "context_id": 1}
    frames, _ = envs.reset(seed=20, options=options)
    assert alike(frames[2], DreamEnv(**arguments).reset(seed=22, options={"context_id": 1})[0])
    assert set(options) == {"reset_mask", "context_id"}  # the caller's own


def test_rows_of_different_age_end_one_by_one(envs):
    envs.reset(seed=0)
    envs.step(actions(1)[0])
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    ends = [envs.step(action) for action in actions(LIMIT)]
    assert [end[3].tolist() for end in ends] == [[False] * 3, [False] * 3, [False, True, True], [True, False, False]]
    assert [row is None for row in ends[2][4]["final_obs"]] == [True, False, False]
    assert same(ends[2][4]["_final_info"], np.array([False, True, True]))


def test_a_row_that_terminates_begins_anew(tmp_path, arguments):
    envs = DreamVectorEnv(num_envs=2, **{**arguments, "weights": write_tiny_weights(tmp_path, termination=True)})
    envs.dream.weights.world_model.termination_head.network[-1].bias.fill_(50)
    envs.reset(seed=0)
    _, _, terminated, truncated, info = envs.step(np.zeros(2, int))
    assert terminated.all()
    assert not truncated.any()
    assert same(info["age"] < info["final_info"]["age"], np.ones(2, bool))


def test_infos_repeat_under_the_same_seed(envs):
    both = [(envs.reset(seed=3), [envs.step(action) for action in actions(2 * LIMIT)]) for _ in range(2)]
    assert same(*both)


def test_nothing_returned_is_shared(envs):
    frames, _ = envs.reset(seed=0)
    frames[:] = 0
    assert np.array(envs.render()).any()
    assert np.array(envs.restore_state(envs.clone_state())).any()


def test_make_vec_builds_the_batch_with_the_registered_limit(tiny_weights, recwarn):
    envs = gymnasium.make_vec(WORLD.id, num_envs=2, weights=tiny_weights, profile="fast", device="cpu")
    assert isinstance(envs, DreamVectorEnv)
    assert envs.max_episode_steps == WORLD.max_episode_steps
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert "num_envs=2" in repr(envs)
    assert "device='cpu'" in repr(envs)
    assert not recwarn.list


def test_gymnasiums_own_vectorization_works_too(tiny_weights):
    envs = gymnasium.make_vec(WORLD.id, num_envs=2, vectorization_mode="sync", weights=tiny_weights, profile="fast")
    envs.reset(seed=0)
    assert envs.step(np.zeros(2, int))[0].shape == (2, 64, 64, 3)


def test_without_a_limit_nothing_is_truncated(arguments):
    envs = DreamVectorEnv(num_envs=1, **arguments)
    envs.reset(seed=0)
    assert not any(envs.step(np.zeros(1, int))[3].any() for _ in range(2 * LIMIT))


def test_episode_statistics_are_right(envs):
    recorder = RecordEpisodeStatistics(envs)
    recorder.reset(seed=0)
    rewards = []
    for action in actions(LIMIT):
        *_, info = (step := recorder.step(action))
        rewards.append(step[1])
    assert same(info["episode"]["r"], np.sum(rewards, 0))
    assert info["episode"]["l"].tolist() == [LIMIT] * ROWS
    recorder.step(actions(1)[0])
    recorder.reset(options={"reset_mask": np.array([True, False, False])})
    assert recorder.episode_lengths.tolist() == [0, 1, 1]


def test_infos_become_lists(envs):
    listed = DictInfoToList(envs)
    _, infos = listed.reset(seed=0)
    assert [set(info) for info in infos] == [{"age", "reward_probability", "estimated_pose", "familiarity"}] * ROWS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(2, int), "an array of 3 whole numbers"),
        (np.zeros(3), "an array of 3 whole numbers"),
        (np.array([0, 6, 0]), "is no action; there are 0 noop"),
        (None, "an array of 3 whole numbers"),
    ],
)
def test_wrong_actions_are_refused(envs, wrong, message):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(wrong)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (dict(seed=[1, 2]), "2 seeds for 3 rows"),
        (dict(options={"reset_mask": [True, False, False]}), "reset_mask must be a bool array"),
        (dict(options={"reset_mask": np.zeros(3, bool)}), "with a row to reset"),
        (dict(options={"reset_mask": np.ones(2, bool)}), "reset_mask must be a bool array"),
        (dict(options={"context_id": 99}), "there are 5 short contexts"),
    ],
)
def test_wrong_resets_are_refused(envs, reset, message):
    with pytest.raises(ValueError, match=message):
        envs.reset(**reset)


@pytest.mark.parametrize("wrong", [dict(num_envs=0), dict(max_episode_steps=0), dict(render_mode="human")])
def test_wrong_arguments_are_refused(arguments, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DreamVectorEnv(**{**arguments, **wrong})


def test_every_row_must_have_been_reset(envs):
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(actions(1)[0])
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(actions(1)[0])
    envs.reset(options={"reset_mask": np.array([False, True, True])})
    envs.step(actions(1)[0])


def tensors_of(arguments, **settings):
    return DreamVectorEnv(**{"num_envs": ROWS, "max_episode_steps": LIMIT, **arguments, **settings}, output="torch")


def told(value):
    """What was returned as tensors, as arrays."""
    return {key: told(part) for key, part in value.items()} if isinstance(value, dict) else value.numpy()


def whole(info, rows=ROWS):
    """An info of arrays with last observations as they are in one of tensors: zeros where there are none."""
    info = {key: whole(value) if isinstance(value, dict) else value for key, value in info.items()}
    if "final_obs" in info:
        blank = tree_map(np.zeros_like, next(row for row in info["final_obs"] if row is not None))
        last = [blank if row is None else row for row in info["final_obs"]]
        info["final_obs"] = {key: np.stack([row[key] for row in last]) for key in blank} if isinstance(blank, dict) else np.stack(last)
    return info


def as_doubles(value):
    if isinstance(value, dict):
        return {key: as_doubles(part) for key, part in value.items()}
    return value.astype(float) if value.dtype.kind == "f" else value


def same_numbers(tensors, arrays):
    return alike(as_doubles(told(tensors)), as_doubles(arrays))


@pytest.mark.parametrize("observation", ["all", "features"])
def test_tensors_say_what_arrays_say(arguments, observation):
    """Over several episodes, of which one row's begins at another time; then from a moment restored."""
    arrays = DreamVectorEnv(**{**arguments, "num_envs": ROWS, "max_episode_steps": LIMIT, "observation": observation})
    tensors = tensors_of(arguments, observation=observation)
    for options in (
        {},
        {"reset_mask": np.array([True, False, False])},
        {"reset_mask": np.array([False, False, True]), "context_frames": 9},
    ):
        (seen, info), (frames, known) = tensors.reset(seed=5, options=options), arrays.reset(seed=5, options=options)
        assert same_numbers(seen, frames)
        assert same_numbers(info, known)
        for action in actions(LIMIT // 2):
            after, expected = tensors.step(torch.from_numpy(action)), arrays.step(action)
            assert all(same_numbers(a, b) for a, b in zip(after[:4], expected[:4], strict=True))
            assert same_numbers(after[4], whole(expected[4]))
    for envs in (tensors, arrays):
        envs.restore_state(arrays.clone_state())
    assert same_numbers(tensors.step(torch.tensor([1, 2, 3]))[0], arrays.step(np.array([1, 2, 3]))[0])
    branches = tensors.branch(2)
    assert isinstance(branches.step(torch.zeros(2 * ROWS, dtype=torch.int64))[0], torch.Tensor)


def test_tensors_of_a_world_with_counts_and_milestones(tmp_path):
    settings = dict(world="minecraft", num_envs=2, max_episode_steps=3, weights=write_tiny_minecraft(tmp_path), device="cpu")
    tensors, arrays = DreamVectorEnv(**settings, output="torch"), DreamVectorEnv(**settings)
    assert same_numbers(tensors.reset(seed=1)[0], arrays.reset(seed=1)[0])
    for action in np.random.default_rng(0).integers(0, 14, (6, 2)):
        after, expected = tensors.step(torch.from_numpy(action)), arrays.step(action)
        assert all(same_numbers(a, b) for a, b in zip(after[:4], expected[:4], strict=True))
        assert same_numbers(after[4], whole(expected[4]))


def test_tensors_where_the_model_ends_an_episode(tmp_path, arguments):
    envs = tensors_of({**arguments, "weights": write_tiny_weights(tmp_path, termination=True)})
    envs.dream.weights.world_model.termination_head.network[-1].bias.fill_(50)
    envs.reset(seed=0)
    _, _, terminated, truncated, info = envs.step(torch.zeros(ROWS, dtype=torch.int64))
    assert terminated.all()
    assert not truncated.any()
    assert (info["age"] < info["final_info"]["age"]).all()


def test_nothing_that_is_a_tensor_is_shared(arguments):
    envs = tensors_of(arguments)
    seen, info = envs.reset(seed=0)
    before = seen.clone()
    for tensor in tree_leaves((seen, info)):
        tensor.fill_(1)
    assert torch.equal(envs.restore_state(envs.clone_state()), before)
    again = tensors_of(arguments)
    again.reset(seed=0)
    action = torch.zeros(ROWS, dtype=torch.int64)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(envs.step(action)), tree_leaves(again.step(action)), strict=True))


def test_a_step_needs_no_number_of_its_device(arguments, monkeypatch):
    """On the device `meta` tensors have no numbers: whoever copied one to the CPU, or asked for one, would fail here."""
    envs = tensors_of(arguments, profile="balanced")
    envs.reset(seed=0)
    loaded = load_weights(arguments["weights"])
    there = {name: copy.deepcopy(getattr(loaded, name)).to("meta") for name in ("autoencoder", "world_model")}
    envs.dream = replace(envs.dream, weights=replace(loaded, **there))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none on meta
    envs._now = tree_map(lambda tensor: tensor.to("meta"), envs._now)
    for _ in range(LIMIT - 1):
        returned = envs.step(torch.zeros(ROWS, dtype=torch.int64, device="meta"))
        assert {tensor.device.type for tensor in tree_leaves(returned)} == {"meta"}
    assert [tensor.dtype for tensor in returned[:4]] == [torch.uint8, torch.float32, torch.bool, torch.bool]
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        returned[1].cpu()


def test_make_vec_takes_output(tiny_weights):
    envs = gymnasium.make_vec(WORLD.id, num_envs=2, weights=tiny_weights, profile="fast", device="cpu", output="torch")
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (2, 64, 64, 3)
    with pytest.raises(ValueError, match="output must be one of numpy, torch, not 'jax'"):
        gymnasium.make_vec(WORLD.id, num_envs=2, weights=tiny_weights, output="jax")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(ROWS, int), "actions are a tensor .3,. of whole numbers"),
        (torch.zeros(ROWS), r"not \(3,\) torch.float32"),
        (torch.zeros(2, dtype=torch.int64), r"not \(2,\) torch.int64"),
        (torch.zeros(ROWS, dtype=torch.bool), "torch.bool"),
        (torch.tensor([0, 6, 0]), "is no action; there are 0 noop"),
    ],
)
def test_wrong_actions_as_tensors_are_refused(arguments, wrong, message):
    envs = tensors_of(arguments)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(wrong)
