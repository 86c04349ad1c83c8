"""The scan's own gradient, and what it makes of dtypes, strong decays and awkward lengths; that it is right is in `test_models`."""

import pytest
import torch
from ssd_reference import ssd_recurrence

from lssvwm_gym.models.ops.ssd import _fitting, ssd_scan

NAMES = ("x", "dt", "A", "B", "C", "initial_state")


def arguments(length=75, dtype=torch.float32, strong=1.0):
    g = torch.Generator().manual_seed(length)
    shapes = dict(x=(2, length, 4, 8), dt=(2, length, 4), A=(4,), B=(2, length, 1, 16), C=(2, length, 1, 16), initial_state=(2, 4, 8, 16))
    made = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    made |= dict(dt=strong * (made["dt"] - 2).exp(), A=-made["A"].exp())
    for name in ("x", "B", "C"):
        made[name] = made[name].to(dtype)
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def gradients(given, scan=ssd_scan, **more):
    y, state = scan(**given, **more)
    return torch.autograd.grad(y.float().square().sum() + state.sin().sum(), [given[name] for name in NAMES])


def apart(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def test_gradients_of_bfloat16_are_near_those_of_float32():
    exact = gradients(arguments(), chunk=32)
    for name, mine, theirs in zip(NAMES, gradients(arguments(dtype=torch.bfloat16), chunk=32), exact, strict=True):
        assert mine.dtype == (torch.bfloat16 if name in "xBC" else torch.float32), name
        assert apart(mine, theirs) < 0.03, name


def test_decays_beyond_what_float32_holds_leave_everything_finite():
    given = arguments(strong=300.0)
    assert (given["dt"][..., None] * given["A"]).sum(1).min() < -1e3
    with torch.no_grad():
        assert apart(ssd_scan(**given, chunk=32)[0], ssd_recurrence(**given)[0]) < 1e-5
    for name, mine, theirs in zip(NAMES, gradients(given, chunk=32), gradients(given, ssd_recurrence), strict=True):
        assert apart(mine, theirs) < 1e-3, name  # sums of what nearly cancels


@pytest.mark.parametrize("length", [7, 75])
def test_a_scan_without_gradients_gives_the_same(length):
    given = arguments(length)
    recorded = ssd_scan(**given, chunk=32)
    with torch.no_grad():
        plain = ssd_scan(**given, chunk=32)
    for mine, theirs in zip(plain, recorded, strict=True):
        assert theirs.requires_grad
        assert not mine.requires_grad
        assert apart(mine, theirs.detach()) < 1e-6


@pytest.mark.parametrize("recorded", [True, False])
def test_autocast_changes_no_dtype(recorded):
    given = arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(recorded):
        y, state = ssd_scan(**given, chunk=32)
    assert (y.dtype, state.dtype) == (torch.float32, torch.float32)
    assert apart(y.detach(), ssd_recurrence(**given)[0].detach()) < 1e-5


def test_a_gradient_of_the_gradient_is_refused():
    given = arguments(9)
    y, _ = ssd_scan(**given, chunk=4)
    (dx,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(("length", "tokens"), [(5, 5), (32, 32), (80, 40), (1280, 32), (1600, 32), (120, 24), (100, 24)])
def test_chunks_are_of_a_length_that_fills_few_up(length, tokens):
    assert _fitting(32, length) == tokens
