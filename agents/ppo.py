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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents import starts
from agents.maze_map import load_reader
from agents.policies import KIND, Policy, PolicyConfig, RunningNorm, as_json, config_in, draw, load_policy, observation_today, save_policy
from agents.rollout import Batch, EpisodeReturns, Rollout
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.io import legacy
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.inference.backend import COMPILERS, Backend, chosen_device
from lssvwm_gym.models.state import DreamState, join_rows
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.optim import load_optimizer_tensors, optimizer_tensors


@dataclass(frozen=True)
class Args:
    """What to learn, where, and how."""

    world: str = "memory-maze"
    out: Path | None = None  # folder to write to; runs/ppo/WORLD if not given
    resume: bool = False  # go on from out/checkpoint.safetensors
    start: Path | None = None  # policy.safetensors to begin with, such as that of `experiments.behavior_cloning`
    total_steps: int = 10_000_000  # of all dreams together
    time_limit: float | None = 3300  # seconds of this run, imports aside; all is saved and ended before
    seed: int = 0

    observation: str = "latent+features"  # image (needs the decoder), latent, features, latent+features; the last two with +inventory
    profile: str = "fast"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    device: str = "auto"
    compile: str = "auto"  # on a CPU: compile the dream's step, which takes a minute or more; auto: where there is a C++ compiler; on, off
    graphs: bool = True  # on a GPU: record the dream's step once as a CUDA graph
    num_envs: int | None = None  # dreams at once; 1024 on a GPU, 32 on a CPU; each keeps some MB of memory, several times while it steps
    episode_steps: int = 100  # after which a dream begins anew: the longer it is, the less it can be trusted
    bank: int | None = None  # at most so many states to begin with; 512 on a GPU, 256 on a CPU; a dream rewards balls that it has seen
    before_rewards: float = 0.75  # share of them shortly before a reward, in the long contexts that come with the weights
    lead: tuple[int, int] = (2, 30)  # frames between such a state and the reward: at least and at most
    context: int = 300  # frames before it: what a dream has seen it rewards
    data: Path | None = None  # folder of recorded episodes, whose rewards these are instead
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    context_every: int = 100  # frames between two of the other states, of the long contexts; 0 for the short contexts only
    min_context: int = 300  # context frames of these, where there are any such

    hidden: int = 256  # units of each of the two layers of actor and critic
    memory: int = 0  # units of an LSTM before them, which is empty when a dream begins; 0: none
    map: Path | None = None  # reader.safetensors of `experiments.maze_reader`, or a policy: a map is what is decided on
    curiosity: float = 0.0  # reward for each cell that becomes known on the map, beside the dream's; returns don't count it
    learning_rate: float = 5e-4
    rollout_steps: int = 64  # of each dream between two updates
    minibatches: int = 4  # into which a rollout is cut
    epochs: int = 3  # over each rollout
    critic_first: int = 0  # updates that teach the critic alone, where the actor has a start that it shouldn't forget
    anchor: float = 0.0  # weight of the divergence from the policy that --start names, which so is not forgotten where rewards are rare
    gamma: float = 0.97
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
        return self.out or Path("runs") / "ppo" / self.world


def main(args: Args, open_envs: Callable[[Args, Dream], Any] | None = None) -> None:
    """Learn in dreams, or in what `open_envs` makes of the settings and the dream: environments in tensors, such as dreams are."""
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    try:
        device = torch.device(chosen_device(args.device)).type
        can_compile = device == "cpu" and any(map(shutil.which, COMPILERS))
        compiled = ("on" if can_compile else "off") if args.compile == "auto" else args.compile
        backend = Backend(graphs="on" if args.graphs and device == "cuda" else "off", compiled=compiled)
        dream = open_dream(args.world, args.profile, args.device, args.weights, backend=backend)
        args = with_defaults(args, dream.device.type)
        shape, actions = observed_shape(dream, args.observation), len(dream.world.actions)
        bank = None
        if open_envs is None:
            bank = open_bank(args, dream)
            envs = dreams(args, dream, bank.states)
        else:
            envs = open_envs(args, dream)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    config = PolicyConfig(dream.world.name, args.observation, shape, actions, args.hidden, args.memory, args.map is not None)
    learner = Learner(args, config, envs, dream.device)
    if bank is not None:
        learner.remember(bank)
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


def dreams(args: Args, dream: Dream, bank: DreamState) -> DreamVectorEnv:
    """What is learned in, begun with the states of a bank."""
    return DreamVectorEnv.from_bank(dream, bank, args.num_envs or 1, args.episode_steps, observation=args.observation, stagger=True)


def open_bank(args: Args, dream: Dream) -> starts.Bank:
    """The states that episodes begin with. Raises `ValueError` for recordings without rewards."""
    most, before = args.bank or 1, starts.BeforeRewards(args.lead, args.context)
    wanted, states, context = round(args.before_rewards * most), list[DreamState](), torch.zeros(0, 0, 0)
    if wanted:
        if args.data is not None:
            episodes = latent_episodes(args.data, dream.weights.autoencoder, args.latents or args.folder / "latents")
        else:
            episodes = starts.rewarded_contexts(dream, before)
        if args.data is not None or starts.moments(episodes, before):  # contexts need not have any
            bank = starts.bank_before_rewards(dream, episodes, before, wanted, args.seed, args.observation if args.map else None)
            states, context = [bank.states], bank.context
    others = most - wanted if states else most
    states += [starts.bank_of_starts(dream, args.context_every, others, args.seed, args.min_context)] if others else []
    return starts.Bank(join_rows(states), context)


