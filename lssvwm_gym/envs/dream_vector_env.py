"""Many dreams in one batch as a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lssvwm_gym.envs import contract
from lssvwm_gym.envs.dream import Dream, open_dream
from lssvwm_gym.envs.env_state import EnvState, generator, load_state, save_state
from lssvwm_gym.models.dreaming import DreamState
from lssvwm_gym.models.state import put_rows
from lssvwm_gym.worlds import World


class DreamVectorEnv(VectorEnv[Any, np.ndarray, np.ndarray]):
    """`num_envs` dreams that share every pass through the model; see `DreamEnv` for what one of them is.

    Row i dreams what a `DreamEnv` of seed `seed + i` dreams, over any number of episodes, whatever its neighbours do; equal
    but for the last bit of a sum, which a matrix product of another size may round otherwise. A row that ends begins anew
    within the same step (`AutoresetMode.SAME_STEP`): its last frame and info are then in `info["final_obs"]` and
    `info["final_info"]`.

    ## Arguments
    | Name                | Default | Meaning                                                                              |
    |---------------------|---------|--------------------------------------------------------------------------------------|
    | `world`             |         | as for `DreamEnv`                                                                    |
    | `num_envs`          | 1       | rows                                                                                 |
    | `max_episode_steps` | `None`  | steps after which a row is truncated; `gymnasium.make_vec` passes the registered one |
    | `render_mode`, `profile`, `device`, `weights`, `observation`, `dtype` | | as for `DreamEnv`                            |
    """

    metadata: dict[str, Any] = {"render_modes": contract.RENDER_MODES, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        world: str | World,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        profile: str = "balanced",
        device: str = "auto",
        weights: str | Path | None = None,
        observation: str = "all",
        dtype: str = "auto",
    ) -> None:
        self._set_up(open_dream(world, profile, device, weights, dtype), num_envs, max_episode_steps, render_mode, observation)

    @classmethod
    def continuing(
        cls,
        dream: Dream,
        state: EnvState,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observation: str = "all",
    ) -> DreamVectorEnv:
        """An environment whose rows go on from those of `state`, without a reset."""
        envs = cls.__new__(cls)
        envs._set_up(dream, len(state), max_episode_steps, render_mode, observation)
        envs.restore_state(state)
        return envs

    def _set_up(self, dream: Dream, num_envs: int, max_episode_steps: int | None, render_mode: str | None, observation: str) -> None:
        for name, value in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.dream, self.num_envs, self.max_episode_steps = dream, num_envs, max_episode_steps
        self.render_mode = contract.checked_render_mode(render_mode)
        self.metadata = {**contract.metadata(dream.world), "autoreset_mode": AutoresetMode.SAME_STEP}
        self.kind = contract.checked_observation(observation)
        self.single_observation_space = contract.observation_space(dream.world, self.kind)
        self.single_action_space = contract.action_space(dream.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._now: tuple[DreamState, Tensor] | None = None  # and the frames (num_envs, height, width, 3)
        self._begun = np.zeros(num_envs, bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._random = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin all rows anew, or those in `options["reset_mask"]`, a bool array (num_envs,).

        An integer seeds row i with `seed + i`; a list has a seed, or None, a row. All other options are `DreamEnv`'s.
        """
        options = contract.checked_options(options)
        mask = self._checked_mask(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds = self._checked_seeds(seed)
        before = copy.deepcopy(self._random)
        try:
            for row in np.flatnonzero(mask):
                if seeds[row] is not None:
                    self._random[row], _ = seeding.np_random(seeds[row])
            state, frames = self._begin(mask, options)
        except Exception:  # a reset that is refused has not happened: it draws no seed either
            self._random = before
            raise
        return self._observed(state, frames), _masked(self.dream.info(state), mask)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        state, _ = self._all_begun("step")
        state, frames, rewards, terminated, info = self.dream.step(
            state, contract.checked_actions(actions, self.dream.world, (self.num_envs,))
        )
        self._now = state, frames
        self._steps += 1
        truncated = self._steps >= (self.max_episode_steps or np.inf)
        done = terminated.numpy() | truncated
        ended: dict[str, Any] = {}
        if done.any():
            ended = _final(self._observed(state, frames), info, done)
            state, frames = self._begin(done, {})
            info = self.dream.info(state)
        return self._observed(state, frames), rewards.numpy(), terminated.numpy(), truncated, {**ended, **_masked(info, np.ones_like(done))}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames of all rows."""
        if self.render_mode is None:
            contract.warn_no_render_mode(self.dream.world.id)
            return None
        return tuple(self._all_begun("render")[1].cpu().numpy().copy())

    def clone_state(self) -> EnvState:
        """This moment of all rows as a value; `EnvState.rows` picks some of them. Nothing is copied."""
        state, frames = self._all_begun("clone_state")
        random = tuple(dict(random.bit_generator.state) for random in self._random)
        return EnvState(state, frames, tuple(self._steps.tolist()), random, self.dream.fingerprint)

    def restore_state(self, state: EnvState) -> Any:
        """Go back to that moment; returns its observations. Raises `ValueError` for other weights or another number of rows."""
        state = EnvState.checked_for(state, self.dream, self.num_envs)
        self._now, self._steps = (state.dream, state.frame), np.array(state.steps, np.int64)
        self._random = [generator(random) for random in state.random]
        self._begun[:] = True
        return self._observed(state.dream, state.frame)

    def branch(self, n: int, same_noise: bool = False) -> DreamVectorEnv:
        """An environment of `num_envs * n` rows in which each of these goes on n times, side by side; see `DreamEnv.branch`."""
        state = self.clone_state().branched(n, same_noise)
        return self.continuing(self.dream, state, self.max_episode_steps, self.render_mode, self.kind)

    def save_state(self, path: str | Path) -> None:
        """Write this moment of all rows to a safetensors file."""
        save_state(path, self.clone_state(), self.dream)

    def load_state(self, path: str | Path) -> Any:
        """Go back to a saved moment; returns its observations. Raises `TensorFileError` for a file that isn't one of this model."""
        return self.restore_state(load_state(path, self.dream))

    def _begin(self, mask: np.ndarray, options: dict[str, Any]) -> tuple[DreamState, Tensor]:
        """Start new dreams in the rows of the mask and leave all others as they are."""
        rows = np.flatnonzero(mask)
        fresh = self.dream.reset(torch.tensor([contract.draw_seed(self._random[row]) for row in rows]), options)
        if len(rows) < self.num_envs:
            fresh = put_rows(self._now or self._blank(), torch.from_numpy(rows).to(self.dream.device), fresh)
        self._now = fresh
        self._steps[rows], self._begun[rows] = 0, True
        return fresh

    def _blank(self) -> tuple[DreamState, Tensor]:
        size = self.dream.world.image_size
        frames = torch.zeros((self.num_envs, size, size, 3), dtype=torch.uint8, device=self.dream.device)
        return self.dream.empty(torch.zeros(self.num_envs, dtype=torch.int64)), frames

    def _observed(self, state: DreamState, frames: Tensor) -> Any:
        return contract.observed(self.single_observation_space, state, frames)

    def _all_begun(self, method: str) -> tuple[DreamState, Tensor]:
        if self._now is None or not self._begun.all():
            raise contract.reset_needed(method)
        return self._now

    def _checked_seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if contract.is_whole(seed):
            seeds: list[Any] = [int(seed) + row for row in range(self.num_envs)]
        elif isinstance(seed, list | tuple) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
            seeds = [int(one) if contract.is_whole(one) else one for one in seed]
        else:
            raise ValueError(f"seed must be None, a whole number, or a list of them, not {seed!r}")
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows")
        wrong = [one for one in seeds if not (one is None or (contract.is_whole(one) and one >= 0))]
        if wrong:
            raise ValueError(f"a seed must be None or a whole number, not below 0, but there is {wrong[0]!r}")
        return seeds

    def _checked_mask(self, mask: Any) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},) with a row to reset, not {mask!r}")
        return mask

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_envs={self.num_envs}, {self.dream!r})"


def _masked(info: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Infos as Gymnasium batches them: zeros where the mask is False, and each key's mask beside it."""
    batched: dict[str, Any] = {}
    for name, value in info.items():
        batched[name] = np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros_like(value))
        batched[f"_{name}"] = mask.copy()
    return batched


def _final(observations: Any, info: dict[str, np.ndarray], done: np.ndarray) -> dict[str, Any]:
    """The last observation and info of the rows that ended, as Gymnasium batches them."""
    final = np.full(len(done), None, dtype=object)
    for row in np.flatnonzero(done):
        final[row] = contract.row_of(observations, row)
    return {"final_obs": final, "_final_obs": done.copy(), "final_info": _masked(info, done), "_final_info": done.copy()}
