"""Imitation that is corrected where the policy itself goes: DAgger (Ross, Gordon and Bagnell, arXiv 1011.0686) in the real Memory Maze.

python -m experiments.dagger --minutes 60 --workers 1                      runs/dagger/policy.safetensors
python -m experiments.dagger --minutes 60 --data DIR/train                 begins with recordings, whoever played them

Workers play real mazes, observed through the world model, while the policy learns from all that was played so far. The policy chooses most
actions, a scripted player the others; what is learned is what that player would have done at each step. It is `MazeSeeker`, which knows of
the map only what was in view, so that a policy with a memory can learn to do the same: an LSTM, or with `--map FILE` a map that it draws.
Needs `pip install -e '.[agents,train,memory-maze]'`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.maze_map import OBSERVATION
from agents.policies import Policy, PolicyConfig, RunningNorm, as_json, draw, load_policy, save_policy
from experiments.behavior_cloning import watched
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import StateEstimator, observed_shape
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import load_tensors, save_tensors
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.real_envs.experts.maze_explorer import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, NOOP, RIGHT
from lssvwm_gym.real_envs.experts.maze_seeker import MazeSeeker
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.optim import update_average

ENV = "lssvwm_gym:MemoryMaze9x9-Real-v0"
KIND = "lssvwm_gym labelled walk"
SEGMENT = (10, 50)  # steps that the same one of the two acts
MIRRORED = np.array([NOOP, FORWARD, RIGHT, LEFT, FORWARD_RIGHT, FORWARD_LEFT])  # by action
AVERAGE = 0.998  # decay of the running mean of weights that is the policy


@dataclass(frozen=True)
class Args:
    """How long, and with whom."""

    out: Path = Path("runs/dagger")
    minutes: float = 60.0
    workers: int = 1  # processes that play, a thread each
    mazes: int = 6  # that each plays side by side; a maze takes up to a GB
    steps: int = 500  # of an episode
    seed: int = 3_000_000  # of the first maze
    expert_share: float = 0.25  # of the steps are chosen by the scripted player; all before there is a policy
    data: Path | None = None  # folder of recorded episodes to begin with, labelled as well
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    observation: str = "features"
    hidden: int = 128
    memory: int = 128  # units of an LSTM; 0: none
    map: bool = False  # what the world model's map tells is what is decided on
    rows: int = 8  # episodes of a batch
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    dropout: float = 0.3  # of the normalised observation, of a layer and of the memory
    passes: float = 12.0  # how often each frame may be learned from while more is played

    def __post_init__(self) -> None:
        check_bounds(self, workers=1, mazes=1, steps=2, rows=1, memory=0, hidden=1)
        if self.map and self.data is not None:
            raise ValueError("recordings are not drawn as maps: leave out data or map")
        if not (0 <= self.expert_share <= 1 and 0 <= self.dropout < 1 and self.passes > 0 and self.minutes > 0):
            raise ValueError("expert_share and dropout are shares from 0 to 1, passes and minutes more than 0")

    def config(self, dream: Dream) -> PolicyConfig:
        observation = OBSERVATION if self.map else self.observation
        shape, actions = observed_shape(dream, observation), len(dream.world.actions)
        return PolicyConfig(dream.world.name, observation, shape, actions, self.hidden, self.memory, self.map)

    @property
    def policy(self) -> Path:
        return self.out / "policy.safetensors"


class Walk(NamedTuple):
    """What was seen along an episode, and what the scripted player would have done."""

    seen: Tensor  # (T, numbers) float16, what a policy decides on
    label: Tensor  # (T,) int64
    reward: Tensor  # (T,) that followed


def main(args: Args) -> None:
    began = time.monotonic()
    torch.manual_seed(args.seed)
    dream = open_dream("memory-maze", "fast", "cpu")
    (args.out / "walks").mkdir(parents=True, exist_ok=True)
    learner = Learner(args, args.config(dream))
    if args.policy.exists():
        learner.restore(args.policy)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=play, args=(args, number), daemon=True) for number in range(args.workers)]
    for worker in workers:
        worker.start()
    try:
        learner.walks += recorded(args, dream) if args.data else []
        for line in learner.learn(began + 60 * args.minutes, workers):
            print(f"{(time.monotonic() - began) / 60:.0f} min  {line}", flush=True)
    finally:
        for worker in workers:
            worker.terminate()
    print(f"{learner.played:,} frames played, {learner.frames:,} in all: {args.policy}")


class Learner:
    def __init__(self, args: Args, config: PolicyConfig) -> None:
        self.args, self.policy, self.mean = args, Policy(config), Policy(config)
        if self.policy.recurrent is not None:
            self.policy.recurrent.dropout.p = args.dropout
        learned = [parameter for name, parameter in self.policy.named_parameters() if not name.startswith("critic")]
        self.optimizer = torch.optim.AdamW(learned, args.learning_rate, weight_decay=args.weight_decay)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.walks: list[Walk] = []
        self.read: set[Path] = set()
        self.updates = self.played = self.learned = 0

    @property
    def frames(self) -> int:
        return sum(len(walk.label) for walk in self.walks)

    def restore(self, path: Path) -> None:
        """Go on with a policy of an earlier run, whose walks are in the folder, too."""
        before, about = load_policy(path)
        if before.config != self.policy.config:
            raise SystemExit(f"{path} is a policy of {before.config}; this run needs one of {self.policy.config}")
        self.policy.load_state_dict(before.state_dict()), self.mean.load_state_dict(before.state_dict())
        self.updates, self.learned = about.get("updates", 0), about.get("learned", 0)

    def learn(self, end: float, workers: list[Any]) -> Iterator[str]:
        """Learn from what there is until the time is up, with a line a few minutes."""
        said, losses = time.monotonic(), list[Tensor]()
        while time.monotonic() < end:
            if dead := [worker.exitcode for worker in workers if not worker.is_alive()]:
                raise SystemExit(f"a process that plays ended by itself, with exit code {dead[0]}")
            self.take_in()
            if len(self.walks) < self.args.rows or self.learned > self.args.passes * self.frames:
                time.sleep(1)
                continue
            losses.append(self.improve())
            if time.monotonic() > said + 120:
                yield self.report(losses)
                said, losses = time.monotonic(), []
                self.save()
        self.save()

    def take_in(self) -> None:
        for path in sorted(set((self.args.out / "walks").glob("*.safetensors")) - self.read):
            tensors, _ = load_tensors(path)
            self.read.add(path)
            self.walks.append(Walk(tensors["seen"], tensors["label"], tensors["reward"]))
            self.played += len(tensors["label"])

    def improve(self) -> Tensor:
        """One step of the optimiser on a batch of walks; the loss, of those steps that are there."""
        rows = torch.randint(len(self.walks), (self.args.rows,), generator=self.generator).tolist()
        walks = [self.walks[row] for row in rows]
        seen = torch.nn.utils.rnn.pad_sequence([walk.seen.float() for walk in walks])
        label = torch.nn.utils.rnn.pad_sequence([walk.label for walk in walks], padding_value=-1)
        if isinstance(self.policy.encoder, RunningNorm):
            self.policy.encoder.count(seen.flatten(0, 1))
        encoded = F.dropout(self.policy.encoder(seen.flatten(0, 1)), self.args.dropout).unflatten(0, seen.shape[:2])
        loss = F.nll_loss(self.policy.decide(encoded).log_probability.flatten(0, 1), label.flatten(), ignore_index=-1)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.mean, self.policy, self.updates, AVERAGE)
        self.updates, self.learned = self.updates + 1, self.learned + label.numel()
        return loss.detach()

    def report(self, losses: list[Tensor]) -> str:
        late = [walk.reward.sum().item() for walk in self.walks[-60:]] if self.played else []
        earned = f", the last {len(late)} walks earned {np.mean(late):.2f}" if late else ""
        return f"{self.updates} updates, {self.played:,} frames played, loss {torch.stack(losses).mean():.3f}{earned}"

    def save(self) -> None:
        about = {"frames": self.frames, "updates": self.updates, "learned": self.learned, "settings": as_json(self.args)}
        save_policy(self.args.policy, self.mean, about)


def recorded(args: Args, dream: Dream) -> list[Walk]:
    """Recorded episodes in pieces of an episode's length, labelled as if each began anew."""
    assert args.data is not None
    walks = []
    episodes = latent_episodes(args.data, dream.weights.autoencoder, args.latents or args.out / "latents")
    for path, episode in tqdm(list(zip(episode_paths(args.data), episodes, strict=True)), desc="labelling", leave=False):
        arrays, seen = read_arrays(path), watched(dream, episode, args.observation).half()
        for start in range(0, len(episode) - 1, args.steps):
            part = range(start, min(start + args.steps, len(episode) - 1))
            seeker = MazeSeeker(np.random.default_rng(0))
            moving = ("agent_pos", "agent_dir", "target_pos")
            known = {name: arrays[name] for name in ("targets_pos", "maze_layout")}
            label = [seeker(arrays["agent_pos"], known | {name: arrays[name][t] for name in moving}) for t in part]
            walks.append(Walk(seen[part.start : part.stop], torch.tensor(label), episode.reward[part.start + 1 : part.stop + 1].float()))
    return walks


