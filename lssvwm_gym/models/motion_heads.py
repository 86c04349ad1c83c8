"""Motion from frame to frame: what an action leads to expect, whether a wall blocks it, and what is seen of it (visual odometry)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.io.tensors import load_part, load_strictly
from lssvwm_gym.models.conditioning import ActionEmbedding
from lssvwm_gym.models.config import FEATURES, WorldModelConfig
from lssvwm_gym.models.geometry import PLANE, as_origin, motion_between, placed, relative_to, turned
from lssvwm_gym.models.map_layout import AROUND
from lssvwm_gym.models.segment import Segment

TRUST = (0.5, 0.3)  # share of the difference to what a clear frame shows by which heading and place are moved
TYPICAL_VARIANCE = (0.02, 0.01)  # of what a frame shows that is trusted half
YOUNG = 16  # frames after which motions are surer of a pose than what frames have shown of the lattice
WITHIN = 4.0  # by which place and heading within a cell are larger numbers
KIND = "lssvwm_gym maze motions"
BLOCKED = 1 / 3  # of the world's scale of motion: a forward action that moves less is blocked


class MotionHead(nn.Module):
    """Expects the next motion from the committed frame's features, the last motion and the next action."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.motion_scale = nn.Buffer(torch.tensor(config.motion_scale), persistent=False)
        self.action = ActionEmbedding(config, FEATURES)
        self.network = nn.Sequential(
            nn.Linear(2 * FEATURES + len(config.motion_scale), FEATURES),
            nn.SiLU(),
            nn.Linear(FEATURES, FEATURES),
            nn.SiLU(),
            nn.Linear(FEATURES, len(config.motion_scale)),
        )

    def forward(self, features: Tensor, motion: Tensor, next_action: Tensor) -> Tensor:
        """features (..., FEATURES) and motion of a frame, the action that follows; the motion it leads to, (..., 3 or 5)."""
        known = torch.cat([features, motion / self.motion_scale, self.action(next_action)], -1)
        return self.network(known) * self.motion_scale


class CollisionMotionHead(nn.Module):
    """Expects the next motion from the last frame: whether the step is blocked, and the motion in either case.

    The likelier case's motion is expected, for a mean of both is neither.
    """

    def __init__(self, config: WorldModelConfig, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale = nn.Buffer(torch.tensor(config.motion_scale), persistent=False)
        self.frame = nn.Linear(config.tokens * config.latent_channels + len(config.motion_scale), hidden)
        self.action = ActionEmbedding(config, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.blocked, self.motions = nn.Linear(hidden, 1), nn.Linear(hidden, 2 * len(config.motion_scale))

    def forward(self, latent: Tensor, motion: Tensor, next_action: Tensor) -> Tensor:
        """latent (..., N, C) and motion of a frame, the action that follows; the motion it leads to, (..., 3 or 5)."""
        blocked, motions = self.cases(latent, motion, next_action)
        return torch.where(blocked.unsqueeze(-1) > 0, motions[..., 1, :], motions[..., 0, :])

    def cases(self, latent: Tensor, motion: Tensor, next_action: Tensor) -> tuple[Tensor, Tensor]:
        """The logit (...) of the step being blocked, and motions (..., 2, 3 or 5): if it isn't, and if it is."""
        seen = torch.cat([latent.flatten(-2), motion / self.motion_scale], -1)
        hidden = self.network(self.frame(seen) + self.action(next_action))
        return self.blocked(hidden)[..., 0], self.motions(hidden).unflatten(-1, (2, -1)) * self.motion_scale


class MapMotionHead(nn.Module):
    """Expects the next motion where a map knows the walls: how the agent coasts, how walls stop and turn it. It sees no frame.

    The simulator knows no chance: by the walls, the place among them, and the last motion and action its motions are told to a thousandth.
    """

    def __init__(self, config: WorldModelConfig, hidden: int = 96) -> None:
        super().__init__()
        self.motion_scale = nn.Buffer(torch.tensor(config.motion_scale), persistent=False)
        self.known = nn.Linear(AROUND - 1 + len(config.motion_scale), hidden)
        self.action, self.last_action = ActionEmbedding(config, hidden), ActionEmbedding(config, hidden)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(2))
        self.out = nn.Linear(hidden, len(config.motion_scale))

    def forward(self, around: Tensor, motion: Tensor, action: Tensor, next_action: Tensor) -> Tensor:
        """`around` (B, `AROUND`) and the last motion and action of a frame, and the action that follows; the motion, (B, 3 or 5)."""
        cells, place, angle = around[:, :-4], around[:, -4:-2], torch.atan2(around[:, -1:], around[:, -2:-1])
        known = torch.cat([cells, WITHIN * place, WITHIN * angle, motion / self.motion_scale], 1)
        x = F.silu(self.known(known) + self.last_action(action) + self.action(next_action))
        for block in self.blocks:
            x = F.silu(x + block(x))
        return self.out(x) * self.motion_scale


def read_map_motion_head(path: str | Path, config: WorldModelConfig) -> MapMotionHead:
    """What `experiments.maze_motion` wrote. Raises `TensorFileError` for a file that holds none, or is of another world."""
    return load_strictly(MapMotionHead(config), load_part(path, KIND, "maze_motion"), path).eval()


class OdometryHead(nn.Module):
    """Visual odometry: corrects the motion that the action leads to expect by what two clean frames show."""

    def __init__(self, config: WorldModelConfig, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale = nn.Buffer(torch.tensor(config.motion_scale), persistent=False)
        self.frames = nn.Linear(2 * config.tokens * config.latent_channels + 2 * len(config.motion_scale), hidden)
        self.action = ActionEmbedding(config, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, len(config.motion_scale)))
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, before: Tensor, latent: Tensor, action: Tensor, motion: Tensor, last_motion: Tensor) -> Tensor:
        """The motion (..., 3 or 5) from latents `before` to `latent` (..., N, C), where the action leads to expect `motion`."""
        motions = torch.cat([motion, last_motion], -1) / self.motion_scale.repeat(2)
        seen = self.frames(torch.cat([before.flatten(-2), latent.flatten(-2), motions], -1)) + self.action(action)
        return motion + self.network(seen) * self.motion_scale


