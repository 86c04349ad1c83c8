"""Collect episodes from any Gymnasium environment: `lssvwm-gym collect gym --env CartPole-v1 --out DIR`.

Frames are the observations where those are pictures, else what the environment renders as `rgb_array`; actions are Discrete or Box, and
drawn at random. What else a Dict observes in a few numbers, such as health, is recorded beside the picture. With the episodes,
`collecting.json` says how they were made: `lssvwm-gym package` takes the world's record from there.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.spaces import Box, Dict, Discrete

from lssvwm_gym.data.collect import Collected, Collecting, Policy, Recorder, Source, gather, record
from lssvwm_gym.data.convert.recording import Framing, framed, keep_settings, not_a_picture, note, read_settings
from lssvwm_gym.data.episode import EpisodeError, write_episode
from lssvwm_gym.io.json_config import Bounds, check_bounds, fields_of, parsed
from lssvwm_gym.io.video import VIDEO_CRF
from lssvwm_gym.io.worker_pool import Work
from lssvwm_gym.real_envs.experts.maze_players import Sticky, draw
from lssvwm_gym.worlds.spec import LARGEST_NUMBER

SETTINGS = "collecting.json"
FPS = 15  # where the environment doesn't say how fast it runs
TRIED = 30  # steps in which pictures are told from codes
MOST_BESIDE = 64  # numbers of a part of an observation that is recorded beside the picture
TRIES = 50  # seeds that are tried for an episode that is long enough
UNITS = {"radians": 1.0, "degrees": np.pi / 180, "quarters": np.pi / 2}
HEADLESS = {"PYGLET_HEADLESS": "true", "SDL_VIDEODRIVER": "dummy", "MUJOCO_GL": "egl"}  # where there is no screen

POSE = ("agent_pos", "agent_dir")
BOUNDS = Bounds(numbers=(-np.inf, np.inf), most=2**16, letters=10**6, any_whole=(1, 2**31))  # of what `collecting.json` says


@dataclass(frozen=True)
class GymCollecting:
    """What to collect from which environment."""

    env: str  # its id
    out: Path  # folder of the episodes
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()  # modules that register environments, such as miniworld
    kwargs: str = "{}"  # JSON object, for gymnasium.make
    episodes: int = 100
    workers: int = 2  # processes
    first_seed: int = 0  # the seeds are first_seed, first_seed + 1, ...
    steps: int = 250  # an episode at most, which has one frame more
    least: int = 2  # frames of an episode; shorter ones are played anew with another seed, so that how episodes end early is not learned
    sticky: float = 0.75  # chance that an action is taken again
    odds: tuple[float, ...] = ()  # how often each Discrete action is drawn beside the others; all alike if not given
    pixels: Literal["auto", "observation", "render"] = "auto"  # auto: observations where they are pictures
    size: int = 64  # pixels a side of the square frames
    crop: bool = False  # take the middle square of a frame; otherwise all of it is squeezed into the square
    fps: int = 0  # frames a second of world time; 0: what the environment says
    position: str = ""  # where the agent is: a key of info, or an attribute of the environment such as agent.pos
    plane: tuple[int, int] = (1, 2)  # which two of its numbers span the floor, from 1; negative: mirrored
    angle: str = ""  # where it looks, likewise: counter-clockwise in that plane
    unit: Literal["radians", "degrees", "quarters"] = "radians"  # of the angle
    crf: int = VIDEO_CRF  # 0 (lossless) .. 51 (worst)

    def __post_init__(self) -> None:
        check_bounds(self, steps=1, least=2, size=8, fps=0)
        if self.least > self.steps + 1:
            raise ValueError(f"an episode of {self.steps} steps has {self.steps + 1} frames: least can't be {self.least}")
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky is a chance from 0 to below 1, got {self.sticky}")
        if self.odds and (min(self.odds) < 0 or not 0 < sum(self.odds) < np.inf):
            raise ValueError(f"odds are not negative and one of them is above 0, got {self.odds}")
        if bool(self.position) != bool(self.angle):
            raise ValueError("position and angle make a pose together: give both or none")
        if 0 in self.plane:
            raise ValueError(f"plane counts from 1, got {self.plane}")
        _ = self.arguments, self.plain

    @property
    def arguments(self) -> dict[str, Any]:
        """For `gymnasium.make`."""
        try:
            return dict(parsed(self.kwargs))
        except (ValueError, TypeError) as error:
            raise ValueError(f"kwargs must be a JSON object, not {self.kwargs!r} ({error})") from None

    @property
    def plain(self) -> Collecting:
        """What all collections have in common."""
        return Collecting(self.env, self.out, self.episodes, self.workers, self.first_seed, steps=self.steps, crf=self.crf)


@dataclass(frozen=True)
class Collection:
    """How the episodes of a folder were made, as `collecting.json` says it."""

    env: str
    kwargs: str
    pixels: str
    size: int
    crop: bool
    fps: int
    steps: int
    poses: bool
    actions: tuple[str, ...] = ()  # names of the Discrete actions
    low: tuple[float | None, ...] = ()  # bounds of a Box, flat; None where there is none
    high: tuple[float | None, ...] = ()
    inventory: tuple[str, ...] = ()  # names of the numbers that are observed beside the picture


def collect_gym(run: GymCollecting, open_work: Callable[[GymCollecting], Work] | None = None) -> Collected:
    """Collect the episodes that are not yet in `run.out`, as `lssvwm_gym.data.collect.collect` does.

    `open_work` is a worker's work, importable by name, in place of `GymRecorder` with a player at random. Raises `ValueError` for an
    environment that can't be made, or that has neither pictures nor Discrete or Box actions, `EpisodeError` where the folder holds episodes
    that were made in another way, `WorkerPoolError` where it can't be made in another process.
    """
    env = make(run)
    with env:
        draw(env.action_space, np.random.default_rng(0), run.odds)
        env.reset(seed=run.first_seed)
        collection = env.described()
        keep_settings(run.out / SETTINGS, asdict(collection), "collect")
    run = replace(run, pixels="observation" if collection.pixels == "observation" else "render")
    return gather(run.plain, partial(open_work or GymRecorder, run), run.steps + 1)


def read_collection(folder: Path) -> Collection | None:
    """How a folder's episodes were collected; None where they were not collected here. Raises `EpisodeError` for a broken file."""
    return read_settings(Path(folder) / SETTINGS, lambda said: Collection(**fields_of(Collection, said, BOUNDS)), "collect")


