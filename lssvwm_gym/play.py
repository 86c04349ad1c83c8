"""Walk in a dream by hand: `lssvwm-gym play memory-maze`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import pygame

from lssvwm_gym.data.movie import check_movie, enlarged, write_movie
from lssvwm_gym.worlds import WORLDS, World

REDRAWS = 30  # a second at least, so that keys are read in time while a step waits for its moment
PANEL, MARGIN, LINE = 250, 16, 24  # pixels: width of the panel beside the picture, its margin, height of a line of text
DARK, LIGHT, DIM, ACCENT = (18, 20, 26), (232, 234, 240), (138, 144, 158), (255, 176, 64)
ARROWS = {"up": "w", "left": "a", "down": "s", "right": "d"}
COMMANDS = {"r": "begin anew", "p": "pause", "q": "quit"}


@dataclass(frozen=True)
class Playing:
    """Which dream to walk in, and how it is shown."""

    world: str = "memory-maze"  # its name may also stand first, without --world
    profile: str = "balanced"  # fast, balanced or quality: how carefully each frame is dreamed
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    seed: int | None = None  # of the first dream; the same seed and keys, the same dream
    start: Literal["opening", "cold"] = "opening"  # from a real opening, or from nothing
    context_frames: int | None = None  # begin deep inside a real walk, with so many of its frames remembered
    fps: float | None = None  # steps a second at most; those of the world if not given
    scale: int = 9  # screen pixels a side of one pixel of the dream
    record: Path | None = None  # MP4 or GIF to write when you quit


@dataclass
class Keyboard:
    """Keys that are down, the oldest first. A key tapped between two steps counts for the next one."""

    held: list[str] = field(default_factory=list)
    tapped: list[str] = field(default_factory=list)

    def press(self, key: str) -> None:
        self.held.append(key)
        self.tapped.append(key)

    def release(self, key: str) -> None:
        self.held = [other for other in self.held if other != key]

    def read(self) -> list[str]:
        """The keys since the last call."""
        keys = list(dict.fromkeys([*self.held, *self.tapped]))
        self.tapped = []
        return keys


def chosen_action(keys: dict[str, int], pressed: list[str]) -> int:
    """The action of the longest combination that is pressed, between equals the one with the latest key; 0 if there is none."""
    combinations = [combination for combination in keys if set(combination) <= set(pressed)]
    if not combinations:
        return 0
    return keys[max(combinations, key=lambda combination: (len(combination), max(map(pressed.index, combination))))]


def on_map(path: np.ndarray, size: int, smallest: float = 4.0) -> np.ndarray:
    """Pixels (T, 2) of positions (T, 2) on a square map, where a pose's first heading (x) is up and its left (y) is left.

    The map shows at least `smallest` units of length, and more as the path grows.
    """
    picture = np.stack([-path[:, 1], -path[:, 0]], 1)
    low, high = picture.min(0), picture.max(0)
    extent = max(smallest, float((high - low).max()) * 1.15)
    return (picture - (low + high) / 2) / extent * size + size / 2


class Walk:
    """A dream under way: what was seen, earned and believed so far."""

    def __init__(self, env: gymnasium.Env[np.ndarray, Any], options: dict[str, Any]) -> None:
        self.env, self.options = env, options
        self.paused = False
        self.recorded: list[np.ndarray] = []  # frames of all dreams, one after the other

    def reset(self, seed: int | None = None) -> None:
        frame, info = self.env.reset(seed=seed, options=self.options)
        self.steps, self.reward, self.action, self.over = 0, 0.0, 0, False
        self.poses: list[np.ndarray] = []
        self.moments: deque[float] = deque([time.perf_counter()], maxlen=20)
        self._see(frame, info)

    def step(self, action: int) -> None:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.steps, self.reward, self.action = self.steps + 1, self.reward + float(reward), action
        self.over = terminated or truncated
        self.moments.append(time.perf_counter())
        self._see(frame, info)

    @property
    def goes_on(self) -> bool:
        return not (self.paused or self.over)

    @property
    def steps_a_second(self) -> float:
        passed = self.moments[-1] - self.moments[0]
        return (len(self.moments) - 1) / passed if passed else 0.0

    def _see(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        self.frame = frame
        self.recorded.append(frame)
        if "believed_pose" in info:
            self.poses.append(info["believed_pose"])


class Window:
    """The picture, and beside it what is known about the dream."""

    def __init__(self, world: World, scale: int) -> None:
        pygame.display.init()
        pygame.font.init()
        self.world, self.side = world, world.image_size * scale
        self.screen = pygame.display.set_mode((self.side + PANEL, max(self.side, 480)))
        self.title, self.font, self.small = (pygame.font.Font(None, size) for size in (30, 24, 20))
        pygame.display.set_caption(f"{world.id}: a dream")

    def draw(self, walk: Walk) -> None:
        self.screen.fill(DARK)
        picture = pygame.surfarray.make_surface(walk.frame.swapaxes(0, 1))
        self.screen.blit(pygame.transform.scale(picture, (self.side, self.side)), (0, (self.screen.get_height() - self.side) // 2))
        self._write(0, self.world.name.replace("-", " ").title(), LIGHT, self.title)
        lines = numbers(walk, self.world)
        for row, (name, value) in enumerate(lines.items()):
            self._write(1.6 + row, f"{name:<12}", DIM)
            self._write(1.6 + row, value, LIGHT, indent=96)
        if walk.paused or walk.over:
            self._write(2.2 + len(lines), "over: r begins anew" if walk.over else "paused: p goes on", ACCENT)
        self._draw_map(walk, 3.4 + len(lines))
        self._draw_keys()
        pygame.display.flip()

    def _draw_map(self, walk: Walk, row: float) -> None:
        if not walk.poses:
            return
        self._write(row, "where it believes to be", DIM, self.small)
        top, size = MARGIN + (row + 0.8) * LINE, PANEL - 2 * MARGIN
        size = min(size, int(self.screen.get_height() - top - MARGIN - (len(key_help(self.world)) + 0.5) * LINE * 0.8))
        corner = np.array([self.side + MARGIN, top])
        pygame.draw.rect(self.screen, (30, 33, 42), (*corner, size, size), border_radius=6)
        poses = np.stack(walk.poses)
        points = on_map(poses[:, :2], size) + corner
        if len(points) > 1:
            pygame.draw.aalines(self.screen, DIM, False, points.tolist())
        ahead = np.array([-poses[-1, 3], -poses[-1, 2]])  # on the screen
        aside = np.array([-ahead[1], ahead[0]])
        arrow = [points[-1] + 9 * ahead, points[-1] - 6 * ahead + 6 * aside, points[-1] - 6 * ahead - 6 * aside]
        pygame.draw.polygon(self.screen, ACCENT, [corner.tolist() for corner in arrow])

    def _draw_keys(self) -> None:
        lines = key_help(self.world)
        bottom = (self.screen.get_height() - 2 * MARGIN) / LINE
        for row, (keys, meaning) in enumerate(lines.items()):
            height = bottom - (len(lines) - row - 1) * 0.8 - 0.4
            self._write(height, keys, ACCENT, self.small)
            self._write(height, meaning, DIM, self.small, indent=56)

    def _write(self, row: float, text: str, colour: tuple[int, int, int], font: pygame.font.Font | None = None, indent: int = 0) -> None:
        rendered = (font or self.font).render(text, True, colour)
        self.screen.blit(rendered, (self.side + MARGIN + indent, MARGIN + row * LINE))


def numbers(walk: Walk, world: World) -> dict[str, str]:
    """What the panel says, by name."""
    said = {
        "step": str(walk.steps),
        "steps/s": f"{walk.steps_a_second:.1f}",
        "reward": f"{walk.reward:g}",
        "action": world.actions[walk.action].replace("_", " "),
    }
    if walk.poses:
        x, y, cos, sin = walk.poses[-1]
        said |= {"ahead, left": f"{x:+.1f}, {y:+.1f}", "turned": f"{np.degrees(np.arctan2(sin, cos)):+.0f}°"}
    return said


def key_help(world: World) -> dict[str, str]:
    """Keys, and what they do."""
    return {key: world.actions[action].replace("_", " ") for key, action in world.keys.items() if len(key) == 1} | COMMANDS


def play(run: Playing) -> Walk:
    """Open a window and walk until the player quits. Returns the walk, whose env is closed.

    Raises:
        ValueError: an unknown world, or a recording that is neither MP4 nor GIF.
    """
    if run.world not in WORLDS:
        raise ValueError(f"no world named {run.world!r}; there are {', '.join(WORLDS)}")
    if run.record:
        check_movie(run.record)
    world = WORLDS[run.world]
    fps = run.fps or world.fps
    walk = Walk(gymnasium.make(world.id, render_mode="rgb_array", profile=run.profile, weights=run.weights), reset_options(run))
    try:
        walk.reset(run.seed)
        _walk_until_quit(walk, Window(world, run.scale), world.keys, fps)
    finally:
        walk.env.close()
        pygame.quit()
    if run.record:
        write_movie(run.record, enlarged(np.stack(walk.recorded), 4), fps)
        print(f"{run.record}: {len(walk.recorded)} frames")
    return walk


def reset_options(run: Playing) -> dict[str, Any]:
    """What the env's reset is told about the beginning of the dream."""
    options: dict[str, Any] = {"start": "cold"} if run.start == "cold" else {}
    return options | ({"context_frames": run.context_frames} if run.context_frames is not None else {})


def _walk_until_quit(walk: Walk, window: Window, keys: dict[str, int], fps: float) -> None:
    keyboard, clock = Keyboard(), pygame.time.Clock()
    window.draw(walk)
    due = time.perf_counter()  # when the next step is to be taken
    while all(_obey(event, keyboard, walk) for event in pygame.event.get()):
        now = time.perf_counter()
        if walk.goes_on and now >= due:
            due = max(due + 1 / fps, now)
            walk.step(chosen_action(keys, keyboard.read()))
        window.draw(walk)
        clock.tick(max(REDRAWS, fps))


def _obey(event: pygame.event.Event, keyboard: Keyboard, walk: Walk) -> bool:
    """Whether to go on after an event of the window."""
    if event.type == pygame.QUIT:
        return False
    if event.type not in (pygame.KEYDOWN, pygame.KEYUP):
        return True
    key = pygame.key.name(event.key)
    key = ARROWS.get(key, key)
    if event.type == pygame.KEYUP:
        keyboard.release(key)
    elif key in ("q", "escape"):
        return False
    elif key == "r":
        walk.reset()
    elif key == "p":
        walk.paused = not walk.paused
    else:
        keyboard.press(key)
    return True
