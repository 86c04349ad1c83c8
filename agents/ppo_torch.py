"""Proximal policy optimisation in plain PyTorch, in a thousand dreams at once that never leave their device.

python -m agents.ppo_torch                                       learn, on a GPU if there is one
python -m agents.ppo_torch --time-limit 180 --num-envs 1024      for three minutes, then save and end
python -m agents.ppo_torch --resume --total-steps 20000000       go on where the last run stopped
python -m agents.check_transfer --policies random runs/ppo_torch/memory-maze/policy.safetensors         try it in the real world

Run it in the project's folder. `runs/ppo_torch/WORLD` gets policy.safetensors (see `agents.policy`), checkpoint.safetensors, and
logs for `tensorboard --logdir runs/ppo_torch`. Needs `pip install 'lssvwm_gym[agents]'`; see docs/agents.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from agents.dreams import DreamRows, Moment, bank_before_rewards, bank_of_starts
from agents.policy import Policy, PolicyConfig, RunningNorm, draw, load_policy, save_policy
from agents.real_rows import RealRows
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.rollout import DreamState
from lssvwm_gym.models.state import join_rows
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.optim import load_optimizer_tensors, optimizer_tensors


@dataclass(frozen=True)
class Args:
    """What to learn, where, and how."""

    world: str = "memory-maze"
    out: Path | None = None  # folder to write to; runs/ppo_torch/WORLD if not given
    resume: bool = False  # go on from out/checkpoint.safetensors
    start: Path | None = None  # policy.safetensors to begin with, such as that of `agents.behavior_cloning`
    total_steps: int = 10_000_000  # of all dreams together
    time_limit: float | None = None  # seconds of this run, imports aside; all is saved and ended before
    seed: int = 0

    observation: str = "features"  # pixels, latent, features or latent+features; only pixels need the decoder
    profile: str = "balanced"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    device: str = "auto"
    compile: bool = False  # the dream's step; takes a minute or more at the start
    graphs: bool = True  # on a GPU: record the dream's step once as a CUDA graph
    num_envs: int | None = None  # dreams at once; 1024 on a GPU, 16 on a CPU; each keeps some MB of memory, several times while it steps
    episode_steps: int = 250  # after which a dream begins anew: the longer it is, the less it can be trusted
    bank: int | None = None  # at most so many states to begin with; 512 on a GPU, 64 on a CPU
    walk_every: int = 100  # frames between two moments of the long walks that are such states; 0 for openings only
    least_context: int = 300  # frames that such a state remembers, if any does: a dream pays for balls that it has seen
    real: str | None = None  # learn in this real environment instead, such as MemoryMaze9x9-Real-v0, seen through the same model
    data: Path | None = None  # folder of recorded episodes, so that dreams also begin shortly before what those were paid for
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    rewarding: float = 0.75  # share of the bank that begins so
    lead: tuple[int, int] = (2, 40)  # frames between such a beginning and the recorded reward: at least and at most
    context: int = 600  # frames remembered before it
    reward: str = (
        "likeliest"  # to learn from: what a frame most likely paid, as the environment does, or the mean: expected; returns are as paid
    )

    hidden: int = 256  # units of each of the two layers of actor and critic
    learning_rate: float = 5e-4
    rollout_steps: int = 32  # of each dream between two updates
    minibatches: int = 4  # into which a rollout is cut
    epochs: int = 4  # over each rollout
    critic_first: int = 0  # updates that teach the critic alone, where the actor has a start that it shouldn't forget
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5  # weight of the critic's loss
    max_gradient: float = 0.5  # norm
    reward_scale: float = 1.0
    target_kl: float | None = 0.03  # an epoch that goes further is the rollout's last

    save_every: int = 20  # updates between two writings of policy and checkpoint
    keep_every: int = 0  # updates between two policies that are kept, policy-STEPS.safetensors; 0 for none
    save_dreams: float = 0.5  # GB of dreams that a checkpoint may hold; where they take more, resuming begins new episodes

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "ppo_torch" / self.world


class Envs(Protocol):
    """What is learned in; `DreamRows` is one."""

    observation: Tensor  # (B, ...) to act upon

    def __len__(self) -> int: ...
    def step(self, action: Tensor) -> Moment: ...
    def take_totals(self) -> tuple[float, int]: ...


class Rollout(NamedTuple):
    """What happened, (T, B, ...)."""

    observation: Tensor
    action: Tensor  # int64
    log_probability: Tensor  # of that action
    value: Tensor  # as estimated then
    reward: Tensor  # scaled; where an episode's time was up, with the discounted value of what would have followed
    ended: Tensor  # 1 where the step ended an episode
    paid: Tensor  # () mean reward a step, not scaled


def main(args: Args) -> None:
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    args = with_defaults(args, dream.device.type)
    envs = opened_envs(args, dream)
    learner = Learner(args, PolicyConfig(dream.world.name, args.observation, envs.shape, envs.actions, args.hidden), dream.device)
    if args.resume:
        resume(args, learner, envs, dream)
    elif (args.folder / "checkpoint.safetensors").exists():
        raise SystemExit(f"{args.folder} holds a run already: add --resume to go on with it, or name another folder with --out")
    elif args.start is not None:
        begin_with(learner, args.start)
    print(f"{dream}: {len(envs):,} {envs.kind}, ready after {time.perf_counter() - began:.0f} s", flush=True)
    writer = SummaryWriter(str(args.folder / "log"), purge_step=learner.steps)
    for numbers in learner.learn(envs, began):
        report(args, learner, numbers, writer)
        if learner.updates % args.save_every == 0:
            save(args, learner, envs, dream)
        if args.keep_every and learner.updates % args.keep_every == 0:
            save_policy(args.folder / f"policy-{learner.steps:011d}.safetensors", learner.policy, about(args, learner))
    save(args, learner, envs, dream)
    envs.close()
    writer.close()
    print(f"{learner.steps:,} steps in {time.perf_counter() - began:.0f} s: {args.folder / 'policy.safetensors'}")


def with_defaults(args: Args, device: str) -> Args:
    """Fill in what depends on the device, and check what the command line says. Ends the program with what is wrong."""
    args = replace(
        args,
        num_envs=(16 if device == "cpu" else 1024) if args.num_envs is None else args.num_envs,
        bank=(64 if device == "cpu" else 512) if args.bank is None else args.bank,
    )
    for name in ("num_envs", "bank", "episode_steps", "rollout_steps", "minibatches", "epochs", "save_every", "hidden"):
        if getattr(args, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(args, name)}")
    if (args.num_envs or 0) * args.rollout_steps < 2 * args.minibatches:
        raise SystemExit(f"{args.num_envs} dreams of {args.rollout_steps} steps are too few for {args.minibatches} minibatches")
    return args


def opened_envs(args: Args, dream: Dream) -> DreamRows | RealRows:
    """What is learned in. Ends the program with what is wrong with the settings."""
    try:
        if args.real is not None:
            return RealRows(args.real, dream, args.num_envs or 1, args.observation, args.episode_steps, args.seed + 1)
        bank = opened_bank(args, dream, args.bank or 1)
        return DreamRows(
            dream, bank, args.num_envs or 1, args.observation, args.episode_steps, args.reward, args.seed + 1, args.compile, args.graphs
        )
    except ValueError as error:
        raise SystemExit(str(error)) from None


def opened_bank(args: Args, dream: Dream, most: int) -> DreamState:
    """The states that episodes begin with. Raises `ValueError` for recordings that pay nothing."""
    if args.data is None:
        return bank_of_starts(dream, args.walk_every, most, args.seed, args.least_context)
    autoencoder = dream.weights.autoencoder
    episodes = latent_episodes(args.data, autoencoder, args.latents or args.folder / "latents")
    rewarding = bank_before_rewards(dream, episodes, args.lead, args.context, max(1, round(args.rewarding * most)), args.seed)
    others = most - len(rewarding.seed)
    return join_rows([rewarding, bank_of_starts(dream, args.walk_every, others, args.seed, args.least_context)]) if others else rewarding


class Learner:
    """A policy, what improves it, and how far it is."""

    def __init__(self, args: Args, config: PolicyConfig, device: torch.device) -> None:
        self.args = args
        self.policy = Policy(config).to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), args.learning_rate, eps=1e-5, fused=device.type == "cuda")
        self.generator = torch.Generator(device).manual_seed(args.seed + 2)  # draws actions and minibatches
        self.steps = self.updates = 0

    def learn(self, envs: Envs, began: float) -> Iterator[dict[str, float]]:
        """Rollout and update until steps or time are used up; yields each update's numbers."""
        if isinstance(self.policy.eyes, RunningNorm) and not self.policy.eyes.seen.item():
            self.policy.eyes.count(envs.observation)
        batch, seconds = len(envs) * self.args.rollout_steps, 0.0
        while self.steps < self.args.total_steps:
            start = time.perf_counter()
            if self.args.time_limit is not None and start - began + 1.5 * seconds > self.args.time_limit:
                return
            rollout = self.rollout(envs)
            numbers = self.update(rollout, self.advantages(rollout, self.policy(envs.observation)[1].detach()))
            earned, episodes = envs.take_totals()
            self.steps, self.updates = self.steps + batch, self.updates + 1
            seconds = time.perf_counter() - start
            numbers |= {"episodes": episodes, "return": earned / episodes if episodes else float("nan")}
            yield numbers | {"steps_per_second": batch / seconds, "elapsed": time.perf_counter() - began}

    @torch.no_grad()
    def rollout(self, envs: Envs) -> Rollout:
        """Act for a while. Nothing here waits for the device."""
        moments, paid = [], []
        for _ in range(self.args.rollout_steps):
            observation = envs.observation
            log_probability, value = self.policy(observation)
            action = draw(log_probability, self.generator)
            moment = envs.step(action)
            reward = moment.reward * self.args.reward_scale
            if len(moment.rows):
                following = self.policy(moment.last)[1] * (1 - moment.terminated)
                reward = reward.index_add(0, moment.rows, self.args.gamma * following)
            chosen = log_probability.gather(1, action[:, None])[:, 0]
            moments.append((observation, action, chosen, value, reward, moment.ended))
            paid.append(moment.reward)
        observation, action, chosen, value, reward, ended = (torch.stack(part) for part in zip(*moments, strict=True))
        return Rollout(observation, action, chosen, value, reward, ended, torch.stack(paid).mean())

    def advantages(self, rollout: Rollout, following: Tensor) -> Tensor:
        """Generalised advantage estimation (Schulman et al., arXiv 1506.02438), (T, B); `following` (B,) is the next value."""
        advantages, advantage = torch.zeros_like(rollout.reward), torch.zeros_like(following)
        for t in reversed(range(len(rollout.reward))):
            goes_on = 1 - rollout.ended[t]
            surprise = rollout.reward[t] + self.args.gamma * following * goes_on - rollout.value[t]
            advantage = surprise + self.args.gamma * self.args.gae_lambda * goes_on * advantage
            advantages[t], following = advantage, rollout.value[t]
        return advantages

    def update(self, rollout: Rollout, advantages: Tensor) -> dict[str, float]:
        """Improve the policy by a rollout. Waits for the device once an epoch."""
        target = (advantages + rollout.value).flatten()
        parts = [part.flatten(0, 1) for part in rollout[:4]]
        losses: list[Tensor] = []
        for _ in range(self.args.epochs):
            order = torch.randperm(len(target), generator=self.generator, device=target.device)
            epoch = [
                self.improve(*(x[rows] for x in (*parts, advantages.flatten(), target))) for rows in order.chunk(self.args.minibatches)
            ]
            losses += epoch
            if self.args.target_kl is not None and torch.stack(epoch)[:, 3].mean().item() > self.args.target_kl:
                break
        if isinstance(self.policy.eyes, RunningNorm):
            self.policy.eyes.count(parts[0])  # only now: rollout and update must see alike
        unexplained = advantages.var() / target.var().clamp(min=1e-12)
        names = ("policy_loss", "value_loss", "entropy", "kl", "clipped", "gradient")
        values = [*torch.stack(losses).mean(0), 1 - unexplained, rollout.paid, torch.tensor(len(losses) / self.args.minibatches)]
        numbers = torch.stack([value.detach().to(target.device) for value in values]).tolist()
        return dict(zip((*names, "explained", "reward_per_step", "epochs"), numbers, strict=True))

    def improve(self, observation: Tensor, action: Tensor, before: Tensor, _: Tensor, advantage: Tensor, target: Tensor) -> Tensor:
        """One step of the optimiser (Schulman et al., arXiv 1707.06347); returns what it was like, (6,)."""
        args = self.args
        log_probability, value = self.policy(observation)
        ratio_log = log_probability.gather(1, action[:, None])[:, 0] - before
        ratio = ratio_log.exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - args.clip, 1 + args.clip)).mean()
        value_loss = (value - target).square().mean()
        entropy = -(log_probability.exp() * log_probability).sum(-1).mean()
        self.optimizer.zero_grad()
        acts = float(self.updates >= args.critic_first)
        (acts * (policy_loss - args.entropy * entropy) + args.value * value_loss).backward()
        gradient = nn.utils.clip_grad_norm_(self.policy.parameters(), args.max_gradient)
        self.optimizer.step()
        kl, clipped = (ratio - 1 - ratio_log).mean(), ((ratio - 1).abs() > args.clip).float().mean()
        return torch.stack([policy_loss, value_loss, entropy, kl, clipped, gradient]).detach()