class GymRecorder(Recorder):
    """A worker's work: one environment, kept open, and an episode written for every seed."""

    def __init__(self, run: GymCollecting, make_policy: Callable[[np.random.Generator], Policy] | None = None) -> None:
        """`make_policy` gives an episode's player, where that is not one that draws at random."""
        self._run, env = run, make(run)
        policy = make_policy or partial(Sticky, env.action_space, run.odds, run.sticky)
        super().__init__(run.plain, Source(lambda _: env, policy, env.fps, POSE if run.position else (), frame=env.picture))

    def __call__(self, seed: int, report: Callable[[int], None] = lambda frames: None) -> None:
        run, longest = self._run, 0
        for attempt in range(TRIES):
            tried = seed if attempt == 0 else int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0]) // 2
            policy = self._source.make_policy(np.random.default_rng([tried, 1]))
            report = report if attempt == 0 else lambda frames: None
            episode = record(self._env, policy, self._source, tried, run.steps, report)
            if len(episode) >= run.least:
                write_episode(run.plain.path(seed), episode, self._source.fps, run.crf)
                return
            longest = max(longest, len(episode))
        choose = "Choose a smaller --least, for training takes episodes of any length, or other --odds and --sticky"
        raise EpisodeError(f"{run.env} ends early: of {TRIES} episodes the longest has {longest} frames, not {run.least}. {choose}")


