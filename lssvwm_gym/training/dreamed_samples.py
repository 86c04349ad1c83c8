"""Frames that a world model is asked for along its own dreams, and those that really came: what its heads learn from.

Dreams go on from real pasts along recorded actions. A dreamed past counts as long as the real frame can follow from it: while it is
near the real one, or where given frames have shown what is there. Where they have not, what a dream has shown of a place is what it shows
there again: then the dream's own frame is what should come. A dream that no longer counts still has to show what its map tells.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from lssvwm_gym.data.segments import Episodes, SegmentIndex, read_clip
from lssvwm_gym.models import rollout
from lssvwm_gym.models.diffusion import add_noise
from lssvwm_gym.models.flow_head import FrameEvidence
from lssvwm_gym.models.map_layout import LAYOUT, SETTLED, coloured, colours_of
from lssvwm_gym.models.map_memory import COLUMNS, FIRM, ROWS, told_in_view
from lssvwm_gym.models.rollout import OPEN
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState, join_rows, take_rows
from lssvwm_gym.models.world_model import FrameInputs, WorldModel

GAP = (6, 40)  # recorded frames between two dreams of a row
KNOWN, NEAR = 0.2, 0.5  # a dreamed past counts below this variance after given frames, or with this mean square error of its last frame
AGAIN = 2  # frames of a dream for each that it is asked for again
ASTRAY = 0.2  # and with estimated poses that are less than this off, in units of length and of heading
HINDSIGHT = 0.7  # share of rows that are told what lies where nothing has been seen yet, as dreams are
LIGHT = (0.8, 1.2)  # by which its colours are brighter
PASSES = (1, 2, 4, 8)  # denoising steps of dreams, drawn for each


@dataclass(frozen=True)
class DreamOptions:
    """How dreams go on from recorded pasts."""

    rows: int = 32  # dreams at once
    ahead: int = 32  # frames that a dream goes on from a recorded past
    recorded: float = 0.4  # share of rows whose past stays the recorded one
    context_noise: float = 0.1  # recorded pasts carry up to this much noise, as dreamed ones do
    back: float = 0.15  # share of rows that come back through the same frames, by unknown actions


class Samples(NamedTuple):
    """Frames that were predicted and came, (K, ...)."""

    evidence: FrameEvidence
    latent: Tensor  # (K, N, C) of the frame that came
    last_motion: Tensor  # (K, 3 or 5) before it
    wanted: Tensor  # (K, kinds) 1 for the kind of object that was wanted in the recorded frame before it, else 0
    motion: Tensor  # (K, 3 or 5) that led to it; NaN where no action did, or a dream was asked for its own frame again
    frame: Tensor  # (K,) int64, how many frames the dream had gone on
    told: Tensor  # (K, 1 + kinds, rows, columns) what the map says of the cells in view, log odds; empty in a world without
    rest: Tensor  # (K, 4) `GridPose.rest` from where they are seen
    counts: Tensor  # (K, 1) 1, or 0 where what came can't follow from the dreamed past: then only what is told counts


def really_came(samples: Samples) -> Samples:
    """Those of recorded frames."""
    return take_rows(samples, samples.motion.isfinite().all(1))


class Buffer:
    """The newest samples, in float16."""

    def __init__(self, size: int) -> None:
        self.size, self.parts, self.held = size, list[Samples](), 0

    def add(self, samples: Samples) -> None:
        """Take samples in; the oldest go."""
        self.parts.append(tree_map(lambda leaf: leaf.half() if leaf.dtype == torch.float32 and leaf.ndim > 1 else leaf, samples))
        self.held += len(samples.latent)
        while self.held - len(self.parts[0].latent) >= self.size:
            self.held -= len(self.parts.pop(0).latent)

    def draw(self, count: int, rng: np.random.Generator) -> Samples:
        """So many samples, drawn from a few rounds of dreams."""
        rounds = [self.parts[index] for index in rng.integers(len(self.parts), size=min(8, count))]
        each = -(-count // len(rounds))
        drawn = join_rows([take_rows(part, torch.from_numpy(rng.integers(len(part.latent), size=each))) for part in rounds])
        return tree_map(lambda leaf: leaf[:count].float() if leaf.is_floating_point() else leaf[:count], drawn)


@torch.no_grad()
def dreamed_samples(options: DreamOptions, model: WorldModel, episodes: Episodes, rng: np.random.Generator) -> Samples:
    """A round of dreams: rows go through recorded frames, and dream on from a few of them.

    Half the rows keep the recorded poses, the others estimate theirs. Raises `ValueError` where no episode is long enough.
    """
    lengths, most = np.array(episodes.lengths), options.ahead + GAP[0]
    if lengths.max() <= most:
        raise ValueError(f"no episode has the {most + 1} frames of a recorded past and a dream: choose a smaller --dreams.ahead")
    weights = lengths * (lengths > most)
    shortest = int(lengths[rng.choice(len(lengths), p=weights / weights.sum())])
    picked = rng.choice(np.flatnonzero(lengths >= shortest), options.rows)
    starts = [int(rng.integers(episodes.lengths[number] - shortest + 1)) for number in picked]
    turns = np.where(rng.random(options.rows) < options.back, shortest // 2 + 1, shortest).tolist()
    segments = [SegmentIndex(int(number), start, turn, shortest) for number, start, turn in zip(picked, starts, turns, strict=True)]
    clip = read_clip(episodes, segments, shortest, model.config.actions)
    clip.action[:, 0] = rollout.unknown_action(model, options.rows)
    generator = torch.Generator(episodes.device).manual_seed(int(rng.integers(2**62)))
    longest = max(GAP[0] + 1, (shortest - options.ahead) * 3 // 4)
    first = int(rng.integers(GAP[0], longest))  # so that much is well known, or little: of short pasts there are as many as of long ones
    if rng.random() < 0.5:
        first = int(np.exp(rng.uniform(*np.log([GAP[0], longest]))))
    state, at, gap, parts = rollout.first_state(model, torch.arange(options.rows)), 0, first, list[Samples]()
    layout = hindsight(model, clip, rng)
    for _ in range(6):
        if at + gap + options.ahead > shortest:
            break
        past, at = clip[at : at + gap], at + gap
        latent = with_noise(past.latent, options.context_noise, generator)
        state = state._replace(pose_known=past.pose_known[:, 0])
        state = rollout.prefill(model, state, latent, past.action, past.pose, past.inventory, imagines=False).state
        state = state._replace(layout=layout)
        parts += _dreams(options, model, state, clip[at - 1 : at + options.ahead], rng, generator)
        gap = int(rng.integers(*GAP))
    return join_rows(parts)


def with_noise(latent: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Latents (B, ..., N, C) with noise of a level of up to `most`, a row each."""
    level = most * torch.rand(len(latent), *[1] * (latent.ndim - 3), generator=generator, device=latent.device)
    return add_noise(latent, torch.randn(latent.shape, generator=generator, device=latent.device), level)


