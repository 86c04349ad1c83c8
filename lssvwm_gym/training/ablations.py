"""What the model is compared with: each variant is a configuration of the same code, of the same weights within 5 %.

All are trained by the same trainer on the same clips and told the same poses. Sources: the baselines and ablations of
arXiv 2505.20171 (tables 2 to 5); the memory of places is ours, so the paper's own model is `no-places`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lssvwm_gym.models.world_model import WorldModelConfig

if TYPE_CHECKING:
    from lssvwm_gym.training.config import WorldTraining


def _without_places(model: WorldModelConfig) -> WorldModelConfig:
    return replace(model, memory_features=0)


def _one_block(model: WorldModelConfig) -> WorldModelConfig:
    return replace(model, blocks=((model.grid, model.grid),) * len(model.blocks))


def _attention_only(run: WorldTraining, window: int) -> WorldTraining:
    return replace(run, model=replace(_without_places(run.model), d_state=0, mlp=run.model.mlp + 3, window=window))


def _ours(run: WorldTraining) -> WorldTraining:
    return run


def _no_places(run: WorldTraining) -> WorldTraining:
    return replace(run, model=_without_places(run.model))


def _sliding_window(run: WorldTraining) -> WorldTraining:
    return _attention_only(run, window=32)


def _full_causal(run: WorldTraining) -> WorldTraining:
    return _attention_only(run, window=max(stage.frames * stage.clips for stage in run.curriculum))


def _mamba(run: WorldTraining) -> WorldTraining:
    return replace(run, model=replace(_one_block(_without_places(run.model)), heads=0, mlp=run.model.mlp + 2))


def _mamba_attention(run: WorldTraining) -> WorldTraining:
    return replace(run, model=_one_block(_without_places(run.model)))


def _small_blocks(run: WorldTraining) -> WorldTraining:
    return replace(run, model=replace(run.model, blocks=((1, 1),) * len(run.model.blocks)))


def _no_long_context(run: WorldTraining) -> WorldTraining:
    noise = replace(run.noising.noise, prefix=0.0)
    return replace(run, teacher_forcing=0.0, self_rollout=0.0, noising=replace(run.noising, noise=noise))


def _no_carry_state(run: WorldTraining) -> WorldTraining:
    return replace(run, curriculum=tuple(replace(stage, clips=1) for stage in run.curriculum))


Variant = Callable[["WorldTraining"], "WorldTraining"]
VARIANTS: dict[str, tuple[str, Variant]] = {  # name: (what it is, how a run becomes it)
    "ours": ("block-wise scan, frame-local attention, memory of places", _ours),
    "no-places": ("without the memory of places: the paper's own model", _no_places),
    "sliding-window": ("causal attention over the last 32 frames, no scan", _sliding_window),
    "mamba": ("Mamba-2 alone, one scan over all tokens of a frame", _mamba),
    "mamba-attention": ("the same with frame-local attention: no block-wise scan", _mamba_attention),
    "small-blocks": ("ours with blocks of one token everywhere", _small_blocks),
    "no-long-context": ("ours without long-context training: diffusion forcing alone, no clean prefix", _no_long_context),
    "no-hand-over": ("ours, each clip beginning with an empty state", _no_carry_state),
    "full-causal": ("causal attention over all frames of a segment: the upper bound, at a cost that grows", _full_causal),
}


def variant(name: str, run: WorldTraining) -> WorldTraining:
    """The run that trains a variant instead. Raises `ValueError` for a name that is none."""
    if name not in VARIANTS:
        raise ValueError(f"no variant named {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name][1](run)
