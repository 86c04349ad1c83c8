"""Three ways to learn from a clip: diffusion forcing, teacher forcing, and teacher forcing where the past is the model's own rollout.

Each takes (model, clip, state, options, metric, rng) and returns losses to weigh and sum, over how many frames each is a
mean, and the state after the clip where it was committed on the way. Gradients stop at the incoming state.
Apart from those, visual odometry: the motion between two frames, learned from both and an estimate that is off.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.data.segments import Episodes, inputs_of
from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.diffusion import NoiseLevels, add_noise, denoising_loss, draw_noise_levels
from lssvwm_gym.models.geometry import PLANE, motion_between, turned
from lssvwm_gym.models.inference.backend import PLAIN, RECORDED
from lssvwm_gym.models.inference.compile import compile_step
from lssvwm_gym.models.motion_heads import CollisionMotionHead, CompassHead
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import WorldState
from lssvwm_gym.models.symlog import two_hot_loss
from lssvwm_gym.models.world_model import WorldModel, WorldOutput
from lssvwm_gym.training.distributed import ALONE, ProcessGroup, ShardedRNG

PAIRS = 512  # of an update
BLUR = 0.1  # noise on the latents, so that the head sees shapes and not single frames
SURE, CONFUSED = 0.6, 0.25  # shares of estimates that are nearly right, and that are another pair's; the rest is off by much
TINY, LARGE = 0.02, 0.5  # of the typical motion
FIRST = 0.05  # share of clips in which a model of changes learns a frame that has none before it


@dataclass(frozen=True)
class LossOptions:
    """How clips are made noisy."""

    noise: NoiseLevels = field(default_factory=NoiseLevels)  # of diffusion forcing
    pure_noise: float = 0.6  # share of frames that are denoised from pure noise, which is where one-step sampling starts; others anywhere
    context_noise: float = 0.1  # clean frames carry up to this much unannounced noise, as imperfect dreamed ones do
    pose_dropout: float = 0.1  # share of clips without poses
    self_rollout_from: tuple[float, float] = (0.25, 0.75)  # of a clip: where the part begins whose past is the model's own
    end_weight: float = 0.0  # of a frame that ends an episode, beside others; 0: the square root of how many there are for each


class Losses(NamedTuple):
    means: dict[str, Tensor]
    counts: dict[str, Tensor]  # frames that each is a mean over, 0 where there was none
    committed: WorldState | None  # the state after the clip, if that is known


def diffusion_forcing_losses(
    model: WorldModel, clip: Segment, state: WorldState, options: LossOptions, metric: Tensor, rng: ShardedRNG
) -> Losses:
    """Diffusion forcing: every frame has a noise level of its own, and what is noisy is also the past of what follows."""
    rows, frames = clip.reward.shape
    level = rng.shard(draw_noise_levels(rows * rng.num_processes, frames, options.noise, rng.generator))
    output = model(_noised(options, clip.latent, level, rng), inputs_of(clip, level, _draw_known(options, clip, rng)), state)
    noisy = level * clip.present * has_past(model, state, rng, level)
    denoise = denoising_loss(output.clean, clip.latent, noisy, metric)
    return Losses(*_losses(model, output, clip, level, options, denoise, (noisy > 0).sum()), None)


def teacher_forcing_losses(
    model: WorldModel, clip: Segment, state: WorldState, options: LossOptions, metric: Tensor, rng: ShardedRNG, rollout: bool = False
) -> Losses:
    """As in a dream: every frame is denoised after a clean past, read-only, and then committed clean; both in one call.

    With `rollout` that past is, from some frame on, the model's own: see `self_rollout_losses`.
    """
    known = _draw_known(options, clip, rng)
    past = _noised(options, clip.latent, torch.zeros_like(known), rng)
    if rollout:
        earliest, latest = (int(share * past.shape[1]) for share in options.self_rollout_from)
        real = rng.whole(max(1, earliest), max(2, latest + 1))
        past = rolled_out(model, past[:, :real], clip, known, state, rng)
    drawn = rng.uniform(2, *known.shape, axis=1)
    level = torch.where(drawn[0] < options.pure_noise, 1.0, drawn[1].clamp(min=1e-3))
    inputs = inputs_of(clip, torch.zeros_like(level), known)
    twice = FrameInputs(*(tensor.repeat_interleave(2, 1) for tensor in inputs))._replace(noise=_in_turn(level, inputs.noise))
    output = model(_in_turn(_noised(options, clip.latent, level, rng), past), twice, state, (True, False) * level.shape[1])
    level = level * clip.present * has_past(model, state, rng, level)
    denoise = denoising_loss(output.clean[:, ::2], clip.latent, level, metric)
    committed = output._replace(features=output.features[:, 1::2])
    return Losses(*_losses(model, committed, clip, inputs.noise, options, denoise, (level > 0).sum()), output.state)


def self_rollout_losses(
    model: WorldModel, clip: Segment, state: WorldState, options: LossOptions, metric: Tensor, rng: ShardedRNG
) -> Losses:
    """Teacher forcing, where from some frame on the past is the model's own rollout, frame by frame; the targets stay the real ones.

    It learns what its own frames are worth: blur is not taken for the world's, and errors don't feed on themselves.
    """
    return teacher_forcing_losses(model, clip, state, options, metric, rng, rollout=True)


LOSSES = {"diffusion_forcing": diffusion_forcing_losses, "teacher_forcing": teacher_forcing_losses, "self_rollout": self_rollout_losses}


@torch.no_grad()
def rolled_out(model: WorldModel, real: Tensor, clip: Segment, known: Tensor, state: WorldState, rng: ShardedRNG) -> Tensor:
    """Go on from real latents (B, R, N, C) to the clip's end (B, T, N, C), one step a frame, at the clip's actions and poses.

    A frame is committed in the same call that denoises the next one.
    """
    inputs = inputs_of(clip, torch.zeros_like(known), known)
    noise = rng.normal(known.shape[1] - real.shape[1], *real.shape[:1], *real.shape[2:], axis=1)
    latest, begun, past = real, 0, [real]
    step = compile_step(_commit_and_denoise, model, RECORDED if real.device.type == "cuda" else PLAIN)
    for fresh in noise:
        ahead = slice(begun, begun + latest.shape[1] + 1)
        run = step if latest.shape[1] == 1 else _commit_and_denoise
        estimate, state = run(model, latest, fresh, FrameInputs(*(tensor[:, ahead] for tensor in inputs)), state)
        begun, latest = begun + latest.shape[1], estimate.unsqueeze(1).to(real.dtype)
        past.append(latest)
    return torch.cat(past, 1)


def _commit_and_denoise(
    model: WorldModel, latest: Tensor, noise: Tensor, inputs: FrameInputs, state: WorldState
) -> tuple[Tensor, WorldState]:
    """Commit latents (B, K, N, C) and estimate the frame after them from noise (B, N, C); also returns the state after the commit."""
    read_only = (False,) * latest.shape[1] + (True,)
    level = torch.cat([torch.zeros_like(inputs.noise[:, 1:]), torch.ones_like(inputs.noise[:, :1])], 1)
    output = model(torch.cat([latest, noise.unsqueeze(1)], 1), inputs._replace(noise=level), state, read_only)
    return output.clean[:, -1], output.state


def _losses(
    model: WorldModel, output: WorldOutput, clip: Segment, level: Tensor, options: LossOptions, denoise: Tensor, noisy: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All losses and what each is a mean over; `denoise` is one over `noisy` frames."""
    committed = (level == 0).float()
    known, followed = committed * clip.recorded, committed[:, :-1] * (clip.recorded * clip.pose_known)[:, 1:]
    means = {"denoise": denoise, "reward": _reward_loss(model, output, clip, known), "pose": _pose_loss(model, output, clip, followed)}
    counts = {"denoise": noisy.float(), "reward": known.sum(), "pose": followed.sum()}
    if model.termination_head is not None:
        follows = committed[:, :-1] * clip.recorded[:, 1:]
        logit = model.termination_head(output.features[:, :-1], clip.inventory[:, 1:], clip.action[:, 1:])
        means["termination"] = model.termination_head.loss(logit, clip.terminated[:, 1:], follows, options.end_weight)
        counts["termination"] = follows.sum()
    if model.inventory_head is not None:
        means["inventory"] = model.inventory_head.loss(output.features, clip.before, clip.action, clip.inventory, known)
        counts["inventory"] = known.sum()
    return means, counts