def play(args: Args, number: int) -> None:
    """Play one batch of mazes after another and write each episode; a worker's work."""
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    dream = open_dream("memory-maze", "fast", "cpu")
    walks = args.out / "walks"
    for batch in itertools.count():
        seed = args.seed + (batch * args.workers + number) * args.mazes
        if (walks / f"{seed}.safetensors").exists():
            continue
        for row, walk in enumerate(played(args, dream, seed)):
            mirror, maze = divmod(row, args.mazes)
            save_tensors(walks / f"{seed + maze}{'-mirrored' * mirror}.safetensors", walk._asdict(), {"kind": KIND})


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that was: mazes take gigabytes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@torch.no_grad()
def played(args: Args, dream: Dream, seed: int) -> list[Walk]:
    """An episode in each of some mazes side by side, whose actions are drawn by policy and scripted player in turn; and each mirrored.

    What is left of a maze is right in its mirror, so that one simulation makes two walks.
    """
    acts, config = args.policy.exists(), args.config(dream)
    policy = load_policy(args.policy)[0] if acts else Policy(config)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    envs = gymnasium.make_vec(ENV, args.mazes, vectorization_mode="sync", max_episode_steps=args.steps)
    estimator = StateEstimator(dream, 2 * args.mazes, config.observation, envs.single_observation_space, envs.single_action_space)
    frames, info = envs.reset(seed=seed)
    observation = estimator.reset(with_mirrored(frames), np.arange(2 * args.mazes))
    seekers, memory = [MazeSeeker(rng) for _ in range(args.mazes)], torch.zeros(2 * args.mazes, policy.memory_size)
    scripted, left = np.ones(args.mazes, bool), np.zeros(args.mazes, int)
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(args.steps):
        infos = [{name: info[name][row] for name in info if not name.startswith("_")} for row in range(args.mazes)]
        action = label = np.array([seeker(frames, one) for seeker, one in zip(seekers, infos, strict=True)])
        seen, memory = policy.see(torch.from_numpy(observation), memory)
        if acts:
            log_probability, _, memory = policy.along(seen[None], memory)
            scripted = np.where(left > 0, scripted, rng.random(args.mazes) < args.expert_share)
            left = np.where(left > 0, left, rng.integers(*SEGMENT, size=args.mazes)) - 1
            action = np.where(scripted, label, draw(log_probability[0, : args.mazes], generator).numpy())
        frames, reward, _, _, info = envs.step(action)
        observation = estimator.step(with_mirrored(frames), np.concatenate([action, MIRRORED[action]]))
        parts.append(
            (seen.half(), torch.from_numpy(np.concatenate([label, MIRRORED[label]])), torch.from_numpy(np.tile(reward, 2)).float())
        )
    envs.close()
    walks = zip(*(torch.stack(part, 1) for part in zip(*parts, strict=True)), strict=True)
    return [Walk(*(tensor.clone() for tensor in walk)) for walk in walks]


def with_mirrored(frames: np.ndarray) -> np.ndarray:
    """Frames (B, height, width, 3), and behind them what a mirror shows of them."""
    return np.concatenate([frames, frames[:, :, ::-1]])


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
