"""A flow-matching head on the frozen world model: it samples the next frame instead of its mean. Not part of a dream yet.

    python experiments/flow_head.py features --data DIR/train DIR2/train --out runs/flow/train     # goes on where it was stopped
    python experiments/flow_head.py train --features runs/flow/train --val runs/flow/val --out runs/flow/head.safetensors --minutes 120
    python experiments/flow_head.py motion --features runs/flow/train --val runs/flow/val --out runs/flow/motion.safetensors
    python experiments/flow_head.py closed-loop --data DIR2/test --head experiments/flow_head.safetensors --sheet dreams.png

`features` stores what the world model makes of recorded frames; `train` is flow matching on it (x-prediction, velocity weights, four noise
levels for each context); `motion` learns whether a wall blocks the next step from the last two latents alone; `closed-loop` takes players
that do not look through dreams along the actions they took in real mazes, and compares the two in distribution.
Results are in docs/experiments.md.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights, load_weights
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.data.segments import encode_episode, flipped
from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.diffusion import sample
from lssvwm_gym.models.geometry import integrate_motion, motion_between, relative_to
from lssvwm_gym.models.rollout import (
    LATENT_STEPS,
    POSE_STEPS,
    DreamState,
    Imagined,
    commit,
    estimated_motion,
    first_state,
    imagine,
    prefill,
)
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.worlds import WORLDS

HERE = Path(__file__).parent
MAZE = WORLDS["memory-maze"]
CLIP = 250  # frames; every clip begins with an empty memory, so that much is unknown
MIRROR = (0, 1, 3, 2, 5, 4)  # each action's mirror image
FORWARD = torch.tensor([1, 4, 5])  # actions that go ahead
BLOCKED = 0.05  # grid units ahead, of 0.25 a step: less is a step that a wall blocks


class FlowHead(nn.Module):
    """Noisy latents (B, N, C) of one frame at levels (B,), and what is known of the frame, to an estimate of the clean ones."""

    def __init__(self, tokens: int = 16, channels: int = 32, trunk: int = 128, actions: int = 6, width: int = 160, layers: int = 3) -> None:
        super().__init__()
        self.token_in, self.context_in = nn.Linear(channels, width), nn.Linear(trunk + 3 * channels + 1, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.level = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.action = nn.Embedding(actions + 1, width)
        self.blocks = nn.ModuleList(HeadBlock(tokens, width) for _ in range(layers))
        self.modulation, self.token_out = nn.Linear(width, 2 * width), nn.Linear(width, channels)
        nn.init.zeros_(self.token_out.weight)

    def context(
        self, tokens: Tensor, mean: Tensor, last: Tensor, before: Tensor, variance: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The world model's tokens (B, N, D) and its estimate of the frame, the last two frames (B, N, C), the spatial memory's posterior
        variance (B,), the action (B,): worked out once a frame."""
        known = torch.cat([tokens, mean, last, before, variance[:, None, None].expand(*mean.shape[:2], 1)], -1)
        return self.context_in(known) + self.position, self.action(action)

    def forward(self, x: Tensor, level: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        tokens, action = context
        angle = level[:, None] * 0.25 * math.pi * 1.5 ** torch.arange(16, device=x.device)
        condition = F.silu(self.level(torch.cat([angle.sin(), angle.cos()], -1)) + action)
        x = self.token_in(x) + tokens
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)
        return self.token_out(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


class HeadBlock(nn.Module):
    """Attention over the tokens of the frame and an MLP, under adaptive norm."""

    def __init__(self, tokens: int, width: int, heads: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.modulation, self.bias = nn.Linear(width, 6 * width), nn.Parameter(torch.zeros(heads, tokens, tokens))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, P)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0)).transpose(1, 2).flatten(2)
        x = x + (1 + gate) * self.out(y)
        return x + (1 + gate2) * self.mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2)


