"""Proximal policy optimisation (Stable-Baselines3) in a dream, or in the real world it was learned from.

python agents/ppo.py                                        learn in a dream, then try the policy in it
python agents/ppo.py --evaluate-in MemoryMaze9x9-Real-v0    learn in a dream, then try the policy in the real maze
python agents/ppo.py --env MemoryMaze9x9-Real-v0            learn in the real maze
python agents/ppo.py --resume --total-timesteps 1000000     go on where the last run stopped

The folder `runs/ppo/ENV` gets policy.zip (SB3's own format), evaluation.json, policy.mp4, and logs for
`tensorboard --logdir runs/ppo`. Needs `pip install 'lssvwm_gym[agents,video]'`, and for the real maze `lssvwm_gym[memory-maze]`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor

import lssvwm_gym
from lssvwm_gym.data.movie import enlarged, write_movie
from lssvwm_gym.envs.sb3 import make_sb3_vec_env


@dataclass(frozen=True)
class Args:
    """What to learn, where, and how."""

    env: str = "LSSVWM-MemoryMaze-v0"  # a dream, or a real environment such as MemoryMaze9x9-Real-v0
    out: Path | None = None  # folder to write to; runs/ppo/ENV if not given
    resume: bool = False  # go on from out/policy.zip
    total_timesteps: int = 500_000  # of all environments together
    num_envs: int = 8  # dreams in one batch, or processes of the real environment
    seed: int = 0

    profile: str = "balanced"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    episode_steps: int | None = None  # at most; those of the environment if not given
    frame_stack: int = 4  # frames that the policy sees at once: it has no other memory

    learning_rate: float = 2.5e-4
    rollout_steps: int = 128  # of each environment between two updates
    minibatch: int = 256
    epochs: int = 4  # over each rollout
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.1
    entropy: float = 0.01

    save_every: int = 20_000  # steps between two writings of policy.zip
    evaluate_in: str | None = None  # where the policy is tried at the end; where it learned if not given
    evaluation_episodes: int = 4  # 0 to leave the evaluation out
    video_frames: int = 400  # of the first episode
    video_fps: int = 12  # three times the pace of the maze

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "ppo" / self.env


def main(args: Args) -> None:
    envs = make_envs(args, args.env, args.num_envs)
    try:
        policy = opened_policy(args, envs)
        learn(args, policy)
    finally:
        envs.close()
    if args.evaluation_episodes:
        evaluate(args, policy)


def make_envs(args: Args, id: str, num_envs: int) -> VecEnv:
    """Environments as SB3 wants them: one batch of dreams, or a process for each real one."""
    limit = {} if args.episode_steps is None else {"max_episode_steps": args.episode_steps}
    envs: VecEnv
    if id in {world.id for world in lssvwm_gym.WORLDS.values()}:
        envs = VecMonitor(make_sb3_vec_env(id, num_envs, profile=args.profile, weights=args.weights, **limit))
    else:
        processes = SubprocVecEnv if num_envs > 1 else DummyVecEnv
        envs = make_vec_env(f"lssvwm_gym:{id}", num_envs, env_kwargs=limit, vec_env_cls=processes)
    return VecFrameStack(envs, args.frame_stack) if args.frame_stack > 1 else envs


def opened_policy(args: Args, envs: VecEnv) -> PPO:
    """A new policy, or the saved one."""
    path = args.folder / "policy.zip"
    if args.resume:
        policy = PPO.load(path, envs, tensorboard_log=str(args.folder))
        policy.set_random_seed(args.seed + policy.num_timesteps)
        print(f"{path}: {policy.num_timesteps:,} steps so far")
        return policy
    if path.exists():
        raise SystemExit(f"{path} is there already: add --resume to go on with it, or name another folder with --out")
    return PPO(
        "CnnPolicy",
        envs,
        learning_rate=args.learning_rate,
        n_steps=args.rollout_steps,
        batch_size=args.minibatch,
        n_epochs=args.epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip,
        ent_coef=args.entropy,
        seed=args.seed,
        tensorboard_log=str(args.folder),
    )


def learn(args: Args, policy: PPO) -> None:
    remaining = args.total_timesteps - policy.num_timesteps
    if remaining > 0:
        policy.learn(remaining, callback=Progress(args), tb_log_name="log", reset_num_timesteps=False)
    save(policy, args.folder / "policy.zip")


class Progress(BaseCallback):
    """Says after each rollout how far it is, and saves the policy from time to time."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.args = args

    def _on_training_start(self) -> None:
        self.began, self.before = time.perf_counter(), self.num_timesteps
        self.saved = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        speed = (self.num_timesteps - self.before) / (time.perf_counter() - self.began)
        left = max(0, self.args.total_timesteps - self.num_timesteps) / speed
        rewards = [episode["r"] for episode in self.model.ep_info_buffer or []]
        earned = f"{np.mean(rewards):.2f} reward an episode" if rewards else "no episode has ended yet"
        done = f"{self.num_timesteps:,} of {self.args.total_timesteps:,} steps"
        print(f"{done}  {speed:.0f} steps/s  {left / 60:.0f} min left  {earned}", flush=True)
        if self.num_timesteps - self.saved >= self.args.save_every:
            save(self.model, self.args.folder / "policy.zip")
            self.saved = self.num_timesteps


def save(policy: Any, path: Path) -> None:
    """Write the policy whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.part.zip")
    policy.save(unfinished)
    os.replace(unfinished, path)


def evaluate(args: Args, policy: PPO) -> None:
    """Try the policy, write down what it earns, and film its first episode."""
    id = args.evaluate_in or args.env
    envs = make_envs(args, id, min(args.num_envs, args.evaluation_episodes))
    envs.seed(args.seed + 10_000)  # other mazes than those of the training
    frames: list[np.ndarray] = []

    def film(moment: dict[str, Any], _: dict[str, Any]) -> None:
        if moment["i"] == 0 and moment["episode_counts"][0] == 0 and len(frames) < args.video_frames:
            frames.append(moment["observations"][0, ..., -3:].copy())

    print(f"trying the policy in {id} ...", flush=True)
    try:
        earned, lasted = evaluate_policy(
            policy, envs, args.evaluation_episodes, deterministic=False, callback=film, return_episode_rewards=True
        )
    finally:
        envs.close()
    rewards, lengths = np.asarray(earned, float), np.asarray(lasted, int)
    result = {"env": id, "learned_in": args.env, "steps": policy.num_timesteps, "rewards": rewards.tolist(), "lengths": lengths.tolist()}
    (args.folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    write_movie(args.folder / "policy.mp4", enlarged(np.stack(frames), 4), args.video_fps)
    print(f"{rewards.mean():.2f} ± {rewards.std():.2f} reward an episode over {len(rewards)} episodes; film: {args.folder / 'policy.mp4'}")


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    for name in filter(None, (arguments.env, arguments.evaluate_in)):
        gymnasium.spec(name)  # raises and names the closest id
    main(arguments)
