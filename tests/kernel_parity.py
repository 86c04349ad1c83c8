"""mamba-ssm's own kernels, run by Triton's interpreter on the CPU, beside PyTorch's scan: the largest differences, as JSON.

    PYTHONPATH=.venv/kernels python tests/kernel_parity.py

A process of its own, for it tells Triton to interpret and torch that there is a GPU. Every difference is over the largest number
of the reference. Exit status 3, and why, where the kernels are not installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import types
import warnings

os.environ["TRITON_INTERPRET"] = "1"
os.environ["MAMBA_DETERMINISTIC"] = "1"  # one configuration a kernel, instead of the quickest of many

import torch
import torch.nn.functional as F
from ssd_reference import ssd_recurrence
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.inference.backend import Backend, use_backend
from lssvwm_gym.models.ops import mamba_ssm
from lssvwm_gym.models.ops.mamba_ssm import mamba_scan
from lssvwm_gym.models.ops.ssd import ssd_scan
from lssvwm_gym.models.rollout import commit, first_state, imagine
from lssvwm_gym.models.world_model import FrameInputs, WorldModel, WorldModelConfig

MAMBA = Backend("mamba", "off", "off")
TINY = dict(latent_channels=4, grid=2, width=16, head_width=16, d_state=8, d_conv=4, heads=2, window=3, blocks=((2, 2), (1, 1)))
TINY |= dict(memory_features=0, mlp=1)
SCANS = {  # b, l, h, p, groups, n; length of a chunk, and what is left out
    "40 tokens in chunks of 32": ((2, 40, 2, 16, 1, 16), 32, ()),
    "50 tokens in chunks of 16, two groups, no D": ((1, 50, 2, 16, 2, 8), 16, ("D",)),
    "5 tokens in one chunk, no initial state": ((2, 5, 2, 16, 1, 8), 128, ("initial_state",)),
}

calls = {"scan": 0, "step": 0}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=1)  # type: ignore[assignment,return-value]
    try:
        found = mamba_ssm.kernels()
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    mamba_ssm.kernels = lambda: mamba_ssm.Kernels(*(counted(name, function) for name, function in found._asdict().items()))  # type: ignore
    report: dict[str, dict[str, float]] = {}
    cases = {f"scan: {name}": lambda case=case: scanned(*case) for name, case in SCANS.items()}
    cases |= {"scan in float16": in_float16, "scan of a batch in parts": in_parts, "tokens that write nothing": silent_tokens}
    cases |= {"one token": one_token, "layer: Mamba2": layer, "world model: training": training, "world model: dream": dream}
    for name, case in cases.items():
        torch.manual_seed(0)
        began, before = time.process_time(), dict(calls)
        report[name] = {**case(), **{f"{kind} calls": calls[kind] - before[kind] for kind in calls}}
        report[name]["seconds"] = round(time.process_time() - began, 1)
    json.dump(report, sys.stdout, indent=2)


def counted(name, function):
    def run(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return run


def arguments(b, l, h, p, g, n, seed=0):  # noqa: E741
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    made = dict(x=normal(b, l, h, p), dt=F.softplus(normal(b, l, h)), A=-normal(h).exp(), B=normal(b, l, g, n), C=normal(b, l, g, n))
    return made | dict(D=normal(h), initial_state=normal(b, h, p, n))


def results(scan, given: dict[str, Tensor], chunk: int, dtype=torch.float32) -> dict[str, Tensor]:
    """Outputs, final state and the gradients of a sum of both to all that was given."""
    given = {name: tensor.to(dtype).clone().requires_grad_() for name, tensor in given.items()}
    y, state = scan(chunk=chunk, **given)
    (y.sin().sum() + state.cos().sum()).backward()
    return {"y": y.detach(), "state": state.detach(), **{f"d{name}": tensor.grad for name, tensor in given.items()}}


def off(mine, reference) -> float:
    pairs = zip(tree_leaves(mine), tree_leaves(reference), strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs if a.numel())


def scanned(shape, chunk, without):
    given = {name: tensor for name, tensor in arguments(*shape).items() if name not in without}
    reference = results(ssd_scan, given, chunk, torch.float64)
    return {name: off(mine, reference[name]) for name, mine in results(mamba_scan, given, chunk).items()}


@torch.no_grad()
def in_float16():
    """Beside float64, and by how much PyTorch's scan is off. Of bfloat16 the interpreter makes nonsense."""
    given = arguments(1, 40, 2, 16, 1, 16)
    exact, _ = ssd_scan(chunk=16, **{name: tensor.double() for name, tensor in given.items()})
    low = given | {name: given[name].half() for name in "xBC"}
    y, state = mamba_scan(chunk=16, **low)
    assert (y.dtype, state.dtype) == (torch.float16, torch.float32)
    return {"y": off(y, exact), "y of PyTorch's": off(ssd_scan(chunk=16, **low)[0], exact)}


@torch.no_grad()
def in_parts():
    """As where a batch has more rows than a CUDA grid."""
    given = arguments(3, 20, 1, 16, 1, 8)
    whole, most = mamba_scan(chunk=16, **given), mamba_ssm.MAX_PROGRAMS
    one = {name: tensor[:, :1] if name in ("x", "dt", "B", "C") else tensor for name, tensor in given.items()}
    whole_step = mamba_scan(chunk=16, **one)
    mamba_ssm.MAX_PROGRAMS = 4  # of two chunks each: two rows at once
    parts, steps = mamba_scan(chunk=16, **given), mamba_scan(chunk=16, **one)
    without = mamba_scan(chunk=16, **{name: tensor for name, tensor in given.items() if name != "initial_state"})
    mamba_ssm.MAX_PROGRAMS = most
    given["initial_state"] = torch.zeros_like(given["initial_state"])
    return {"y, state": off(parts, whole), "step": off(steps, whole_step), "empty start": off(without, ssd_scan(chunk=16, **given))}


