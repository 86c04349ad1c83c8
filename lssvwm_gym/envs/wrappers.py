"""The real world as a dream sees it: each real frame is encoded and committed to a state of the world model.

env = WorldModelObservation(gymnasium.make("MemoryMaze9x9-Real-v0"), open_dream("memory-maze"), "features")
envs = WorldModelObservationVec(gymnasium.make_vec("MemoryMaze9x9-Real-v0", 8), open_dream("memory-maze"), "features")

A policy that learned in dreams of the same `observation` acts in them unchanged. The like for Stable-Baselines3 is
`lssvwm_gym.envs.sb3.WorldModelObservationVecEnv`.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.utils._pytree import tree_map

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.io import legacy
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import prefill, unknown_action
from lssvwm_gym.models.state import DreamState, put_rows

NUMBERS = tuple(name for name in spaces.OBSERVATIONS if not spaces.needs_frame(name))


def observed(dream: Dream, state: DreamState, observation: str) -> Tensor:
    """What a dream shows of a state, on its device: float32 (B, numbers), or for "image" the frame, uint8 (B, height, width, 3)."""
    return spaces.observed(dream.world, observation, state, dream.frame(state) if observation == "image" else None)


def observed_shape(dream: Dream, observation: str) -> tuple[int, ...]:
    """Shape of one row of `observed`. Raises `ValueError` for an observation that doesn't exist."""
    spaces.checked_observation(observation, dream.world, ("image", *NUMBERS))
    return spaces.observation_space(dream.world, dream.weights.world_model.config, observation).shape or ()


class StateEstimator:
    """States of a world model that observes real environments, a row each; what the wrappers below share.

    The model estimates its own poses from the actions and from what it sees. Inventories, in worlds that have one, are those of
    observations with an `inventory`, and estimated where there is none.
    """

    def __init__(self, dream: Dream, rows: int, observation: str, frames: Space[Any], actions: Space[Any]) -> None:
        """`frames` and `actions` are the spaces of one environment. Raises `ValueError` where they are not the dreamed world's."""
        spaces.checked_observation(observation, dream.world, NUMBERS)
        whole, image, self.space = (
            spaces.observation_space(dream.world, dream.weights.world_model.config, kind) for kind in ("all", "image", observation)
        )
        if frames not in (whole, image):
            raise ValueError(f"{dream.world.name} is seen in {whole} or {image}; the environment's observations are {frames}")
        if actions != (known := spaces.action_space(dream.world)):
            raise ValueError(f"{dream.world.name} has the actions {known}; the environment's are {actions}")
        self.dream, self.rows, self.observation = dream, rows, observation
        self.state = self._empty(rows)

    def reset(self, seen: Any, rows: np.ndarray, poses: Tensor | None = None) -> np.ndarray:
        """These rows (K,) begin new episodes with what all rows (B, ...) have just seen; all rows' numbers, (B, n) float32.

        Poses (K, 4 or 6) are those seen from the first frame, where they are known.
        """
        first = tree_map(lambda part: part[rows], seen)
        fresh = self._prefilled(self._empty(len(rows), poses is not None), first, None, np.ones(len(rows), bool), poses)
        self.state = put_rows(self.state, self._index(rows), fresh)
        return self.numbers()

    def step(self, seen: Any, actions: np.ndarray, begins: np.ndarray | None = None, poses: Tensor | None = None) -> np.ndarray:
        """All rows see what their actions (B,) led to; those marked in `begins`, bool (B,), the first frame of a new episode instead."""
        state, mask = self.state, np.zeros(self.rows, bool) if begins is None else begins
        if mask.any():
            state = put_rows(state, self._index(np.flatnonzero(mask)), self._empty(int(mask.sum())))
        self.state = self._prefilled(state, seen, actions, mask, poses)
        return self.numbers()

    def step_and_reset(self, seen: Any, actions: np.ndarray, done: np.ndarray, last: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """`step` where rows that are `done` have begun anew in `seen`, and `last` are their last observations: numbers of both."""
        rows = np.flatnonzero(done)

        def put(part: np.ndarray, *others: np.ndarray) -> np.ndarray:
            part = part.copy()
            part[rows] = np.stack(others)
            return part

        numbers = self.step(tree_map(put, seen, *last) if len(rows) else seen, actions)
        ends = [numbers[row].copy() for row in rows]
        return (self.reset(seen, rows) if len(rows) else numbers), ends

    def numbers(self) -> np.ndarray:
        return spaces.numbers_of(self.state, self.observation).float().cpu().numpy().copy()

    @torch.no_grad()
    def _prefilled(
        self, state: DreamState, seen: Any, actions: np.ndarray | None, begins: np.ndarray, poses: Tensor | None = None
    ) -> DreamState:
        model, device = self.dream.weights.world_model, self.dream.device
        action = unknown_action(model, len(begins))  # none led to the first frame
        if actions is not None:
            action[self._index(~begins)] = torch.as_tensor(np.asarray(actions)[~begins], dtype=action.dtype, device=device)
        pixels = torch.from_numpy(np.ascontiguousarray(spaces.picture_of(seen))).to(device)
        latent = self.dream.weights.autoencoder.encode(pixels).half().float()[:, None]  # rounded as contexts are
        pose = None if poses is None else poses[:, None]
        if not isinstance(seen, dict):
            return prefill(model, state, latent, action[:, None], pose, imagines=False).state
        inventory = torch.from_numpy(np.asarray(seen["inventory"], np.float32)).to(device)
        before = torch.where(self._index(begins)[:, None], inventory, state.inventory)
        after = prefill(model, state._replace(inventory=before), latent, action[:, None], pose, imagines=False).state
        return after._replace(inventory=inventory, inventory_peak=torch.maximum(state.inventory_peak, inventory))

    def _empty(self, rows: int, pose_known: bool = False) -> DreamState:
        state = self.dream.empty(torch.zeros(rows, dtype=torch.int64))
        known = pose_known or self.dream.weights.world_model.config.has_spatial_memory
        return state._replace(pose_known=torch.full_like(state.pose_known, float(known)))

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.dream.device)


