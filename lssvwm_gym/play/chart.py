"""The map: where the dream believes to have been, and where it really was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pygame

from lssvwm_gym.play.pens import ACCENT, DIM, FAINT, LIGHT, REAL, Pens

SMALLEST = 4.0  # units of length that the map shows at least


def on_map(path: np.ndarray, size: int, around: np.ndarray | None = None) -> np.ndarray:
    """Pixels (T, 2) of positions (T, 2) on a square map, where a pose's first heading (x) is up and its left (y) is left.

    All positions `around`, or else of the path itself, fit in; the map grows with them.
    """
    low, high = _bounds(path if around is None else around)
    extent = max(SMALLEST, float((high - low).max()) * 1.15)
    return (_up_is_ahead(path) - (low + high) / 2) / extent * size + size / 2


def draw_map(screen: pygame.Surface, pens: Pens, box: pygame.Rect, believed: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> None:
    """Both trails in one frame, that of the first pose, with an arrow where each is now and a scale below."""
    pygame.draw.rect(screen, FAINT, box, border_radius=6)
    if not believed:
        return
    trails = [(np.stack(poses), colour) for poses, colour in ((real, REAL), (believed, ACCENT)) if poses]
    everywhere = np.concatenate([poses[:, :2] for poses, _ in trails])
    clip = screen.get_clip()
    screen.set_clip(box)
    for poses, colour in trails:
        points = on_map(poses[:, :2], box.width, everywhere) + box.topleft
        if len(points) > 1:
            pygame.draw.aalines(screen, _faded(colour), False, points.tolist())
        _draw_arrow(screen, points[-1], poses[-1], colour)
    screen.set_clip(clip)
    _draw_scale(screen, pens, box, everywhere)


def _bounds(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = _up_is_ahead(path)
    return seen.min(0), seen.max(0)


def _up_is_ahead(path: np.ndarray) -> np.ndarray:
    return np.stack([-path[:, 1], -path[:, 0]], 1)


def _draw_arrow(screen: pygame.Surface, at: np.ndarray, pose: np.ndarray, colour: tuple[int, int, int]) -> None:
    ahead = np.array([-pose[3], -pose[2]])  # on the screen
    aside = np.array([-ahead[1], ahead[0]])
    corners = [at + 9 * ahead, at - 6 * ahead + 6 * aside, at - 6 * ahead - 6 * aside]
    pygame.draw.polygon(screen, colour, [corner.tolist() for corner in corners])


def _draw_scale(screen: pygame.Surface, pens: Pens, box: pygame.Rect, everywhere: np.ndarray) -> None:
    low, high = _bounds(everywhere)
    unit = box.width / max(SMALLEST, float((high - low).max()) * 1.15)
    length = next(length for length in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if length * unit > 24)
    width = min(length * unit, box.width - 16)
    left, bottom = box.left + 8, box.bottom - 8
    pygame.draw.line(screen, DIM, (left, bottom), (left + width, bottom), 2)
    pens.write(screen, (left + width + 6, bottom - 8), str(length), LIGHT, "tiny")


def _faded(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return (colour[0] * 2 // 3, colour[1] * 2 // 3, colour[2] * 2 // 3)
