"""The window: the dream, marks below, the panel at the right, keys at the bottom; and what happens to it."""

import os
import time
from pathlib import Path

import numpy as np
import pygame

from lssvwm_gym.play.game import MARKS, Game
from lssvwm_gym.play.input import Controls, action_help, command_help, meaning
from lssvwm_gym.play.theme import ACCENT, DARK, DIM, FAINT, LIGHT, WRONG, Theme
from lssvwm_gym.play.view import MARGIN, draw_panel

SCALE = 9  # screen pixels a side of one pixel of the dream
PANEL = 280  # pixels: width of the panel
CAPTION, THUMBNAIL, MESSAGE, HELP_LINE = 30, 56, 28, 20  # pixels: heights
MIN_PANEL, MIN_PANEL_WITH_INVENTORY = 540, 640  # pixels: height of the panel that shows all of it
REDRAWS = 30  # a second at least, so that keys are read in time between two steps
INVISIBLE = ("offscreen", "dummy")  # drivers of SDL that draw into memory alone


def open_display() -> None:
    """Raises `OSError` where a window could not be seen, unless `SDL_VIDEODRIVER` names an invisible driver."""
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
        problem = f"SDL has only the driver {driver!r}, which draws into memory" if driver in INVISIBLE else ""
    except pygame.error as error:
        driver, problem = "", str(error)
    if problem and driver not in os.environ.get("SDL_VIDEODRIVER", "").split(","):
        raise OSError(
            f"no screen to open a window on ({problem}). Play in a browser, with --web, or on a desktop; over SSH, forward its display "
            "(`ssh -X`). To run without a window, with --policy or --replay and --record, set SDL_VIDEODRIVER=dummy"
        )


def obey(controls: Controls, event: pygame.event.Event) -> None:
    """Note a key, or do what it stands for."""
    if event.type == pygame.QUIT:
        controls.quits = True
    elif event.type == pygame.DROPFILE:
        controls.load(Path(event.file))
    elif event.type == pygame.WINDOWFOCUSLOST:
        controls.keyboard.forget()
    elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
        key = meaning(pygame.key.name(event.key), controls.game.world.keys)
        controls.press(key) if event.type == pygame.KEYDOWN else controls.keyboard.release(key)


class Window:
    def __init__(self, game: Game, scale: int | None = None) -> None:
        pygame.display.init()
        self.theme = Theme()
        self.side = game.world.image_size * (scale or SCALE)
        width = self.side + PANEL - 2 * MARGIN
        self.help = self._flow(action_help(game.world), width) + self._flow(command_help(game), width)
        self.upper = max(CAPTION + self.side + THUMBNAIL + 2 * 10, MIN_PANEL_WITH_INVENTORY if game.world.inventory else MIN_PANEL)
        self.screen = pygame.display.set_mode((self.side + PANEL, self.upper + MESSAGE + len(self.help) * HELP_LINE + 8))
        pygame.display.set_caption(f"{game.world.id}: a dream")

    def draw(self, controls: Controls) -> None:
        self.screen.fill(DARK)
        self._draw_picture(controls)
        self._draw_marks(controls.game)
        draw_panel(self.screen, self.theme, pygame.Rect(self.side, 0, PANEL, self.upper), controls)
        text, colour = (controls.message, WRONG if controls.is_error else ACCENT) if controls.is_said else (controls.standing, ACCENT)
        self.theme.write(self.screen, (MARGIN, self.upper + 6), self.theme.cut(text, self.screen.get_width() - 2 * MARGIN), colour)
        self._draw_keys(controls)
        if controls.shows_help:
            self._draw_all_keys(controls)
        pygame.display.flip()

    def _draw_picture(self, controls: Controls) -> None:
        box, game = pygame.Rect(0, CAPTION, self.side, self.side), controls.game
        width = self.theme.write(self.screen, (box.left + 10, 8), "dream", ACCENT)
        self.theme.write(self.screen, (box.left + 20 + width, 10), controls.acts, DIM, "small")
        self.screen.blit(self._enlarged(game.now.frame, box.size), box.topleft)
        if controls.film is not None and int(pygame.time.get_ticks() / 500) % 2 == 0:
            pygame.draw.circle(self.screen, WRONG, (self.side - 16, 15), 6)

    def _draw_marks(self, game: Game) -> None:
        top = CAPTION + self.side + 10
        size = min(self.upper - top - 10, (self.side - 10) // MARKS - 8)
        for number in range(MARKS):
            box = pygame.Rect(10 + number * (size + 8), top, size, size)
            marked = number < len(game.marks)
            if marked:
                self.screen.blit(self._enlarged(game.marks[number].frame, box.size), box.topleft)
            else:
                pygame.draw.rect(self.screen, FAINT, box, border_radius=4)
            pygame.draw.rect(self.screen, DARK if marked else FAINT, (box.left + 2, box.top + 2, 18, 14), border_radius=3)
            self.theme.write(self.screen, (box.left + 4, box.top + 4), f"f{number + 1}", LIGHT if marked else DIM, "tiny")

    def _draw_keys(self, controls: Controls) -> None:
        action = controls.game.now.action
        acting = "" if action is None else controls.game.world.actions[action].replace("_", " ")
        for row, line in enumerate(self.help):
            for left, key, name in line:
                at = (MARGIN + left, self.upper + MESSAGE + 4 + row * HELP_LINE)
                width = self.theme.write(self.screen, at, key, ACCENT, "small")
                self.theme.write(self.screen, (at[0] + width + 5, at[1]), name, LIGHT if name == acting else DIM, "small")

    def _draw_all_keys(self, controls: Controls) -> None:
        game = controls.game
        lines = [*action_help(game.world), ("arrows", "as w a s d"), *command_help(game, at_length=True)]
        width, height = min(560, self.screen.get_width() - 20), len(lines) * 19 + 30
        box = pygame.Rect(0, 0, width, height)
        box.center = (self.screen.get_width() // 2, self.screen.get_height() // 2)
        pygame.draw.rect(self.screen, DARK, box, border_radius=8)
        pygame.draw.rect(self.screen, DIM, box, width=1, border_radius=8)
        for row, (key, name) in enumerate(lines):
            self.theme.write(self.screen, (box.left + 20, box.top + 16 + row * 19), key, ACCENT, "small")
            self.theme.write(self.screen, (box.left + 90, box.top + 16 + row * 19), name, LIGHT, "small")

    def _flow(self, keys: list[tuple[str, str]], width: int) -> list[list[tuple[int, str, str]]]:
        """Lines of (left, key, name) that are no wider than `width`."""
        lines: list[list[tuple[int, str, str]]] = [[]]
        left = 0
        for key, name in keys:
            taken = self.theme.width(key, "small") + 5 + self.theme.width(name, "small")
            if left + taken > width and lines[-1]:
                lines.append([])
                left = 0
            lines[-1].append((left, key, name))
            left += taken + 16
        return lines

    def _enlarged(self, frame: np.ndarray, size: tuple[int, int]) -> pygame.Surface:
        return pygame.transform.scale(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), size)


def play_until_quit(controls: Controls, window: Window) -> None:
    """Keep the pace of a game in its window."""
    clock = pygame.time.Clock()
    controls.pace.due = time.perf_counter()
    window.draw(controls)
    while not controls.quits:
        for event in pygame.event.get():
            obey(controls, event)
        if not controls.quits:
            controls.act(time.perf_counter())
            window.draw(controls)
            clock.tick(max(REDRAWS, controls.pace.wanted))
