"""A run of one of Stable-Baselines3's algorithms: where it learns, how far it is, what it keeps, what its policy is worth.

`agents/ppo.py` and `agents/recurrent_ppo.py` are this with the one algorithm or the other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor

import lssvwm_gym
from agents.sb3_policy import (
    SB3PolicyConfig,
    algorithm_of,
    config_in,
    count,
    has_counted,
    policy_arguments,
    policy_name,
    save_sb3_policy,
)
from lssvwm_gym.envs.conservative_rollouts import ConservativeRollouts
from lssvwm_gym.envs.sb3 import DreamVecEnv, WorldModelObservationVecEnv, make_sb3_vec_env
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import OBSERVATIONS, action_space, needs_frame
from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.tensors import load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.training.optim import load_optimizer_tensors, optimizer_tensors
from lssvwm_gym.worlds import WorldSpec

ELSEWHERE = 10_000  # added to the seed where a policy is tried: other mazes than those of the training


@dataclass(frozen=True)
class Run:
    """What to learn, where, and how; what both algorithms share."""

    env: str = "LSSVWM-MemoryMaze-v0"  # a dream, or a real environment such as MemoryMaze9x9-Real-v0
    observation: str = (
        "features"  # features, latent, latent+features, image, or all; but for the last two a real env is seen through the model
    )
    out: Path | None = None  # folder to write to; runs/ALGORITHM/ENV if not given
    resume: bool = False  # go on from out/checkpoint.safetensors
    total_timesteps: int = 50_000  # of all environments together
    num_envs: int = 8  # dreams in one batch, or processes of the real environment
    seed: int = 0

    world: str | None = None  # name of the world that a real environment is seen as; found by its id if not given
    profile: str = "balanced"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    device: str = "auto"
    episode_steps: int = 250  # of a dream or a real episode: the longer a dream is, the less it can be trusted
    context_frames: int | None = None  # of a recorded walk that a dream begins after; the longest there is if not given, 0 for openings
    frame_stack: int | None = None  # observations that the policy sees at once; 4 pictures for one without memory, else 1

    learning_rate: float = 2.5e-4
    rollout_steps: int = 128  # of each environment between two updates
    minibatch: int = 256
    epochs: int = 4  # over each rollout
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    hidden: int = 256  # units of each of two layers of actor and critic

    save_every: int = 20_000  # steps between two writings of policy and checkpoint
    evaluate_in: tuple[str, ...] | None = None  # where the policy is tried at the end; the dream, and the real world if it is installed
    evaluation_episodes: int = 8  # in each; 0 to leave the evaluation out
    video_frames: int = 250  # of an episode more in each; 0 for none
    video_fps: int = 12  # three times the pace of the maze


def run(args: Run, algorithm: str, lstm: int = 256) -> None:
    """Learn, and try what was learned. Ends the program with what is wrong with the command line."""
    check(args)
    folder = args.out or Path("runs") / algorithm / args.env.removeprefix("lssvwm_gym:")
    dream = open_dream(world_of(args), args.profile, args.device, args.weights)
    stack = (4 if needs_frame(args.observation) and algorithm == "ppo" else 1) if args.frame_stack is None else args.frame_stack
    config = SB3PolicyConfig(dream.world.name, algorithm, args.observation, stack, args.hidden, lstm)
    envs = opened_envs(args, dream, args.env, args.num_envs, stack)
    try:
        model = opened_model(args, config, dream, envs, folder)
        learn(args, config, dream, model, folder)
    finally:
        envs.close()
    if args.evaluation_episodes:
        evaluate(args, config, dream, model, folder)


def check(args: Run) -> None:
    for name in ("total_timesteps", "num_envs", "episode_steps", "rollout_steps", "minibatch", "epochs", "hidden", "save_every"):
        if getattr(args, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(args, name)}")
    if args.frame_stack is not None and args.frame_stack < 1:
        raise SystemExit(f"frame_stack must be at least 1, not {args.frame_stack}")
    if args.num_envs * args.rollout_steps < 2 or args.minibatch < 2:
        raise SystemExit("an update needs two steps at least: more environments, rollout_steps or minibatch")
    if args.observation not in OBSERVATIONS:
        raise SystemExit(f"observation must be one of {', '.join(OBSERVATIONS)}, not {args.observation!r}")
    for id in (args.env, *(args.evaluate_in or ())):
        try:
            gymnasium.spec(id.removeprefix("lssvwm_gym:"))
        except gymnasium.error.Error as error:  # names the closest id
            raise SystemExit(str(error)) from None


def world_of(args: Run) -> WorldSpec:
    """The world that is learned in, or whose model the real one is seen through."""
    id = args.env.removeprefix("lssvwm_gym:")
    for world in lssvwm_gym.WORLDS.values():
        if args.world == world.name or (args.world is None and id in (world.id, world.real_id)):
            return world
    raise SystemExit(f"name the world that {id} is with --world, one of {', '.join(lssvwm_gym.WORLDS)}, not {args.world}")


def opened_envs(args: Run, dream: Dream, id: str, num_envs: int, frame_stack: int, render_mode: str | None = None) -> VecEnv:
    """Environments as SB3 wants them: one batch of dreams, or real ones, each in a process, that are seen through the model."""
    id = id.removeprefix("lssvwm_gym:")
    envs: VecEnv
    rest: dict[str, Any] = {"max_episode_steps": args.episode_steps, "render_mode": render_mode}
    if id == dream.world.id:
        how = {"profile": args.profile, "weights": args.weights, "device": args.device, "observation": args.observation}
        envs = VecMonitor(begun_after_walks(args, dream, make_sb3_vec_env(id, num_envs, **how, **rest)))
    else:
        kind = SubprocVecEnv if num_envs > 1 else DummyVecEnv
        envs = make_vec_env(f"lssvwm_gym:{id}", num_envs, env_kwargs=rest, vec_env_cls=kind)
        if not needs_frame(args.observation):
            envs = WorldModelObservationVecEnv(envs, dream, args.observation)
    return VecFrameStack(envs, frame_stack) if frame_stack > 1 else envs


def begun_after_walks(args: Run, dream: Dream, envs: DreamVecEnv) -> DreamVecEnv:
    """Dreams whose every episode begins in a place that is known, where weights have walks: for balls that it has seen a dream pays."""
    walks = dream.weights.long_contexts
    frames = args.context_frames if args.context_frames is not None else walks.latent.shape[1] if walks.batch else 0
    if not frames:
        return envs
    guarded: Any = ConservativeRollouts(envs.envs, start={"context_frames": frames})
    return DreamVecEnv(guarded)


def opened_model(args: Run, config: SB3PolicyConfig, dream: Dream, envs: VecEnv, folder: Path) -> PPO:
    """A new policy and what improves it, or the saved ones."""
    path = folder / "checkpoint.safetensors"
    if path.exists() and not args.resume:
        raise SystemExit(f"{path} is there already: add --resume to go on with it, or name another folder with --out")
    if envs.action_space != action_space(dream.world) or not isinstance(envs.action_space, Discrete):
        raise SystemExit(f"{args.env} has the actions {envs.action_space}; {dream.world.name} has {action_space(dream.world)}")
    model = algorithm_of(config)(
        policy_name(config, envs.observation_space),
        envs,
        learning_rate=args.learning_rate,
        n_steps=args.rollout_steps,
        batch_size=min(args.minibatch, args.num_envs * args.rollout_steps),
        n_epochs=args.epochs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        clip_range=args.clip,
        ent_coef=args.entropy,
        policy_kwargs=policy_arguments(config),
        seed=args.seed,
        device=args.device,
        tensorboard_log=str(folder),
    )
    if args.resume:
        resume(args, config, dream, model, path)
    return model


def resume(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, path: Path) -> None:
    """Take over policy, optimiser and number of steps; episodes begin anew. Ends the program where they are of another kind."""
    tensors, header = load_tensors(path)
    saved = config_in(header, path)
    if saved != config or header.get("model") != dream.fingerprint:
        raise SystemExit(f"{path}: of another policy or world model: {saved} of {header.get('model')}, not {config} of {dream.fingerprint}")
    load_strictly(model.policy, under("policy", tensors), path)
    load_optimizer_tensors(model.policy.optimizer, under("optimizer", tensors), path)
    model.num_timesteps, model._n_updates = int(header["about"]["steps"]), int(header["about"]["updates"])
    model.set_random_seed(args.seed + model.num_timesteps)
    print(f"{path}: {model.num_timesteps:,} steps so far")


def learn(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, folder: Path) -> None:
    remaining = args.total_timesteps - model.num_timesteps
    if remaining > 0:
        progress = Progress(args.total_timesteps, args.save_every, lambda: save(args, config, dream, model, folder))
        model.learn(remaining, callback=progress, tb_log_name="log", reset_num_timesteps=False)
    save(args, config, dream, model, folder)


class Progress(BaseCallback):
    """Says after each rollout how far it is, saves from time to time, and counts what is seen for the policy's norm."""

    def __init__(self, total: int, save_every: int, save: Any) -> None:
        super().__init__()
        self.total, self.save_every, self.save = total, save_every, save
        self.shown: np.ndarray | None = None  # in the last rollout; counted after the update, for both must see alike

    def _on_training_start(self) -> None:
        self.began, self.before = time.perf_counter(), self.num_timesteps
        self.saved = self.num_timesteps
        if not has_counted(self.model.policy):  # type: ignore[arg-type]
            self.shown = np.asarray(self.model._last_obs)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.shown is not None:
            count(self.model.policy, self.shown)  # type: ignore[arg-type]
            self.shown = None

    def _on_rollout_end(self) -> None:
        seen = self.model.rollout_buffer.observations  # type: ignore[attr-defined]
        self.shown = None if isinstance(seen, dict) or seen.ndim > 3 else seen.copy()
        speed = (self.num_timesteps - self.before) / (time.perf_counter() - self.began)
        left = max(0, self.total - self.num_timesteps) / speed
        rewards = [episode["r"] for episode in self.model.ep_info_buffer or []]
        earned = f"{np.mean(rewards):.2f} reward an episode" if rewards else "no episode has ended yet"
        done = f"{self.num_timesteps:,} of {self.total:,} steps"
        print(f"{done}  {speed:.0f} steps/s  {left / 60:.0f} min left  {earned}", flush=True)
        if self.num_timesteps - self.saved >= self.save_every:
            self.save()
            self.saved = self.num_timesteps


