"""More tests of dreams than `lssvwm-gym evaluate` makes, for pages and papers; it has the same settings, and makes those tests, too.

python -m experiments.more_tests --data data/test                                      all of the world, and what is dreamed in it
python -m experiments.more_tests --data data/test --tests identity cold_start --figures pictures
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
import tyro
from einops import reduce
from torch import Tensor

from experiments.crafting import crafting, inventory, milestones
from experiments.digging import dug_away
from experiments.rewards_ahead import reward_ahead
from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext
from lssvwm_gym.evaluation.evaluate import TESTS, Evaluation, evaluate
from lssvwm_gym.evaluation.memory import recalled_frames, revisit
from lssvwm_gym.evaluation.metrics import Score, inner, masked_score, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.geometry import motion_between
from lssvwm_gym.models.rollout import first_state
from lssvwm_gym.models.segment import Segment, joined

# where no tests are named
ALWAYS = ("reward_ahead", "crafting", "inventory", "milestones", "dug_away", "interruption", "identity", "cold_start")
LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue, ITU-R BT.601
GRID = 6  # patches a side
COLOURS = 12  # classes
MOST_PATCHES = 20_000  # among which they are found
COMMON = 2  # most frequent classes, such as floor and sky, which don't count


@dataclass(frozen=True)
class Args(Evaluation):
    """What to measure, on what."""

    interruption: tuple[int, ...] = (1, 3, 10)  # last frames of the context that are replaced
    cold_start: int = 60  # frames dreamed from nothing, then revisited in reverse

    def __post_init__(self) -> None:
        more = () if self.tests else ALWAYS
        super().__post_init__()
        object.__setattr__(self, "tests", (*self.tests, *more))
        check_bounds(self, interruption=1, cold_start=2)


def identity(context: EvalContext) -> dict[str, Any]:
    """Share of patches that keep their class of colour when revisited from own memory, at the first length of retrieval.

    A patch is a cell of a 6 x 6 grid over the picture without its border, its colour the mean of its pixels, its class the
    nearest of 12 colours that k-means finds in the context frames of all clips. Patches count whose true class is not one
    of the two most frequent ones. Beside it the same share for the dreamed frames of a clip in another order (chance) and
    for the autoencoder's reconstruction of the real frames (ceiling). Not for worlds that change.
    """
    if context.world.changes:
        raise DoesNotApply("what was dug does not look the same again, and a block's colour is no identity")
    context.check_poses(discrete=True)
    visit = revisit(context, context.run.retrieval[0])
    dreamed = recalled_frames(context, visit)
    seen = patches(visit.past.frames, context.world.border).flatten(0, -2)
    colours = k_means(seen[:: -(-len(seen) // MOST_PATCHES)], COLOURS)
    classes = {name: _classes(context, frames, colours) for name, frames in (("truth", visit.back.frames), ("dream", dreamed))}
    classes["autoencoder"] = _classes(context, decode_clips(context.weights, visit.back.latent), colours)
    order = torch.randperm(dreamed.shape[1], generator=torch.Generator().manual_seed(context.run.seed))
    classes["shuffled frames"] = classes["dream"][:, order]
    truth = classes.pop("truth")
    common = torch.bincount(truth.flatten(), minlength=COLOURS).topk(COMMON).indices
    counted = ~torch.isin(truth, common)
    kept = {name: masked_score((found == truth).float().flatten(1), counted.flatten(1)) for name, found in classes.items()}
    shares = {f"{name}: share of patches that keep their colour": share for name, share in kept.items() if share is not None}
    return {**shares, "patches": int(counted.sum())}


def patches(frames: Tensor, border: int) -> Tensor:
    """Mean colours in 0..1 of the grid's cells, (B, T, GRID * GRID, 3), of uint8 frames (B, T, height, width, 3)."""
    picture = inner(frames, border)
    high, wide = picture.shape[2] // GRID, picture.shape[3] // GRID
    cells = picture[:, :, : GRID * high, : GRID * wide]
    rows = [reduce(part.float() / 255, "t (y h) (x w) c -> t (y x) c", "mean", y=GRID, x=GRID) for part in cells]
    return torch.stack(rows)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of centres (K, C) for each of points (..., C)."""
    return torch.cdist(points.flatten(0, -2), centres).argmin(-1).view(points.shape[:-1])


def k_means(points: Tensor, count: int, rounds: int = 25) -> Tensor:
    """Centres (count, C) of points (M, C): begun at points far from each other, then moved to the means of those nearest (Lloyd)."""
    centres = points[(points - points.mean(0)).norm(dim=-1).argmax()][None]
    while len(centres) < count:
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(nearest(points, centres), count).to(points.dtype)
        size = member.sum(0).unsqueeze(-1)
        centres = torch.where(size > 0, member.T @ points / size.clamp(min=1), centres)
    return centres


def _classes(context: EvalContext, frames: Tensor, colours: Tensor) -> Tensor:
    """(B, T, GRID * GRID)"""
    return nearest(patches(frames, context.world.border), colours)


def interruption(context: EvalContext) -> dict[str, Any]:
    """Retrieval of `context` frames of which the last 1, 3, 10 are replaced by uniform noise or by black; poses stay true.

    PSNR against the real frames, the replaced ones included; and its cost against the uninterrupted context, over all frames
    and over those that weren't replaced.
    """
    context.check_poses(discrete=True)
    visit = revisit(context, context.run.context)
    truth, whole = visit.back.frames, recalled_frames(context, visit)
    own = context.quality(whole, truth)
    results: dict[str, Any] = {"uninterrupted: PSNR": score(own)}
    pictures = {"truth": truth, "uninterrupted": whole}
    for kind in ("noise", "black"):
        for frames in _args(context).interruption:
            name = f"{frames} of {kind}"
            state = context.prefilled(interrupted(context, visit.past, kind, frames))
            pictures[name] = dreamed = context.generated(state, visit.back)
            cost = own - context.quality(dreamed, truth)
            results[f"{name}: PSNR"] = score(own - cost)
            results[f"{name}: cost (dB)"] = score(cost)
            results[f"{name}: cost for frames not replaced (dB)"] = score(cost[:, frames - 1 :])
    context.keep("interruption", pictures)
    return results


def interrupted(context: EvalContext, past: Segment, kind: str, frames: int) -> Segment:
    """The past with its last `frames` frames replaced by "noise" or "black", in pixels and as latents."""
    if frames >= len(past):
        raise ValueError(f"interruption must be shorter than the context of {len(past)} frames, not {frames}")
    generator, end = torch.Generator().manual_seed(context.run.seed), past[-frames:]
    noise = torch.randint(256, end.frames.shape, generator=generator, dtype=torch.uint8)
    pixels = noise if kind == "noise" else torch.zeros_like(noise)
    latents = [context.weights.autoencoder.encode(part) for part in pixels.flatten(0, 1).split(100)]
    end = dataclasses.replace(end, frames=pixels, latent=torch.cat(latents).view_as(end.latent))
    return joined([past[:-frames], end], lambda parts: torch.cat(parts, 1))


def cold_start(context: EvalContext) -> dict[str, Any]:
    """From the empty state, 60 frames dreamed on recorded actions with estimated motion, then the same estimated poses in reverse.

    Self-consistency: PSNR between the first and the second frame of each pose, the turning point left out; beside it the same
    with the second frames in another order (chance). Statistics of the first frames and of the real frames of the same actions,
    see `statistics`.
    """
    context.check_poses(discrete=True)
    model, run = context.weights.world_model, _args(context)
    clips = cut_clips(context.episodes, run.cold_start, run.clips)
    unknown = torch.full_like(clips.action[:, :1], model.config.actions)
    clips = dataclasses.replace(clips, action=torch.cat([unknown, clips.action[:, 1:]], 1))  # nothing led to the first frame
    state = first_state(model, torch.arange(len(clips.frames)) + 1000 * run.seed)
    dream, state = dream_along(model, state, clips, run.steps, true_motion=False)
    back = _reversed(clips, dream.pose, model.config.actions)
    there = decode_clips(context.weights, dream.latent)
    again = context.generated(state, back)
    first = there[:, :-1].flip(1)  # in the reversed order
    order = torch.randperm(again.shape[1], generator=torch.Generator().manual_seed(run.seed))
    context.keep("cold_start", {"there": there[:, :-1], "back": again.flip(1)})
    return {
        "self-consistency: PSNR": score(context.quality(again, first)),
        "self-consistency, shuffled frames: PSNR": score(context.quality(again[:, order], first)),
        **_statistics(there, "dreamed frames", context.world.border),
        **_statistics(clips.frames, "real frames", context.world.border),
    }


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """Of uint8 frames (..., height, width, 3), each (...,): brightness and contrast, mean and standard deviation of luma in 0..1;
    sharpness, mean absolute difference of neighbours' luma; colourfulness after Hasler and Süsstrunk (2003), of colours in 0..1."""
    red, green, blue = (frames.float() / 255).unbind(-1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(-2)
    spread, centre = opponents.std(-1, correction=0), opponents.mean(-1)
    return {
        "brightness": luma.mean((-2, -1)),
        "contrast": luma.std((-2, -1), correction=0),
        "sharpness": (luma.diff(dim=-1).abs().mean((-2, -1)) + luma.diff(dim=-2).abs().mean((-2, -1))) / 2,
        "colourfulness": torch.hypot(*spread) + 0.3 * torch.hypot(*centre),
    }


def _statistics(frames: Tensor, name: str, border: int) -> dict[str, Score]:
    rows = [statistics(inner(clip, border)) for clip in frames]
    return {f"{name}: {key}": score(torch.stack([row[key] for row in rows])) for key in rows[0]}


def _reversed(clips: Segment, pose: Tensor, unknown_action: int) -> Segment:
    """The reversed trajectory of poses (B, T, 4), without the turning point, by unknown actions."""
    pose = pose.flip(1)
    motion = motion_between(pose[:, :-1], pose[:, 1:])
    back = clips[: len(clips) - 1]
    return dataclasses.replace(back, action=torch.full_like(back.action, unknown_action), pose=pose[:, 1:], motion=motion)


def _args(context: EvalContext) -> Args:
    return cast(Args, context.run)


TESTS |= {test.__name__: test for test in (reward_ahead, crafting, inventory, milestones, dug_away, interruption, identity, cold_start)}

if __name__ == "__main__":
    evaluate(tyro.cli(Args, description=__doc__))