class Framed(gym.Wrapper):
    """Any environment as one whose observations are square pictures, with actions counted from 0 or flat, and poses in info."""

    def __init__(self, env: gym.Env, run: GymCollecting, key: str | None) -> None:
        """`key` of the picture in a Dict; "" where observations are pictures; None where they are rendered."""
        super().__init__(env)
        self._run, self._key, self._framing = run, key, Framing(run.size, run.crop)
        self._beside = numbers_beside(env.observation_space)
        self._last = np.zeros((run.size, run.size, 3), np.uint8)
        image = self.observation_space = Box(0, 255, (run.size, run.size, 3), np.uint8)
        if beside := sum(self._beside.values()):
            self.observation_space = Dict({"image": image, "inventory": Box(-LARGEST_NUMBER, LARGEST_NUMBER, (beside,), np.float32)})
        inner, self._start = env.action_space, 0
        if isinstance(inner, Discrete):
            self.action_space, self._start = Discrete(inner.n), int(inner.start)
        elif isinstance(inner, Box) and inner.dtype.kind == "f":
            self.action_space = Box(inner.low.ravel(), inner.high.ravel(), dtype=inner.dtype.type)
        else:
            raise ValueError(f"{run.env}: actions are {inner}; an episode has Discrete actions or a Box of floats")

    @property
    def fps(self) -> int:
        return self._run.fps or max(1, round(self.metadata.get("render_fps") or FPS))

    @property
    def picture(self) -> str | None:
        """The key of the picture in an observation; None where that is the picture."""
        return "image" if self._beside else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._last = self._frame(observation)
        return self._observed(observation), self._poses(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        inner = self.env.action_space
        action = np.reshape(action, inner.shape) if isinstance(inner, Box) else int(action) + self._start
        observation, reward, terminated, truncated, info = self.env.step(action)
        frame = self._frame(observation)
        if terminated and frame.min() == frame.max():  # nothing is shown of a game that is over: no dream should show that
            frame = self._last
        self._last = frame
        return self._observed(observation), reward, terminated, truncated, self._poses(info)

    def described(self) -> Collection:
        """After a reset."""
        run, space = self._run, self.action_space
        common = (run.env, run.kwargs, "render" if self._key is None else "observation", run.size, run.crop, self.fps, run.steps)
        beside = tuple(name if size == 1 else f"{name}_{number}" for name, size in self._beside.items() for number in range(size))
        if isinstance(space, Discrete):
            return Collection(*common, bool(run.position), tuple(action_names(self.env, int(space.n))), inventory=beside)
        low, high = (tuple(float(x) if np.isfinite(x) else None for x in bound) for bound in (space.low, space.high))  # type: ignore[attr-defined]
        return Collection(*common, bool(run.position), (), low, high, beside)

    def _frame(self, observation: Any) -> np.ndarray:
        frame = np.asarray(self.env.render() if self._key is None else observation[self._key] if self._key else observation)
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"{self._run.env}: frames are {frame.dtype} {frame.shape}, not uint8 (height, width, 3)")
        return framed(frame, self._framing)

    def _observed(self, observation: Any) -> Any:
        """The last frame, in a dict where numbers go with it."""
        if not self._beside:
            return self._last
        numbers = np.concatenate([np.ravel(observation[name]) for name in self._beside]).clip(-LARGEST_NUMBER, LARGEST_NUMBER)
        return {"image": self._last, "inventory": numbers.astype(np.float32)}

    def _poses(self, info: dict[str, Any]) -> dict[str, Any]:
        run = self._run
        if not run.position:
            return info
        position = np.ravel(self._numbers(run.position, info))
        if max(map(abs, run.plane)) > len(position):
            raise ValueError(f"{run.env}: {run.position} has {len(position)} numbers, of which --plane {run.plane} takes none such")
        place = [np.sign(axis) * position[abs(axis) - 1] for axis in run.plane]
        angle = float(np.ravel(self._numbers(run.angle, info))[0]) * UNITS[run.unit]
        return {"agent_pos": np.array(place, np.float32), "agent_dir": np.array([np.cos(angle), np.sin(angle)], np.float32)}

    def _numbers(self, name: str, info: dict[str, Any]) -> np.ndarray:
        if name in info:
            return np.asarray(info[name], np.float64)
        found: Any = self.env.unwrapped
        for part in name.split("."):
            if part.startswith("_") or not hasattr(found, part):
                raise ValueError(f"{self._run.env}: neither info nor the environment has {name}; info has {', '.join(info) or 'nothing'}")
            found = getattr(found, part)
        return np.asarray(found, np.float64)


