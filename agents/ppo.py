"""Proximal policy optimisation in plain PyTorch, in a thousand dreams at once that never leave their device.

python -m agents.ppo                                       learn for 55 minutes, on a GPU if there is one
python -m agents.ppo --time-limit 180 --num-envs 1024      for three minutes, then save and end
python -m agents.ppo --resume --total-steps 20000000       go on where the last run stopped
python -m experiments.ppo_real --num-envs 8                in the real world, observed through the same model
python -m experiments.check_transfer --policies random runs/ppo/memory-maze/policy.safetensors         try it in the real world

`runs/ppo/WORLD` gets policy.safetensors (see `agents.policies`), checkpoint.safetensors, and logs for `tensorboard --logdir runs/ppo`.
Needs `pip install -e '.[agents]'`; see docs/agents.md.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from agents import starts
from agents.policies import KIND, Policy, PolicyConfig, RunningNorm, as_json, config_in, draw, load_policy, save_policy
from agents.ppo_settings import Args, with_defaults
from agents.rollout import Batch, EpisodeReturns, Rollout
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.inference.backend import COMPILERS, Backend, chosen_device
from lssvwm_gym.training.optim import load_optimizer_tensors, optimizer_tensors


def main(args: Args, open_envs: Callable[[Args, Dream], Any] | None = None) -> None:
    """Learn in dreams, or in what `open_envs` makes of the settings and the dream: environments in tensors, such as dreams are."""
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    try:
        device = torch.device(chosen_device(args.device)).type
        compiled = args.compile if args.compile != "auto" else "on" if device == "cpu" and any(map(shutil.which, COMPILERS)) else "off"
        backend = Backend(graphs="on" if args.graphs and device == "cuda" else "off", compiled=compiled)
        dream = open_dream(args.world, args.profile, args.device, args.weights, args.dtype, backend)
        args = with_defaults(args, dream.device.type)
        shape, actions = observed_shape(dream, args.observation), len(dream.world.actions)
        envs = starts.dreams(args, dream, starts.open_bank(args, dream)) if open_envs is None else open_envs(args, dream)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    config = PolicyConfig(dream.world.name, args.observation, shape, actions, args.hidden, args.memory, args.map)
    learner = Learner(args, config, envs, dream.device)
    if args.start is not None:
        start_from(learner, args.start)
    elif args.anchor:
        raise SystemExit("--anchor holds a policy to the one that --start names, and none is named")
    if args.resume:
        resume(args, learner, dream)
    elif (args.folder / "checkpoint.safetensors").exists():
        raise SystemExit(f"{args.folder} holds a run already: add --resume to go on with it, or name another folder with --out")
    print(f"{dream}: {envs.num_envs:,} environments, ready after {time.perf_counter() - began:.0f} s", flush=True)
    writer = SummaryWriter(str(args.folder / "log"), purge_step=learner.steps)
    for numbers in learner.learn(began):
        report(args, learner, numbers, writer)
        if learner.updates % args.save_every == 0:
            save(args, learner, dream)
        if args.keep_every and learner.updates % args.keep_every == 0:
            save_policy(args.folder / f"policy-{learner.steps:011d}.safetensors", learner.policy, about(args, learner))
    save(args, learner, dream)
    envs.close()
    writer.close()
    print(f"{learner.steps:,} steps in {time.perf_counter() - began:.0f} s: {args.folder / 'policy.safetensors'}")


class Learner:
    """A policy, what it learns in, what improves it, and how far it is."""

    def __init__(self, args: Args, config: PolicyConfig, envs: DreamVectorEnv, device: torch.device) -> None:
        self.args, self.envs = args, envs
        self.policy = Policy(config).to(device)
        self.start: Policy | None = None  # what it began with
        learned = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learned, args.learning_rate, eps=1e-5, fused=device.type == "cuda")
        self.generator = torch.Generator(device).manual_seed(args.seed + 2)  # draws actions and minibatches
        self.steps = self.updates = 0
        self.begin(args.seed + 1)

    def begin(self, seed: int) -> None:
        """New episodes everywhere."""
        self.observation: Tensor = self.envs.reset(seed=seed)[0]
        self.memory = self.observation.new_zeros(len(self.observation), self.policy.memory_size, dtype=torch.float32)
        self.most_known = self.memory.new_full((len(self.memory),), -1.0)  # cells in each episode so far; -1: it has not been looked yet
        self.start_memory = self.memory
        self.returns = EpisodeReturns(self.envs.episode_steps, self.observation.device)

    def learn(self, began: float) -> Iterator[dict[str, float]]:
        """Rollout and update until steps or time are used up; yields each update's numbers."""
        if isinstance(self.policy.encoder, RunningNorm) and not self.policy.encoder.seen.item():
            self.policy.encoder.count(self.policy.see(self.observation, self.memory)[0])
        batch, seconds = self.envs.num_envs * self.args.rollout_steps, 0.0
        while self.steps < self.args.total_steps:
            start = time.perf_counter()
            if self.args.time_limit is not None and start - began + 1.5 * seconds > self.args.time_limit:
                return
            rollout = self.rollout()
            numbers = self.update(rollout, self.advantages(rollout, self.following()))
            earned, episodes = self.returns.take()
            self.steps, self.updates = self.steps + batch, self.updates + 1
            seconds = time.perf_counter() - start
            numbers |= {"episodes": episodes, "return": earned / episodes if episodes else float("nan")}
            yield numbers | {"steps_per_second": batch / seconds, "elapsed": time.perf_counter() - began}

    @torch.no_grad()
    def following(self) -> Tensor:
        """The value (B,) of what is seen now."""
        return self.policy(self.observation, self.memory).value

    @torch.no_grad()
    def rollout(self) -> Rollout:
        """Act for a while. Nothing here waits for the device."""
        steps, rewards, memory = [], [], self.memory
        begins = torch.zeros_like(self.returns.earned)
        for _ in range(self.args.rollout_steps):
            seen, remembered = self.policy.see(self.observation, self.memory)
            decisions = self.policy.along(seen[None], remembered)
            log_probability, value, remembered = decisions.log_probability[0], decisions.value[0], decisions.memory
            action = draw(log_probability, self.generator)
            self.observation, reward, terminated, truncated, info = self.envs.step(action)
            done = (terminated | truncated).float()
            self.returns.add(reward, done)
            rewards.append(reward)
            scaled = reward * self.args.reward_scale
            if self.args.curiosity:
                known = self.policy.cells_known(remembered)
                more = (known - self.most_known).clamp(min=0)  # to know one again is no discovery, nor is what is known from the start
                scaled = scaled + self.args.curiosity * torch.where(self.most_known < 0, 0.0, more)
                self.most_known = torch.maximum(known, self.most_known)
            if "final_obs" in info:
                following = self.policy(info["final_obs"], remembered).value * (truncated & ~terminated)
                scaled = scaled + self.args.gamma * following
            chosen = log_probability.gather(1, action[:, None])[:, 0]
            steps.append((seen, begins, action, chosen, value, scaled, done))
            self.memory, begins = remembered * (1 - done)[:, None], done
            if self.args.curiosity:
                self.most_known = torch.where(done > 0, -1.0, self.most_known)
        saw, begun, action, chosen, value, scaled, done = (torch.stack(part) for part in zip(*steps, strict=True))
        return Rollout(saw, begun, action, chosen, value, scaled, done, memory, torch.stack(rewards).mean())

    def advantages(self, rollout: Rollout, following: Tensor) -> Tensor:
        """Generalised advantage estimation (Schulman et al., arXiv 1506.02438), (T, B); `following` (B,) is the next value."""
        advantages, advantage = torch.zeros_like(rollout.reward), torch.zeros_like(following)
        for t in reversed(range(len(rollout.reward))):
            goes_on = 1 - rollout.done[t]
            surprise = rollout.reward[t] + self.args.gamma * following * goes_on - rollout.value[t]
            advantage = surprise + self.args.gamma * self.args.gae_lambda * goes_on * advantage
            advantages[t], following = advantage, rollout.value[t]
        return advantages

    def update(self, rollout: Rollout, advantages: Tensor) -> dict[str, float]:
        """Improve the policy by a rollout. Waits for the device once an epoch."""
        target = advantages + rollout.value
        batch = Batch(*rollout[:4], advantages, target, self.anchor(rollout))
        recurrent = self.policy.recurrent is not None  # what learns has a memory
        batch = batch if recurrent else batch.single_steps()
        losses: list[Tensor] = []
        for _ in range(self.args.epochs):
            order = torch.randperm(batch.action.shape[1], generator=self.generator, device=target.device)
            epoch = [
                self.improve(batch.rows(rows), rollout.memory[rows] if recurrent else None) for rows in order.chunk(self.args.minibatches)
            ]
            losses += epoch
            if self.args.target_kl is not None and torch.stack(epoch)[:, 3].mean().item() > self.args.target_kl:
                break
        if isinstance(self.policy.encoder, RunningNorm):
            self.policy.encoder.count(rollout.seen.flatten(0, 1))  # only now: rollout and update must see alike
        unexplained = advantages.var() / target.var().clamp(min=1e-12)
        names = ("policy_loss", "value_loss", "entropy", "kl", "clipped", "gradient", "away")
        values = [*torch.stack(losses).mean(0), 1 - unexplained, rollout.reward_per_step, torch.tensor(len(losses) / self.args.minibatches)]
        numbers = torch.stack([value.detach().to(target.device) for value in values]).tolist()
        return dict(zip((*names, "explained", "reward_per_step", "epochs"), numbers, strict=True))

    @torch.no_grad()
    def anchor(self, rollout: Rollout) -> Tensor:
        """What the policy that it began with would have done along a rollout, log probabilities (T, B, actions)."""
        if self.start is None or not self.args.anchor:
            return rollout.seen.new_zeros(*rollout.action.shape, 0, dtype=torch.float32)
        start = self.start.along(rollout.seen, self.start_memory, rollout.begins)
        self.start_memory = start.memory * (1 - rollout.done[-1])[:, None]
        return start.log_probability

    def improve(self, batch: Batch, memory: Tensor | None) -> Tensor:
        """One step of the optimiser (Schulman et al., arXiv 1707.06347) on rows whose memory was (B, M); returns what it was like, (7,)."""
        args = self.args
        log_probability, value, _ = self.policy.along(batch.seen, memory, batch.begins)
        ratio_log = log_probability.gather(-1, batch.action[..., None])[..., 0] - batch.log_probability
        ratio = ratio_log.exp()
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        policy_loss = -torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - args.clip, 1 + args.clip)).mean()
        value_loss = (value - batch.target).square().mean()
        entropy = -(log_probability.exp() * log_probability).sum(-1).mean()
        away = policy_loss.new_zeros(())
        if batch.anchor.shape[-1]:
            away = (log_probability.exp() * (log_probability - batch.anchor)).sum(-1).mean()
        self.optimizer.zero_grad()
        acts = float(self.updates >= args.critic_first)
        (acts * (policy_loss - args.entropy * entropy + args.anchor * away) + args.value * value_loss).backward()
        gradient = nn.utils.clip_grad_norm_(self.policy.parameters(), args.max_gradient)
        self.optimizer.step()
        kl, clipped = (ratio - 1 - ratio_log).mean(), ((ratio - 1).abs() > args.clip).float().mean()
        return torch.stack([policy_loss, value_loss, entropy, kl, clipped, gradient, away]).detach()


