"""Policies of Stable-Baselines3 as files without pickles: safetensors with a JSON header that says what is needed to build them again.

SB3's own .zip files can run code when they are opened, so none is ever read here.

policy, config = load_sb3_policy("runs/ppo_sb3/LSSVWM-MemoryMaze-v0/policy.safetensors", dream)
action, memory = policy.predict(seen, memory, first)           # seen (B, ...) as dreams of `config.observation` show it
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Space
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations
from torch import Tensor

from agents.policies import SB3_KIND, RunningNorm
from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.io.json_config import needed
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, save_tensors

ALGORITHMS = ("ppo", "recurrent_ppo")
LARGEST = {"frame_stack": 64, "hidden": 65_536, "lstm": 65_536}  # that a file may ask for


@dataclass(frozen=True)
class SB3PolicyConfig:
    """What a policy sees, and its sizes."""

    world: str  # name of the world that it acts in
    algorithm: str  # ppo or recurrent_ppo
    observation: str  # one of `spaces.OBSERVATIONS`
    frame_stack: int = 1  # observations that it sees at once
    hidden: int = 256  # units of each of two layers of actor and critic
    lstm: int = 256  # units of the memory of recurrent_ppo

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {self.algorithm!r}")
        spaces.checked_observation(self.observation)
        for name, most in LARGEST.items():
            size = getattr(self, name)
            if type(size) is not int or not 0 < size <= most:
                raise ValueError(f"{name} must be a whole number 1..{most}, not {size!r}")


class Normed(BaseFeaturesExtractor):
    """Numbers, normalised by what has been seen so far; the statistics are saved with the policy's weights."""

    def __init__(self, observation_space: Box) -> None:
        numbers = int(np.prod(observation_space.shape))
        super().__init__(observation_space, numbers)
        self.norm = RunningNorm(numbers)

    def forward(self, seen: Tensor) -> Tensor:
        return self.norm(seen.flatten(1))


def seen_space(dream: Dream, observation: str, frame_stack: int) -> Space[Any]:
    """What a policy sees: `frame_stack` observations at once, one behind the other along the last axis."""
    space = spaces.observation_space(dream.world, dream.weights.world_model.config, observation)
    return StackedObservations(1, frame_stack, space, "last").stacked_observation_space


def policy_name(config: SB3PolicyConfig, space: Space[Any]) -> str:
    """SB3's name for the class of policy that sees this."""
    kind = "MultiInput" if isinstance(space, Dict) else "Cnn" if spaces.needs_frame(config.observation) else "Mlp"
    return kind + ("LstmPolicy" if config.algorithm == "recurrent_ppo" else "Policy")


def policy_arguments(config: SB3PolicyConfig) -> dict[str, Any]:
    """SB3's `policy_kwargs`."""
    arguments: dict[str, Any] = {"net_arch": [config.hidden, config.hidden]}
    if not spaces.needs_frame(config.observation):
        arguments["features_extractor_class"] = Normed
    if config.algorithm == "recurrent_ppo":
        arguments["lstm_hidden_size"] = config.lstm
    return arguments


def algorithm_of(config: SB3PolicyConfig) -> type[PPO]:
    """SB3's class. Raises `ImportError` naming the extra where sb3-contrib is missing."""
    if config.algorithm == "ppo":
        return PPO
    contrib = needed("sb3_contrib", "recurrent PPO needs sb3-contrib: pip install 'lssvwm_gym[agents]'")
    return contrib.RecurrentPPO  # the like of PPO, but no subclass


def save_sb3_policy(path: str | Path, policy: ActorCriticPolicy, config: SB3PolicyConfig, about: Mapping[str, Any]) -> None:
    """Write a policy whole or not at all; `about` is any JSON object, such as how it was learned."""
    save_tensors(path, policy.state_dict(), {"kind": SB3_KIND, "config": asdict(config), "about": dict(about)})


def load_sb3_policy(path: str | Path, dream: Dream, device: str = "cpu") -> tuple[ActorCriticPolicy, SB3PolicyConfig]:
    """The policy and what it sees of this model's dreams. Raises `TensorFileError` for a broken file, `ValueError` for another world."""
    tensors, header = load_tensors(path)
    config = config_in(header, path)
    if config.world != dream.world.name:
        raise ValueError(f"{path}: plays in {config.world}, not in {dream.world.name}")
    space = seen_space(dream, config.observation, config.frame_stack)
    kind = algorithm_of(config).policy_aliases[policy_name(config, _channels_first(space))]
    policy = kind(_channels_first(space), spaces.action_space(dream.world), lambda _: 0.0, **policy_arguments(config))
    assert isinstance(policy, ActorCriticPolicy)
    load_strictly(policy, tensors, path)
    policy.set_training_mode(False)
    return policy.to(device), config


def config_in(header: Mapping[str, Any], path: str | Path) -> SB3PolicyConfig:
    """What the header of a file says. Raises `TensorFileError` where that is no policy."""
    if header.get("kind") != SB3_KIND:
        raise TensorFileError(f"{path}: not a policy of agents/ppo_sb3.py")
    try:
        return SB3PolicyConfig(**header["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"{path}: not a policy of this version ({error})") from None


def count(policy: ActorCriticPolicy, seen: np.ndarray) -> None:
    """Let a policy that normalises what it sees take observations (..., numbers) into account."""
    if isinstance(policy.features_extractor, Normed):
        norm = policy.features_extractor.norm
        norm.count(torch.as_tensor(seen, dtype=torch.float32, device=norm.mean.device).reshape(-1, len(norm.mean)))


def has_counted(policy: ActorCriticPolicy) -> bool:
    return not isinstance(policy.features_extractor, Normed) or bool(policy.features_extractor.norm.seen > 0)


def _channels_first(space: Space[Any]) -> Space[Any]:
    """As SB3 gives pictures to its networks."""
    if isinstance(space, Dict):
        return Dict({name: _channels_first(part) for name, part in space.spaces.items()})
    if isinstance(space, Box) and len(space.shape) == 3:
        return Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=space.dtype.type)
    return space
