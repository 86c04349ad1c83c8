"""Behaviour cloning of recorded episodes shortly before their rewards: a policy for `agents.ppo` to begin with.

python -m experiments.behavior_cloning --data DIR/train --val DIR/val         runs/behavior_cloning/WORLD/policy.safetensors
python -m agents.ppo --start runs/behavior_cloning/memory-maze/policy.safetensors       learn on from there, in dreams

The policy sees each recorded frame as it will see dreams and the real world: the model's numbers, or with `--observation image` the
frame as dreams show it. Recordings without rewards are imitated throughout with `--within 0`.
Needs `pip install -e '.[agents,train]'`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from agents.policies import Policy, PolicyConfig, RunningNorm, as_json, observation_today, save_policy
from lssvwm_gym.envs.reset_options import past_of
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import numbers_of
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.models.rollout import prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.latents import latent_episodes

ROWS, FRAMES = 4096, 128  # observations that the policy, and frames that the decoder is given in one go


@dataclass(frozen=True)
class Args:
    """Whom to imitate, and how."""

    data: Path  # folder of recorded episodes with discrete actions
    val: Path | None = None  # folder of others, to say how often the policy would have done the same
    world: str = "memory-maze"
    weights: Path | None = None  # of the world model that sees; the shipped ones if not given
    out: Path | None = None  # folder to write to; runs/behavior_cloning/WORLD if not given
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    observation: str = "latent+features"  # image, latent, features, latent+features, or the last two +inventory
    within: int = 60  # imitate those frames alone that are followed by a reward within so many; 0: all
    hidden: int = 256
    epochs: int = 6
    batch: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    seed: int = 0

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "behavior_cloning" / self.world


def main(args: Args) -> None:
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    args = replace(args, observation=observation_today(args.observation))
    dream = open_dream(args.world, "fast", "cpu", args.weights)
    try:
        shape = observed_shape(dream, args.observation)
        seen, action = examples(args, dream, args.data)
        unknown = examples(args, dream, args.val) if args.val else None
    except ValueError as error:
        raise SystemExit(str(error)) from None
    policy = Policy(PolicyConfig(dream.world.name, args.observation, shape, len(dream.world.actions), args.hidden))
    for epoch, loss in enumerate(imitate(policy, args, seen, action), 1):
        alike = f", {agreement(policy, *unknown):.3f} of the actions in val" if unknown else ""
        print(
            f"epoch {epoch} of {args.epochs}: loss {loss:.3f}, does as was done in {agreement(policy, seen, action):.3f}{alike}", flush=True
        )
    save_policy(args.folder / "policy.safetensors", policy, {"frames": len(seen), "settings": as_json(args)})
    print(f"{len(seen):,} frames in {time.perf_counter() - began:.0f} s: {args.folder / 'policy.safetensors'}")


def examples(args: Args, dream: Dream, folder: Path) -> tuple[Tensor, Tensor]:
    """What was seen, (K, ...) as the policy sees it, and what was done then, (K,) int64, in all that is to be imitated.

    Raises `ValueError` where that is nothing.
    """
    episodes = latent_episodes(folder, dream.weights.autoencoder, args.latents or args.folder / "latents")
    parts = [example(args, dream, episode) for episode in tqdm(episodes, desc=f"seeing {folder.name}", leave=False)]
    seen, action = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(seen):
        raise ValueError(f"no frame in {folder} is followed by a reward within {args.within}: imitate all with --within 0")
    return seen, action


def example(args: Args, dream: Dream, episode: Segment) -> tuple[Tensor, Tensor]:
    """What one episode has to show; the action that follows frame t is the one that led to frame t + 1."""
    if episode.action.dtype != torch.int64:
        raise ValueError("only discrete actions can be imitated")
    wanted = leads_to_reward(episode.reward, args.within)[:-1]
    if args.observation == "image":
        seen = shown(dream, episode.latent[:-1][wanted])
    else:
        seen = watched(dream, episode, args.observation)[:-1][wanted]
    return seen, episode.action[1:][wanted]


@torch.no_grad()
def shown(dream: Dream, latent: Tensor) -> Tensor:
    """Latents (K, N, C) as dreams show them, whatever came before: uint8 (K, height, width, 3)."""
    parts = [dream.weights.autoencoder.decode(part) for part in latent.float().split(FRAMES) if len(part)]
    return torch.cat(parts) if parts else torch.empty(0, *observed_shape(dream, "image"), dtype=torch.uint8)


def leads_to_reward(reward: Tensor, within: int) -> Tensor:
    """Which frames (T,) are followed by a reward at most so many frames later; all, where within is 0."""
    if not within:
        return torch.ones_like(reward, dtype=torch.bool)
    rewarded = torch.nonzero(reward > 0)[:, 0]
    ahead = rewarded[None] - torch.arange(len(reward), device=reward.device)[:, None]
    return ((ahead > 0) & (ahead <= within)).any(1)


@torch.no_grad()
def watched(dream: Dream, episode: Segment, observation: str) -> Tensor:
    """The numbers of every frame of an episode, (T, numbers), at its recorded poses where there are any; but for maps."""
    if "map" in observation:
        raise ValueError(f"the maps along a past are not kept, so that no {observation} can be told of its frames")
    model, action = dream.weights.world_model, episode.action.clone()
    action[0] = model.config.actions  # no action led to the first frame
    pose = (
        episode.pose if episode.pose.shape[1] == model.config.pose_size else torch.full((len(episode), model.config.pose_size), torch.nan)
    )
    past = past_of(episode.latent[None].float(), action[None], pose[None], episode.inventory[None])
    state = dream.empty(torch.zeros(1, dtype=torch.int64))._replace(pose_known=past.pose_known[:, 0], inventory=past.inventory[:, 0])
    seen = prefill(model, state, past.latent, past.action, past.pose, past.inventory)
    along = seen.state._replace(latent=past.latent[0], features=seen.features[0], inventory=past.inventory[0])
    return numbers_of(along, observation).float()


def imitate(policy: Policy, args: Args, seen: Tensor, action: Tensor) -> Iterator[float]:
    """Train the actor; yields the mean loss of each epoch."""
    if isinstance(policy.encoder, RunningNorm):
        policy.encoder.count(seen)
    generator = torch.Generator().manual_seed(args.seed)
    learned = [*policy.encoder.parameters(), *policy.actor.parameters()]
    optimizer = torch.optim.AdamW(learned, args.learning_rate, weight_decay=args.weight_decay)
    for _ in range(args.epochs):
        losses = []
        for rows in torch.randperm(len(seen), generator=generator).split(args.batch):
            loss = F.nll_loss(policy(seen[rows])[0], action[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        yield torch.stack(losses).mean().item()


@torch.no_grad()
def agreement(policy: Policy, seen: Tensor, action: Tensor) -> float:
    """Share of the frames in which the policy's likeliest action is the one that was taken."""
    same = [policy(some)[0].argmax(-1) == done for some, done in zip(seen.split(ROWS), action.split(ROWS), strict=True)]
    return torch.cat(same).float().mean().item()


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
