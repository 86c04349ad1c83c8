"""Whether what was dug away stays away: a test of `experiments.more_tests`.

Its episodes are those of players that dig, turn away and turn back: `lssvwm-gym collect luanti --player return`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.crafting import share
from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext
from lssvwm_gym.evaluation.metrics import score
from lssvwm_gym.evaluation.rollouts import clips_at, dream_along
from lssvwm_gym.models.segment import Segment

DIG = "dig"
AWAY = 50  # frames from what was dug to the sight of it again, at least
SAME_PLACE, SAME_HEADING = 0.05, 0.02  # cells, and of cosine and sine: both sights are of one view
CHANGED = 24  # of 255, by which a pixel differs before and after, at least
LEAST_CHANGED = 0.02  # share of the picture that is changed


def dug_away(context: EvalContext) -> dict[str, Any]:
    """What is seen where something was dug away, after the agent has turned away and come back in a dream.

    The real frames end with the digging; the recorded actions after it are dreamed, with estimated motion. A place counts where the real
    frame before the digging and that of the return, `AWAY` frames after it or more, are of one view and differ in `LEAST_CHANGED` of
    the picture. It is gone where the dreamed frame is there, in its changed pixels, nearer to the real frame of the return than to
    the one before the digging. Beside it, from how far each is.
    """
    if DIG not in context.world.actions:
        raise DoesNotApply("nothing is dug in this world")
    context.check_poses()
    gone, still_there, autoencoded, distances = list[bool](), list[bool](), list[bool](), list[Tensor]()
    for episode, before, dug, back in returns(context, context.world.actions.index(DIG)):
        clip, decode = clips_at([(episode, 0)], back + 1), context.weights.autoencoder.decode
        state, future = context.prefilled(clip[: dug + 1]), clip[dug + 1 :]
        dream, _ = dream_along(context.weights.world_model, state, future, context.run.steps, true_motion=False)
        away, shown = clip.frames[0, before], clip.frames[0, back]
        changed = different(away, shown)
        to_before, to_after = (_distance(decode(dream.latent[:, -1])[0], real, changed) for real in (away, shown))
        gone.append(bool(to_after < to_before))
        distances.append(torch.stack([to_before, to_after]))
        decoded = decode(clip.latent[:, back])[0]
        autoencoded.append(bool(_distance(decoded, shown, changed) < _distance(decoded, away, changed)))
        last = clip.frames[0, dug]  # what the real frames showed last
        still_there.append(bool(_distance(last, shown, changed) < _distance(last, away, changed)))
    if not gone:
        raise DoesNotApply(f"no episode comes back, after {AWAY} frames and more, to where something was dug away")
    rms = torch.stack(distances).sqrt()
    return {
        f"gone after {AWAY} frames and more": share(torch.tensor(gone)),
        "the same of the real frame, autoencoded": share(torch.tensor(autoencoded)),
        "the same of the last real frame": share(torch.tensor(still_there)),
        "changed pixels: RMS to the frame before the digging": score(rms[:, 0]),
        "changed pixels: RMS to the frame of the return": score(rms[:, 1]),
    }


def returns(context: EvalContext, dig: int) -> Iterator[tuple[Segment, int, int, int]]:
    """Episodes, and the frames in them before a digging, at its end, and of the return to its view."""
    for episode in context.episodes:
        digs = episode.action == dig
        ends = [t for t in range(1, len(episode) - AWAY) if digs[t] and not digs[t + 1]]
        for dug in ends:
            before = dug
            while before > 0 and digs[before]:
                before -= 1
            back = _same_view(episode, dug, dug + AWAY)
            stood = _same_view(episode, before, dug, dug + 1) is not None
            if back is None or not stood or digs[dug + 1 : back + 1].any():
                continue
            if different(episode.frames[before], episode.frames[back]).float().mean() >= LEAST_CHANGED:
                yield episode, before, dug, back


def _same_view(episode: Segment, frame: int, first: int, stop: int | None = None) -> int | None:
    """The first of the frames from `first` on that is seen from where a frame is; None for none."""
    apart = (episode.pose[first:stop] - episode.pose[frame]).abs()
    place, heading = apart[:, [0, 1, 4]].amax(1), apart[:, [2, 3, 5]].amax(1)
    found = torch.nonzero((place < SAME_PLACE) & (heading < SAME_HEADING))
    return first + int(found[0]) if len(found) else None


def different(a: Tensor, b: Tensor) -> Tensor:
    """Which pixels (height, width) of two frames uint8 (height, width, 3) differ."""
    return (a.int() - b.int()).abs().amax(-1) >= CHANGED


def _distance(a: Tensor, b: Tensor, among: Tensor) -> Tensor:
    """Mean square difference of some pixels of two frames."""
    return (a.float() - b.float())[among].square().mean()