def _noised(options: LossOptions, latent: Tensor, level: Tensor, rng: ShardedRNG) -> Tensor:
    """Latents at their noise levels; clean ones carry a little unannounced noise, as dreamed ones do."""
    unannounced = rng.uniform(len(level), 1) * options.context_noise * (level == 0)
    return add_noise(latent, rng.normal(*latent.shape), torch.maximum(level, unannounced))


def has_past(model: WorldModel, state: WorldState, rng: ShardedRNG, level: Tensor) -> Tensor:
    """1 for frames that are learned from, (B, T); of a model of changes few that have no frame before them, as these weigh too much."""
    if model.residual is None:
        return torch.ones_like(level)
    drawn = rng.uniform(len(level), 1) < FIRST
    return ((state.age > 0)[:, None] | drawn | (torch.arange(level.shape[1], device=level.device) > 0)).to(level.dtype)


def _draw_known(options: LossOptions, clip: Segment, rng: ShardedRNG) -> Tensor:
    """Whether a clip is conditioned on true poses, (B, T) float."""
    return (rng.uniform(len(clip.action), 1) >= options.pose_dropout).float() * clip.pose_known


def _in_turn(*parts: Tensor) -> Tensor:
    """K of (B, T, ...) to (B, K * T, ...), frame by frame."""
    return torch.stack(parts, 2).flatten(1, 2)


