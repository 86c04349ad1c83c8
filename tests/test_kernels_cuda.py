"""What only a GPU can show of the backends; skipped elsewhere, where test_kernels.py and test_kernels_choice.py do what a CPU can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.models.ops.mamba_ssm import kernels, mamba_scan
from lssvwm_gym.models.ops.ssd import ssd_scan

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def installed():
    try:
        kernels()
    except ImportError as error:
        pytest.skip(str(error))


def off(mine, reference):
    return float((mine.double() - reference.double()).abs().max() / reference.abs().max())


def results(function, given):
    given = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    y, state = function(chunk=128, **given)
    (y.sin().sum() + state.cos().sum()).backward()
    return {"y": y.detach(), "state": state.detach(), **{f"d{name}": tensor.grad for name, tensor in given.items()}}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("length", [1, 16, 300])
def test_kernels_give_what_pytorch_gives(length):
    b, h, p, n = 3, 4, 64, 32
    shapes = dict(x=(b, length, h, p), dt=(b, length, h), A=(h,), B=(b, length, 1, n), C=(b, length, 1, n), initial_state=(b, h, p, n))
    given = {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}
    given["dt"], given["A"] = F.softplus(given["dt"]), -given["A"].exp()
    exact = results(ssd_scan, {name: tensor.double() for name, tensor in given.items()})
    for name, mine in results(mamba_scan, given).items():
        assert off(mine, exact[name]) < 1e-2, name  # Triton multiplies float32 in TF32
    if length == 1:
        with torch.no_grad():
            y, state = mamba_scan(chunk=128, **given)
        assert max(off(y, exact["y"]), off(state, exact["state"])) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("scan", ["torch", "mamba"])
def test_a_recorded_dream_is_the_dream(tiny_weights, scan, request):
    if scan == "mamba":
        request.getfixturevalue("installed")
    dreams = []
    for graphs in ("off", "on"):
        dream = open_dream("memory-maze", device=DEVICE, weights=tiny_weights, backend=Backend(scan, "fold", graphs))
        state = dream.reset(torch.tensor([3, 4]))
        states = [state := dream.step(state, torch.tensor([action, 5]))[0] for action in (1, 2, 4, 1)]
        dreams.append(tree_leaves(states))
    assert all(torch.allclose(mine.double(), theirs.double(), atol=1e-3) for mine, theirs in zip(*dreams, strict=True))