def _dreams(
    options: DreamOptions, model: WorldModel, state: DreamState, clip: Segment, rng: np.random.Generator, generator: torch.Generator
) -> list[Samples]:
    """Dream on along a clip, whose first frame is the last recorded one; rows go on while that counts or a map tells of it."""
    assert model.flow_head is not None
    steps, rows = int(rng.choice(PASSES)), torch.arange(len(clip.latent))
    dreams, estimates = (torch.from_numpy(rng.random(len(rows)) < share) for share in (1 - options.recorded, 0.5))
    parts, shown = [], list[Shown]()
    wanted = wanted_in(model, clip.latent.flatten(0, 1)).unflatten(0, clip.latent.shape[:2])
    for t in range(1, len(clip)):
        action, real = clip.action[rows, t], clip.motion[rows, t]
        estimated = rollout.estimated_motion(model, state, action)
        posed, acted = clip.pose_known[rows, t] > 0, clip.recorded[rows, t] > 0
        motion = torch.where(((dreams & estimates)[rows] & posed & acted)[:, None], estimated, real)
        pose = rollout.next_pose(state, motion)
        inputs = rollout.next_inputs(state, action, motion, pose)
        noise = torch.randn(2, *state.latent.shape, generator=generator, device=state.latent.device)
        context = model.condition(inputs, state.world)
        evidence = rollout.frame_evidence(model, state, inputs, context, noise[0], wanted[rows, t])
        variance = rollout.observed_variance(state, context)
        off = (state.latent - clip.latent[rows, t - 1]).square().mean((1, 2))
        astray = (pose[:, :2] - clip.pose[rows, t, :2]).norm(dim=-1) + (pose[:, 2:4] - clip.pose[rows, t, 2:4]).norm(dim=-1)
        counts = ((astray < ASTRAY) | ~posed) & ((off < NEAR) | (variance < KNOWN))
        told, rest = _told(model, state, pose)
        stays = counts | told.flatten(1).any(1)
        if not stays.any():
            break
        came = torch.where((acted & counts)[:, None], real, torch.nan)  # no action has led to what is seen on the way back
        frame, whether = torch.full_like(rows, t), counts[:, None].float()
        samples = Samples(evidence, clip.latent[rows, t], state.motion, wanted[rows, t - 1], came, frame, told, rest, whether)
        parts.append(take_rows(samples, stays))
        latent, _ = model.flow_head.sample(model.flow_head.context(evidence), noise[1], steps)
        recorded = with_noise(clip.latent[rows, t], options.context_noise, generator)
        latent = rollout.rounded(torch.where(dreams[rows, None, None], latent, recorded), rollout.LATENT_STEPS)
        after = rollout.commit(model, state, action, rollout.Imagined(latent, motion, torch.zeros_like(off)))
        after = after._replace(inventory=clip.inventory[rows, t])
        if model.config.has_spatial_memory:
            shown = [*shown, Shown(after.latent, inputs, dreams[rows] & posed & (variance > OPEN[0]))]
            parts += _asked_again(model, after, shown, rng, generator) if t % AGAIN == 0 else []
            shown = [take_rows(one, stays) for one in shown]
        state, rows = take_rows(after, stays), rows[stays]
    return parts