@torch.no_grad()
def silent_tokens():
    """Tokens of dt 0, as frames that are peeked at have it, change nothing for the others."""
    given = arguments(1, 20, 2, 16, 1, 8)
    given["dt"][:, 4:8] = 0
    kept = [*range(4), *range(8, 20)]
    without = {name: tensor[:, kept] if name in ("x", "dt", "B", "C") else tensor for name, tensor in given.items()}
    (y, state), (y_without, state_without) = mamba_scan(chunk=16, **given), mamba_scan(chunk=16, **without)
    return {"y": off(y[:, kept], y_without), "state": off(state, state_without)}


@torch.no_grad()
def one_token():
    errors = {}
    for groups, name in ((1, "one group"), (2, "two groups")):
        given = arguments(3, 1, 4, 16, groups, 8)
        before = given["initial_state"].clone()
        errors[name] = off(mamba_scan(chunk=32, **given), ssd_recurrence(**given))
        assert torch.equal(given["initial_state"], before), "the state that was given has changed"
    given.pop("initial_state"), given.pop("D")
    errors["from nothing"] = off(mamba_scan(chunk=32, **given), ssd_recurrence(**given))
    return errors


def layer():
    """A block as large as the grid is Mamba-2 over all tokens: the same parameters, by name, and the same outputs and gradients."""
    theirs = imported_mamba2()(16, d_state=8, d_conv=4, headdim=16, chunk_size=16, use_mem_eff_path=False)
    ours = BlockScan(16, grid=2, block=(2, 2), d_state=8, head_width=16, d_conv=4)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, weight = torch.randn(1, 11, 4, 16), torch.randn(1, 11, 4, 16)  # 44 tokens, no multiple of a chunk
    reference = theirs(x.flatten(1, 2)).view_as(x)
    (reference * weight).sum().backward()
    errors = {}
    for name, backend in (("PyTorch", Backend("torch", "off", "off")), ("kernels", MAMBA)):
        use_backend(ours, backend)
        ours.zero_grad()
        y, *_ = ours(x, *ours.initial_state(1))
        (y * weight).sum().backward()
        gradients = {key: parameter.grad for key, parameter in ours.named_parameters()}
        errors[f"y, {name}"] = off(y, reference)
        errors[f"gradients, {name}"] = off(gradients, {key: parameter.grad for key, parameter in theirs.named_parameters()})
    with torch.no_grad():
        theirs.chunk_size = 64
        errors["y, its chunks of 64"] = off(y, theirs(x.flatten(1, 2)).view_as(x))
        states, parts = ours.initial_state(1), []
        for frames in x.split([4, 1, 6], 1):
            part, *states = ours(frames, *states)
            parts.append(part)
        errors["y in three calls"] = off(torch.cat(parts, 1), y)
    return errors


def imported_mamba2():
    """The module, without what the package imports beside it."""
    import importlib

    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(importlib.util.find_spec("mamba_ssm").submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    return importlib.import_module("mamba_ssm.modules.mamba2").Mamba2


def two_models(**sizes):
    """The same weights, on PyTorch's scan and on the kernels."""
    torch.manual_seed(0)
    models = [WorldModel(WorldModelConfig(**{**TINY, **sizes})) for _ in range(2)]
    for parameter in models[0].parameters():  # zero-initialised parts must take part
        parameter.data += torch.randn_like(parameter) * 0.05
    models[1].load_state_dict(models[0].state_dict())
    use_backend(models[1], MAMBA)
    return models


def training():
    """Losses over clips with frames of all noise levels, and over clips in which every frame is peeked at and then committed."""
    latent, errors = torch.randn(1, 4, 4, 4), {}
    frames = latent.shape[:2]
    pose = torch.tensor([0.0, 0, 1, 0]).expand(*frames, 4)
    inputs = FrameInputs(
        torch.rand(frames), torch.randint(6, frames), pose, torch.randn(*frames, 3), torch.ones(frames), torch.zeros(*frames, 0)
    )
    for name, read_only in (("", None), (", peeks", (True, False) * 2)):
        outputs, gradients = [], []
        for model in two_models():
            output = model(latent, inputs, model.initial_state(1), read_only)
            states = [leaf for leaf in tree_leaves(output.state) if leaf.is_floating_point()]
            (output.clean.square().sum() + sum(leaf.square().sum() for leaf in states if leaf.numel())).backward()
            outputs.append((output.clean, states))
            gradients.append({key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None})
        errors[f"outputs and states{name}"] = off(outputs[1], outputs[0])
        errors[f"gradients{name}"] = off(gradients[1], gradients[0])
    return errors


@torch.no_grad()
def dream():
    """Frame by frame, as environments go on: peeks, then a commit of one token a block in one layer and four in the other."""
    plain, quick = two_models(d_conv=1)
    states = [first_state(model, torch.arange(2)) for model in (plain, quick)]
    for step in range(3):
        action, noise = torch.full((2,), step), torch.randn(2, 4, 4)
        states = [
            commit(model, state, action, imagine(model, state, action, 2, noise=noise))
            for model, state in zip((plain, quick), states, strict=True)
        ]
    return {"latents": off(states[1].latent, states[0].latent), "states": off(states[1].world, states[0].world)}


if __name__ == "__main__":
    main()