def save(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, folder: Path) -> None:
    """Write the policy, and all that a run needs to go on; each file whole or not at all."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(args).items()}
    about = {"steps": model.num_timesteps, "updates": model._n_updates, "settings": settings}
    save_sb3_policy(folder / "policy.safetensors", model.policy, config, about)
    tensors = {**prefixed("policy", model.policy.state_dict()), **prefixed("optimizer", optimizer_tensors(model.policy.optimizer))}
    header = {"kind": "lssvwm_gym SB3 policy", "config": asdict(config), "about": about, "model": dream.fingerprint}
    save_tensors(folder / "checkpoint.safetensors", tensors, header)


def evaluate(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, folder: Path) -> None:
    """Try the policy in the dream and in the real world, write down what it earns, and film an episode of each."""
    model.set_random_seed(args.seed)
    results = []
    for id in args.evaluate_in or filter(None, (dream.world.id, dream.world.real_id)):
        missing = why_not(id)
        if missing is not None:
            print(f"not tried in {id}: {missing}", flush=True)
            continue
        print(f"trying the policy in {id} ...", flush=True)
        results.append({"env": id, "learned_in": args.env, "steps": model.num_timesteps, **tried(args, config, dream, model, id)})
        if args.video_frames:
            results[-1]["video"] = film(args, config, dream, model, id, folder)
        print(told(results[-1]), flush=True)
    with renamed_when_whole(folder / "evaluation.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def why_not(id: str) -> str | None:
    """What an environment that can't run here lacks."""
    if id.removeprefix("lssvwm_gym:") in {world.id for world in lssvwm_gym.WORLDS.values()}:
        return None
    try:
        gymnasium.make(f"lssvwm_gym:{id.removeprefix('lssvwm_gym:')}").close()
    except ImportError as error:
        return str(error)
    return None