class BlockedMotion(nn.Module):
    """Whether a step is blocked, and the motion in either case, from the last two latents, the last motion and the action."""

    def __init__(self, size: int = 512, actions: int = 6, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor([0.15, 0.05, 0.25]), persistent=False)
        self.action, self.frames = nn.Embedding(actions + 1, hidden), nn.Linear(2 * size + 3, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.blocked, self.motion = nn.Linear(hidden, 1), nn.Linear(hidden, 6)

    def forward(self, last: Tensor, before: Tensor, motion: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logit of blocked (B,), and motions (B, 2, 3): if it isn't, and if it is."""
        frames = torch.cat([last.flatten(1), before.flatten(1), motion / self.motion_scale], -1)
        hidden = self.network(self.frames(frames) + self.action(action))
        return self.blocked(hidden)[:, 0], self.motion(hidden).unflatten(-1, (2, 3)) * self.motion_scale

    def likeliest(self, last: Tensor, before: Tensor, motion: Tensor, action: Tensor) -> Tensor:
        """The motion (B, 3) of the likelier case."""
        blocked, motions = self(last, before, motion, action)
        return torch.where((blocked > 0)[:, None], motions[:, 1], motions[:, 0])


@dataclass(frozen=True)
class Features:
    """Store what the frozen world model makes of recorded frames, a file an episode."""

    data: tuple[Path, ...]  # folders of episodes with poses
    out: Path  # folder
    mirror: bool = False  # of the mirror images, too

    @torch.no_grad()
    def run(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        weights = load_weights(MAZE.weights)
        jobs = [(path, mirror) for mirror in (False, True)[: 1 + self.mirror] for folder in self.data for path in episode_paths(folder)]
        for path, mirror in tqdm(jobs, desc="features"):
            out = self.out / f"{path.parent.parent.name}_{path.stem}{'m' if mirror else ''}.safetensors"
            if not out.exists() and (features := self.of(path, mirror, weights)):
                save_file(features, out.with_suffix(".part"))
                out.with_suffix(".part").rename(out)

    def of(self, path: Path, mirror: bool, weights: Weights) -> dict[str, Tensor]:
        model, episode = weights.world_model, encode_episode(path, weights.autoencoder)
        if mirror:
            episode = flipped(episode, weights.autoencoder, MIRROR)
        clips = []
        for start in range(0, len(episode) - CLIP + 1, CLIP):
            latent, action = episode.latent[start : start + CLIP].float()[None], episode.action[start : start + CLIP].clone()[None]
            action[0, 0] = model.config.actions
            pose = relative_to(episode.pose[start : start + CLIP][None], episode.pose[start : start + 1][None])
            motion = motion_between(torch.cat([pose[:, :1], pose[:, :-1]], 1), pose)
            clips.append(self.of_clip(model, latent, action, pose, motion))
        return {name: torch.stack([clip[name] for clip in clips]).contiguous() for name in clips[0]} if clips else {}

    def of_clip(self, model: WorldModel, latent: Tensor, action: Tensor, pose: Tensor, motion: Tensor) -> dict[str, Tensor]:
        """Every frame is read from pure noise and then committed with a little noise, as dreamed pasts have."""
        state, parts = model.initial_state(1), []
        for start in range(0, CLIP, 50):
            part = slice(start, start + 50)
            level = torch.rand(1) * 0.1
            past = (1 - level) * latent[:, part] + level * torch.randn_like(latent[:, part])
            x = torch.stack([torch.randn_like(past), past], 2).flatten(1, 2)
            noise = torch.tensor([1.0, 0.0]).repeat(50)[None]
            led, there, moved = (given[:, part].repeat_interleave(2, 1) for given in (action, pose, motion))
            inputs = FrameInputs(noise, led, there, moved, torch.ones_like(noise), torch.zeros(1, 100, 0))
            output = model(x, inputs, state, (True, False) * 50)
            state = output.state
            parts.append([output.tokens[0, ::2], output.clean[0, ::2], output.posterior_variance[0, ::2]])
        tokens, mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        half = {"tokens": tokens.half(), "mean": mean.half(), "latent": latent[0].half()}
        return {**half, "variance": variance, "action": action[0], "motion": motion[0]}


def read_features(folder: Path) -> dict[str, Tensor]:
    """All clips (K, T, ...) of a folder, and of which episode each is."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


def drawn(clips: dict[str, Tensor], count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Frames drawn from clips, with the two before each."""
    clip = torch.randint(len(clips["latent"]), (count,), generator=generator)
    t = torch.randint(2, clips["latent"].shape[1], (count,), generator=generator)
    frame = {name: tensor[clip, t].float() if tensor.is_floating_point() else tensor[clip, t] for name, tensor in clips.items()}
    last, before, motion = clips["latent"][clip, t - 1].float(), clips["latent"][clip, t - 2].float(), clips["motion"][clip, t - 1]
    return {**frame, "last": last, "before": before, "last_motion": motion}


def context_of(head: FlowHead, frame: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return head.context(*(frame[name] for name in ("tokens", "mean", "last", "before", "variance", "action")))


@dataclass(frozen=True)
class Train:
    """Flow matching: predict the clean latent, weigh as its velocity; several noise levels for each context."""

    features: Path
    val: Path
    out: Path
    minutes: float = 120
    frames: int = 64  # contexts a step
    levels: int = 4  # noise levels a context
    learning_rate: float = 1.5e-3
    seed: int = 0

    def run(self) -> None:
        torch.manual_seed(self.seed)
        clips, val, head = read_features(self.features), read_features(self.val), FlowHead()
        average, optimizer = copy.deepcopy(head), torch.optim.AdamW(head.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        begun, step = time.monotonic(), 0
        while (share := (time.monotonic() - begun) / (60 * self.minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1, step / 300) * min(1, max(0.02, (1 - share) / 0.4))
            loss = self.loss(head, drawn(clips, self.frames))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            step += 1
            with torch.no_grad():
                decay = min(0.9995, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(average.parameters()), list(head.parameters()), 1 - decay)
            if step % 1000 == 0:
                print(f"{step} steps, {time.monotonic() - begun:.0f} s: {validation(average, val)}", flush=True)
                save_file(average.state_dict(), self.out)
        save_file({name: tensor.half() for name, tensor in average.state_dict().items()}, self.out)

    def loss(self, head: FlowHead, frame: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            tokens, action = (x.repeat_interleave(self.levels, 0) for x in context_of(head, frame))
            level = (
                torch.sigmoid(torch.randn(len(tokens)) * 1.2 + 0.6)
                .clamp(1e-3, 1 - 1e-4)
                .where(torch.rand(len(tokens)) > 0.1, torch.ones(()))
            )
            clean = frame["latent"].repeat_interleave(self.levels, 0)
            mixed = level[:, None, None]
            estimate = head((1 - mixed) * clean + mixed * torch.randn_like(clean), level, (tokens, action))
        return ((estimate.float() - clean).square().mean((1, 2)) / level.clamp(min=0.15) ** 2).mean()


@torch.no_grad()
def validation(head: FlowHead, clips: dict[str, Tensor]) -> dict[float, float]:
    """Mean square error of the estimate by noise level."""
    generator, errors = torch.Generator().manual_seed(1), {}
    frame = drawn(clips, 1024, generator)
    for level in (1.0, 0.8, 0.5, 0.25):
        noisy = (1 - level) * frame["latent"] + level * torch.randn(frame["latent"].shape, generator=generator)
        estimate = head(noisy, torch.full((len(noisy),), level), context_of(head, frame))
        errors[level] = round((estimate - frame["latent"]).square().mean().item(), 4)
    return errors


@dataclass(frozen=True)
class Motion:
    """Learn whether a step is blocked, and the motion, from the last two latents."""

    features: Path
    val: Path
    out: Path
    steps: int = 6000
    noise: float = 0.35  # latents carry up to this much, as dreamed ones do
    seed: int = 0

    def run(self) -> None:
        torch.manual_seed(self.seed)
        clips, val, head = read_features(self.features), read_features(self.val), BlockedMotion()
        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.02)
        for step in tqdm(range(self.steps), desc="motion"):
            frame = drawn(clips, 512)
            level = torch.rand(512, 1, 1) * self.noise
            last, before = (frame[name] + level * torch.randn_like(frame[name]) for name in ("last", "before"))
            blocked, motions = head(last, before, frame["last_motion"] * (torch.rand(512, 1) > 0.3), frame["action"])
            truth = is_blocked(frame["action"], frame["motion"])
            chosen = torch.where(truth[:, None], motions[:, 1], motions[:, 0]) / head.motion_scale
            loss = F.binary_cross_entropy_with_logits(blocked, truth.float())
            loss = loss + F.smooth_l1_loss(chosen, frame["motion"] / head.motion_scale, beta=0.1)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, step / 100) * (1 - step / self.steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        save_file({name: tensor.half() for name, tensor in head.state_dict().items()}, self.out)
        with torch.no_grad():
            frame = drawn(val, 20_000)
            said, truth = (
                head(frame["last"], frame["before"], frame["last_motion"], frame["action"])[0] > 0,
                is_blocked(frame["action"], frame["motion"]),
            )
        print(f"blocked steps: recall {(said & truth).sum() / truth.sum():.3f}, precision {(said & truth).sum() / said.sum():.3f}")


def is_blocked(action: Tensor, motion: Tensor) -> Tensor:
    """Which steps (B, ...) went ahead and came nowhere."""
    return torch.isin(action, FORWARD) & (motion[..., 0] < BLOCKED)


@dataclass(frozen=True)
class ClosedLoop:
    """Players that do not look: dreams along the actions that they took in real mazes, compared with these in distribution."""

    data: Path  # folder of their episodes
    head: Path | None = HERE / "flow_head.safetensors"  # none: the dreams of today, in `passes` passes
    motion: Path | None = HERE / "flow_head_motion.safetensors"  # none: the model's own motion head
    others: Path | None = None  # folder of other real episodes, for the floor; if not given, halves of the same
    passes: int = 8
    open_variance: float = 0.0  # below it a frame is the nearer to the head's mean, the less variance the spatial memory has there
    context: int = 20  # frames
    frames: int = 100  # dreamed
    mazes: int = 60  # at most
    sheet: Path | None = None  # picture of the first sixteen dreams
    seed: int = 0

    @torch.no_grad()
    def run(self) -> None:
        torch.manual_seed(self.seed)
        weights = load_weights(MAZE.weights)
        paths = [path for path in episode_paths(self.data) if len(read_arrays(path)["action"]) > self.context + self.frames][: self.mazes]
        episodes = [encode_episode(path, weights.autoencoder) for path in tqdm(paths, desc="real episodes")]
        both = slice(self.context + self.frames)
        latent = torch.stack([episode.latent[both].float() for episode in episodes])
        action = torch.stack([episode.action[both] for episode in episodes])
        pose = torch.stack([relative_to(episode.pose[both], episode.pose[:1]) for episode in episodes])
        dreamed, motion = self.dreams(weights.world_model, latent, action, pose)
        real_motion = motion_between(pose[:, self.context - 1 : -1], pose[:, self.context :])
        ahead = torch.isin(action[:, self.context :], FORWARD)
        for name, moved in (("real", real_motion), ("dreamed", motion)):
            blocked = is_blocked(action[:, self.context :], moved)[ahead].float()
            print(f"{name}: {100 * blocked.mean():.1f} % of {len(blocked)} forward steps are blocked")
        real = latent[:, self.context :]
        if self.others is not None:
            other = torch.cat(
                [
                    encode_episode(path, weights.autoencoder).latent[both][self.context :].float()
                    for path in episode_paths(self.others)[: len(paths)]
                ]
            )
            floor = frechet_distance(real.flatten(0, 1).flatten(1), other.flatten(1))
        else:
            floor = frechet_distance(*(half.flatten(0, 1).flatten(1) for half in (real[::2], real[1::2])))
        distance = frechet_distance(real.flatten(0, 1).flatten(1), dreamed.flatten(0, 1).flatten(1))
        print(f"Fréchet distance of latents: dreamed {distance:.1f}, floor {floor:.1f}, {len(paths)} mazes")
        if self.sheet is not None:
            draw_sheet(self.sheet, weights, real, dreamed)

    def dreams(self, model: WorldModel, latent: Tensor, action: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, T, N, C) and motions (B, T, 3) that are dreamed after the context."""
        head, walls = loaded(FlowHead(), self.head), loaded(BlockedMotion(), self.motion)
        action = action.clone()
        action[:, 0] = model.config.actions
        past = slice(self.context)
        state = first_state(model, torch.arange(len(latent)))
        state, before, frames = (
            prefill(model, state, latent[:, past], action[:, past], pose[:, past]).state,
            latent[:, self.context - 2],
            [],
        )
        for t in tqdm(range(self.context, latent.shape[1]), desc="dreaming"):
            led = action[:, t]
            motion = walls.likeliest(state.latent, before, state.motion, led) if walls else estimated_motion(model, state, led)
            if head is None:
                imagined = imagine(model, state, led, self.passes, motion, noise=torch.randn_like(state.latent))
            else:
                imagined = self.imagined(model, head, state, before, led, motion)
            before, state = state.latent, commit(model, state, led, imagined)
            frames.append((state.latent, motion))
        latents, motions = (torch.stack(part, 1) for part in zip(*frames, strict=True))
        return latents, motions

    def imagined(self, model: WorldModel, head: FlowHead, state: DreamState, before: Tensor, action: Tensor, motion: Tensor) -> Imagined:
        there = (integrate_motion(state.pose, motion) * POSE_STEPS).round() / POSE_STEPS
        given = (x.unsqueeze(1) for x in (state.pose_known, action, there, motion, state.pose_known, state.inventory))
        noise = torch.randn_like(state.latent)
        output = model(noise[:, None], FrameInputs(*given), state.world, (True,))
        variance = output.posterior_variance[:, 0]
        context = head.context(output.tokens[:, 0], output.clean[:, 0], state.latent, before, variance, action)
        latent, _ = sample(functools.partial(head, context=context), torch.randn_like(noise), self.passes)
        if self.open_variance:
            mean = head(noise, torch.ones(len(noise)), context)
            latent = torch.lerp(mean, latent, (variance / self.open_variance).clamp(max=1)[:, None, None])
        return Imagined((latent * LATENT_STEPS).round() / LATENT_STEPS, motion, torch.zeros_like(state.uncertainty))


def loaded(model: Any, path: Path | None) -> Any:
    if path is None:
        return None
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.eval()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the normal distributions of the same mean and covariance as samples (K, D) and (K', D)."""
    mean_a, mean_b, cov_a, cov_b = a.double().mean(0), b.double().mean(0), a.double().T.cov(), b.double().T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def draw_sheet(path: Path, weights: Weights, real: Tensor, dreamed: Tensor) -> None:
    """Real frames and dreams along the same actions, of the first sixteen mazes at eight moments; nothing is chosen."""
    from PIL import Image

    moments = np.linspace(0, real.shape[1] - 1, 8).round().astype(int)
    rows = []
    for latent in (real, dreamed):
        frames = weights.autoencoder.decode(latent[:16, moments].flatten(0, 1)).unflatten(0, (-1, 8)).numpy()
        rows.append(np.concatenate(list(np.concatenate(list(frames.transpose(1, 0, 2, 3, 4)), -2)), -3))
    sheet = Image.fromarray(np.concatenate([rows[0], np.full((len(rows[0]), 8, 3), 255, np.uint8), rows[1]], 1))
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE).save(path)


if __name__ == "__main__":
    tyro.cli(Features | Train | Motion | ClosedLoop, description=__doc__).run()
