"""The real Memory Maze (Pasukonis et al. 2022, arXiv 2210.13383), simulated by MuJoCo, as a `gymnasium.Env`.

The `memory-maze` package needs the retired `gym` package when it is imported whole, so only its `tasks` module is
loaded here, without running the package's own `__init__`.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from lssvwm_gym.real_envs import SimulatorUnavailable, shown

ACTIONS = ("noop", "forward", "left", "right", "forward_left", "forward_right")
EPISODE_STEPS = {9: 1000, 11: 2000, 13: 3000, 15: 4000}  # the standard task's, by maze size
FPS = 4
SMALLEST_IMAGE = 64  # below it memory-maze has no room for its border
INFO_KEYS = ("agent_pos", "agent_dir", "target_color", "target_pos", "targets_pos", "maze_layout")
SEEDS = 2**32  # how many the simulator tells apart
PIP_INSTALL = "pip install lssvwm_gym[memory-maze]"
APT_PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6", "glfw": "libglfw3 libgl1"}


class MemoryMazeEnv(gym.Env[np.ndarray, np.int64]):
    """Find the ball of the wanted colour, again and again, in a maze that is new in every episode.

    ## Description
    The agent rolls through a maze with 3 to 6 coloured balls. The image's border shows the colour of the wanted one;
    when it is touched, another colour is drawn. Walls and balls stay where they are for the whole episode.

    ## Action Space
    `Discrete(6)`: 0 noop, 1 forward, 2 left, 3 right, 4 forward_left, 5 forward_right, each held for 0.25 s.

    ## Observation Space
    `Box(0, 255, (image_size, image_size, 3), uint8)`: the agent's view inside a border (2 of 64 pixels) of the wanted colour.

    ## Rewards
    1.0 when the wanted ball is touched, else 0.0.

    ## Starting State
    `reset(seed=s)` makes the maze of seed s (taken modulo 2**32), always the same and played alike; `reset()` draws the
    next maze from `self.np_random`. A reset builds the world anew, so nothing of an earlier episode can leak into it.

    ## Episode End
    Never terminated; truncated after `max_episode_steps` steps.

    ## Info
    After `reset` and `step`, in units of one maze cell with cell (x, y) being `maze_layout[y, x]`:

    | key | shape, dtype | meaning |
    |---|---|---|
    | agent_pos, agent_dir | (2,) float32 | position; unit vector of heading |
    | target_color, target_pos | (3,), (2,) float32 | the wanted ball: RGB 0..1, position |
    | targets_pos | (balls, 2) float32 | all balls; 3, 4, 5, 6 of them in sizes 9, 11, 13, 15 |
    | maze_layout | (size, size) uint8 | 1 where the agent can go |

    ## Arguments
    - `size`: cells along a side, one of 9, 11, 13, 15.
    - `render_mode`: None or "rgb_array".
    - `image_size`: pixels along a side, at least 64.
    - `max_episode_steps`: at most, and by default, the standard task's 1000, 2000, 3000, 4000 for sizes 9, 11, 13, 15.

    Rendering needs OpenGL but no display: where `MUJOCO_GL` is unset it becomes "egl" on Linux.

    Raises `ValueError` for an argument or action outside what is listed above, `SimulatorUnavailable` where a Python package or an OpenGL
    library is missing (the message says how to install it).

    ## Version History
    v0: memory-maze 1.0.3.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self, size: int = 9, render_mode: str | None = None, image_size: int = SMALLEST_IMAGE, max_episode_steps: int | None = None
    ) -> None:
        if size not in EPISODE_STEPS:
            raise ValueError(f"size must be one of {', '.join(map(str, EPISODE_STEPS))}, got {size!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if image_size < SMALLEST_IMAGE:
            raise ValueError(f"image_size must be at least {SMALLEST_IMAGE} pixels, got {image_size}")
        if max_episode_steps is not None and not 1 <= max_episode_steps <= EPISODE_STEPS[size]:
            raise ValueError(f"max_episode_steps must be 1 to {EPISODE_STEPS[size]} for size {size}, got {max_episode_steps}")
        self.size, self.render_mode, self.image_size = size, render_mode, image_size
        self.max_episode_steps = max_episode_steps or EPISODE_STEPS[size]
        self.observation_space = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(ACTIONS))
        self._tasks = load_tasks()
        self._simulation: Any = None  # a dm_env.Environment, made by reset
        self._frame: np.ndarray | None = None
        self._steps_left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        maze_seed = int(self.np_random.integers(SEEDS)) if seed is None else seed % SEEDS
        self.close()
        make = getattr(self._tasks, f"memory_maze_{self.size}x{self.size}")
        self._simulation = make(seed=maze_seed, global_observables=True, camera_resolution=self.image_size)
        _feel_touches_at_once(self._simulation)
        self._steps_left = self.max_episode_steps
        return self._observe(self._simulation.reset().observation)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer from 0 to {len(ACTIONS) - 1}, got {action!r}")
        if self._steps_left == 0:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        moment = self._simulation.step(int(action))
        self._steps_left -= 1
        frame, info = self._observe(moment.observation)
        return frame, float(moment.reward), False, self._steps_left == 0, info

    def render(self) -> np.ndarray | None:
        """The current frame, (image_size, image_size, 3) uint8, or None without a render mode."""
        return shown(self._frame, self.render_mode)

    def close(self) -> None:
        if self._simulation is not None:
            self._simulation.close()
        self._simulation, self._frame, self._steps_left = None, None, 0

    def _observe(self, seen: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        self._frame = seen["image"].copy()
        info = {key: seen[key].astype(np.uint8 if key == "maze_layout" else np.float32) for key in INFO_KEYS}
        return self._frame.copy(), info


def _feel_touches_at_once(simulation: Any) -> None:
    """Let the balls find out in one comparison whether they are touched.

    Of themselves they go through all contacts in Python, 150 times a step: two thirds of a step's time, for the same answer.
    """
    for ball in simulation.task._targets:
        ball._update_activation = partial(_activate_if_touched, ball)


def _activate_if_touched(ball: Any, physics: Any) -> None:
    contacts = physics.data.contact
    if not ball.activated and len(contacts) and (contacts.geom == ball._geom_id).any():
        ball._activated = True
        physics.bind(ball.material).rgba[-1] = 0  # invisible


def load_tasks() -> ModuleType:
    """Load `memory_maze.tasks`, with a renderer that needs no display. Raises `SimulatorUnavailable`."""
    if "memory_maze.tasks" in sys.modules:
        return sys.modules["memory_maze.tasks"]
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        with _memory_maze_without_gym():
            _load_renderer()
            tasks = importlib.import_module("memory_maze.tasks")
    except ModuleNotFoundError as error:
        raise SimulatorUnavailable(f"Memory Maze can't run without the Python package {error.name}: {PIP_INSTALL}") from error
    said_at_every_reset = "Cannot set velocity on Entity with no free joint"  # of no consequence
    logging.getLogger("absl").addFilter(lambda record: said_at_every_reset not in record.getMessage())
    return tasks


@contextlib.contextmanager
def _memory_maze_without_gym() -> Iterator[None]:
    """Let submodules of memory_maze be imported while its `__init__`, which needs gym, is left alone."""
    if "memory_maze" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("memory_maze")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'memory_maze'", name="memory-maze")
    sys.modules["memory_maze"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules["memory_maze"]


def _load_renderer() -> None:
    try:
        renderer = importlib.import_module("dm_control._render")
    except ModuleNotFoundError:
        raise
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # each of them, by what exactly is missing
        backend = os.environ.get("MUJOCO_GL", "")
        packages = APT_PACKAGES.get(backend, APT_PACKAGES["egl"] + " and set MUJOCO_GL=egl")
        problem = f"MuJoCo can't render with MUJOCO_GL={backend!r} ({error})"
        raise SimulatorUnavailable(f"{problem}. On Debian: apt-get install {packages}") from error
    if sys.platform == "linux" and renderer.BACKEND == "glfw" and not os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        raise SimulatorUnavailable("MuJoCo draws with glfw, which needs a display: set MUJOCO_GL=egl before dm_control is first imported")
