"""Continue a video whose actions are unknown: `lssvwm-gym generate clip.mp4 --frames 200 --out more.mp4`.

The model is prefilled with the clip, infers the actions that explain it, and dreams on with actions like those. Models whose attention
is causal by frames, as all that ship, dream frame by frame; those trained on chunks (`--model.chunk 5 --model.window 10`, as in arXiv
2505.20171, section 3.2) dream a chunk at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights, load_weights, prepack
from lssvwm_gym.data.convert.recording import Framing, framed
from lssvwm_gym.data.convert.videos import even_frames, frames_a_second
from lssvwm_gym.data.episode import read_arrays
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.video import check_movie, write_movie
from lssvwm_gym.models.diffusion import sample
from lssvwm_gym.models.geometry import start_pose
from lssvwm_gym.models.inference.backend import FLOAT32, chosen_device
from lssvwm_gym.models.rollout import Imagined, commit, first_state, imagine, prefill, unknown_action, with_layout
from lssvwm_gym.models.state import DreamState, take_rows
from lssvwm_gym.models.world_model import FrameInputs, WorldModel
from lssvwm_gym.worlds import chosen_world, weights_of

LONGEST = 20_000  # frames of a clip
CANDIDATES = 32  # actions at most among which the one that led to a frame is looked for
BATCH = 100  # frames that the autoencoder encodes or decodes in one call


@dataclass(frozen=True)
class Generating:
    """Which clip to continue, and how."""

    clip: Path  # an mp4; may also stand first, without --clip
    out: Path = Path("more.mp4")  # MP4 or GIF, by its ending
    frames: int = 200  # to dream
    world: str = ""  # whose model dreams; what the weights say if not given, else memory-maze
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    context_frames: int = 0  # of the clip, its first ones, that the dream is conditioned on; 0: all
    actions: Literal["auto", "random", "unknown"] = "auto"  # of the dream: drawn from the clip's, where those can be inferred; any; none
    sticky: float = 0.8  # chance that a random action is kept for another frame
    steps: int = 4  # denoising passes a frame, or a chunk
    side_by_side: bool = False  # the clip at the left, its reconstruction and the dream at the right
    crop: bool = False  # take the middle square of the clip's frames; otherwise all of it is squeezed into the square
    scale: int = 4  # pixels a side of one pixel of the dream
    fps: int = 0  # of the film; 0: the clip's own
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, frames=1, context_frames=0, steps=1, scale=1, fps=0, seed=0)
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky is a chance from 0 to below 1, got {self.sticky}")
        check_movie(self.out)


@torch.no_grad()
def generate(run: Generating) -> np.ndarray:
    """Write the film; returns its frames, uint8 (T, side, side, 3), twice as wide with `side_by_side`, before they are enlarged.

    Raises `ValueError` for settings or a world that there aren't, and a clip too short, `EpisodeError` for what is no video.
    """
    world = chosen_world(run.world, run.weights)
    weights = load_weights(weights_of(world, run.weights), chosen_device(run.device))
    model, side = weights.world_model, weights.autoencoder.config.image_size
    if model.config.action_size and run.actions == "random":
        raise ValueError(f"actions of {world.name} are numbers, of which none are drawn: leave out --actions random")
    clip = read_clip(run, side)
    past = clip[: run.context_frames or None]
    least = max(model.config.chunk, run.context_frames)
    if len(past) < least:
        raise ValueError(f"{run.clip}: {len(past)} frames are too few: at least {least} of context are needed")
    latents = torch.cat([weights.autoencoder.encode(part.to(_device(model))) for part in torch.from_numpy(past).split(BATCH)])
    film = dreamed = continued(weights, latents, run)
    if run.side_by_side:
        seen = np.concatenate([decoded(weights, latents), dreamed])
        real = np.concatenate([clip, np.zeros_like(seen)])[: len(seen)]
        film = np.concatenate([real, seen], 2)
    write_movie(run.out, film, run.fps or frames_a_second(run.clip), run.scale)
    print(f"{run.out}: {len(film)} frames, of which {len(dreamed)} are dreamed, after {len(past)} of {run.clip}")
    return film


def read_clip(run: Generating, side: int) -> np.ndarray:
    """The clip's frames, uint8 (T, side, side, 3), resized where they are of another size; says so then."""
    frames: list[np.ndarray] = []
    for number, frame in enumerate(even_frames(run.clip, frames_a_second(run.clip))):
        if number == 0 and frame.shape[:2] != (side, side):
            print(f"{run.clip}: frames of {frame.shape[1]}x{frame.shape[0]} pixels become {side}x{side}, as the model's are")
        if number == LONGEST:
            raise ValueError(f"{run.clip}: more than {LONGEST} frames; cut it, or start from its last ones")
        frames.append(framed(frame, Framing(side, run.crop)))
    return np.stack(frames)


def continued(weights: Weights, latents: Tensor, run: Generating) -> np.ndarray:
    """Frames (`run.frames`, side, side, 3) uint8 that follow real latents (T, N, C)."""
    model = weights.world_model
    latents = latents.half().float()  # as contexts are stored
    if model.config.chunk > 1:
        after = by_chunks(model, latents, run.frames, run.steps, run.seed)
    else:
        prepacked = prepack(weights, FLOAT32).world_model if _device(model).type == "cpu" else model
        after = by_frames(prepacked, latents, run)
    return decoded(weights, after[: run.frames])


def decoded(weights: Weights, latents: Tensor) -> np.ndarray:
    return np.concatenate([weights.autoencoder.decode(part).cpu().numpy() for part in latents.split(BATCH)])


