"""Which device to compute on."""

from __future__ import annotations

import torch


def chosen_device(name: str) -> str:
    """`auto` is cuda where there is one and cpu elsewhere. Raises `ValueError` for a device that isn't there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch says "no such device" in all three
        raise ValueError(f"device must be 'auto', 'cpu' or a device of this machine such as 'cuda', not {name!r} ({error})") from None
    return str(name)
