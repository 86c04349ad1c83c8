"""Random numbers of dreams: they follow from a row's seed and age alone, so that a dream is the same whatever is dreamed beside it."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lssvwm_gym.models.state import DreamState, constant
from lssvwm_gym.models.world_model import WorldModel


def frame_noise(state: DreamState, model: WorldModel) -> Tensor:
    """Noise (B, N, C) for the next frame of every row; it depends on the row's seed and age and on nothing else."""
    return drawn_noise(model, state.seed.tolist(), state.world.age.tolist()).to(state.latent)


def drawn_noise(model: WorldModel, seeds: Sequence[int], ages: Sequence[int]) -> Tensor:
    """`frame_noise` on the CPU, float32, for rows whose seeds and ages are known without asking a device."""
    shape = (model.config.tokens, model.config.latent_channels)
    return torch.stack([torch.randn(shape, generator=generator) for generator in _generators(seeds, ages)])


def drawn_chances(state: DreamState, count: int) -> Tensor:
    """So many numbers from 0 to 1 for each row, uniform, float32 (B, count)."""
    seeds, ages = state.seed.tolist(), state.world.age.tolist()
    return torch.stack([torch.rand(count, generator=generator) for generator in _generators(seeds, ages)]).to(state.latent)


def _generators(seeds: Sequence[int], ages: Sequence[int]) -> Iterator[torch.Generator]:
    for seed, age in zip(seeds, ages, strict=True):
        yield torch.Generator().manual_seed((seed * 1_000_003 + age) % 2**63)


def chance_of(noise: Tensor, number: int = 0) -> Tensor:
    """A number (B,) from 0 to 1 for each row of a frame's noise (B, N, C), uniform: what is drawn beside the frame itself.

    It needs no other generator and waits for no device. Of hundreds of directions of the noise it is one, another for each `number`, so
    that it hardly says anything of the frame.
    """
    flat = noise.flatten(1)
    signs = constant(tuple(range(number, number + flat.shape[1])), flat.device).square().cos().sign()
    return torch.special.ndtr((flat * signs).sum(1) / math.sqrt(flat.shape[1]))