@legacy.keywords(legacy.POSES)
class WorldModelObservation(gymnasium.Wrapper[np.ndarray, np.int64, Any, np.int64]):
    """A real environment whose observations are those of a dream: "features", "latent" or "latent+features", float32 (numbers,).

    The model estimates its own pose; with `true_poses` it is given `info["agent_pos"]` and `info["agent_dir"]`, which no policy of
    the real world could know. The real frame is in `render()`, as before. Raises `ValueError` where frames or actions are not the dreamed
    world's, or the observation doesn't exist.
    """

    def __init__(self, env: gymnasium.Env[Any, np.int64], dream: Dream, observation: str = "features", true_poses: bool = False) -> None:
        super().__init__(env)
        self.estimator = StateEstimator(dream, 1, observation, env.observation_space, env.action_space)
        self.observation_space: Space[Any] = self.estimator.space
        self.true_poses = true_poses
        self.frame = np.zeros((0, 0, 3), np.uint8)  # the last real one, (height, width, 3)
        self._origin: Tensor | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        self._origin = None
        return self.estimator.reset(self._batch(seen), np.array([0]), self._pose(seen, info))[0], info

    def step(self, action: np.int64) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        numbers = self.estimator.step(self._batch(seen), np.asarray(action)[None], poses=self._pose(seen, info))[0]
        return numbers, reward, terminated, truncated, info

    def _batch(self, seen: Any) -> Any:
        self.frame = spaces.picture_of(seen)
        return tree_map(lambda part: part[None], seen)

    def _pose(self, seen: Any, info: dict[str, Any]) -> Tensor | None:
        """The true pose (1, 4) seen from the first frame, if the model is to know it."""
        if not self.true_poses:
            return None
        dream = self.estimator.dream
        pose = torch.tensor(np.concatenate([info["agent_pos"], info["agent_dir"]])[None], dtype=torch.float32, device=dream.device)
        if isinstance(seen, dict) or pose.shape != self.estimator.state.pose.shape:
            raise ValueError(f"{dream.world.name} can't be told poses: agent_pos and agent_dir are {pose.shape[1]} numbers together")
        self._origin = pose if self._origin is None else self._origin
        return relative_to(pose, self._origin)


class WorldModelObservationVec(VectorWrapper):  # not generic in Gymnasium 1.2
    """`WorldModelObservation` over a Gymnasium vector environment; all rows go through the model in one batch.

    A row that begins anew begins with an empty state, in each of the three ways that Gymnasium has of it. With
    `AutoresetMode.SAME_STEP`, `info["final_obs"]` holds numbers, too. Raises `ValueError` as `WorldModelObservation`, and where the
    environment doesn't say in its metadata how its rows begin anew.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], dream: Dream, observation: str = "features") -> None:
        super().__init__(envs)
        if not isinstance(envs.metadata.get("autoreset_mode"), AutoresetMode):
            raise ValueError(f"{envs} doesn't say how its rows begin anew: its metadata needs an autoreset_mode")
        self.estimator = StateEstimator(dream, envs.num_envs, observation, envs.single_observation_space, envs.single_action_space)
        self.single_observation_space: Space[Any] = self.estimator.space
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)
        self._done = np.zeros(envs.num_envs, bool)  # whose next step is the first of a new episode

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool))).copy()
        seen, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type] # lists are what batches take, too
        self._done[mask] = False
        return self.estimator.reset(seen, np.flatnonzero(mask)), info

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(actions)
        done, mode = np.asarray(terminated) | np.asarray(truncated), self.env.metadata["autoreset_mode"]
        if mode is AutoresetMode.SAME_STEP:
            last = list(info["final_obs"][done]) if done.any() else []
            numbers, ends = self.estimator.step_and_reset(seen, actions, done, last)
            if ends:
                info = {**info, "final_obs": np.full(self.num_envs, None, object)}
                for row, end in zip(np.flatnonzero(done), ends, strict=True):
                    info["final_obs"][row] = end
            return numbers, reward, terminated, truncated, info
        begins = self._done if mode is AutoresetMode.NEXT_STEP else None
        numbers = self.estimator.step(seen, actions, begins)
        self._done = done
        return numbers, reward, terminated, truncated, info