class CompassReading(NamedTuple):
    """What one frame shows of its pose in a lattice."""

    quarter: Tensor  # (..., 2) cosine and sine of four times the heading
    centre: Tensor  # (..., 2) from the agent to the middle of its cell, ahead and to the left, in cells
    log_variance: Tensor  # (..., 2) of either


class CompassHead(nn.Module):
    """Sees in a single frame how walls at right angles stand: the heading up to quarter turns, and the place within a cell.

    Motions add up their errors; this has none to add up, and keeps estimated poses from drifting as long as they are not off by half a
    cell or an eighth of a turn.
    """

    def __init__(self, config: WorldModelConfig, hidden: int = 256) -> None:
        super().__init__()
        self.cell = config.lattice
        self.network = nn.Sequential(
            nn.Linear(config.tokens * config.latent_channels, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 6),
        )
        self.trust = nn.Buffer(torch.tensor(TRUST), persistent=False)
        self.typical_variance = nn.Buffer(torch.tensor(TYPICAL_VARIANCE), persistent=False)

    def forward(self, latent: Tensor) -> CompassReading:
        """latent (..., N, C)."""
        return CompassReading(*self.network(latent.flatten(-2)).split(2, -1))

    def corrected(self, pose: Tensor, latent: Tensor, lattice: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """A pose (B, 4 or 6) that motions have led to, moved towards what its frame (B, N, C) shows; and the lattice.

        The lattice (B, 4) is where the state began, as a pose in it; zeros where no frame has shown it yet: then this one does. While
        a state is young, its age (B,) in frames, the motions are still surer than the first frames: then the lattice moves instead.
        """
        reading, quarter = self(latent), math.pi / 2
        heading = torch.atan2(reading.quarter[..., 1], reading.quarter[..., 0]) / 4
        place = -self.cell * turned(reading.centre, heading)  # from the middle of the cell
        shown = torch.cat([place, heading.cos()[:, None], heading.sin()[:, None]], -1)
        begins = lattice.square().sum(-1, keepdim=True) == 0
        plane = pose[..., :PLANE]
        lattice = torch.where(begins, as_origin(shown, plane), lattice)
        here = placed(plane, lattice)
        trust = self.trust / (1 + reading.log_variance.exp() / self.typical_variance)
        off = heading - torch.atan2(here[..., 3], here[..., 2])
        turn = trust[..., 0] * (off - (off / quarter).round() * quarter)
        angle = torch.atan2(here[..., 3], here[..., 2]) + turn
        place = -self.cell * turned(reading.centre, angle)  # as the heading is known now
        off = place - here[..., :2]
        moved = here[..., :2] + trust[..., 1:] * (off - (off / self.cell).round() * self.cell)
        there = torch.cat([moved, angle.cos()[:, None], angle.sin()[:, None]], -1)
        young = age[:, None] < YOUNG
        plane, lattice = torch.where(young, plane, relative_to(there, lattice)), torch.where(young, as_origin(there, plane), lattice)
        return torch.cat([plane, pose[..., PLANE:]], -1), lattice

    def found(self, pose: Tensor, latent: Tensor, lattice: Tensor, age: Tensor) -> Tensor:
        """The lattice (B, 4) by frames (B, T, N, C) at given poses (B, T, 4 or 6), the first of which is the state's frame number `age`."""
        for t in range(min(latent.shape[1], YOUNG)):
            lattice = self.corrected(pose[:, t], latent[:, t], lattice, age + t)[1]
        return lattice


def moving_actions(episodes: Sequence[Segment], scale: float) -> tuple[list[int], int | None]:
    """The discrete actions that lead ahead, by more than `scale` in one of ten steps at least, and the one of the others that turns most.

    Only steps after the same action, of recorded poses, count: others may coast. Of continuous actions there are none.
    """
    if not episodes or episodes[0].action.is_floating_point():
        return [], None
    action = torch.cat([one.action[2:] for one in episodes])
    motion = torch.cat([motion_between(one.pose[1:-1], one.pose[2:]) for one in episodes])
    counted = (action == torch.cat([one.action[1:-1] for one in episodes])) & motion.isfinite().all(-1)
    steps = {kind: motion[counted & (action == kind)] for kind in action[counted].unique().tolist()}
    ahead = [kind for kind, moved in steps.items() if moved[:, 0].quantile(0.9) > scale]
    turns = {kind: abs(moved[:, 2].mean().item()) for kind, moved in steps.items() if kind not in ahead}
    return ahead, max(turns, key=lambda kind: turns[kind], default=None)


def is_blocked(motion: Tensor, action: Tensor, ahead: Sequence[int], scale: float | Tensor) -> Tensor:
    """Which motions (..., 3 or 5) by actions (...), of which some lead `ahead`, are blocked: bool (...); none of continuous actions."""
    if action.is_floating_point():
        return torch.zeros(motion.shape[:-1], dtype=torch.bool, device=action.device)
    return torch.isin(action, action.new_tensor(ahead)) & (motion[..., 0] < BLOCKED * scale)
