"""Poses and motions, in the plane or in space.

A pose is (x, y, cos heading, sin heading), in space with height and tilt (of the view, radians) behind; a motion is
(forward, left, turn) seen from a pose, in space with rise and tilt behind. Gravity tells up from down, so only x, y and
heading are turned, and a tilt is the same from wherever it is seen.
"""

import torch
from torch import Tensor

PLANE = 4  # numbers of a pose in the plane
SPACE = 6


def relative_to(pose: Tensor, origin: Tensor) -> Tensor:
    """Express poses (..., 4 or 6) in the frame of `origin`, of the same size, broadcast; its heading becomes 0, its tilt stays."""
    offset = pose[..., :2] - origin[..., :2]
    cos, sin = origin[..., 2], origin[..., 3]
    seen = torch.stack([*_turned(offset[..., 0], offset[..., 1], cos, -sin), *_turned(pose[..., 2], pose[..., 3], cos, -sin)], -1)
    height, tilt = (pose[..., PLANE : PLANE + 1] - origin[..., PLANE : PLANE + 1]), pose[..., PLANE + 1 :]
    return _with_rest(seen, torch.cat([height, tilt.expand(*height.shape[:-1], -1)], -1))


def motion_between(before: Tensor, after: Tensor) -> Tensor:
    """The motion (..., 3 or 5) that leads from one pose to the next; the turn is in radians, -pi..pi."""
    seen = relative_to(after, before)
    planar = torch.stack([seen[..., 0], seen[..., 1], torch.atan2(seen[..., 3], seen[..., 2])], -1)
    return _with_rest(planar, after[..., PLANE:] - before[..., PLANE:])


def integrate_motion(pose: Tensor, motion: Tensor) -> Tensor:
    """The pose (..., 4 or 6) after a motion (..., 3 or 5); the inverse of `motion_between`."""
    ahead, left, turn = motion[..., :3].unbind(-1)
    seen = torch.stack([ahead, left, turn.cos(), turn.sin()], -1)
    return _with_rest(placed(seen, pose[..., :PLANE]), pose[..., PLANE:] + motion[..., 3:])


def placed(pose: Tensor, origin: Tensor) -> Tensor:
    """Poses (..., 4) seen from `origin` (..., 4), as that itself is seen; the inverse of `relative_to` in the plane."""
    x, y, cos, sin = origin.unbind(-1)
    off, heading = _turned(pose[..., 0], pose[..., 1], cos, sin), _turned(pose[..., 2], pose[..., 3], cos, sin)
    length = torch.hypot(*heading)
    return torch.stack([x + off[0], y + off[1], heading[0] / length, heading[1] / length], -1)


def as_origin(there: Tensor, pose: Tensor) -> Tensor:
    """The origin (..., 4) from which `pose` (..., 4) is `there` (..., 4)."""
    cos, sin = _turned(there[..., 2], there[..., 3], pose[..., 2], -pose[..., 3])
    x, y = _turned(pose[..., 0], pose[..., 1], cos, sin)
    return torch.stack([there[..., 0] - x, there[..., 1] - y, cos, sin], -1)


def turned(vector: Tensor, angle: Tensor) -> Tensor:
    """A vector (..., 2) turned to the left by an angle (...), radians."""
    return torch.stack(_turned(vector[..., 0], vector[..., 1], angle.cos(), angle.sin()), -1)


def start_pose(rows: int, size: int = PLANE, device: torch.device | None = None) -> Tensor:
    """The pose at which a dream begins: its own origin, (rows, size) float32."""
    return torch.eye(size, device=device)[2].repeat(rows, 1)


def _turned(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return x * cos - y * sin, x * sin + y * cos


def _with_rest(planar: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([planar, rest.expand(*planar.shape[:-1], -1)], -1) if rest.shape[-1] else planar
