"""Truncation by horizon and uncertainty, and rewards that two dreams agree on: against policies that exploit errors of a dream.

envs = ConservativeRollouts(gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 8), max_steps=100, agree=True, start={"context_frames": 400})

Short episodes from real pasts, as in MBPO (Janner et al., 2019), an end where the model is unsure, as in MOReL (Kidambi et al., 2020), and
rewards that two dreams of the same actions have to agree on.
`python -m experiments.check_rewards` measures what each is worth in Memory Maze.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import VectorWrapper

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.models.state import DreamState, where_rows

WINDOW = 8  # steps that uncertainty and familiarity are averaged over
OTHER_NOISE = 2**31  # added to the seed of a dream for that of its twin: the same context and actions with other noise


class ConservativeRollouts(VectorWrapper):
    """A `DreamVectorEnv` whose rows are cut short, and whose rewards need a second dream's where `agree` says so.

    A row that is cut is truncated, not terminated: what would have followed has a value. It begins anew within the same step, as
    a `DreamVectorEnv` does; its last frame and info are in `info["final_obs"]` and `info["final_info"]`.

    ## Arguments
    | Name             | Default | Meaning                                                                                 |
    |------------------|---------|-----------------------------------------------------------------------------------------|
    | `max_steps`      | `None`  | a row is cut after so many steps                                                        |
    | `max_uncertainty` | `None`  | a row is cut when the mean of `info["uncertainty"]` over its last 8 steps is above it   |
    | `min_familiarity` | `None`  | a row is cut when the mean of `info["familiarity"]` over its last 8 steps is below it   |
    | `agree`          | `False` | a reward counts only if a twin has one, too: a second dream of the same past and        |
    |                  |         | actions, which doubles the work                                                         |
    | `tolerance`      | 5       | steps that both may be apart; the reward is given when the later of them comes          |
    | `start`          | `None`  | options of `reset` for every episode, as {"context_frames": 400}; `reset`'s own go first |

    Raises:
        ValueError: the environment is no `DreamVectorEnv`, an argument is out of range, or the dream doesn't tell what it asks for.
    """

    def __init__(
        self,
        env: DreamVectorEnv,
        max_steps: int | None = None,
        max_uncertainty: float | None = None,
        min_familiarity: float | None = None,
        agree: bool = False,
        tolerance: int = 5,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(dreams := getattr(env, "unwrapped", None), DreamVectorEnv):
            raise ValueError(f"ConservativeRollouts wraps a DreamVectorEnv, not {env!r}")
        for name, value, least in (("max_steps", max_steps, 1), ("tolerance", tolerance, 0)):
            if value is not None and not (spaces.is_whole(value) and value >= least):
                raise ValueError(f"{name} must be a whole number, at least {least}, not {value!r}")
        super().__init__(env)
        self.max_steps, self.tolerance, self.agree = max_steps, tolerance, agree
        self.limits = {"uncertainty": max_uncertainty, "familiarity": min_familiarity}
        self.start = spaces.checked_options(start)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._lately = {name: np.zeros((self.num_envs, 0)) for name, limit in self.limits.items() if limit is not None}
        self._dreams, self._twin = dreams, cast("DreamState | None", None)
        self._agreement = Agreement(self.num_envs, tolerance)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As `DreamVectorEnv.reset`. Raises `ValueError` where its infos lack what there is a limit for."""
        options = spaces.checked_options(options)
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        observations, info = self.env.reset(seed=seed, options={**({} if options.keys() - {"reset_mask"} else self.start), **options})
        for name in self._lately:
            if name not in info:
                raise ValueError(
                    f'this dream tells no info["{name}"]: uncertainty needs a profile of more than one pass, familiarity places'
                )
        self._begun(mask)
        return observations, info

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        twin_rewards = self._step_twins(actions)
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        done = terminated | truncated
        self._steps += 1
        cut = self._cut(info) & ~done
        if self.agree:
            rewards = self._agreement.rewards(rewards, twin_rewards)
        if done.any():
            if self.start:  # the environment has begun episodes of its own
                observations, info = self._begin_anew(done, observations, info)
            self._begun(done)
        if cut.any():
            observations, info = self._begin_anew(cut, observations, _with_ends(info, observations, cut))
            self._begun(cut)
        return observations, rewards, terminated, truncated | cut, info

    def _cut(self, info: dict[str, Any]) -> np.ndarray:
        cut = self._steps >= (self.max_steps or np.inf)
        for name, past in self._lately.items():
            self._lately[name] = np.concatenate([past, info[name][:, None]], 1)[:, -WINDOW:]
            mean, limit = np.nanmean(self._lately[name], 1), self.limits[name]
            cut = cut | (mean > limit if name == "uncertainty" else mean < limit)
        return cut

    def _begin_anew(self, rows: np.ndarray, observations: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """New episodes in these rows; what is known of the others stays."""
        fresh, fresh_info = self.env.reset(options={**self.start, "reset_mask": rows})
        for name, value in fresh_info.items():
            if not name.startswith("_"):
                info[name] = np.where(rows.reshape(-1, *[1] * (value.ndim - 1)), value, info[name])
        return fresh, info

    def _begun(self, rows: np.ndarray) -> None:
        """Forget what these rows did before their new episodes."""
        self._steps[rows] = 0
        for past in self._lately.values():
            past[rows] = np.nan
        self._agreement.forget(rows)
        if self.agree:
            state = self._dreams.clone_state().dream
            fresh = state._replace(seed=state.seed + OTHER_NOISE)
            index = torch.from_numpy(rows).to(state.seed.device)
            self._twin = fresh if self._twin is None else where_rows(index, fresh, self._twin)

    def _step_twins(self, actions: np.ndarray) -> np.ndarray:
        """The twins' rewards for these actions, (num_envs,)."""
        if self._twin is None:
            return np.zeros(self.num_envs)
        dream = self._dreams.dream
        self._twin, reward, *_ = dream.step(self._twin, spaces.checked_actions(actions, dream.world, (self.num_envs,)))
        return reward.cpu().numpy()


class Agreement:
    """Pairs the rewards of dreams with those of their twins: each is given once, when the later of both has come."""

    def __init__(self, rows: int, tolerance: int) -> None:
        self.tolerance, self._now = tolerance, 0
        self._waiting: list[tuple[deque[tuple[int, float]], deque[tuple[int, float]]]] = [(deque(), deque()) for _ in range(rows)]

    def rewards(self, rewards: np.ndarray, twins: np.ndarray) -> np.ndarray:
        """What both agree on, of one step's rewards (B,) and those of the twins; the dream's own value, not the twin's."""
        agreed = np.zeros_like(rewards)
        self._now += 1
        for row, queues in enumerate(self._waiting):
            for queue, reward in zip(queues, (rewards[row], twins[row]), strict=True):
                if reward:
                    queue.append((self._now, float(reward)))
                while queue and self._now - queue[0][0] > self.tolerance:
                    queue.popleft()
            if all(queues):
                agreed[row] = queues[0].popleft()[1]
                queues[1].popleft()
        return agreed

    def forget(self, rows: np.ndarray) -> None:
        """Begin anew in the rows of a mask (B,) bool."""
        for row in np.flatnonzero(rows):
            for queue in self._waiting[row]:
                queue.clear()


def _with_ends(info: dict[str, Any], observations: Any, cut: np.ndarray) -> dict[str, Any]:
    """The info of a step, with the last observation and info of the rows that are cut beside those of the rows that ended by themselves."""
    info, now = dict(info), {name: value for name, value in info.items() if not name.startswith(("_", "final_"))}
    final = info.get("final_obs", np.full(len(cut), None, dtype=object)).copy()
    for row in np.flatnonzero(cut):
        final[row] = spaces.row_of(observations, row)
    ended = info.get("_final_obs", np.zeros(len(cut), bool)) | cut
    before, last = info.get("final_info", {}), {}
    for name, value in now.items():
        mask = cut.reshape(-1, *[1] * (value.ndim - 1))
        last[name] = np.where(mask, value, before.get(name, np.zeros_like(value)))
        last[f"_{name}"] = ended.copy()
    return {**info, "final_obs": final, "_final_obs": ended.copy(), "final_info": last, "_final_info": ended.copy()}