def with_defaults(args: Args, device: str) -> Args:
    """Fill in what depends on the device. Raises `ValueError` for a number that is too small."""
    many = device != "cpu"
    args = replace(
        args,
        observation=observation_today(args.observation) if args.map is None else "latent+pose",
        num_envs=(1024 if many else 32) if args.num_envs is None else args.num_envs,
        bank=(512 if many else 256) if args.bank is None else args.bank,
    )
    check_bounds(args, num_envs=1, bank=1, context=1, episode_steps=1, rollout_steps=1, minibatches=1, epochs=1, save_every=1, hidden=1)
    if not (0 <= args.before_rewards <= 1 and 1 <= args.lead[0] <= args.lead[1]):
        raise ValueError(f"before_rewards is a share, lead two rising numbers of frames, not {args.before_rewards} and {args.lead}")
    if (args.num_envs or 0) * args.rollout_steps < 2 * args.minibatches:
        raise ValueError(f"{args.num_envs} dreams of {args.rollout_steps} steps are too few for {args.minibatches} minibatches")
    if args.curiosity and args.map is None:
        raise ValueError("curiosity pays for what becomes known on a map: it needs --map")
    if args.memory and (args.num_envs or 0) < args.minibatches:
        raise ValueError(
            f"a policy with a memory learns from whole rollouts: {args.num_envs} dreams are too few for {args.minibatches} minibatches"
        )
    return args


class Learner:
    """A policy, what it learns in, what improves it, and how far it is."""

    def __init__(self, args: Args, config: PolicyConfig, envs: DreamVectorEnv, device: torch.device) -> None:
        self.args, self.envs = args, envs
        self.policy = Policy(config).to(device)
        if self.policy.map is not None and args.map is not None:
            load_reader(self.policy.map, args.map)
        self.start: Policy | None = None  # what it began with
        learned = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learned, args.learning_rate, eps=1e-5, fused=device.type == "cuda")
        self.generator = torch.Generator(device).manual_seed(args.seed + 2)  # draws actions and minibatches
        self.steps = self.updates = 0
        self.beginnings: Tensor | None = None  # (bank, memory) of what was seen before its states
        self.begin(args.seed + 1)

    @torch.no_grad()
    def remember(self, bank: starts.Bank) -> None:
        """Let episodes begin with what the policy would have drawn of the frames before them."""
        if not len(bank.context):
            return
        memory = self.memory.new_zeros(len(bank.context), self.policy.memory_size)
        for frame in tqdm(bank.context.unbind(1), desc="maps of what was before", leave=False):
            _, memory = self.policy.see(frame.float().to(memory.device), memory)
        unseen = memory.new_zeros(len(bank.states.seed) - len(memory), memory.shape[1])
        self.beginnings = torch.cat([memory, unseen])
        self.begin(self.args.seed + 1)

    def begin(self, seed: int) -> None:
        """New episodes everywhere."""
        self.observation: Tensor = self.envs.reset(seed=seed)[0]
        self.memory = self.observation.new_zeros(len(self.observation), self.policy.memory_size, dtype=torch.float32)
        if self.beginnings is not None:
            self.memory = self.beginnings[self.envs.drawn]
        self.most_known = self.policy.cells_known(self.memory)  # cells in each episode so far; to know one again is no discovery
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
            known = self.policy.cells_known(remembered)
            discovered, self.most_known = (known - self.most_known).clamp(min=0), torch.maximum(known, self.most_known)
            decisions = self.policy.along(seen[None], remembered)
            log_probability, value, remembered = decisions.log_probability[0], decisions.value[0], decisions.memory
            action = draw(log_probability, self.generator)
            self.observation, reward, terminated, truncated, info = self.envs.step(action)
            done = (terminated | truncated).float()
            self.returns.add(reward, done)
            rewards.append(reward)
            scaled = reward * self.args.reward_scale
            if self.args.curiosity:
                scaled = scaled + self.args.curiosity * discovered
            if "final_obs" in info:
                following = self.policy(info["final_obs"], remembered).value * (truncated & ~terminated)
                scaled = scaled + self.args.gamma * following
            chosen = log_probability.gather(1, action[:, None])[:, 0]
            steps.append((seen, begins, action, chosen, value, scaled, done))
            self.memory, begins = self.remembered_by(remembered, done), done
            self.most_known = torch.where(done > 0, self.policy.cells_known(self.memory), self.most_known)
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
        if self.policy.recurrent is None:
            batch = batch.single_steps()
        losses: list[Tensor] = []
        for _ in range(self.args.epochs):
            order = torch.randperm(batch.action.shape[1], generator=self.generator, device=target.device)
            epoch = [self.improve(batch.rows(rows), self.remembered(rollout, rows)) for rows in order.chunk(self.args.minibatches)]
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

    def remembered_by(self, memory: Tensor, done: Tensor) -> Tensor:
        """The memory (B, M) where an episode goes on, and where it is `done` (B,) that which the next one begins with."""
        kept = memory * (1 - done)[:, None]
        return kept if self.beginnings is None else kept + self.beginnings[self.envs.drawn] * done[:, None]

    def remembered(self, rollout: Rollout, rows: Tensor) -> Tensor | None:
        """The memory of those rows before the first step, where what is learned has any."""
        return rollout.memory[rows] if self.policy.recurrent is not None else None

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