def tried(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, id: str) -> dict[str, Any]:
    """Returns of some episodes; their mean and its standard error, None for a single episode."""
    rows = min(args.num_envs, args.evaluation_episodes)
    rows = rows if id.removeprefix("lssvwm_gym:") == dream.world.id else min(rows, os.cpu_count() or 1)
    envs = opened_envs(args, dream, id, rows, config.frame_stack)
    envs.seed(args.seed + ELSEWHERE)
    try:
        earned, lasted = evaluate_policy(model, envs, args.evaluation_episodes, deterministic=False, return_episode_rewards=True)
    finally:
        envs.close()
    returns = np.asarray(earned, float)
    error = float(returns.std(ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else None
    return {"mean": float(returns.mean()), "standard_error": error, "returns": returns.tolist(), "lengths": np.asarray(lasted).tolist()}


def told(result: Mapping[str, Any]) -> str:
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.2f}"
    video = f"; film: {result['video']}" if "video" in result else ""
    return f"{result['mean']:.2f}{error} mean return of {len(result['returns'])} episodes in {result['env']}{video}"


def film(args: Run, config: SB3PolicyConfig, dream: Dream, model: PPO, id: str, folder: Path) -> str:
    """The first frames of an episode, as they are rendered; the name of the film."""
    path = folder / f"{id.removeprefix('lssvwm_gym:')}.mp4"
    envs = opened_envs(args, dream, id, 1, config.frame_stack, "rgb_array")
    try:
        envs.seed(args.seed + ELSEWHERE)
        seen, memory, first, frames = envs.reset(), None, np.ones(1, bool), [picture(envs)]
        while len(frames) < min(args.video_frames, args.episode_steps):
            action, memory = model.predict(seen, memory, first)  # type: ignore[arg-type]
            seen, _, first, _ = envs.step(action)
            if first[0]:
                break  # what is rendered now is already another episode's
            frames.append(picture(envs))
    finally:
        envs.close()
    write_movie(path, enlarged(np.stack(frames), 4), args.video_fps)
    return str(path)


def picture(envs: VecEnv) -> np.ndarray:
    frame = envs.get_images()[0]
    assert frame is not None
    return frame
