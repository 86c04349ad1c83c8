"""What the model is compared with: each variant is a configuration of the same code, of the same weights within 5 %.

All are trained by the same trainer on the same clips and conditioned on the same poses. Sources: the baselines and ablations of
arXiv 2505.20171 (tables 2 to 5); the spatial memory is ours, so the paper's own model is `no-spatial-memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lssvwm_gym.training.config import WorldTraining


def _sized(run: WorldTraining, **sizes: Any) -> WorldTraining:
    return replace(run, model=replace(run.model, **sizes))


def _attention_only(run: WorldTraining, window: int) -> WorldTraining:
    return _sized(run, memory_features=0, d_state=0, mlp=run.model.mlp + 3, window=window)


def _one_block(run: WorldTraining, **sizes: Any) -> WorldTraining:
    return _sized(run, blocks=((run.model.grid, run.model.grid),) * len(run.model.blocks), **sizes)


def _no_long_context(run: WorldTraining) -> WorldTraining:
    noise = replace(run.noising.noise, prefix=0.0)
    return replace(run, teacher_forcing=0.0, self_rollout=0.0, noising=replace(run.noising, noise=noise))


VARIANTS: dict[str, tuple[str, Callable[[WorldTraining], WorldTraining]]] = {  # name: (what it is, how a run becomes it)
    "ours": ("block-wise scan, frame-local attention, spatial memory", lambda run: run),
    "no-spatial-memory": ("without the spatial memory: the paper's own model", lambda run: _sized(run, memory_features=0)),
    "sliding-window": ("causal attention over the last 32 frames, no scan", lambda run: _attention_only(run, window=32)),
    "mamba": (
        "Mamba-2 alone, one scan over all tokens of a frame",
        lambda run: _one_block(run, memory_features=0, heads=0, mlp=run.model.mlp + 2),
    ),
    "mamba-attention": ("the same with frame-local attention: no block-wise scan", lambda run: _one_block(run, memory_features=0)),
    "small-blocks": ("ours with blocks of one token everywhere", lambda run: _sized(run, blocks=((1, 1),) * len(run.model.blocks))),
    "no-long-context": ("ours without long-context training: diffusion forcing alone, no clean prefix", _no_long_context),
    "no-carried-state": (
        "ours, each clip beginning with an empty state",
        lambda run: replace(run, curriculum=tuple(replace(stage, clips=1) for stage in run.curriculum)),
    ),
    "full-causal": (
        "causal attention over all frames of a segment: the upper bound, at a cost that grows",
        lambda run: _attention_only(run, window=max(stage.frames * stage.clips for stage in run.curriculum)),
    ),
}


def variant(name: str, run: WorldTraining) -> WorldTraining:
    """The run that trains a variant instead. Raises `ValueError` for a name that is none."""
    if name not in VARIANTS:
        raise ValueError(f"no variant named {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name][1](run)