def make(run: GymCollecting) -> Framed:
    """The environment as one of pictures. Raises `ValueError` where it is none, with what to do."""
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software rendering must not use the other workers' cores
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        for name, value in HEADLESS.items():
            os.environ.setdefault(name, value)
    for module in run.imports:
        importlib.import_module(module)
    if run.pixels != "render":
        env = _made(run)
        key = _picture(env, run)
        if key is not None and run.pixels == "observation":
            return Framed(env, run, key)
        codes = _tried(env, key) if key is not None else ""
        env.close()
        if key is not None and not codes:
            return Framed(_made(run), run, key)
        if codes:
            instead = "What it renders is recorded instead; --pixels observation records them all the same"
            note(f"{run.env}: observations {key} are no pictures: {codes}. {instead}")
    return Framed(_made(run, render_mode="rgb_array"), run, None)


def _made(run: GymCollecting, **more: Any) -> gym.Env:
    try:
        return gym.make(run.env, disable_env_checker=True, **{**run.arguments, **more})
    except gym.error.Error as error:
        why = str(error).rstrip(".")
        raise ValueError(f"{run.env} can't be made: {why}. --import MODULE registers the environments of a package") from None


def _picture(env: gym.Env, run: GymCollecting) -> str | None:
    """The key of the observations' picture, "" where they are one, None where there is none to be had."""
    space = env.observation_space
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
    pictures = [name for name, part in parts.items() if isinstance(part, Box) and part.dtype == np.uint8 and part.shape[2:] == (3,)]
    if len(pictures) == 1:
        return str(pictures[0])
    if run.pixels == "observation":
        raise ValueError(f"{run.env}: observations are {space}, of which {len(pictures)} are uint8 pictures; try --pixels render")
    return None


def numbers_beside(space: gym.Space) -> dict[str, int]:
    """How many numbers each part of a Dict holds that is one or a few numbers, such as health or speed; pictures and texts are none."""
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    shapes = {name: part.shape or () for name, part in parts.items() if isinstance(part, (Box, Discrete))}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items() if len(shape) < 2}
    return {name: size for name, size in sizes.items() if size <= MOST_BESIDE}


def _tried(env: gym.Env, key: str) -> str:
    """Why observations of uint8 (height, width, 3) are no pictures, after some steps at random; "" where they are."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    seen = [observation[key] if key else observation]
    for _ in range(TRIED):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation[key] if key else observation)
        if terminated or truncated:
            env.reset()
    return not_a_picture(np.stack(seen))


def action_names(env: gym.Env, count: int) -> list[str]:
    """What the environment calls its Discrete actions, by `get_action_meanings` or an Enum `actions`; else their numbers."""
    inner: Any = env.unwrapped
    names: list[str] = []
    if callable(meanings := getattr(inner, "get_action_meanings", None)):
        names = [str(name).lower() for name in meanings()][:count]
    else:
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            names = [one.name for one in sorted(inner.actions, key=int)][:count]
    return names if len(names) == len(set(names)) == count else [str(number) for number in range(count)]
