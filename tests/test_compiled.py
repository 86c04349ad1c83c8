"""Compiled steps on a CPU: the same dream up to rounding, one program for each number of rows, and clear words where they can't be had."""

from __future__ import annotations

import shutil
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from tiny_minecraft import write_tiny_minecraft
from tiny_world import write_tiny_weights
from torch.utils._pytree import tree_leaves, tree_map

from lssvwm_gym.checkpoints.checkpoint import load_prepacked
from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.models.inference.backend import COMPILED, PLAIN, Backend, chosen_backend, chosen_precision
from lssvwm_gym.models.inference.compile import CompiledStep, compile_step, laid_out
from lssvwm_gym.models.inference.prepacked import multiplies_bfloat16
from lssvwm_gym.models.state import take_rows

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: apt-get install g++")


def both(weights, world="memory-maze", profile="balanced", dtype="float32"):
    """A dream as it comes, and compiled."""
    how = dict(profile=profile, device="cpu", weights=weights, dtype=dtype)
    return open_dream(world, **how), open_dream(world, **how, backend="compiled")


def walked(dream: Dream, actions, seeds=(3, 4)):
    states, rewards = [dream.reset(torch.tensor(seeds))], []
    for action in actions:
        state, reward, *_ = dream.step(states[-1], torch.tensor(action))
        states, rewards = [*states, state], [*rewards, reward]
    frames = [dream.frame(state) for state in states]
    return states, torch.stack(frames), torch.stack(rewards)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_dream_is_the_dream(tiny_weights, caplog):
    plain, quick = both(tiny_weights)
    actions = [(1, 5), (2, 0), (4, 3), (1, 1)]
    (states, frames, rewards), (other_states, other_frames, other_rewards) = (walked(dream, actions) for dream in (plain, quick))
    for mine, other in zip(tree_leaves(states), tree_leaves(other_states), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-3)
    assert (other_frames.int() - frames.int()).abs().max() <= 2
    assert torch.equal(other_rewards, rewards)
    assert caplog.text.count("compiling a dream's step for 2 rows") == caplog.text.count("compiled in") == 1

    late = other_states[-1]  # however a state came about, nothing is compiled anew
    for state in (late, take_rows(late, torch.tensor([1, 1])), tree_map(torch.clone, late), walked(plain, actions[:2])[0][-1]):
        given, expected = (dream.step(state, torch.tensor([2, 3]))[0] for dream in (quick, plain))
        torch.testing.assert_close(given.latent, expected.latent, rtol=1e-3, atol=1e-3)
    assert caplog.text.count("compiling") == 1

    alone, expected = (walked(dream, [(1,), (2,)], seeds=(7,))[0][-1] for dream in (quick, plain))
    torch.testing.assert_close(alone.latent, expected.latent, rtol=1e-3, atol=1e-3)
    assert caplog.text.count("compiling a dream's step for 1 rows") == caplog.text.count("compiling") - 1 == 1

    env = gymnasium.make("LSSVWM-MemoryMaze-v0", weights=tiny_weights, device="cpu", dtype="float32", backend="compiled")
    env.reset(seed=1)
    state = env.unwrapped.clone_state()
    ahead = env.step(2)[0]
    env.unwrapped.restore_state(state)
    assert np.array_equal(env.step(2)[0], ahead)
    assert "backend='torch, compiled'" in repr(env.unwrapped.dream)
    assert caplog.text.count("compiling") == 2, "environments of one process share what is compiled"


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(not multiplies_bfloat16("cpu"), reason="needs a processor that multiplies in bfloat16")
def test_a_compiled_dream_in_bfloat16_is_as_near_as_one_that_is_not(tiny_weights):
    exact = walked(open_dream("memory-maze", "fast", "cpu", tiny_weights, "float32"), [(1, 5)])[0][-1]
    errors = [
        (walked(dream, [(1, 5)])[0][-1].features - exact.features).abs().mean()
        for dream in both(tiny_weights, "memory-maze", "fast", "bfloat16")
    ]
    assert 0 < errors[1] < 2 * errors[0]


@needs_compiler
@pytest.mark.slow
def test_a_world_with_counts_and_poses_in_space_compiles(tmp_path):
    plain, quick = both(write_tiny_minecraft(tmp_path), "minecraft", "fast")
    dreams = []
    for dream in (plain, quick):
        state = dream.reset(torch.tensor([5]))
        state, reward, terminated, *_ = step = dream.step(state, torch.tensor([3]))
        counts = dream.info(state, step)["inventory"]
        dreams.append([state.latent, state.inventory, state.pose, reward, terminated, counts])
    for mine, other in zip(*dreams, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-3)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [dict(residual=True, memory_features=0), dict(lattice=1.0, collisions=True, map_objects=2)], ids=["of changes", "with a map"]
)
def test_a_model_compiles(tmp_path, sizes):
    folder = write_tiny_weights(tmp_path, flow_width=40, flow_layers=1, **sizes)
    dreams = both(folder, profile="fast")
    mine, other = (walked(dream, [(1,), (2,)], seeds=(7,))[0][-1] for dream in dreams)
    torch.testing.assert_close(other.latent, mine.latent, rtol=1e-3, atol=1e-3)


def test_a_missing_compiler_is_named(monkeypatch, tiny_weights):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(RuntimeError, match=r"no /nowhere/c\+\+\. On Debian: apt-get install g\+\+"):
        DreamEnv("memory-maze", weights=tiny_weights, device="cpu", backend="compiled")


def test_it_is_for_cpus_and_by_wish_alone():
    with pytest.raises(ValueError, match="compiled='on' is for CPUs, not for cuda"):
        chosen_backend("compiled", "cuda")
    assert chosen_backend("auto", "cpu").compiled == "off"
    with pytest.raises(ValueError, match=r"backend must be one of .*compiled, not 'jit'"):
        chosen_backend("jit", "cpu")
    with pytest.raises(ValueError, match="compiled must be one of auto, on, off"):
        Backend(compiled="yes")


def test_states_are_laid_out_alike_wherever_they_come_from(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    states = [dream.reset(torch.tensor([3])), *(walked(dream, actions, seeds=(3,))[0][-1] for actions in ([(1,)], [(1,), (2,)]))]
    states.append(take_rows(walked(dream, [(1, 2)])[0][-1], torch.tensor([1])))
    layouts = [[(leaf.shape, leaf.stride()) for leaf in tree_leaves(state)] for state in states]
    assert len({str(layout) for layout in layouts}) > 1
    after = [laid_out(state) for state in states]
    assert len({str([(leaf.shape, leaf.stride()) for leaf in tree_leaves(state)]) for state in after}) == 1
    for mine, other in zip(tree_leaves(states), tree_leaves(after), strict=True):
        assert torch.equal(mine, other)


def test_a_step_and_a_model_have_one_compiled_step(tiny_weights):
    arithmetic = chosen_precision("float32", "cpu")
    models = [load_prepacked(tiny_weights, "cpu", arithmetic, backend).world_model for backend in (PLAIN, replace(PLAIN, compiled="on"))]

    def step(model, state, action, noise): ...

    compiled = [compile_step(step, model, COMPILED) for model in (*models, models[0])]
    assert isinstance(compiled[0], CompiledStep)
    assert compiled[0] is compiled[2]
    assert compiled[0] is not compiled[1]
