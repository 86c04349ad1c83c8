"""One dream as a `gymnasium.Env`."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Space

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.saved_state import Resumable
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.tensors import independent
from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.worlds import WorldSpec


class DreamEnv(Resumable, gymnasium.Env[Any, np.int64]):
    """A world that exists in a model's memory only.

    ## Description
    No simulator runs. A long-context state-space video world model imagines every frame from the action and from a memory of
    constant size, so step 10,000 costs what step 10 costs. The memory holds everything seen since the dream began. The same
    seed and the same actions give the same dream.

    ## Action Space
    `Discrete(n)`: the world's actions, in the order of `env.unwrapped.dream.world.actions`. For `memory-maze`:

    | Num | Action        |
    |-----|---------------|
    | 0   | noop          |
    | 1   | forward       |
    | 2   | left          |
    | 3   | right         |
    | 4   | forward_left  |
    | 5   | forward_right |

    ## Observation Space
    `Box(0, 255, (64, 64, 3), uint8)`: what is seen now, RGB. `render()` gives the same picture. In worlds with counts, such as
    `minecraft`, a `Dict` of that `image` and `inventory`, `Box(0, 3267, (9,), int32)`, in the order of
    `env.unwrapped.dream.world.inventory`; with `observation="image"` the picture alone.

    More observations are numbers that the model has anyway, float32; they spare the decoder, and `render()` still shows the picture.
    In worlds that have an inventory, `+inventory` behind those with features appends it, (V,).
    `lssvwm_gym.envs.WorldModelObservation` makes the same of a real environment.

    | `observation`       | Space                               | Meaning                                                          |
    |---------------------|-------------------------------------|------------------------------------------------------------------|
    | `"features"`        | `Box(-16, 16, (256,))`              | summary of this frame and of all before it, the world's memory   |
    | `"latent"`          | `Box(-32, 32, (tokens * channels,))` | the frame's latent, of which the picture is decoded              |
    | `"latent+features"` |                                     | both, one behind the other                                       |
    | `"map+wanted+pose"` | `((1 + K) * 441 + K + 4,)`          | the map of a world that has one, the wanted kind of K, the pose   |

    `info`, after `reset` and after every `step`:

    | Key                  | Type               | Meaning                                                                    |
    |----------------------|--------------------|----------------------------------------------------------------------------|
    | `age`                | int                | frames in the dream's memory, those it began with included                 |
    | `reward_probability` | float, 0..1        | how sure the model is that this frame's reward is other than 0              |
    | `estimated_pose`      | float32 array (4,) | where it believes to be: x, y, cos, sin of heading; (6,) with height, tilt |
    | `familiarity`        | float, 0..1        | how well the memory knew this place before this frame                      |
    | `inventory`          | int32 array (9,)   | the counts, in worlds that have any                                        |
    | `uncertainty`        | float, 0 or more   | how far the passes over this frame disagree; high where it is likely wrong |
    | `termination_probability` | float, 0..1   | that this step ended the episode, where the model has learned when they do |

    The pose is in the world's units of length, seen from the first frame in memory, and only there in worlds whose model
    keeps poses. `uncertainty` is the mean square difference of the first and the last estimate of the latent: 0 for real
    frames, and only there with profiles of more than one pass.

    ## Rewards
    The most probable of the world's reward values, as the model judges from what it has just imagined. For `memory-maze`:
    1 on touching the ball whose colour frames the picture, else 0. In worlds with milestones, such as `minecraft`, what the
    counts are worth when they first rise above 0, once an episode each.

    ## Starting State
    The dream is conditioned on a short real context, drawn by the seed, whose last frame is the first observation. `reset(options=...)`
    starts elsewhere:

    | Options                          | The dream starts                                                                |
    |----------------------------------|---------------------------------------------------------------------------------|
    | `{"context_id": 3}`              | from short context 3                                                            |
    | `{"context_frames": 200}`        | from the first 200 frames of a long real context                                |
    | `{"episode": "walk.npz"}`        | from the first 32 frames of an episode of your own                              |
    | `{"episode": ..., "context_frames": 9}` | the same with 9 frames                                                   |
    | `{"start": "cold"}`              | from nothing: the first frame is imagined too                                   |
    | `{"inventory": [0, 3, ...]}`     | with these counts, beside any of the others; they are no milestones any more     |

    ## Episode End
    Terminated where the model has learned that episodes end in this world; in `memory-maze` they never do. It is drawn, with
    `termination_probability`, from the row's own noise: so dreams end as often as episodes do, also where the model isn't sure, and
    the same seed ends the same. Truncated after
    the world's `max_episode_steps` by Gymnasium's `TimeLimit`, which `gymnasium.make` puts around the environment.

    ## Arguments
    | Name          | Default      | Meaning                                                                                       |
    |---------------|--------------|-----------------------------------------------------------------------------------------------|
    | `world`       |              | name of a world, or a `WorldSpec`; the registered ids set it                                      |
    | `render_mode` | `None`       | `None` or `"rgb_array"`                                                                       |
    | `profile`     | `"balanced"` | `"fast"`, `"balanced"` or `"quality"`: 1, 4 or 8 denoising steps a frame of the flow head, where  |
    |               |              | the weights have one, else 1, 2 or 4 of the world model                                       |
    | `device`      | `"auto"`     | a torch device; `"auto"` is CUDA where there is one, else the CPU                             |
    | `weights`     | `None`       | another folder of weights                                                                     |
    | `observation` | `"all"`      | `"image"` leaves out the counts; `"features"`, `"latent"`, `"latent+features"`, ...: see above |
    | `dtype`       | `"auto"`     | on a CPU `"float32"`, `"bfloat16"`, or, `"auto"`, only pictures in the latter, where it has it  |
    | `backend`     | `"auto"`     | `"auto"` and `"torch"`: eager PyTorch; on CUDA also `"mamba"`, scans by mamba-ssm's kernels;      |
    |               |              | on a CPU also `"compiled"`: the first step compiles for a minute, those after it are quicker    |

    ## State
    `clone_state()` and `restore_state(state)` go back in time, bit for bit with the same profile, device and dtype;
    `save_state(path)` and `load_state(path)` do it across processes; `branch(n)` goes on in n ways at once. They belong to
    the dream and so are found on `env.unwrapped`. A `TimeLimit` around it counts on by itself.

    ## Version History
    * v0: first version
    """

    def __init__(
        self,
        world: str | WorldSpec,
        render_mode: str | None = None,
        profile: str = "balanced",
        device: str = "auto",
        weights: str | Path | None = None,
        observation: str = "all",
        dtype: str = "auto",
        backend: str | Backend = "auto",
    ) -> None:
        self._set_up(open_dream(world, profile, device, weights, dtype, backend), 1, render_mode, observation)
        self.observation_space = spaces.observation_space(self.dream.world, self.dream.weights.world_model.config, self.kind)
        self.action_space: Space[Any] = spaces.action_space(self.dream.world)

    @independent
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        before = copy.deepcopy(self._np_random), self._np_random_seed
        try:
            super().reset(seed=seed)
            state = self.dream.reset(torch.tensor([spaces.draw_seed(self.np_random)]), options)
        except Exception:  # a reset that is refused has not happened: it draws no seed either
            self._np_random, self._np_random_seed = before
            raise
        self._now = state, None
        self._begun[:], self._steps[:] = True, 0
        return self._observation(), spaces.single(self.dream.info(state))

    @independent
    def step(self, action: np.int64 | int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        step = self.dream.step(self._state("step"), spaces.checked_actions(action, self.dream.world, ()))
        self._now = step.state, None
        self._steps += 1
        info = spaces.single(self.dream.info(step.state, step))
        return self._observation(), float(step.reward[0]), bool(step.terminated[0]), False, info

    @independent
    def render(self) -> np.ndarray | None:
        frames = self._rendered()
        return None if frames is None else frames[0]

    def get_keys_to_action(self) -> dict[tuple[int, ...], int]:
        """Codes of the keys held down together, and the action they mean, for `gymnasium.utils.play.play`."""
        return {tuple(sorted(map(ord, keys))): action for keys, action in self.dream.world.keys.items()}

    @independent
    def branch(self, n: int, same_noise: bool = False, max_episode_steps: int | None = None) -> DreamVectorEnv:
        """n dreams that go on from here, apart from each other and from this one.

        Row 0 dreams what this environment would; the others get noise of their own, or the very same with `same_noise`, so
        that only actions tell them apart. They are truncated, and begin anew, when `max_episode_steps` are reached, of which
        those taken here count; by default never.
        """
        state = self.clone_state().branched(n, same_noise)
        return DreamVectorEnv.continuing(self.dream, state, max_episode_steps, self.render_mode, self.kind)

    @property
    def _random(self) -> list[np.random.Generator]:
        return [self.np_random]

    @_random.setter
    def _random(self, random: list[np.random.Generator]) -> None:
        (self.np_random,) = random

    def _observation(self) -> Any:
        frame = self._frames("reset") if spaces.needs_frame(self.kind) else None
        return spaces.row_of(spaces.arrays(spaces.observed(self.dream.world, self.kind, self._state("reset"), frame)), 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dream!r})"