def _told(model: WorldModel, state: DreamState, pose: Tensor) -> tuple[Tensor, Tensor]:
    """`told_in_view` and `GridPose.rest` of poses (B, 4 or 6); nothing in a world without a map."""
    if model.map_reader is None:
        return pose.new_zeros(len(pose), 0, ROWS, COLUMNS), pose.new_zeros(len(pose), 4)
    maps, here, _ = rollout.standing(model, state, pose)
    return told_in_view(maps, model.config.map_objects, here), here.rest


def hindsight(model: WorldModel, clip: Segment, rng: np.random.Generator) -> Tensor:
    """What whole clips show, as a layout (B, `channels_of`, side, side): what was not seen yet of it is what could be imagined.

    `HINDSIGHT` of the rows get theirs, with colours of walls in another light; the others get zeros, for nothing.
    """
    state = rollout.first_state(model, torch.arange(len(clip.latent)))
    if model.layout_model is None or model.map_reader is None or model.compass_head is None:
        return state.layout
    lattice = model.compass_head.found(clip.pose, clip.latent, state.lattice, state.world.age)
    state = state._replace(lattice=lattice, pose_known=clip.pose_known[:, 0])
    for part in (clip[t : t + 64] for t in range(0, len(clip), 64)):
        state = state._replace(map=rollout.map_after(model, state, part.latent, part.pose)[0])
    cells, (_, kinds) = state.map, state.wanted.shape
    objects = cells[:, 1 : 1 + kinds].flatten(2)
    at = F.one_hot(objects.argmax(2), objects.shape[2]) * (objects.amax(2, keepdim=True) > FIRM)
    free = torch.where(cells[:, :1].abs() > 1, cells[:, :1].sign(), 0.0)
    told, light = rng.random(len(cells)) < HINDSIGHT, rng.uniform(*LIGHT, len(cells))
    sides = coloured(colours_of(cells) * _each(light), 0 * cells[:, 1 + kinds :])
    return torch.cat([SETTLED * free, LAYOUT * at.view_as(cells[:, 1 : 1 + kinds]), sides], 1) * _each(told)


def _each(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)


def wanted_in(model: WorldModel, latent: Tensor) -> Tensor:
    """Which object is wanted in frames (B, N, C), (B, K) of 0 and 1; K is 0 in a world without a map."""
    if model.map_reader is None:
        return latent.new_zeros(len(latent), 0)
    middle = torch.tensor([0.0, 0.0, 1.0, 0.0], device=latent.device).expand(len(latent), -1)  # it is the same wherever the agent stands
    return rollout.one_hot(model.map_reader(latent, middle).wanted)


class Shown(NamedTuple):
    """A frame that dreams have shown, a row each."""

    latent: Tensor  # (B, N, C)
    inputs: FrameInputs  # (B, 1) with which it was asked for
    imagined: Tensor  # (B,) bool, whether given frames say nothing of it


def _asked_again(
    model: WorldModel, state: DreamState, shown: list[Shown], rng: np.random.Generator, generator: torch.Generator
) -> list[Samples]:
    """One of the frames but the last two that each row has imagined, asked for once more; none for rows that have imagined nothing yet."""
    before = shown[:-2]
    if not before or not (some := before[int(rng.integers(len(before)))]).imagined.any():
        return []
    state, (latent, inputs, _) = take_rows((state, some), some.imagined)
    noise = torch.randn(state.latent.shape, generator=generator, device=state.latent.device)
    evidence = rollout.frame_evidence(model, state, inputs, model.condition(inputs, state.world), noise, wanted_in(model, latent))
    motion, (told, rest) = inputs.motion[:, 0], _told(model, state, inputs.pose[:, 0])
    none = torch.full_like(motion, torch.nan)  # no motion is learned from it
    frame, counts = torch.zeros_like(state.seed), torch.ones_like(rest[:, :1])
    return [Samples(evidence, latent, motion, state.wanted, none, frame, told, rest, counts)]
