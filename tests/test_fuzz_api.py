"""Wrong actions, options, seeds and states: refused with a clear `ValueError`, and the dream goes on as if they had never come."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same, write_tiny_weights

from lssvwm_gym.envs import DreamEnv, DreamVectorEnv

EXAMPLES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
ROWS = 2

strange = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.floats(),
        st.complex_numbers(),
        st.text(),
        st.binary(),
        st.integers(),
        st.lists(st.integers(), max_size=3),
    ),
    *(st.dictionaries(st.text(), st.integers(), max_size=2), st.lists(st.lists(st.integers(), max_size=3), max_size=3), st.just(object())),
    npst.arrays(st.one_of(npst.scalar_dtypes(), st.just(np.dtype(object))), npst.array_shapes(min_dims=0, max_dims=3, max_side=3)),
    st.sampled_from([np.int64(-1), np.uint64(2**64 - 1), np.ma.masked, torch.tensor(99), np.datetime64(3, "s"), 10**30, {1}, range(9)]),
)


@pytest.fixture(scope="module", params=["memory-maze", "minecraft"])
def arguments(request, tmp_path_factory):
    write = {"memory-maze": write_tiny_weights, "minecraft": write_tiny_minecraft}[request.param]
    return dict(world=request.param, weights=write(tmp_path_factory.mktemp(request.param)), profile="fast", device="cpu")


@pytest.fixture(scope="module")
def env(arguments):
    env = DreamEnv(**arguments)
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def envs(arguments):
    envs = DreamVectorEnv(num_envs=ROWS, **arguments)
    envs.reset(seed=0)
    return envs


def refused_or_done(what, env, space):
    """Do something with strange input: it works and gives what was promised, or it is refused and nothing has changed."""
    before, shown = env.clone_state(), env.clone_state().frame
    try:
        observation = what()
    except ValueError as error:
        said = str(error)
        after = env.clone_state()
        assert after.steps == before.steps
        assert after.random == before.random
        assert torch.equal(after.frame, shown)
        assert 0 < len(said) < 3000
        return False
    assert space.contains(observation)
    return True


def whole(action, rows, count):
    """Whether something is an action by what `Discrete` promises."""
    try:
        array = np.asarray(action)
    except (TypeError, ValueError):
        return False
    return array.shape == rows and array.dtype.kind in "iu" and bool(((array >= 0) & (array < count)).all())


@EXAMPLES
@given(action=strange)
def test_actions_of_one_dream(env, action):
    assert refused_or_done(lambda: env.step(action)[0], env, env.observation_space) == whole(action, (), env.action_space.n)


@EXAMPLES
@given(action=st.one_of(strange, st.lists(strange, min_size=ROWS, max_size=ROWS)))
def test_actions_of_a_batch(envs, action):
    count = envs.single_action_space.n
    assert refused_or_done(lambda: envs.step(action)[0], envs, envs.observation_space) == whole(action, (ROWS,), count)


@pytest.fixture(scope="module")
def venv(envs):
    return pytest.importorskip("lssvwm_gym.envs.sb3").DreamVecEnv(envs)


@EXAMPLES
@given(action=strange)
def test_actions_of_stable_baselines(venv, action):
    observations = refused_or_done(lambda: venv.step(action)[0], venv.envs, venv.envs.observation_space)
    assert observations == whole(action, (ROWS,), venv.action_space.n)


keys = st.one_of(st.sampled_from(["context_id", "context_frames", "episode", "start", "reset_mask"]), st.text(max_size=4), st.integers())


@EXAMPLES
@given(options=st.one_of(strange, st.dictionaries(keys, st.one_of(strange, st.just("cold"), st.integers(-2, 9)), max_size=3)))
def test_options_of_reset(env, envs, options):
    for one in (env, envs):
        refused_or_done(lambda one=one: one.reset(options=options)[0], one, one.observation_space)


@EXAMPLES
@given(seed=st.one_of(strange, st.lists(strange, min_size=ROWS, max_size=ROWS)))
def test_seeds(env, envs, seed):
    refused_or_done(lambda: envs.reset(seed=seed)[0], envs, envs.observation_space)
    with contextlib.suppress(gymnasium.error.Error, ValueError):  # Gymnasium's own words for single environments
        env.reset(seed=seed)


@EXAMPLES
@given(state=strange)
def test_what_is_no_state(env, envs, state):
    for one in (env, envs):
        assert not refused_or_done(lambda one=one: one.restore_state(state), one, one.observation_space)


def test_states_of_another_batch_model_or_world(env, envs, arguments, tmp_path):
    other_world = DreamEnv("memory-maze", weights=write_tiny_weights(tmp_path / "other", seed=9), profile="fast", device="cpu")
    other_world.reset(seed=0)
    for one, state in ((env, envs.clone_state()), (envs, env.clone_state()), (env, other_world.clone_state())):
        assert not refused_or_done(lambda one=one, state=state: one.restore_state(state), one, one.observation_space)
    other_world.save_state(tmp_path / "moment.safetensors")
    assert not refused_or_done(lambda: env.load_state(tmp_path / "moment.safetensors"), env, env.observation_space)


def test_after_all_that_a_dream_is_what_it_would_have_been(env, arguments):
    fresh = DreamEnv(**arguments)
    assert same(env.reset(seed=7), fresh.reset(seed=7))
    assert same([env.step(action) for action in (1, 2, 3)], [fresh.step(action) for action in (1, 2, 3)])


@pytest.mark.parametrize("arguments", ["minecraft"], indirect=True)  # the world with counts
def test_counts_beyond_the_space_are_told_as_its_bound(arguments):
    env = DreamEnv(**arguments)
    env.reset(seed=0)
    state = env.clone_state()
    seen = env.restore_state(replace(state, dream=state.dream._replace(inventory=torch.full_like(state.dream.inventory, 1e6))))
    told = env.dream.info(env.clone_state().dream)["inventory"][0].numpy()
    assert env.observation_space.contains(seen)
    assert same(told, seen["inventory"])
    assert told.max() == env.dream.world.max_inventory
