"""Dreams for Stable-Baselines3, which takes no Gymnasium vector environment: `make_sb3_vec_env("memory-maze", num_envs=8)`."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError:
    raise ImportError("the SB3 adapter needs Stable-Baselines3: pip install 'lssvwm_gym[agents]'") from None

from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import checked_options
from lssvwm_gym.envs.wrappers import StateEstimator
from lssvwm_gym.worlds import WORLDS, WorldSpec

# What `env_method` can ask of a single row.
ROW_METHODS: dict[str, Callable[[DreamVectorEnv, int], Any]] = {
    "clone_state": lambda envs, row: envs.clone_state().rows([row]),
    "render": lambda envs, row: None if (frames := envs.render()) is None else frames[row],
}


def make_sb3_vec_env(world: str | WorldSpec, num_envs: int = 1, **kwargs: Any) -> "DreamVecEnv":
    """`num_envs` dreams of a world (its id, its name, or a `WorldSpec`) in one batch, truncated as the world says.

    `kwargs` are those of `DreamVectorEnv`: give observation="features" for a policy with the world model's memory, and
    render_mode="rgb_array" for `VecVideoRecorder`.
    """
    if isinstance(world, str) and world not in WORLDS:
        envs: Any = gymnasium.make_vec(world, num_envs, **kwargs)
    else:
        record = world if isinstance(world, WorldSpec) else WORLDS[world]
        envs = DreamVectorEnv(record, num_envs, **{"max_episode_steps": record.max_episode_steps, **kwargs})
    return DreamVecEnv(envs)


class DreamVecEnv(VecEnv):
    """A `DreamVectorEnv` as SB3's `VecEnv`. The rows share one batch, so attributes are read and set for all of them alike."""

    def __init__(self, envs: DreamVectorEnv, start: Mapping[str, Any] | None = None) -> None:
        """`start`: options of `reset` for every episode, such as {"context_frames": 400}; those of `set_options` go first."""
        if not isinstance(getattr(envs, "unwrapped", None), DreamVectorEnv):  # or one behind wrappers
            raise ValueError(f"DreamVecEnv adapts a DreamVectorEnv, not {envs!r}")
        self.envs, self.start = envs, checked_options(start)
        envs.unwrapped.start = self.start
        self._actions = np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata

    def reset(self) -> Any:
        """Begin all rows anew, with the seeds of `seed` and the options of `set_options`, which are then used up."""
        for options, mask in self._groups_of_options():
            observations, info = self.envs.reset(seed=self._seeds, options={**self.start, **options, "reset_mask": mask})
            for row in np.flatnonzero(mask):
                self.reset_infos[row] = _row(info, row)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, info = self.envs.step(self._actions)
        done = terminated | truncated
        infos = [_row(info["final_info"] if ended else info, row) for row, ended in enumerate(done)]
        for row in range(self.num_envs):
            infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            if done[row]:
                infos[row]["terminal_observation"] = info["final_obs"][row]
                self.reset_infos[row] = _row(info, row)
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> list[np.ndarray | None]:
        return list(self.envs.render() or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute that the batch has. Raises `ValueError` for some of the rows only: they share it."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"the rows share one batch: {attr_name!r} can be set for all of them only")
        if not hasattr(self.envs, attr_name):
            raise AttributeError(f"{self.envs!r} has no attribute {attr_name!r}")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Ask rows for their frame or state. Raises `AttributeError` for what only the batch, `.envs`, can do."""
        if method_name not in ROW_METHODS:
            raise AttributeError(f"a row has no method {method_name!r}, only {', '.join(ROW_METHODS)}; the batch as a whole is .envs")
        return [ROW_METHODS[method_name](self.envs, row, *method_args, **method_kwargs) for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _groups_of_options(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Options, and the rows that are to start with them."""
        groups: list[tuple[dict[str, Any], np.ndarray]] = []
        for options in self._options:
            if all(options != known for known, _ in groups):
                groups.append((options, np.array([other == options for other in self._options])))
        return groups


class WorldModelObservationVecEnv(VecEnvWrapper):
    """`lssvwm_gym.envs.WorldModelObservation` over an SB3 `VecEnv` of real environments; all rows go through the model in one batch.

    A row that ends begins anew with an empty state; `terminal_observation` holds its last numbers. Raises `ValueError` where frames or
    actions are not the dreamed world's, or the observation doesn't exist.
    """

    def __init__(self, venv: VecEnv, dream: Dream, observation: str = "features") -> None:
        self.estimator = StateEstimator(dream, venv.num_envs, observation, venv.observation_space, venv.action_space)
        self._actions = np.zeros(venv.num_envs, np.int64)
        super().__init__(venv, observation_space=self.estimator.space)

    def reset(self) -> np.ndarray:
        return self.estimator.reset(self.venv.reset(), np.arange(self.num_envs))

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        seen, rewards, done, infos = self.venv.step_wait()
        rows = np.flatnonzero(done)
        numbers, ends = self.estimator.step_and_reset(seen, self._actions, done, [infos[row]["terminal_observation"] for row in rows])
        for row, end in zip(rows, ends, strict=True):
            infos[row]["terminal_observation"] = end
        return numbers, rewards, done, infos


def _row(info: dict[str, Any], row: int | np.integer) -> dict[str, Any]:
    """One row of a vector environment's info, without masks."""
    numbers = {name: value for name, value in info.items() if isinstance(value, np.ndarray) and not name.startswith(("_", "final_"))}
    return {name: value[row].copy() if value.ndim > 1 else value[row].item() for name, value in numbers.items()}