def begin_with(learner: Learner, path: Path) -> None:
    """Take over a policy's weights. Ends the program where it sees or does something else."""
    start, _ = load_policy(path, next(learner.policy.parameters()).device)
    if start.config != learner.policy.config:
        raise SystemExit(f"{path} is a policy of {start.config}; this run needs one of {learner.policy.config}")
    learner.policy.load_state_dict(start.state_dict())


def report(args: Args, learner: Learner, numbers: dict[str, float], writer: SummaryWriter) -> None:
    for name, value in numbers.items():
        writer.add_scalar(name, value, learner.steps)
    earned = f"{numbers['return']:.3f} in {numbers['episodes']:.0f} episodes" if numbers["episodes"] else "no whole episode yet"
    print(
        f"{learner.steps:,} of {args.total_steps:,} steps  {numbers['elapsed']:.0f} s  {numbers['steps_per_second']:,.0f} steps/s  "
        f"return {earned}  {1000 * numbers['reward_per_step']:.2f} reward/1000  entropy {numbers['entropy']:.3f}  "
        f"kl {numbers['kl']:.4f}  explained {numbers['explained']:.2f}",
        flush=True,
    )


def about(args: Args, learner: Learner) -> dict[str, object]:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()}
    return {"steps": learner.steps, "updates": learner.updates, "settings": settings}


