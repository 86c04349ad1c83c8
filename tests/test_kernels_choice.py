"""Which backend computes is chosen in one place; FlexAttention is the fold; a step can be recorded, as a CUDA graph is."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

import pytest
import torch
from tiny_world import same
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv, simulator
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.models.inference import backend
from lssvwm_gym.models.inference.backend import PLAIN, Backend, chosen_backend, on_backend
from lssvwm_gym.models.inference.compile import Replay
from lssvwm_gym.models.ops.mamba_ssm import mamba_scan
from lssvwm_gym.models.ops.ssd import ssd_scan
from lssvwm_gym.models.rollout import first_state, step_of
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.config import WorldTraining

SIZES = dict(latent_channels=4, width=32, head_width=16, d_state=8, memory_features=16, window=3, d_conv=4)
MODELS = {
    "everything": dict(),
    "no places": dict(memory_features=0, d_conv=1),
    "counts, space and ends": dict(inventory_size=3, termination=True, motion_scale=(0.1,) * 5),
    "continuous actions": dict(actions=0, action_size=2),
}


def missing() -> None:
    raise ImportError("mamba-ssm is not installed: ...")


def test_without_cuda_pytorch_computes(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert chosen_backend("auto", "cpu") == chosen_backend("torch", "cpu") == PLAIN


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_cuda_kernels_and_graphs_are_asked_for_by_name(monkeypatch, device):
    monkeypatch.setattr(backend, "kernels", lambda: None)
    assert chosen_backend("auto", device) == chosen_backend("torch", device) == PLAIN
    assert chosen_backend("mamba", device) == Backend("mamba", "off", "off")
    assert chosen_backend(Backend(graphs="on"), device) == Backend("torch", "on", "off")
    monkeypatch.setattr(backend, "kernels", missing)
    assert chosen_backend("auto", device) == PLAIN
    with pytest.raises(ImportError, match="not installed"):
        chosen_backend("mamba", device)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("mamba", "is for CUDA devices, not for cpu"),
        (Backend(graphs="on"), "graphs='on' is for CUDA"),
        ("triton", "backend must be one of auto, torch, mamba, compiled, not 'triton'"),
    ],
)
def test_what_cannot_be_used_is_refused(monkeypatch, tiny_weights, wish, said):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for opened in (open_dream, DreamEnv, DreamVectorEnv):
        with pytest.raises(ValueError, match=said):
            opened("memory-maze", device="cpu", weights=tiny_weights, backend=wish)


def test_unknown_names_are_refused_where_they_are_given():
    with pytest.raises(ValueError, match="graphs must be one of auto, on, off, not 'full'"):
        Backend(graphs="full")
    with pytest.raises(ValueError, match="backend must be one of"):
        WorldTraining(data="", autoencoder="", out="", backend="jax")


def test_mamba_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    backend.kernels.cache_clear()
    with pytest.raises(ImportError, match=r"mamba-ssm is not installed: .* pip install --no-build-isolation"):
        backend.kernels()


def test_mamba_refuses_float64():
    x = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="not in float64: choose backend='torch'"):
        mamba_scan(x, x[..., 0], -torch.ones(1).double(), x, x, 4)


def test_a_dream_says_what_computes_it(tiny_weights):
    opened = open_dream("memory-maze", device="cpu", weights=tiny_weights, backend="torch")
    assert repr(opened).endswith("backend='torch')")
    assert str(Backend("mamba", "on")) == "mamba, graphs"


def test_another_backend_shares_the_weights_and_leaves_the_model_as_it_is():
    model = WorldModel(WorldModelConfig(**SIZES))
    other = on_backend(model, Backend("mamba", "off", "off"))
    assert on_backend(model, replace(PLAIN, graphs="on")) is model
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))
    for owner, scan in ((model, ssd_scan), (other, mamba_scan)):
        assert {module.scan for module in owner.modules() if isinstance(module, BlockScan)} == {scan}


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a GPU wait, or has a shape that depends on numbers: copies between devices, `item`, `nonzero` and such."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor) and leaf.ndim}
        name = func.name().removeprefix("aten::")
        if len(devices) > 1 or any(name.split(".")[0].startswith(refused) for refused in self.refused):
            raise AssertionError(f"{name} makes the device wait")
        return result


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("sizes", MODELS)
def test_nothing_in_a_step_waits_for_the_device(monkeypatch, sizes, passes):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    with torch.device("meta"):  # tensors without numbers: nothing can be read from them
        model = WorldModel(WorldModelConfig(**{**SIZES, **MODELS[sizes]}))
        autoencoder = Autoencoder(AutoencoderConfig(patch=8, widths=(8, 16), latent_channels=4))
        action = torch.zeros(3, 2) if model.config.action_size else torch.zeros(3, dtype=torch.int64)
        noise = torch.zeros(3, model.config.tokens, model.config.latent_channels)
        state = first_state(model, torch.zeros(3, dtype=torch.int64))
    step = step_of(passes)
    with torch.no_grad():
        state, _ = step(model, state, action, noise)  # what is the same for all steps is copied to the device in the first one
        with NoWaiting():
            after, reward_logits = step(model, state, action, noise)
            frame = autoencoder.decode(after.latent)
    assert (reward_logits.shape, frame.shape, frame.device.type) == ((3, model.config.reward_values), (3, 64, 64, 3), "meta")
    assert [leaf.shape for leaf in tree_leaves(after)] == [leaf.shape for leaf in tree_leaves(state)]


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.cpu(),
        lambda x: x * torch.ones(3).to(x.device),
        lambda x: x * torch.ones(3),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
    ],
    ids=["to the CPU", "from the CPU", "beside one of the CPU", "nonzero", "mask", "item", "list"],
)
def test_waiting_is_noticed(waits):
    with NoWaiting(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):  # a sparse shape, a number: meta has none
        waits(torch.ones(3, device="meta"))


class Traced(Replay):
    """Records as a CUDA graph does, on the CPU: the operations alone, on the same inputs and outputs, with all else as it was."""

    def _record(self, function, leaves, shape, mixed):
        inputs = [leaf.clone() for leaf in leaves]
        outputs = function(*tree_unflatten(inputs, shape))
        traced = make_fx(lambda *given: tree_flatten(function(*tree_unflatten(list(given), shape)))[0])(*inputs)
        self.recorded = getattr(self, "recorded", 0) + 1
        outputs = tree_map(torch.clone, outputs)

        class Graph:
            def replay(self):
                for old, new in zip(tree_leaves(outputs), traced(*inputs), strict=True):
                    old.copy_(new)

        return Graph(), inputs, outputs


def test_a_dream_of_recorded_steps_is_the_dream(monkeypatch, tiny_weights):
    recordings = {}

    def recorded(function, model, backend):
        return recordings.setdefault((function, model), Traced(function)) if backend.graphs == "on" else function

    monkeypatch.setattr(simulator, "compile_step", recorded)
    world, weights = open_dream("memory-maze", device="cpu", weights=tiny_weights).world, load_weights(tiny_weights)
    plain, quick = (Dream(world, weights, "fast", backend=replace(PLAIN, graphs=graphs)) for graphs in ("off", "on"))
    dreams = []
    for one in (plain, quick):
        state = one.reset(torch.tensor([3, 4]))
        moments, states = [one.frame(state).numpy()], [state]
        for action in (1, 2, 4, 1):
            state, *rest = one.step(state, torch.tensor([action, 5]))
            moments.append([one.frame(state).numpy(), *(x.numpy() for x in rest)])
            states.append(state)
        moments.append([leaf.numpy() for leaf in tree_leaves(states)])  # also those of long ago: a recording writes over its own only
        dreams.append(moments)
    assert same(*dreams)  # to the bit
    assert [replay.recorded for replay in recordings.values()] == [1]


def test_each_shape_is_recorded_once():
    model = torch.nn.Linear(2, 2)
    replay = Traced(lambda model, pair: (model(pair[0]) + pair[1], pair[1] * 2))
    given = [(torch.randn(rows, 2), torch.randn(rows, 2)) for rows in (1, 3, 1, 3, 1)]
    results = [replay(model, pair) for pair in given]
    assert replay.recorded == len(replay.graphs) == 2
    for (x, y), (summed, doubled) in zip(given, results, strict=True):  # results of long ago are still what they were
        assert torch.equal(summed, model(x) + y)
        assert torch.equal(doubled, y * 2)


def test_a_recorded_step_takes_its_noise_from_outside(tiny_weights):
    """A seed's noise is drawn on the CPU, before the step, so a recording can't keep that of its first frame."""
    model = load_weights(tiny_weights).world_model
    state = first_state(model, torch.tensor([1, 2]))
    first, second = (frame_noise(state._replace(world=state.world._replace(age=state.world.age + age)), model) for age in (0, 1))
    action, step = torch.zeros(2, dtype=torch.int64), step_of(PROFILES["fast"].model_steps)
    with torch.no_grad():
        assert not torch.equal(step(model, state, action, first)[0].latent, step(model, state, action, second)[0].latent)
