"""Proximal policy optimisation of Stable-Baselines3, with or without an LSTM, in a dream or in the real world it was learned from.

python -m agents.ppo_sb3                                       learn in a dream
python -m agents.ppo_sb3 --algorithm recurrent_ppo             with a memory of its own, an LSTM (sb3-contrib)
python -m agents.ppo_sb3 --env MemoryMaze9x9-Real-v0           learn in the real maze, observed through the same model
python -m agents.ppo_sb3 --observation image --frame-stack 4   from images instead of the world model's features
python -m agents.ppo_sb3 --resume --total-timesteps 1000000    go on where the last run stopped

The folder `runs/ppo_sb3/ENV` (`runs/ppo_sb3/ENV-recurrent` with an LSTM) gets policy.safetensors (see `agents.sb3_policies`),
checkpoint.safetensors, and logs for `tensorboard --logdir runs/ppo_sb3`. Needs
`pip install -e '.[agents]'`, and for the real maze `.[memory-maze]`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
import tyro
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor

import lssvwm_gym
from agents.policies import SB3_KIND, as_json
from agents.sb3_policies import SB3PolicyConfig, algorithm_of, config_in, count, has_counted, policy_arguments, policy_name, save_sb3_policy
from lssvwm_gym.envs.sb3 import DreamVecEnv, WorldModelObservationVecEnv, make_sb3_vec_env
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import action_space, checked_observation, needs_frame
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.training.optim import load_optimizer_tensors, optimizer_tensors
from lssvwm_gym.worlds import WorldSpec


@dataclass(frozen=True)
class Args:
    """What to learn, where, and how."""

    algorithm: Literal["ppo", "recurrent_ppo"] = "ppo"
    env: str = "LSSVWM-MemoryMaze-v0"  # a dream, or a real environment such as MemoryMaze9x9-Real-v0
    observation: str = "features"  # features or latent+features (+inventory), latent; or image, all: no model of a real env
    out: Path | None = None  # folder to write to; runs/ppo_sb3/ENV if not given
    resume: bool = False  # go on from out/checkpoint.safetensors
    total_timesteps: int = 50_000  # of all environments together
    num_envs: int = 8  # dreams in one batch, or processes of the real environment
    seed: int = 0

    world: str | None = None  # name of the world that a real environment is seen as; found by its id if not given
    profile: str = "balanced"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    device: str = "auto"
    episode_steps: int = 250  # of a dream or a real episode: the longer a dream is, the less it can be trusted
    context_frames: int | None = None  # of the long context that a dream begins after; all of them if not given, 0 for short contexts
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
    lstm: int = 256  # units of the memory of recurrent_ppo, and of its critic's

    save_every: int = 20_000  # steps between two writings of policy and checkpoint

    @property
    def folder(self) -> Path:
        name = id_of(self.env) + ("-recurrent" if self.algorithm == "recurrent_ppo" else "")
        return self.out or Path("runs") / "ppo_sb3" / name


def main(args: Args) -> None:
    """Learn, and try what was learned. Ends the program with what is wrong with the command line."""
    try:
        check(args)
        dream = open_dream(world_of(args), args.profile, args.device, args.weights)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    stack = (4 if needs_frame(args.observation) and args.algorithm == "ppo" else 1) if args.frame_stack is None else args.frame_stack
    config = SB3PolicyConfig(dream.world.name, args.algorithm, args.observation, stack, args.hidden, args.lstm)
    envs = open_envs(args, dream, args.env, args.num_envs, stack)
    try:
        model = open_model(args, config, dream, envs)
        if (remaining := args.total_timesteps - model.num_timesteps) > 0:
            progress = ReportAndSave(args.total_timesteps, args.save_every, lambda: save(args, config, dream, model))
            model.learn(remaining, callback=progress, tb_log_name="log", reset_num_timesteps=False)
        save(args, config, dream, model)
    finally:
        envs.close()
    print(f"try it: python -m experiments.check_transfer --policies random {args.folder / 'policy.safetensors'}")


def id_of(env: str) -> str:
    """An environment's id without the module that registers it."""
    return env.removeprefix("lssvwm_gym:")


def check(args: Args) -> None:
    """Raises `ValueError` for what is wrong with the command line."""
    check_bounds(args, total_timesteps=1, num_envs=1, episode_steps=1, rollout_steps=1, minibatch=1, epochs=1, hidden=1, lstm=1)
    check_bounds(args, save_every=1, frame_stack=1, context_frames=0)
    if args.num_envs * args.rollout_steps < 2 or args.minibatch < 2:
        raise ValueError("an update needs two steps at least: more environments, rollout_steps or minibatch")
    checked_observation(args.observation)
    try:
        gymnasium.spec(id_of(args.env))
    except gymnasium.error.Error as error:  # names the closest id
        raise ValueError(str(error)) from None