def save(args: Args, learner: Learner, envs: DreamRows | RealRows, dream: Dream) -> None:
    """Write the policy, and all that a run needs to go on; each file whole or not at all."""
    dreams = envs.tensors()
    if sum(tensor.numel() * tensor.element_size() for tensor in dreams.values()) > args.save_dreams * 1e9:
        dreams = {}
    tensors = {
        **prefixed("policy", learner.policy.state_dict()),
        **prefixed("optimizer", optimizer_tensors(learner.optimizer)),
        **prefixed("dreams", dreams),
        "generator": learner.generator.get_state(),
    }
    save_policy(args.folder / "policy.safetensors", learner.policy, about(args, learner))
    header = {**about(args, learner), "config": asdict(learner.policy.config), "model": dream.fingerprint}
    save_tensors(args.folder / "checkpoint.safetensors", tensors, header)


def resume(args: Args, learner: Learner, envs: DreamRows | RealRows, dream: Dream) -> None:
    """Go on from a checkpoint, exactly where it holds the dreams. Ends the program where it is of another policy or model."""
    path = args.folder / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    config = {**asdict(learner.policy.config), "shape": list(learner.policy.config.shape)}
    if (header.get("config"), header.get("model")) != (config, dream.fingerprint):
        raise SystemExit(f"{path}: of another world, model, observation or size of policy: {header.get('config')}, not {config}")
    load_strictly(learner.policy, under("policy", tensors), path)
    load_optimizer_tensors(learner.optimizer, under("optimizer", tensors))
    learner.generator.set_state(tensors["generator"])
    learner.steps, learner.updates = header["steps"], header["updates"]
    try:
        envs.load(under("dreams", tensors))
        episodes = "in the midst of its episodes"
    except TensorFileError:
        envs.begin_anew(args.seed + 1 + learner.steps)
        episodes = "with new episodes"
    print(f"{path}: {learner.steps:,} steps so far; goes on {episodes}")


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
