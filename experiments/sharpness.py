"""How soft dreams are, beside the very frames they stand for.

    python experiments/sharpness.py --data DIR/test --out docs/scores/contrast.json --sheet docs/media/sharp.png

After 100 frames of each episode, the next 100 as they were, as they are dreamed on the same actions, and on random ones: contrast and
sharpness as in soak.py, by weights and profile; and a picture of those on the same actions. Without --data, of the contexts that ship.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.envs import open_dream
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.evaluation.figures import sheet
from lssvwm_gym.evaluation.metrics import FAMILIAR, contrast_and_sharpness
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import DreamState, prefill
from lssvwm_gym.models.segment import Segment, joined

SEEN, AHEAD = 100, 100  # frames
WEIGHTS = ("own", "sharp")
PROFILES = ("fast", "balanced", "quality")
PICTURED = ("fast, own", "quality, own", "fast, sharp")
SHOWN = (0, 4, 9, 19, 49, 99)  # frames after those seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with episodes")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    for weights, profile in itertools.product(WEIGHTS, PROFILES):
        dream = open_dream("memory-maze", profile, "cpu", None if weights == "own" else weights)
        contexts = dream.weights.long_contexts if args.data is None else first_frames(dream, args.data, args.episodes)
        actions = contexts.action[:, SEEN : SEEN + AHEAD]
        if not rows:
            with torch.no_grad():
                pictures["real, decoded"] = torch.stack(
                    [dream.weights.autoencoder.decode(one.float()) for one in contexts.latent[:, SEEN : SEEN + AHEAD]]
                )
            rows.append(report({"frames": "real, decoded"}, pictures["real, decoded"]))
        for name, taken in (("same actions", actions), ("random actions", wandering(actions))):
            frames, known = dreamt(dream, after_contexts(dream, contexts), taken)
            rows.append(report({"frames": name, "weights": weights, "profile": profile}, frames, known))
            if name == "same actions" and f"{profile}, {weights}" in PICTURED:
                pictures[f"{profile}, {weights}"] = frames
    if args.out:
        args.out.write_text(json.dumps({"episodes": contexts.batch, "seen": SEEN, "ahead": AHEAD, "rows": rows}, indent=2) + "\n")
    if args.sheet:
        sheet(args.sheet, {name: frames[:, list(SHOWN)] for name, frames in pictures.items()}, [f"frame {number + 1}" for number in SHOWN])


def first_frames(dream: Dream, data: Path, episodes: int) -> Segment:
    """The first frames of some episodes as latents."""
    autoencoder, piece = dream.weights.autoencoder, slice(0, SEEN + AHEAD)
    with torch.no_grad():
        latents = [encoded(read_episode(path), autoencoder, piece) for path in episode_paths(data)[:episodes]]
    return joined(latents)


@torch.no_grad()
def after_contexts(dream: Dream, contexts: Segment) -> DreamState:
    """A row a context, after its first frames."""
    pose = relative_to(contexts.pose, contexts.pose[:, :1].expand_as(contexts.pose))
    past = (x[:, :SEEN] for x in (contexts.latent.float(), contexts.action, pose, contexts.inventory))
    return prefill(dream.weights.world_model, dream.empty(torch.arange(contexts.batch)), *past).state


def wandering(actions: Tensor) -> Tensor:
    """Random actions of the same shape (B, T), changed about every fourth step."""
    generator = torch.Generator().manual_seed(0)
    new = torch.randint(6, actions.shape, generator=generator)
    for t in range(1, actions.shape[1]):
        new[:, t] = torch.where(torch.rand(len(new), generator=generator) < 0.25, new[:, t], new[:, t - 1])
    return new


def dreamt(dream: Dream, state: DreamState, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B, T, height, width, 3), and how well each place was known, (B, T)."""
    frames, known = [], []
    for action in actions.unbind(1):
        state = dream.step(state, action).state
        frames.append(dream.frame(state))
        known.append(dream.info(state)["familiarity"])
    return torch.stack(frames, 1), torch.stack(known, 1)


def report(row: dict[str, Any], frames: Tensor, known: Tensor | None = None) -> dict[str, Any]:
    """Print what frames look like, and return it as numbers."""
    seen = contrast_and_sharpness(frames.flatten(0, 1).numpy())
    row = row | {name: float(seen[name].mean()) for name in ("contrast", "sharpness")}
    if known is not None:
        familiar = known.flatten().numpy() > FAMILIAR
        row |= {"familiar": float(familiar.mean()), "contrast where familiar": float(seen["contrast"][familiar].mean())}
    print(", ".join(f"{value:.2f} {name}" if isinstance(value, float) else value for name, value in row.items()), flush=True)
    return row


if __name__ == "__main__":
    main()
