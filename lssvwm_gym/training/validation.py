"""Validation of a world model while it trains: scores, a contact sheet of recalled places, a GIF of a dream."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lssvwm_gym.data.segments import Episodes, SegmentIndex, inputs_of, read_clip
from lssvwm_gym.io.video import write_movie
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.rollout import commit, first_state, imagine, prefill
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training.autoencoder import mean_psnr
from lssvwm_gym.training.latents import latent_episodes

CONTEXT, AHEAD = 100, 24  # frames
LEAST = 250  # of an episode


@dataclass
class Validation:
    """Holds the validation clips; `score` scores a model on them and writes pictures."""

    autoencoder: Autoencoder
    val: Path  # folder with episodes
    out: Path  # folder of the training run
    unknown_action: int
    device: torch.device | str = "cpu"  # of the model; pictures are decoded where the autoencoder is

    def __post_init__(self) -> None:
        """Raises `ValueError` where no episode is long enough; shorter ones are left out."""
        all_of_them = latent_episodes(self.val, self.autoencoder, self.out / "latents")
        if not (long := [episode for episode in all_of_them if len(episode) >= LEAST]):
            longest = max(map(len, all_of_them))
            raise ValueError(f"{self.val}: validation takes episodes of {LEAST} frames, and the longest has {longest}: leave out --val")
        episodes = Episodes.of(long, self.device)
        numbered, frames = list(enumerate(episodes.lengths)), CONTEXT + AHEAD
        forward = [SegmentIndex(i, length // 5, frames, frames) for i, length in numbered]
        self.forward = read_clip(episodes, forward, frames, self.unknown_action)
        starts = [(i, tenths * length // 10) for i, length in numbered for tenths in (1, 6)]
        returning = [SegmentIndex(i, start, CONTEXT, 2 * CONTEXT) for i, start in starts]
        self.returning = read_clip(episodes, returning, 2 * CONTEXT, self.unknown_action)

    @torch.no_grad()
    def score(self, model: WorldModel, step: int, writer: SummaryWriter) -> str:
        """Score, write to TensorBoard and `samples/`, and return a line to print."""
        (self.out / "samples").mkdir(parents=True, exist_ok=True)
        scores = {**self._next_frames(model), **self._recall(model), **self._dream(model)}
        for name, value in scores.items():
            writer.add_scalar(f"val/{name}", value, step)
        return f"step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items())

    def _context(self, model: WorldModel) -> DreamState:
        past = self.forward[:CONTEXT]
        state = first_state(model, torch.arange(past.batch, device=self.device))
        return prefill(model, state, past.latent, past.action, past.pose, past.inventory).state

    def _next_frames(self, model: WorldModel) -> dict[str, float]:
        """Each next frame from a real past, with the true and with the estimated motion; and the error of that motion."""
        state, clip = self._context(model), self.forward
        errors: dict[str, list[float]] = {"next": [], "next_estimated": [], "motion_error": []}
        for t in range(CONTEXT, CONTEXT + AHEAD):
            action, truth = clip.action[:, t], clip.latent[:, t]
            for name, motion in (("next", clip.motion[:, t]), ("next_estimated", None)):
                latent, moved, *_ = imagine(model, state, action, 1, motion)
                errors[name].append((latent - truth).square().mean().item())
            errors["motion_error"].append((moved - clip.motion[:, t])[:, :2].norm(dim=-1).mean().item())
            part = clip[t : t + 1]
            state = prefill(model, state, part.latent, part.action, part.pose, part.inventory).state
        return {name: float(np.mean(values)) for name, values in errors.items()}

    def _recall(self, model: WorldModel) -> dict[str, float]:
        """Views on the way back, from pure noise with no clean neighbour: from memory, and with poses shuffled."""
        clip = self.returning
        noise = torch.zeros(clip.reward.shape, device=self.device)
        noise[:, CONTEXT:] = 1
        generator = torch.Generator().manual_seed(0)
        pure = torch.randn(clip.latent.shape, generator=generator).to(self.device)
        latent = torch.where(noise[..., None, None] > 0, pure, clip.latent)
        late = slice(CONTEXT + 12, None)
        with_memory = model(latent, inputs_of(clip, noise, clip.pose_known), model.initial_state(len(latent))).clean
        order = torch.cat([torch.arange(CONTEXT), CONTEXT + torch.randperm(CONTEXT, generator=generator)])
        shuffled = replace(clip, pose=clip.pose[:, order])
        lost = model(latent, inputs_of(shuffled, noise, clip.pose_known), model.initial_state(len(latent))).clean
        sheet = self._compared(clip.latent[:3, late][:, ::8], with_memory[:3, late][:, ::8], "(b k y) (t x) c")
        Image.fromarray(sheet).save(self.out / "samples" / "recall.png")
        return {
            "recall": (with_memory - clip.latent)[:, late].square().mean().item(),
            "recall_shuffled": (lost - clip.latent)[:, late].square().mean().item(),
            "recall_psnr": mean_psnr(self._decoded(with_memory[:, late][:, ::8]), self._decoded(clip.latent[:, late][:, ::8])),
        }

    def _dream(self, model: WorldModel) -> dict[str, float]:
        """Open loop with estimated poses: PSNR against the decoded truth, and how far the estimated pose is off at the end."""
        state, clip = self._context(model), self.forward
        frames = []
        for t in range(CONTEXT, CONTEXT + AHEAD):
            imagined = imagine(model, state, clip.action[:, t], 1)
            state = commit(model, state, clip.action[:, t], imagined)
            frames.append(imagined.latent)
        dreamed, truth = torch.stack(frames, 1), clip.latent[:, CONTEXT:]
        write_movie(self.out / "samples" / "dream.gif", self._compared(truth, dreamed, "t (k y) (b x) c"), fps=4)
        drift = (state.pose - clip.pose[:, -1])[:, :2].norm(dim=-1).mean().item()
        return {"dream_psnr": mean_psnr(self._decoded(dreamed), self._decoded(truth)), "pose_drift": drift}

    def _decoded(self, latent: Tensor) -> Tensor:
        images = self.autoencoder.decode(latent.flatten(0, 1).to(self.autoencoder.latent_mean.device))
        return images.unflatten(0, latent.shape[:2]).cpu()

    def _compared(self, truth: Tensor, model: Tensor, layout: str) -> np.ndarray:
        """Both decoded in one picture or several, uint8; k is 0 for the truth and 1 for the model."""
        return rearrange([self._decoded(truth), self._decoded(model)], f"k b t y x c -> {layout}").numpy()
