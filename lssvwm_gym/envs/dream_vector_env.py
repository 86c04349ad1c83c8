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

from lssvwm_gym.envs import spaces, tensors
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.state_io import EnvState, generator, load_state, save_state
from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.models.rollout import DreamState
from lssvwm_gym.models.state import put_rows
from lssvwm_gym.worlds import WorldSpec


class DreamVectorEnv(VectorEnv[Any, Any, Any]):
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
    | `output`            | `"numpy"` | `"torch"`: tensors on the dream's device, see below                                |
    | `render_mode`, `profile`, `device`, `weights`, `observation`, `dtype`, `backend` | | as for `DreamEnv`                 |

    ## Tensors
    With `output="torch"` the same dreams never leave their device. `step` takes actions as a tensor (num_envs,) of whole numbers, best
    of that device, and all that it and `reset` return are tensors there, copies that are yours: observations of the spaces' shapes and
    dtypes, rewards float32, `terminated` and `truncated` bool, infos and their masks, floats as float32. `info["final_obs"]` has the
    shape of the observations, with zeros for rows that go on. Noise is drawn on the CPU and sent, so that a row dreams what its seed
    alone would. A step in which no row ends waits for nothing, but in worlds whose model can end an episode: there one bool a row is
    read back. `reset_mask` stays an array, and `render` shows arrays.
    """

    metadata: dict[str, Any] = {"render_modes": spaces.RENDER_MODES, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        world: str | WorldSpec,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        profile: str = "balanced",
        device: str = "auto",
        weights: str | Path | None = None,
        observation: str = "all",
        dtype: str = "auto",
        backend: str | Backend = "auto",
        output: str = "numpy",
    ) -> None:
        self.output = tensors.checked_output(output)
        self._set_up(open_dream(world, profile, device, weights, dtype, backend), num_envs, max_episode_steps, render_mode, observation)

    @classmethod
    def continuing(
        cls,
        dream: Dream,
        state: EnvState,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observation: str = "all",
        output: str = "numpy",
    ) -> DreamVectorEnv:
        """An environment whose rows go on from those of `state`, without a reset."""
        envs = cls.__new__(cls)
        envs.output = tensors.checked_output(output)
        envs._set_up(dream, len(state), max_episode_steps, render_mode, observation)
        envs.restore_state(state)
        return envs

    def _set_up(self, dream: Dream, num_envs: int, max_episode_steps: int | None, render_mode: str | None, observation: str) -> None:
        for name, value in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.dream, self.num_envs, self.max_episode_steps = dream, num_envs, max_episode_steps
        self.render_mode = spaces.checked_render_mode(render_mode)
        self.metadata = {**spaces.metadata(dream.world), "autoreset_mode": AutoresetMode.SAME_STEP}
        self.kind = spaces.checked_observation(observation)
        self.single_observation_space = spaces.observation_space(dream.world, dream.weights.world_model.config, self.kind)
        self.single_action_space = spaces.action_space(dream.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._now: tuple[DreamState, Tensor | None] | None = None  # and the frames (num_envs, height, width, 3), None where spared
        self._begun = np.zeros(num_envs, bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._random = [seeding.np_random()[0] for _ in range(num_envs)]
        self._seeds, self._ages = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)  # the state's, known here without asking it

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin all rows anew, or those in `options["reset_mask"]`, a bool array (num_envs,).

        An integer seeds row i with `seed + i`; a list has a seed, or None, a row. All other options are `DreamEnv`'s.
        """
        options = spaces.checked_options(options)
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
        return self._observed(state, frames), self._told(state, mask)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        state = self._all_begun("step")
        if self.output == "torch":
            return self._step_on_device(state, actions)
        state, rewards, terminated, info = self.dream.go_on(state, spaces.checked_actions(actions, self.dream.world, (self.num_envs,)))
        frames = self._seen_frames(state)
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

    @torch.no_grad()
    def _step_on_device(self, before: DreamState, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        dream = self.dream
        action = tensors.checked_actions(actions, dream, self.num_envs)
        state, reward_logits = dream.advance(before, action, tensors.noise_of(dream, self._seeds.tolist(), self._ages.tolist()))
        rewards, terminated = tensors.paid(dream, before, state, reward_logits), tensors.terminated(dream, state)
        frames = self._seen_frames(state)
        self._now = state, frames
        self._steps, self._ages = self._steps + 1, self._ages + 1
        truncated = self._steps >= (self.max_episode_steps or np.inf)
        done = tensors.read_back(dream, terminated) | truncated
        seen, info = self._observed(state, frames), tensors.known(dream, state, reward_logits)
        ended: dict[str, Any] = {}
        if done.any():
            ended = tensors.final(seen, info, self._sent(done))
            state, frames = self._begin(done, {})
            seen, info = self._observed(state, frames), tensors.known(dream, state, dream.weights.world_model.reward_head(state.features))
        return seen, rewards, terminated, self._sent(truncated), {**ended, **tensors.masked(info, torch.ones_like(terminated))}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames of all rows."""
        if self.render_mode is None:
            spaces.warn_no_render_mode(self.dream.world.id)
            return None
        return tuple(self._frames("render").cpu().numpy().copy())

    def clone_state(self) -> EnvState:
        """This moment of all rows as a value; `EnvState.rows` picks some of them. Nothing is copied; see `DreamEnv.clone_state`."""
        state, frames = self._all_begun("clone_state"), self._frames("clone_state")
        random = tuple(dict(random.bit_generator.state) for random in self._random)
        return EnvState(state, frames, tuple(self._steps.tolist()), random, self.dream.fingerprint)

    def restore_state(self, state: EnvState) -> Any:
        """Go back to that moment; returns its observations. Raises `ValueError` for other weights or another number of rows."""
        state = EnvState.checked_for(state, self.dream, self.num_envs)
        self._now, self._steps = (state.dream, state.frame), np.array(state.steps, np.int64)
        self._random = [generator(random) for random in state.random]
        self._begun[:] = True
        if self.output == "torch":
            self._seeds, self._ages = (np.array(numbers.tolist(), np.int64) for numbers in (state.dream.seed, state.dream.world.age))
        return self._observed(state.dream, state.frame)

    def branch(self, n: int, same_noise: bool = False) -> DreamVectorEnv:
        """An environment of `num_envs * n` rows in which each of these goes on n times, side by side; see `DreamEnv.branch`."""
        state = self.clone_state().branched(n, same_noise)
        return self.continuing(self.dream, state, self.max_episode_steps, self.render_mode, self.kind, self.output)

    def save_state(self, path: str | Path) -> None:
        """Write this moment of all rows to a safetensors file."""
        save_state(path, self.clone_state(), self.dream)

    def load_state(self, path: str | Path) -> Any:
        """Go back to a saved moment; returns its observations. Raises `TensorFileError` for a file that isn't one of this model."""
        return self.restore_state(load_state(path, self.dream))

    def _begin(self, mask: np.ndarray, options: dict[str, Any]) -> tuple[DreamState, Tensor | None]:
        """Start new dreams in the rows of the mask and leave all others as they are."""
        rows = np.flatnonzero(mask)
        seeds = torch.tensor([spaces.draw_seed(self._random[row]) for row in rows])
        state = self.dream.begin(seeds, options)
        if self.output == "torch":  # an opening's age is known; after a reset that asks for another start it is read back
            self._seeds[rows] = seeds.numpy()
            self._ages[rows] = int(state.world.age[0]) if options else self.dream.weights.short_contexts.action.shape[1]
        frames = self._seen_frames(state)
        if len(rows) < self.num_envs:
            (before, shown), index = self._now or self._blank(), torch.from_numpy(rows).to(self.dream.device)
            state = put_rows(before, index, state)
            frames = None if frames is None or shown is None else put_rows(shown, index, frames)
        self._now = state, frames
        self._steps[rows], self._begun[rows] = 0, True
        return self._now

    def _blank(self) -> tuple[DreamState, Tensor]:
        size = self.dream.world.image_size
        frames = torch.zeros((self.num_envs, size, size, 3), dtype=torch.uint8, device=self.dream.device)
        return self.dream.empty(torch.zeros(self.num_envs, dtype=torch.int64)), frames

    def _told(self, state: DreamState, mask: np.ndarray) -> dict[str, Any]:
        """What is known of the rows of the mask after a reset."""
        if self.output == "numpy":
            return _masked(self.dream.info(state), mask)
        with torch.no_grad():
            reward_logits = self.dream.weights.world_model.reward_head(state.features)
            return tensors.masked(tensors.known(self.dream, state, reward_logits), self._sent(mask))

    def _sent(self, array: np.ndarray) -> Tensor:
        return tensors.sent(torch.from_numpy(array.copy()), self.dream.device)

    def _observed(self, state: DreamState, frames: Tensor | None) -> Any:
        if self.output == "torch":
            return tensors.observed(self.single_observation_space, self.kind, state, frames)
        return spaces.observed(self.single_observation_space, self.kind, state, frames)

    def _seen_frames(self, state: DreamState) -> Tensor | None:
        return self.dream.frame(state) if spaces.needs_frame(self.kind) else None

    def _all_begun(self, method: str) -> DreamState:
        if self._now is None or not self._begun.all():
            raise spaces.reset_needed(method)
        return self._now[0]

    def _frames(self, method: str) -> Tensor:
        """The pictures of now, decoded once."""
        state = self._all_begun(method)
        frames = self._now[1] if self._now else None
        if frames is None:
            frames = self.dream.frame(state)
            self._now = state, frames
        return frames

    def _checked_seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if spaces.is_whole(seed):
            seeds: list[Any] = [int(seed) + row for row in range(self.num_envs)]
        elif isinstance(seed, list | tuple) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
            seeds = [int(one) if spaces.is_whole(one) else one for one in seed]
        else:
            raise ValueError(f"seed must be None, a whole number, or a list of them, not {seed!r}")
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows")
        wrong = [one for one in seeds if not (one is None or (spaces.is_whole(one) and one >= 0))]
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
        final[row] = spaces.row_of(observations, row)
    return {"final_obs": final, "_final_obs": done.copy(), "final_info": _masked(info, done), "_final_info": done.copy()}
