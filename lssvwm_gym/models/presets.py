"""Sizes by name: the same code at three scales.

| preset | weights | meant for | trained and measured |
|---|---|---|---|
| tiny | 3 M | two CPU cores | yes; the shipped weights |
| base | 45 M | one GPU | not yet |
| paper | 200 M | several GPUs; the size of arXiv 2505.20171, whose widths and depths are not published | not yet |
"""

from __future__ import annotations

from lssvwm_gym.models.world_model import WorldModelConfig

_FOUR = ((4, 4), (1, 1), (2, 2), (1, 1))

PRESETS = {
    "tiny": WorldModelConfig(),
    "base": WorldModelConfig(
        width=512,
        blocks=_FOUR + _FOUR[:2],
        place=(False, True) * 3,
        heads=8,
        d_state=64,
        d_conv=4,
        window=8,
        place_width=128,
        place_features=1024,
    ),
    "paper": WorldModelConfig(
        width=768,
        blocks=_FOUR * 3,
        place=(False, True) * 6,
        heads=12,
        d_state=128,
        d_conv=4,
        window=10,
        place_width=256,
        place_features=2048,
    ),
}


def preset(name: str) -> WorldModelConfig:
    """The sizes of a preset. Raises `ValueError` for a name that is none."""
    if name not in PRESETS:
        raise ValueError(f"no preset named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