def by_frames(model: WorldModel, latents: Tensor, run: Generating) -> Tensor:
    """Dream on frame by frame: latents (T, N, C) in, (`run.frames`, N, C) out."""
    state, taken = prefill_clip(model, latents, run.seed)
    _compare(taken, run.clip)
    guess = run.actions == "random" or (run.actions == "auto" and bool(taken))
    if not guess:
        state = state._replace(pose_known=torch.zeros_like(state.pose_known))  # unknown actions lead anywhere
    rng, action, dreamed = np.random.default_rng([run.seed, 2]), unknown_action(model, 1), []
    for number in tqdm(range(run.frames), desc="dreaming", leave=False):
        if guess and (number == 0 or rng.random() >= run.sticky):
            drawn = rng.choice(taken) if taken else rng.integers(model.config.actions)
            action = torch.tensor([int(drawn)], device=_device(model))
        imagined = imagine(model, state, action, run.steps, None if guess else torch.zeros_like(state.motion))
        state = commit(model, state, action, imagined)
        dreamed.append(imagined.latent)
    return torch.cat(dreamed)


def prefill_clip(model: WorldModel, latents: Tensor, seed: int) -> tuple[DreamState, list[int]]:
    """The state after frames (T, N, C) whose actions are unknown, and the inferred actions that led to all but the first.

    An action is inferred from what it would have led to: of the frames that the model imagines for each, the one nearest to the real
    one. The motion is that action's, corrected by odometry. Continuous actions, and more than `CANDIDATES`, stay unknown, and poses
    with them.
    """
    infers = 0 < model.config.actions <= CANDIDATES
    state = first_state(model, torch.tensor([seed], device=_device(model)), pose_known=infers and model.config.has_spatial_memory)
    taken: list[int] = []
    for number, latent in enumerate(tqdm(latents.split(1), desc="prefilling", leave=False)):
        if infers and number:
            taken.append(likeliest_action(model, state, latent))
            action = torch.tensor([taken[-1:]], device=latent.device)
            state = prefill(model, state, latent[None], action, imagines=False).state
        else:
            nothing = Imagined(latent, torch.zeros_like(state.motion), torch.zeros_like(state.uncertainty))
            state = commit(model, state, unknown_action(model, 1), nothing)
    return with_layout(model, state), taken


def _compare(taken: list[int], clip: Path) -> None:
    """Where the clip is the video of a recorded episode, say how many of its actions were inferred."""
    if not taken or not clip.with_suffix(".npz").is_file():
        return
    recorded = read_arrays(clip).get("action", np.zeros(0))
    if recorded.ndim == 1 and len(recorded) > len(taken):
        print(f"{clip}: {np.count_nonzero(recorded[1 : len(taken) + 1] == taken)} of {len(taken)} actions were inferred as recorded")


def likeliest_action(model: WorldModel, state: DreamState, latent: Tensor) -> int:
    """The action for which the frame that the model imagines is nearest to (1, N, C); one row."""
    actions = torch.arange(model.config.actions, device=latent.device)
    imagined = imagine(model, take_rows(state, torch.zeros_like(actions)), actions, 1)
    return int((imagined.latent - latent).square().mean((1, 2)).argmin())


def by_chunks(model: WorldModel, latents: Tensor, frames: int, steps: int, seed: int) -> Tensor:
    """Dream on a chunk at once, without actions and poses: latents (T, N, C) in, (at least `frames`, N, C) out.

    Chunks end where the clip ends; frames before the first whole one are left out.
    """
    chunk = model.config.chunk
    state, past = first_state(model, torch.tensor([seed], device=_device(model)), pose_known=False), latents[len(latents) % chunk :]
    state, dreamed = _prefilled(model, state, past[None]), list[Tensor]()
    for number in tqdm(range(-(-frames // chunk)), desc=f"dreaming {chunk} frames at once", leave=False):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        noise = torch.randn((1, chunk, *past.shape[1:]), generator=generator).to(past)
        dreamed.append(imagined_chunk(model, state, noise, steps))
        state = _prefilled(model, state, dreamed[-1])
    return torch.cat(dreamed, 1)[0]


def imagined_chunk(model: WorldModel, state: DreamState, noise: Tensor, steps: int) -> Tensor:
    """The next frames, all at once, from noise (B, chunk, N, C); the state stays as it is."""
    inputs = _unknown_inputs(model, state, noise.shape[1])

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        return model(x, inputs._replace(noise=level[:, None].expand(x.shape[:2])), state.world).clean

    return sample(denoise, noise, steps)[0]


def _prefilled(model: WorldModel, state: DreamState, latent: Tensor) -> DreamState:
    inputs = _unknown_inputs(model, state, latent.shape[1])
    return prefill(model, state, latent, inputs.action, inputs.pose, inputs.inventory if model.config.inventory_size else None).state


def _unknown_inputs(model: WorldModel, state: DreamState, frames: int) -> FrameInputs:
    """Of clean frames (B, T) without actions, motions and poses."""
    rows = len(state.seed)
    action = unknown_action(model, rows)[:, None].expand(-1, frames, *[-1] * bool(model.config.action_size))
    pose = start_pose(rows, model.config.pose_size, state.pose.device)[:, None].expand(-1, frames, -1)
    nothing, inventory = torch.zeros(rows, frames, device=state.pose.device), state.inventory[:, None].expand(-1, frames, -1)
    return FrameInputs(nothing, action, pose, torch.zeros_like(state.motion)[:, None].expand(-1, frames, -1), nothing, inventory)


def _device(model: WorldModel) -> torch.device:
    return model.token_in.weight.device