def start_from(learner: Learner, path: Path) -> None:
    """Take over a policy's weights. Ends the program where it sees or does something else."""
    start, _ = load_policy(path, next(learner.policy.parameters()).device)
    if start.config != learner.policy.config:
        raise SystemExit(f"{path} is a policy of {start.config}; this run needs one of {learner.policy.config}")
    learner.policy.load_state_dict(start.state_dict())
    learner.start = start.requires_grad_(False)


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


def about(args: Args, learner: Learner) -> dict[str, Any]:
    return {"steps": learner.steps, "updates": learner.updates, "settings": as_json(args)}


def save(args: Args, learner: Learner, dream: Dream) -> None:
    """Write the policy, and all that a run needs to go on; each file whole or not at all."""
    dreams = learner.envs.state_dict()
    if sum(tensor.numel() * tensor.element_size() for tensor in dreams.values()) > args.save_dreams * 1e9:
        dreams = {}
    tensors = {
        **prefixed("policy", learner.policy.state_dict()),
        **prefixed("optimizer", optimizer_tensors(learner.optimizer)),
        **prefixed("dreams", dreams),
        **prefixed("memory", {"now": learner.memory, "start": learner.start_memory, "most_known": learner.most_known} if dreams else {}),
        **prefixed("returns", vars(learner.returns)),
        "generator": learner.generator.get_state(),
    }
    save_policy(args.folder / "policy.safetensors", learner.policy, about(args, learner))
    header = {"kind": KIND, **about(args, learner), "config": asdict(learner.policy.config), "model": dream.fingerprint}
    save_tensors(args.folder / "checkpoint.safetensors", tensors, header)


