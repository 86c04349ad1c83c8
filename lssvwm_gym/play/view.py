"""The panel: numbers, bars, the inventory, and the map."""

import numpy as np
import pygame

from lssvwm_gym.play.input import Controls
from lssvwm_gym.play.panel import gauges, inventory, numbers, title
from lssvwm_gym.play.snapshot import Snapshot
from lssvwm_gym.play.theme import ACCENT, DIM, FAINT, LIGHT, WRONG, Colour, Theme

SMALLEST = 4.0  # units of length that the map shows at least
MARGIN, LINE = 16, 23  # pixels


def draw_panel(screen: pygame.Surface, theme: Theme, box: pygame.Rect, controls: Controls) -> None:
    """From top to bottom; the map takes the height that is left."""
    game, now = controls.game, controls.game.now
    left, right, top = box.left + MARGIN, box.right - MARGIN, box.top + MARGIN - 6
    theme.write(screen, (left, top), title(game.world), LIGHT, "title")
    theme.write(screen, (right, top + 5), game.profile, DIM, "small", right=True)
    top += 36
    for name, value, is_wrong in numbers(controls):
        theme.write(screen, (left, top), name, DIM)
        theme.write(screen, (right, top), value, WRONG if is_wrong else LIGHT, right=True)
        top += LINE
    top += 6
    for name, share in gauges(now, bool(game.world.milestones)):
        _draw_gauge(screen, theme, (left, top), right, name, share)
        top += LINE
    if game.world.inventory:
        top = _draw_inventory(screen, theme, (left, top + 8), right, controls)
    if now.trail:
        _draw_map(screen, theme, pygame.Rect(left, top + 6, right - left, box.bottom - MARGIN - top - 6), now)


def _draw_gauge(screen: pygame.Surface, theme: Theme, at: tuple[int, int], right: int, name: str, share: float | None) -> None:
    theme.write(screen, at, name, DIM)
    bar = pygame.Rect(at[0] + 92, at[1] + 3, right - at[0] - 92, 9)
    pygame.draw.rect(screen, FAINT, bar, border_radius=4)
    if share is None:
        theme.write(screen, (bar.left, at[1]), "not with this profile", DIM, "small")
    elif share * bar.width >= 1:
        pygame.draw.rect(screen, WRONG if name == "uncertain" else ACCENT, (*bar.topleft, share * bar.width, bar.height), border_radius=4)


def _draw_inventory(screen: pygame.Surface, theme: Theme, at: tuple[int, int], right: int, controls: Controls) -> int:
    """The inventory and its rewards. Returns where it ends."""
    top = at[1]
    for name, count, reward, has_been in inventory(controls.game):
        theme.write(screen, (at[0], top), name, LIGHT if count else DIM, "small")
        theme.write(screen, (right - 92, top), f"{count:.6g}", LIGHT if count else DIM, "small", right=True)
        if reward is not None:
            box = pygame.Rect(right - 10, top + 2, 10, 10)
            pygame.draw.rect(screen, ACCENT if has_been else DIM, box, width=0 if has_been else 1, border_radius=2)
            theme.write(screen, (right - 16, top), f"+{reward:g}", ACCENT if has_been else DIM, "small", right=True)
        top += 18
    return top


def _draw_map(screen: pygame.Surface, theme: Theme, box: pygame.Rect, now: Snapshot) -> None:
    """The estimated pose in numbers, and the trail, in the frame of the first pose, with a scale below."""
    x, y, cos, sin, *up = now.trail[-1].tolist()
    where = f"ahead {x:+.1f}  left {y:+.1f}  turned {np.degrees(np.arctan2(sin, cos)):+.0f}°" + (f"  up {up[0]:+.1f}" if up else "")
    theme.write(screen, box.topleft, "estimated position", DIM, "small")
    theme.write(screen, (box.left, box.top + 17), where, LIGHT, "tiny")
    size = min(box.width, box.height - 36)
    if size < 40:
        return
    square = pygame.Rect(box.left + (box.width - size) // 2, box.top + 36, size, size)
    pygame.draw.rect(screen, FAINT, square, border_radius=6)
    poses = np.stack(now.trail)
    points, unit = on_map(poses[:, :2], size)
    points += square.topleft
    clip = screen.get_clip()
    screen.set_clip(square)
    if len(points) > 1:
        pygame.draw.aalines(screen, [part * 2 // 3 for part in ACCENT], False, points.tolist())
    _draw_arrow(screen, points[-1], poses[-1], ACCENT)
    screen.set_clip(clip)
    _draw_scale(screen, theme, square, unit)


def on_map(positions: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Pixels (T, 2) of positions (T, 2) on a square map, where a pose's first heading (x) is up and its left (y) is left; all fit in.

    Also returns the pixels of a unit of length.
    """
    shown = -positions[:, ::-1]
    low, high = shown.min(0), shown.max(0)
    unit = size / max(SMALLEST, float((high - low).max()) * 1.15)
    return (shown - (low + high) / 2) * unit + size / 2, unit


def _draw_arrow(screen: pygame.Surface, at: np.ndarray, pose: np.ndarray, colour: Colour) -> None:
    ahead = np.array([-pose[3], -pose[2]])  # on the screen
    aside = np.array([-ahead[1], ahead[0]])
    corners = [at + 9 * ahead, at - 6 * ahead + 6 * aside, at - 6 * ahead - 6 * aside]
    pygame.draw.polygon(screen, colour, [corner.tolist() for corner in corners])


def _draw_scale(screen: pygame.Surface, theme: Theme, box: pygame.Rect, unit: float) -> None:
    length = next(length for length in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if length * unit > 24)
    width = min(length * unit, box.width - 16)
    left, bottom = box.left + 8, box.bottom - 8
    pygame.draw.line(screen, DIM, (left, bottom), (left + width, bottom), 2)
    theme.write(screen, (left + width + 6, bottom - 8), str(length), LIGHT, "tiny")
