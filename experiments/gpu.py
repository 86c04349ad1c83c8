"""Dreams on a GPU: are they the CPU's, and how fast are they, in eager PyTorch and with the step recorded as a CUDA graph?

    python experiments/gpu.py            # a minute on a machine with a CUDA device; writes docs/scores/memory_maze_gpu.json

`python docs/_scripts/update_numbers.py` then makes the README's table of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.models.inference.compile import Replay
from lssvwm_gym.models.rollout import commit, imagine
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel

OUT = Path(__file__).parent.parent / "docs" / "scores" / "memory_maze_gpu.json"
ROWS = (1, 16, 256, 1024)
WALK = (1, 2, 4, 3, 5, 1)  # actions, over and over
CONTEXT, STEPS, TIMED = 100, 40, 30
MOST = 64  # rows that are prefilled in one call


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    speeds: list[dict[str, Any]] = []
    for profile in PROFILES:
        for rows in ROWS:
            speeds.append({"profile": profile, "envs": rows} | speed(profile, rows))
            print(speeds[-1], flush=True)
    report = about | {"parity": parity(), "speeds": speeds}
    OUT.write_text(json.dumps(report, indent=2) + "\n")


def parity() -> dict[str, Any]:
    """Four dreams of 40 steps on both devices: by how much their frames differ, and whether their rewards do."""
    frames, rewards = zip(*(dreamed(open_dream("memory-maze", "balanced", device)) for device in ("cpu", "cuda")), strict=True)
    off = (frames[0] - frames[1]).abs().flatten(1).mean(1)
    return {"frames_off_by_step": {str(t): off[t].item() for t in (0, 1, 5, 20, 40)}, "rewards_equal": torch.equal(*rewards)}


def dreamed(dream: Dream) -> tuple[Tensor, Tensor]:
    """Frames (41, 4, height, width, 3) and rewards (40, 4)."""
    state = dream.reset(torch.arange(4), {"context_frames": CONTEXT})
    frames, rewards = [dream.frame(state).cpu().float()], []
    for step in range(STEPS):
        state, reward, *_ = dream.step(state, torch.full((4,), WALK[step % len(WALK)]))
        frames.append(dream.frame(state).cpu().float())
        rewards.append(reward.cpu())
    return torch.stack(frames), torch.stack(rewards)


@torch.no_grad()
def speed(profile: str, rows: int) -> dict[str, float]:
    """Steps a second of all rows together, decoder included, frames left on the device."""
    dream = open_dream("memory-maze", profile, "cuda")
    state = dream.reset(torch.arange(min(rows, MOST)))
    state = tree_map(lambda x: x.repeat(max(1, rows // MOST), *[1] * (x.ndim - 1)), state)
    passes = dream.sampling_steps

    def step(model: WorldModel, state: DreamState, action: Tensor, noise: Tensor) -> DreamState:
        return commit(model, state, action, imagine(model, state, action, passes, noise=noise))

    action, noise = torch.ones(rows, dtype=torch.int64, device="cuda"), torch.randn(state.latent.shape, device="cuda")
    runs = {"eager": step, "graph": Replay(step)}
    return {name: rows / seconds(run, dream, state, action, noise) for name, run in runs.items()}


def seconds(step: Callable[..., DreamState], dream: Dream, state: DreamState, action: Tensor, noise: Tensor) -> float:
    model = dream.weights.world_model
    for _ in range(5):
        state = step(model, state, action, noise)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMED):
        state = step(model, state, action, noise)
        dream.weights.autoencoder.decode(state.latent)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED


if __name__ == "__main__":
    main()