def _reward_loss(model: WorldModel, output: WorldOutput, clip: Segment, weight: Tensor) -> Tensor:
    logits = model.reward_head(output.features)
    if model.reward_bins is not None:
        loss = two_hot_loss(logits, clip.reward, model.reward_bins)
    else:
        values = clip.reward.new_tensor(model.config.class_rewards or (0.0, 1.0))
        nearest = (clip.reward.unsqueeze(-1) - values).abs().argmin(-1)
        loss = F.cross_entropy(logits.flatten(0, 1), nearest.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def _pose_loss(model: WorldModel, output: WorldOutput, clip: Segment, weight: Tensor) -> Tensor:
    """Frame t predicts the motion to frame t+1, where t is clean and the action to t+1 is known: weight (B, T - 1)."""
    predicted = model.motion_head(output.features[:, :-1], clip.motion[:, :-1], clip.action[:, 1:])
    scale = model.motion_head.motion_scale
    loss = F.smooth_l1_loss(predicted / scale, clip.motion[:, 1:] / scale, beta=0.1, reduction="none").mean(-1)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def train_odometry(
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    updates: int,
    rng: np.random.Generator,
    group: ProcessGroup = ALONE,
) -> Tensor:
    """Updates of the odometry head, by some hundred pairs of frames each, and of a compass head; none without poses. Returns the mean."""
    losses = torch.zeros(max(1, updates), device=episodes.device)
    for update in range(updates if episodes.posed else 0):
        optimizer.zero_grad()
        loss = odometry_loss(model, episodes, PAIRS, rng, group)
        if model.compass_head is not None:
            loss = loss + compass_loss(model.compass_head, episodes, PAIRS, rng, group)
        loss.backward()
        group.add_gradients(parameter for learned in optimizer.param_groups for parameter in learned["params"])
        optimizer.step()
        losses[update] = loss.detach()
    return group.summed(losses.mean())


def odometry_loss(model: WorldModel, episodes: Episodes, pairs: int, rng: np.random.Generator, group: ProcessGroup = ALONE) -> Tensor:
    """How far off the seen motions of some random pairs of frames are, in typical motions; zero where no poses are recorded.

    Each process takes its share of the pairs; their losses add up to that of all.
    """
    lengths = np.array(episodes.lengths)
    enough = np.flatnonzero(lengths > 2)
    if not len(enough):
        return model.odometry_head.motion_scale.new_zeros((), requires_grad=True)
    number = enough[rng.integers(len(enough), size=pairs)]
    index = episodes.index(episodes.start[number] + rng.integers(2, lengths[number]))
    whole, generator = episodes.whole, torch.Generator(episodes.device).manual_seed(int(rng.integers(2**62)))
    poses = torch.stack([whole.pose[index - ago] for ago in (2, 1, 0)], 1)
    known = poses.isfinite().flatten(1).all(1, keepdim=True)
    last, motion = motion_between(poses[:, :2], poses[:, 1:]).where(known.unsqueeze(1), 0).unbind(1)
    scale, head = model.odometry_head.motion_scale, model.odometry_head
    shard = group.share(pairs)
    before, latent = (_blurred(whole.latent, index - ago, shard, generator) for ago in (1, 0))
    estimate, estimate_last = (_estimated(true, scale, generator)[shard] for true in (motion, last))
    action = whole.action[index[shard]]
    if isinstance(model.motion_head, CollisionMotionHead):  # half are its own: where it errs, what was seen has to tell
        with torch.no_grad():
            own = model.motion_head(before, last[shard], action)
        estimate = estimate.where(torch.rand(len(own), 1, generator=generator, device=own.device) < 0.5, own)
    seen = head(before, latent, action, estimate, estimate_last)
    loss = F.smooth_l1_loss(seen / scale, motion[shard] / scale, beta=TINY, reduction="none")
    return (loss * known[shard]).sum() / (known.sum() * len(scale)).clamp(min=1)


def compass_loss(head: CompassHead, episodes: Episodes, frames: int, rng: np.random.Generator, group: ProcessGroup = ALONE) -> Tensor:
    """How unlikely the true heading and place in the lattice are by what the head says of random frames: negative log-likelihood."""
    whole, shard = episodes.whole, group.share(frames)
    number = rng.integers(len(episodes.lengths), size=frames)
    index = episodes.index(episodes.start[number] + rng.integers(np.array(episodes.lengths)[number]))
    generator = torch.Generator(episodes.device).manual_seed(int(rng.integers(2**62)))
    latent, pose = _blurred(whole.latent, index, shard, generator), whole.pose[index[shard]][:, :PLANE]
    known = pose.isfinite().all(-1)
    pose = pose.where(known[:, None], 0)
    heading = torch.atan2(pose[:, 3], pose[:, 2])
    centre = (pose[:, :2] / head.cell).floor() + 0.5 - pose[:, :2] / head.cell
    reading = head(latent)
    quarter = torch.stack([(4 * heading).cos(), (4 * heading).sin()], -1)
    error = torch.stack([(reading.quarter - quarter).square().sum(-1), (reading.centre - turned(centre, -heading)).square().sum(-1)], -1)
    loss = (error * (-reading.log_variance).exp() + reading.log_variance).sum(-1)
    return (loss * known).sum() / frames


def _blurred(latent: Tensor, index: Tensor, shard: slice, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(index), *latent.shape[1:], generator=generator, device=latent.device)
    return latent[index[shard]].float() + BLUR * noise[shard]


def _estimated(motion: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Motions (K, 3) as they might have been estimated."""
    kind = torch.rand(len(motion), 1, generator=generator, device=motion.device)
    noise = torch.randn(motion.shape, generator=generator, device=motion.device) * scale
    others = motion[torch.randperm(len(motion), generator=generator, device=motion.device)]
    return torch.where(kind < SURE, motion + TINY * noise, torch.where(kind < SURE + CONFUSED, others, motion + LARGE * noise))