def world_of(args: Args) -> WorldSpec:
    """The world that is learned in, or whose model the real one is seen through."""
    id = id_of(args.env)
    for world in lssvwm_gym.WORLDS.values():
        if args.world == world.name or (args.world is None and id in (world.id, world.real_id)):
            return world
    raise ValueError(f"name the world that {id} is with --world, one of {', '.join(lssvwm_gym.WORLDS)}, not {args.world}")


def open_envs(args: Args, dream: Dream, id: str, num_envs: int, frame_stack: int) -> VecEnv:
    """Environments as SB3 wants them: one batch of dreams, or real ones, each in a process, that are seen through the model."""
    id = id_of(id)
    envs: VecEnv
    if id == dream.world.id:
        how = {"profile": args.profile, "weights": args.weights, "device": args.device, "observation": args.observation}
        contexts, frames = dream.weights.long_contexts, args.context_frames
        if frames is None and contexts.batch:  # a dream rewards balls that it has seen
            frames = len(contexts)
        start = {"context_frames": frames} if frames else None
        envs = VecMonitor(DreamVecEnv(make_sb3_vec_env(id, num_envs, max_episode_steps=args.episode_steps, **how).envs, start))
    else:
        kind = SubprocVecEnv if num_envs > 1 else DummyVecEnv
        envs = make_vec_env(f"lssvwm_gym:{id}", num_envs, env_kwargs={"max_episode_steps": args.episode_steps}, vec_env_cls=kind)
        if not needs_frame(args.observation):
            envs = WorldModelObservationVecEnv(envs, dream, args.observation)
    return VecFrameStack(envs, frame_stack) if frame_stack > 1 else envs


def open_model(args: Args, config: SB3PolicyConfig, dream: Dream, envs: VecEnv) -> PPO:
    """A new policy and what improves it, or the saved ones."""
    path = args.folder / "checkpoint.safetensors"
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
        tensorboard_log=str(args.folder),
    )
    if args.resume:
        resume(args, config, dream, model, path)
    return model


def resume(args: Args, config: SB3PolicyConfig, dream: Dream, model: PPO, path: Path) -> None:
    """Take over policy, optimiser and number of steps; episodes begin anew. Ends the program where they are of another kind."""
    tensors, header = load_tensors(path)
    saved = config_in(header, path)
    if saved != config or header.get("model") not in (dream.fingerprint, dream.fingerprint_before):
        raise SystemExit(f"{path}: of another policy or world model: {saved} of {header.get('model')}, not {config} of {dream.fingerprint}")
    load_strictly(model.policy, under("policy", tensors), path)
    load_optimizer_tensors(model.policy.optimizer, under("optimizer", tensors), path)
    model.num_timesteps, model._n_updates = int(header["about"]["steps"]), int(header["about"]["updates"])
    model.set_random_seed(args.seed + model.num_timesteps)
    print(f"{path}: {model.num_timesteps:,} steps so far")


class ReportAndSave(BaseCallback):
    """Says after each rollout how far it is, saves from time to time, and counts what is seen for the policy's norm."""

    def __init__(self, total: int, save_every: int, save: Callable[[], None]) -> None:
        super().__init__()
        self.total, self.save_every, self.save = total, save_every, save
        self.shown: np.ndarray | None = None  # in the last rollout; counted after the update, for both must see alike

    def _on_training_start(self) -> None:
        self.began, self.before, self.saved = time.perf_counter(), self.num_timesteps, self.num_timesteps
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
        print(f"{self.num_timesteps:,} of {self.total:,} steps  {speed:.0f} steps/s  {left / 60:.0f} min left  {earned}", flush=True)
        if self.num_timesteps - self.saved >= self.save_every:
            self.save()
            self.saved = self.num_timesteps


def save(args: Args, config: SB3PolicyConfig, dream: Dream, model: PPO) -> None:
    """Write the policy, and all that a run needs to go on; each file whole or not at all."""
    about = {"steps": model.num_timesteps, "updates": model._n_updates, "settings": as_json(args)}
    save_sb3_policy(args.folder / "policy.safetensors", model.policy, config, about)
    tensors = {**prefixed("policy", model.policy.state_dict()), **prefixed("optimizer", optimizer_tensors(model.policy.optimizer))}
    header = {"kind": SB3_KIND, "config": asdict(config), "about": about, "model": dream.fingerprint}
    save_tensors(args.folder / "checkpoint.safetensors", tensors, header)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
