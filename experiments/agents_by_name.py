"""Agents by name: scripts, policies from files, the scripted expert and the planner."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import maze_map
from agents.agent import Agent, agent_in
from agents.maze_map import BALL, GOAL, MEMORY
from experiments.planner import Planner, Planning
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.play.policies import POLICIES as SCRIPTS
from lssvwm_gym.real_envs.experts.block_players import PLAYERS
from lssvwm_gym.real_envs.experts.maze_explorer import steer
from lssvwm_gym.worlds.minecraft import MINECRAFT

PLAYER = "player:"  # before the name of a player of the block world, as `lssvwm-gym collect luanti --player` knows it
PLANNER, FOLLOWER, GREEDY = "planner", "follower", "greedy"
EXPERTS = ("explorer", "seeker")  # of Memory Maze; they need what only the real world's info tells


def open_agent(name: str, dream: Dream, num_envs: int, seed: int, planning: Planning | None = None) -> Agent:
    """The agent of that name, or in that file, for `num_envs` episodes side by side; `planning` is the planner's.

    `NAME@greedy` takes a file's most probable action, `NAME@0.3` a random action with that probability.

    Raises `ValueError` for one that doesn't exist or acts in another world, `ImportError` where what it needs is missing.
    """
    name, modifier = _name_and_modifier(name)
    if modifier not in ("", GREEDY):
        if name == PLANNER:
            raise ValueError("the planner counts on its own actions, so none can be random: there is no planner@")
        return EpsilonAgent(open_agent(name, dream, num_envs, seed, planning), _epsilon(name, modifier), len(dream.world.actions), seed)
    if name == FOLLOWER:
        return MapFollower(dream)
    if name.endswith(".safetensors"):
        return agent_in(Path(name), dream, seed, modifier == GREEDY)
    if modifier:
        raise ValueError(f"{name!r} has no most probable action: @{GREEDY} is for policies from files")
    if name == PLANNER:
        return Planner(dream, num_envs, seed, planning)
    if name in EXPERTS:
        return ExpertAgent(name, seed)
    if name in SCRIPTS:
        return ScriptedAgent(functools.partial(SCRIPTS[name], dream, None), num_envs, seed)
    if name.startswith(PLAYER) and dream.world.name == MINECRAFT.name and (player := name.removeprefix(PLAYER)) in PLAYERS:
        return ScriptedAgent(lambda seed: functools.partial(PLAYERS[player](np.random.default_rng(seed)), info={}), num_envs, seed)
    blind = f", {', '.join(PLAYER + player for player in PLAYERS)}" if dream.world.name == MINECRAFT.name else ""
    scripts = f"{', '.join((*SCRIPTS, *EXPERTS))}{blind}, {PLANNER}, {FOLLOWER}"
    raise ValueError(f"a policy is {scripts}, or a file that ends in .safetensors, not {name!r}")


def _name_and_modifier(name: str) -> tuple[str, str]:
    if "@" not in name or name.endswith(".safetensors"):  # an @ in a file's own name
        return name, ""
    name, _, modifier = name.rpartition("@")
    return name, modifier or "nothing"


def _epsilon(name: str, modifier: str) -> float:
    try:
        epsilon = float(modifier)
    except ValueError:
        epsilon = -1.0
    if not 0 <= epsilon <= 1:
        raise ValueError(f"behind {name}@ comes {GREEDY}, or the probability of a random action from 0 to 1, not {modifier!r}")
    return epsilon


class EpsilonAgent:
    """Another agent that takes a random action with probability epsilon, and so is of another skill."""

    def __init__(self, agent: Agent, epsilon: float, actions: int, seed: int) -> None:
        self.observation = agent.observation
        self._agent, self._epsilon, self._actions, self._rng = agent, epsilon, actions, np.random.default_rng([seed, 1])

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        action = self._agent.act(observation, info)
        return np.where(self._rng.random(action.shape) < self._epsilon, self._rng.integers(self._actions, size=action.shape), action)


class ScriptedAgent:
    """Players that look at nothing, one in each episode."""

    observation = "image"

    def __init__(self, open_player: Callable[[int], Callable[[Any], int]], num_envs: int, seed: int) -> None:
        """Each player is opened with a seed of its own, and called with None for an action."""
        self._players = [open_player(int(one)) for one in np.random.default_rng(seed).integers(2**32, size=num_envs)]

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        return np.array([player(None) for player in self._players])


class MapFollower:
    """Has learned nothing: goes the way that the map shows to the wanted ball, or else to what was not seen yet."""

    observation = maze_map.OBSERVATION

    def __init__(self, dream: Dream) -> None:
        """Raises `ValueError` where the world model draws no map."""
        observed_shape(dream, self.observation)
        self._memory = torch.zeros(0)

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        memory = self._memory if len(self._memory) else observation.new_zeros(len(observation), MEMORY)
        told, self._memory = maze_map.told(observation, memory)
        return followed(told)


def followed(told: Tensor) -> np.ndarray:
    """The actions (B,) int64 that go the way of which a map tells, (B, NUMBERS)."""
    way = torch.where(told[:, BALL.start - 1 : BALL.start] > 0, told[:, BALL], told[:, GOAL])[:, :2].cpu().numpy()
    return np.array([steer(np.zeros(2), np.array([1.0, 0.0]), direction) for direction in way])


class ExpertAgent:
    """A scripted player of Memory Maze that is told where it is; one episode, in the real world."""

    observation = "image"

    def __init__(self, name: str, seed: int) -> None:
        from lssvwm_gym.real_envs.experts.maze_players import PLAYERS

        self._name, self._player = name, PLAYERS[name](np.random.default_rng(seed))

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        if info is None:
            raise ValueError(f"the {self._name} needs the real world's info")
        return np.array([self._player(observation[0].numpy(), info)])
