"""Poses in the plane. A pose is (x, y, cos heading, sin heading); a motion is (forward, left, turn) seen from a pose."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_to(pose: Tensor, origin: Tensor) -> Tensor:
    """Express poses (..., 4) in the frame of `origin` (..., 4), broadcast."""
    offset = pose[..., :2] - origin[..., :2]
    cos, sin = origin[..., 2], origin[..., 3]
    return torch.stack([*_turned(offset[..., 0], offset[..., 1], cos, -sin), *_turned(pose[..., 2], pose[..., 3], cos, -sin)], -1)


def motion_between(before: Tensor, after: Tensor) -> Tensor:
    """The motion (..., 3) that leads from one pose to the next; the turn is in radians, -pi..pi."""
    seen = relative_to(after, before)
    return torch.stack([seen[..., 0], seen[..., 1], torch.atan2(seen[..., 3], seen[..., 2])], -1)


def advance(pose: Tensor, motion: Tensor) -> Tensor:
    """The pose (..., 4) after a motion (..., 3); the inverse of `motion_between`."""
    x, y, cos, sin = pose.unbind(-1)
    dx, dy = _turned(motion[..., 0], motion[..., 1], cos, sin)
    heading = _turned(cos, sin, motion[..., 2].cos(), motion[..., 2].sin())
    length = torch.hypot(*heading)
    return torch.stack([x + dx, y + dy, heading[0] / length, heading[1] / length], -1)


def start_pose(rows: int, device: torch.device | None = None) -> Tensor:
    """The pose at which a dream begins: its own origin, (rows, 4) float32."""
    return torch.tensor([0.0, 0.0, 1.0, 0.0], device=device).repeat(rows, 1)


def _turned(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return x * cos - y * sin, x * sin + y * cos
