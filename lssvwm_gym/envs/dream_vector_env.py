"""Many dreams in one batch as a `gymnasium.vector.VectorEnv`."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure, tree_unflatten

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.saved_state import EnvState, Resumable, named
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.tensors import TensorFileError, independent
from lssvwm_gym.models.chance import drawn_noise
from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.models.state import DreamState, put_rows, put_rows_in_place, take_rows
from lssvwm_gym.worlds import WorldSpec


class DreamVectorEnv(Resumable, VectorEnv[Any, Any, Any]):
    """`num_envs` dreams that share every pass through the model; see `DreamEnv` for what one of them is.

    Row i dreams what a `DreamEnv` of seed `seed + i` dreams, over any number of episodes, whatever its neighbours do; equal but for the
    last bit of a sum, which a matrix product of another size may round otherwise. A row that ends begins anew within the same step
    (`AutoresetMode.SAME_STEP`): its last frame and info are then in `info["final_obs"]` and `info["final_info"]`.

    ## Arguments
    | Name                | Default | Meaning                                                                              |
    |---------------------|---------|--------------------------------------------------------------------------------------|
    | `world`             |         | as for `DreamEnv`                                                                    |
    | `num_envs`          | 1       | rows                                                                                 |
    | `max_episode_steps` | `None`  | steps after which a row is truncated, -1 or `None`: never; `make_vec` passes the world's |
    | `output`            | `"numpy"` | `"torch"`: tensors on the dream's device, see below                                |
    | `render_mode`, `profile`, `device`, `weights`, `observation`, `dtype`, `backend` | | as for `DreamEnv`                 |

    ## Tensors
    With `output="torch"` the same dreams never leave their device. `step` takes actions as a tensor (num_envs,) of whole numbers, best
    of that device, and all that it and `reset` return are tensors there, copies that are yours: observations of the spaces' shapes and
    dtypes, rewards float32, `terminated` and `truncated` bool, infos and their masks, floats as float32. `info["final_obs"]` has the
    shape of the observations, with zeros for rows that go on. Noise is drawn on the CPU and sent, so that a row dreams what its seed
    alone would. A step in which no row ends waits for nothing, but in worlds whose model can end an episode: there one bool a row is
    read back. `reset_mask` stays an array, and `render` shows arrays. `from_bank` makes thousands of such rows for training.
    """

    metadata: dict[str, Any] = {"render_modes": spaces.RENDER_MODES, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    autoreset_mode = AutoresetMode.SAME_STEP  # as Gymnasium's own batches have it

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
        dream = open_dream(world, profile, device, weights, dtype, backend)
        self._make(dream, num_envs, max_episode_steps, render_mode, observation, output)

    @classmethod
    def continuing(
        cls,
        dream: Dream,
        state: EnvState,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observation: str = "all",
        output: str = "numpy",
    ) -> "DreamVectorEnv":
        """An environment whose rows go on from those of `state`, without a reset."""
        envs = cls.__new__(cls)
        envs._make(dream, len(state), max_episode_steps, render_mode, observation, output)
        envs.restore_state(state)
        return envs

    @classmethod
    def from_bank(
        cls,
        dream: Dream,
        bank: DreamState,
        num_envs: int,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        observation: str = "all",
        output: str = "torch",
        seed: int = 0,
        stagger: bool = False,
    ) -> "DreamVectorEnv":
        """An environment whose rows begin, after `reset` and whenever one ends, with random states of a bank, which stays as it is.

        Made for training in thousands of rows: states of the bank are copied into their rows, and noise is drawn for all rows at once
        on the device, so a row's dream is not its seed's. All draws come from one generator of `seed`, or of the one that `reset` takes;
        `reset` takes no options but `reset_mask`. With `output="torch"` nothing in a step waits for the device, but in worlds whose
        model can end an episode. With `stagger`, the first episodes after a reset of all rows are as if begun, row by row, between 0
        and `max_episode_steps` steps ago (see `episode_steps`), so that not all rows end together.

        `state_dict` and `load_state_dict` save all of it; `clone_state` copies the rows and leaves out the generator. Raises
        `ValueError` for an argument that is out of range, and for `stagger` without `max_episode_steps`.
        """
        if stagger and max_episode_steps is None:
            raise ValueError("stagger needs max_episode_steps, after which rows end one by one")
        envs = cls.__new__(cls)
        envs._make(dream, num_envs, max_episode_steps, render_mode, observation, output)
        envs._bank, envs._stagger, envs._in_place = bank, stagger, True
        envs._generator = torch.Generator(dream.device).manual_seed(seed)
        return envs

    def _make(
        self, dream: Dream, num_envs: int, max_episode_steps: int | None, render_mode: str | None, observation: str, output: str
    ) -> None:
        if output not in spaces.OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(spaces.OUTPUTS)}, not {output!r}")
        max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        for name, value in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self._set_up(dream, num_envs, render_mode, observation)
        self.num_envs, self.max_episode_steps, self.output = num_envs, max_episode_steps, output
        self.single_observation_space = spaces.observation_space(dream.world, dream.weights.world_model.config, self.kind)
        self.single_action_space = spaces.action_space(dream.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random = [seeding.np_random()[0] for _ in range(num_envs)]
        self._seeds, self._ages = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)  # the state's, known here without asking it
        self.start: dict[str, Any] = {}  # options of reset with which rows that end begin anew
        self._bank: DreamState | None = None
        self._stagger, self._generator = False, torch.Generator(dream.device)  # draws states of the bank, and its rows' noise

    @independent
    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin all rows anew, or those in `options["reset_mask"]`, a bool array (num_envs,).

        An integer seeds row i with `seed + i`; a list has a seed, or None, a row. All other options are `DreamEnv`'s.
        """
        options = spaces.checked_options(options)
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},) with a row to reset, not {mask!r}")
        seeds = self._checked_seeds(seed) if self._bank is None else self._seed_bank(seed, options)
        before = copy.deepcopy(self._random)
        try:
            for row in np.flatnonzero(mask):
                if seeds[row] is not None:
                    self._random[row], _ = seeding.np_random(seeds[row])
            state = self._begin(mask, options)
        except Exception:  # a reset that is refused has not happened: it draws no seed either
            self._random = before
            raise
        if self._stagger and mask.all():
            self._steps = np.arange(self.num_envs) * (self.max_episode_steps or 0) // self.num_envs
        return self._given((self._observed(), spaces.batched(self.dream.info(state), self._sent(mask))))

    @independent
    @torch.no_grad()
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        before, dream = self._state("step"), self.dream
        if self.output == "torch":
            action = spaces.checked_tensors(actions, dream.world, self.num_envs, dream.device)
        else:
            action = spaces.checked_actions(actions, dream.world, (self.num_envs,))
        step = dream.step(before, action, self._noise())
        state, reward, terminated = step[:3]
        self._now = state, self._seen_frames(state)
        self._steps, self._ages = self._steps + 1, self._ages + 1
        truncated = self._steps >= (self.max_episode_steps or np.inf)
        ends = dream.weights.world_model.termination_head is not None  # else it is known without asking the device
        done = truncated | terminated.cpu().numpy() if ends else truncated
        info, ended = dream.info(state, step), dict[str, Any]()
        if done.any():
            ended = spaces.final(self._observed(), info, self._sent(done))
            info = dream.info(self._begin(done, self.start))
        told = spaces.Info({**ended, **spaces.batched(info, torch.ones_like(terminated))})
        reward = reward.float() if self.output == "torch" else reward
        return self._given((self._observed(), reward, terminated, self._sent(truncated), told))

    @independent
    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames of all rows."""
        frames = self._rendered()
        return None if frames is None else tuple(frames)

    @independent
    def restore_state(self, state: EnvState) -> Any:
        """Go back to that moment; returns its observations. Raises `ValueError` for other weights or another number of rows."""
        observations = super().restore_state(state)
        self._seeds, self._ages = (np.array(numbers.tolist(), np.int64) for numbers in (state.dream.seed, state.dream.world.age))
        return observations

    @independent
    def branch(self, n: int, same_noise: bool = False) -> "DreamVectorEnv":
        """An environment of `num_envs * n` rows in which each of these goes on n times, side by side; see `DreamEnv.branch`."""
        state = self.clone_state().branched(n, same_noise)
        return self.continuing(self.dream, state, self.max_episode_steps, self.render_mode, self.kind, self.output)

    @property
    def episode_steps(self) -> np.ndarray:
        """Steps of each row's present episode, int64 (num_envs,), a copy."""
        return self._steps.copy()

    @independent
    def state_dict(self) -> dict[str, Tensor]:
        """All that rows from a bank need to go on exactly as they would have; `load_state_dict` takes it back."""
        state = tree_map(torch.clone, self._state("state_dict"))
        rest = {"steps": torch.from_numpy(self._steps.copy()), "generator": self._generator.get_state()}
        return {**{f"state.{name}": leaf for name, leaf in named(state).items()}, **rest}

    @independent
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> Any:
        """Go on from what `state_dict` gave; returns the observations. Raises `TensorFileError` for rows of another kind or number."""
        mine = self.state_dict()
        kinds = [{(name, tensor.dtype, tensor.shape) for name, tensor in one.items()} for one in (mine, tensors)]
        if unlike := {name for name, *_ in kinds[0] ^ kinds[1]}:
            raise TensorFileError(f"saved dreams are of another kind or number: {', '.join(sorted(unlike)[:4])} differ")
        leaves = [tensors[name].to(self.dream.device, copy=True) for name in mine if name.startswith("state.")]
        state: DreamState = tree_unflatten(leaves, tree_structure(self._state("load_state_dict")))
        self._now, self._steps = (state, self._seen_frames(state)), tensors["steps"].cpu().numpy().copy()
        self._generator.set_state(tensors["generator"].cpu())
        return self._observation()

    def _begin(self, mask: np.ndarray, options: dict[str, Any]) -> DreamState:
        """Start new dreams in the rows of the mask and leave all others as they are."""
        rows = np.flatnonzero(mask)
        if self._bank is not None:
            drawn = torch.randint(len(self._bank.seed), (len(rows),), generator=self._generator, device=self.dream.device)
            fresh = take_rows(self._bank, drawn)
        else:
            seeds = torch.tensor([spaces.draw_seed(self._random[row]) for row in rows])
            fresh = self.dream.reset(seeds, options)
            self._seeds[rows] = seeds.numpy()  # the age of a short context is known; after other options it is read back
            self._ages[rows] = int(fresh.world.age[0]) if options else len(self.dream.weights.short_contexts)
        frames = self._seen_frames(fresh)
        if len(rows) < self.num_envs:
            (before, shown), index = self._now or self._blank(), self._sent(rows)
            put = put_rows if self._bank is None else put_rows_in_place
            fresh = put(before, index, fresh)
            frames = None if frames is None or shown is None else put(shown, index, frames)
        self._now = fresh, frames
        self._steps[rows], self._begun[rows] = 0, True
        return fresh

    def _seed_bank(self, seed: Any, options: dict[str, Any]) -> list[None]:
        """Seed the one generator of rows from a bank; what is left for each row's own."""
        if options:
            raise ValueError(f"rows that begin with states of a bank take no options but reset_mask, not {', '.join(map(str, options))}")
        if seed is not None:
            if not spaces.is_whole(seed) or seed < 0:
                raise ValueError(f"rows that begin with states of a bank have one seed, a whole number, not below 0, not {seed!r}")
            self._generator.manual_seed(int(seed))
        return [None] * self.num_envs

    def _noise(self) -> Tensor:
        """Noise for the next frame of all rows, by their seeds, drawn on the CPU and sent; with a bank in one draw on the device."""
        model = self.dream.weights.world_model
        if self._bank is None:
            return self._sent(drawn_noise(model, self._seeds.tolist(), self._ages.tolist()))
        shape = (self.num_envs, model.config.tokens, model.config.latent_channels)
        return torch.randn(shape, generator=self._generator, device=self.dream.device, dtype=torch.float32)

    def _blank(self) -> tuple[DreamState, Tensor]:
        size = self.dream.world.image_size
        frames = torch.zeros((self.num_envs, size, size, 3), dtype=torch.uint8, device=self.dream.device)
        return self.dream.empty(torch.zeros(self.num_envs, dtype=torch.int64)), frames

    def _sent(self, values: np.ndarray | Tensor) -> Tensor:
        """What is on the CPU as a tensor of the dream's device."""
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(values.copy())
        if self.dream.device.type != "cuda" or not tensor.numel():
            return tensor.to(self.dream.device)
        return tensor.pin_memory().to(self.dream.device, non_blocking=True)  # from elsewhere it would wait

    def _observed(self) -> Any:
        assert self._now is not None
        return spaces.observed(self.dream.world, self.kind, *self._now)

    def _observation(self) -> Any:
        return self._given((self._observed(),))[0]

    def _given(self, values: tuple[Any, ...]) -> Any:
        return values if self.output == "torch" else tuple(map(spaces.arrays, values))

    def _seen_frames(self, state: DreamState) -> Tensor | None:
        return self.dream.frame(state) if spaces.needs_frame(self.kind) else None

    def _checked_seeds(self, seed: Any) -> list[int | None]:
        if seed is None or spaces.is_whole(seed):
            seed = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        if not isinstance(seed, list | tuple) and not (isinstance(seed, np.ndarray) and seed.ndim == 1):
            raise ValueError(f"seed must be None, a whole number, or a list of them, not {seed!r}")
        seeds: list[Any] = [int(one) if spaces.is_whole(one) else one for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} rows")
        if wrong := [one for one in seeds if not (one is None or (spaces.is_whole(one) and one >= 0))]:
            raise ValueError(f"a seed must be None or a whole number, not below 0, but there is {wrong[0]!r}")
        return seeds

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_envs={self.num_envs}, {self.dream!r})"