def resume(args: Args, learner: Learner, dream: Dream) -> None:
    """Go on from a checkpoint, exactly where it holds the dreams. Ends the program where it is of another policy or model."""
    path = args.folder / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    config = config_in({"kind": KIND, **header}, path)
    if config != learner.policy.config or header.get("model") not in (dream.fingerprint, dream.fingerprint_before):
        raise SystemExit(f"{path}: of another world, model, observation or size of policy: {config}, not {learner.policy.config}")
    load_strictly(learner.policy, legacy.parameters(under("policy", tensors), legacy.POLICY_PARAMETERS), path)
    load_optimizer_tensors(learner.optimizer, under("optimizer", tensors))
    learner.generator.set_state(tensors["generator"])
    learner.steps, learner.updates = header["steps"], header["updates"]
    try:
        learner.observation = learner.envs.load_state_dict(under("dreams", tensors))
        remembered = under("memory", tensors) or {"now": learner.memory, "start": learner.start_memory}  # files of before have none
        learner.memory, learner.start_memory = (remembered[name].to(dream.device) for name in ("now", "start"))
        learner.most_known = remembered.get("most_known", learner.most_known).to(dream.device)
        vars(learner.returns).update({name: tensor.to(dream.device) for name, tensor in under("returns", tensors).items()})
        episodes = "in the midst of its episodes"
    except TensorFileError:
        learner.begin(args.seed + 1 + learner.steps)
        episodes = "with new episodes"
    print(f"{path}: {learner.steps:,} steps so far; goes on {episodes}")


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    main(tyro.cli(Args, description=__doc__))
