"""An agent that plans in the dream: branch the state, roll many futures in one batch, take the best one's first actions, look, plan again.

It sees frames through the model: each is encoded and committed to a state, with an estimated pose. Futures are imagined from that state
and never decoded. They are scored by the expected rewards, and by how little of the places they lead to is known, so that a maze without
a ball in sight is explored. Proposals are series of manoeuvres (so many steps forward, so many of a turn), for a random walk over single
actions stays where it is, and what a policy would do; the best of them is the plan (random shooting).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.policies import Policy, draw, policy_for
from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.rewards import reward
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import StateEstimator, observed
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.rollout import with_layout
from lssvwm_gym.models.state import DreamState, take_rows

POLICIES = {"memory-maze": Path(__file__).parent.parent / "agents" / "policies" / "memory_maze.safetensors"}
MANOEUVRES = {1: (0.5, 2, 10), 2: (0.15, 1, 8), 3: (0.15, 1, 8), 4: (0.1, 1, 4), 5: (0.1, 1, 4)}  # action: chance, fewest and most steps


@dataclass(frozen=True)
class Planning:
    """How to plan."""

    futures: int = 64  # of one decision
    horizon: int = 24  # steps of each
    keep: int = 12  # actions taken of a plan before the next one; a reward ends it early
    discount: float = 0.97  # a step
    doubt: float = 0.1  # expected rewards below it count as nothing
    curiosity: float = 0.02  # what a step to a place of which nothing is known is worth
    policy: Path | None = None  # whose doings are among the proposals; the shipped one of this world if not given
    led: float = 0.25  # share of the futures that it leads
    confirm: int = 8  # of the best are rolled once more with other noise, and count as the worse of both
    seconds: float | None = None  # after which no more futures are begun; where it binds, a plan doesn't repeat
    batch: int = 16  # futures in one batch: more are slower on a CPU, whose caches they leave

    def __post_init__(self) -> None:
        check_bounds(self, futures=1, horizon=1, keep=1, batch=1)
        for name in ("discount", "led"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, not {getattr(self, name)}")
        if self.keep > self.horizon:
            raise ValueError(f"keep can't be more than the horizon of {self.horizon} steps, not {self.keep}")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"seconds must be more than 0, not {self.seconds}")


class Futures(NamedTuple):
    """Imagined steps, N futures of H steps."""

    action: Tensor  # (N, H) int64
    reward: Tensor  # (N, H) float32, expected
    posterior_variance: Tensor  # (N, H) float32, how little of the place was known before: 1 nothing, 0 all
    latent: Tensor  # (N, H, tokens, channels)


class Plan(NamedTuple):
    """What is to be done, and what it is hoped to lead to."""

    action: Tensor  # (H,) int64
    latent: Tensor  # (H, tokens, channels)
    score: float


Leader = Callable[[DreamState], Tensor]  # a state to actions (B,)


@torch.no_grad()
def roll(dream: Dream, state: DreamState, action: Tensor, generator: torch.Generator, leader: Leader | None = None) -> Futures:
    """Go on from a state of one row with actions (N, H) int64, in one batch; where an action is -1 the leader decides."""
    config, now, steps = (
        dream.weights.world_model.config,
        take_rows(state, torch.zeros(len(action), dtype=torch.int64, device=dream.device)),
        [],
    )
    for wanted in action.to(dream.device).unbind(1):
        if leader is not None and (wanted < 0).any():
            wanted = torch.where(wanted < 0, leader(now), wanted)
        noise = torch.randn(len(action), config.tokens, config.latent_channels, generator=generator, device=dream.device)
        before, (now, _, _, logits, _) = now, dream.step(now, wanted, noise)
        expected = reward(dream.world, before, now, logits, expected=True, bins=dream.weights.world_model.reward_bins).float()
        steps.append((wanted, expected, now.posterior_variance, now.latent))
    return Futures(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))


def scored(futures: Futures, planning: Planning) -> Tensor:
    """What futures are worth, (N,): discounted expected rewards that are more than doubt, and news of unknown places."""
    fades = planning.discount ** torch.arange(futures.reward.shape[1], device=futures.reward.device)
    reward = torch.where(futures.reward.abs() < planning.doubt, 0.0, futures.reward)
    return ((reward + planning.curiosity * futures.posterior_variance) * fades).sum(1)


def manoeuvres(count: int, steps: int, rng: np.random.Generator) -> Tensor:
    """Series of manoeuvres in Memory Maze, (count, steps) int64."""
    actions = list(MANOEUVRES)
    chances, fewest, most = zip(*MANOEUVRES.values(), strict=True)
    drawn = rng.choice(len(actions), (count, steps), p=chances)
    lengths = rng.integers(np.array(fewest)[drawn], np.array(most)[drawn], endpoint=True)
    rows = [np.repeat(np.array(actions)[row], length)[:steps] for row, length in zip(drawn, lengths, strict=True)]
    return torch.from_numpy(np.stack(rows))


class Planner:
    """An `agents.agent.Agent` that plans anew whenever it has done what it planned."""

    observation = "image"

    def __init__(self, dream: Dream, num_envs: int, seed: int, planning: Planning | None = None) -> None:
        """`num_envs` episodes side by side; each row plans alone. Raises `ValueError` for a world whose manoeuvres it doesn't know."""
        if len(dream.world.actions) != 6:
            raise ValueError(f"the planner knows the six actions of Memory Maze, not {dream.world.name}")
        self.planning, self._dream = planning or Planning(), dream
        self._rng, self._generator = np.random.default_rng(seed), torch.Generator(dream.device).manual_seed(seed)
        self._policy = self._leading_policy() if self.planning.led else None
        frames = spaces.observation_space(dream.world, dream.weights.world_model.config, "image")
        self._estimator = StateEstimator(dream, num_envs, "features", frames, spaces.action_space(dream.world))
        self.plans: list[Plan | None] = [None] * num_envs
        self._done = [0] * num_envs  # actions of the plan that are done
        self._last: np.ndarray | None = None  # what it did, (num_envs,) int64
        self.seconds: list[float] = []  # that each decision took
        self.hoped: list[float] = []  # score of each plan

    @property
    def state(self) -> DreamState:
        """What the model has made of all that was seen."""
        return self._estimator.state

    @torch.no_grad()
    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        """Look at frames (B, height, width, 3) uint8, and go on with what is planned for each."""
        frames, rows = observation.cpu().numpy(), np.arange(len(self.plans))
        if self._last is None:
            self._estimator.reset(frames, rows)
        else:
            self._estimator.step(frames, self._last)
        values = self._dream.weights.world_model.reward_head(self.state.features).argmax(-1).tolist()
        for row, plan in enumerate(self.plans):
            rewarded = self._dream.world.reward_values[values[row]] != 0
            if plan is None or rewarded or self._done[row] >= min(self.planning.keep, len(plan.action)):
                start = time.perf_counter()
                state = take_rows(self.state, torch.tensor([row], device=self._dream.device))
                self.plans[row] = self.plan(with_layout(self._dream.weights.world_model, state), self._left_over(row))
                self._done[row] = 0
                self.seconds.append(time.perf_counter() - start)
        self._last = np.array([self._next(row) for row in range(len(rows))])
        return self._last

    def hoped_for(self, row: int = 0) -> Tensor:
        """The frame that the row's plan hopes the last action leads to, (height, width, 3) uint8."""
        plan = self.plans[row]
        if plan is None:
            raise ValueError("nothing is planned yet: call act() first")
        return self._dream.weights.autoencoder.decode(plan.latent[self._done[row] - 1][None])[0]

    def plan(self, state: DreamState, left_over: Tensor | None = None) -> Plan:
        """The best future found for a state of one row. `left_over` (at most H,) is what an earlier plan had in mind for it."""
        deadline = None if self.planning.seconds is None else time.perf_counter() + self.planning.seconds
        futures = self._rolled(state, self._proposed(self.planning.futures, left_over), deadline)
        score = scored(futures, self.planning)
        best = score.topk(min(self.planning.confirm or 1, len(score))).indices
        score = score[best]
        if self.planning.confirm and not _passed(deadline):
            score = torch.minimum(score, scored(roll(self._dream, state, futures.action[best], self._generator), self.planning))
        chosen = best[score.argmax()]
        self.hoped.append(float(score.max()))
        return Plan(futures.action[chosen].cpu(), futures.latent[chosen], self.hoped[-1])

    def _proposed(self, count: int, left_over: Tensor | None) -> Tensor:
        """Actions (count, H) int64: what is left over of the last plan, what the policy would do (-1), and manoeuvres."""
        actions = manoeuvres(count, self.planning.horizon, self._rng)
        first = 0
        if left_over is not None:
            actions[0, : len(left_over)] = left_over
            first = 1
        actions[first : first + round(self.planning.led * count)] = -1
        return actions

    def _rolled(self, state: DreamState, action: Tensor, deadline: float | None) -> Futures:
        parts: list[Futures] = []
        for some in action.split(self.planning.batch):
            if parts and _passed(deadline):
                break
            parts.append(roll(self._dream, state, some, self._generator, self._led if self._policy else None))
        return Futures(*map(torch.cat, zip(*parts, strict=True)))

    def _led(self, state: DreamState) -> Tensor:
        assert self._policy is not None
        return draw(self._policy(observed(self._dream, state, self._policy.config.observation)).log_probability, self._generator)

    def _leading_policy(self) -> Policy:
        path = self.planning.policy or POLICIES.get(self._dream.world.name)
        if path is None:
            raise ValueError(f"no policy is shipped for {self._dream.world.name}: name one, or plan without with --planning.led 0")
        policy = policy_for(path, self._dream)
        if policy.config.memory:
            raise ValueError(f"{path}: has a memory of its own, which the planner doesn't branch; it is led by policies without one")
        return policy

    def _left_over(self, row: int) -> Tensor | None:
        plan = self.plans[row]
        return None if plan is None or self._done[row] >= len(plan.action) else plan.action[self._done[row] :]

    def _next(self, row: int) -> int:
        plan = self.plans[row]
        assert plan is not None
        self._done[row] += 1
        return int(plan.action[self._done[row] - 1])


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.perf_counter() > deadline
