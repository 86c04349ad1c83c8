"""How soft dreams are, beside the very frames they stand for: `python docs/contrast.py`.

After 100 frames of each walk that is shipped, the next 100 as they were, as they are dreamed on the same actions, and on random ones;
contrast and sharpness as in soak.py, and the contrast where the memory knew the place.
"""

from __future__ import annotations

import numpy as np
import torch
from soak import FAMILIAR, looks

from lssvwm_gym.envs import open_dream
from lssvwm_gym.envs.dream import Dream
from lssvwm_gym.models.dreaming import DreamState, remember
from lssvwm_gym.models.pose import relative_to

SEEN, AHEAD = 100, 100  # frames


def main() -> None:
    torch.set_num_threads(1)
    for profile in ("fast", "balanced"):
        dream = open_dream("memory-maze", profile=profile, device="cpu")
        walks = dream.weights.walks
        coming, actions = slice(SEEN, SEEN + AHEAD), walks.action[:, SEEN : SEEN + AHEAD]
        with torch.no_grad():
            real = np.concatenate([dream.weights.autoencoder.decode(one.float()).numpy() for one in walks.latent[:, coming].unbind(1)])
        report(profile, "real", real)
        for name, taken in (("same actions", actions), ("random actions", wandering(actions))):
            report(profile, name, *dreamt(dream, after_walks(dream), taken))


@torch.no_grad()
def after_walks(dream: Dream) -> DreamState:
    """A row a walk, its first frames remembered."""
    walks = dream.weights.walks
    pose = relative_to(walks.pose, walks.pose[:, :1].expand_as(walks.pose))
    past = (x[:, :SEEN] for x in (walks.latent.float(), walks.action, pose, walks.vector))
    return remember(dream.weights.world_model, dream.empty(torch.arange(len(walks))), *past)


def wandering(actions: torch.Tensor) -> torch.Tensor:
    """Random actions of the same shape (B, T), changed about every fourth step."""
    generator = torch.Generator().manual_seed(0)
    new = torch.randint(6, actions.shape, generator=generator)
    for t in range(1, actions.shape[1]):
        new[:, t] = torch.where(torch.rand(len(new), generator=generator) < 0.25, new[:, t], new[:, t - 1])
    return new


def dreamt(dream: Dream, state: DreamState, actions: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frames, and how well each place was known."""
    frames, known = [], []
    for action in actions.unbind(1):
        state, frame, _, _, info = dream.step(state, action)
        frames.append(frame.numpy())
        known.append(info["familiarity"])
    return np.concatenate(frames), np.concatenate(known)


def report(profile: str, name: str, frames: np.ndarray, known: np.ndarray | None = None) -> None:
    seen = looks(frames)
    text = f"{profile:9} {name:15} contrast {seen['contrast'].mean():.1f}, sharpness {seen['sharpness'].mean():.2f}"
    if known is not None:
        familiar = known > FAMILIAR
        text += f"; {familiar.mean():.0%} in known places, their contrast {seen['contrast'][familiar].mean():.1f}"
    print(text, flush=True)


if __name__ == "__main__":
    main()
