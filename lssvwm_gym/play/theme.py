"""Colours and text."""

import functools

import pygame

Colour = tuple[int, int, int]

DARK: Colour = (18, 20, 26)
FAINT: Colour = (32, 35, 44)
DIM: Colour = (138, 144, 158)
LIGHT: Colour = (232, 234, 240)
ACCENT: Colour = (255, 176, 64)  # the dream
WRONG: Colour = (255, 104, 96)
SIZES = {"title": 30, "normal": 23, "small": 19, "tiny": 16}  # pygame's own font, in pixels


class Theme:
    """Text on the screen, each text rendered once."""

    def __init__(self) -> None:
        pygame.font.init()
        self._fonts = {name: pygame.font.Font(None, size) for name, size in SIZES.items()}
        self.rendered = functools.lru_cache(maxsize=512)(lambda text, colour, size: self._fonts[size].render(text, True, colour))

    def write(
        self, screen: pygame.Surface, at: tuple[float, float], text: str, colour: Colour, size: str = "normal", right: bool = False
    ) -> int:
        """Write with the left upper corner at a place, or the right one; returns the width in pixels."""
        picture: pygame.Surface = self.rendered(text, colour, size)
        screen.blit(picture, (at[0] - picture.get_width() if right else at[0], at[1]))
        return picture.get_width()

    def width(self, text: str, size: str = "normal") -> int:
        return self._fonts[size].size(text)[0]

    def cut(self, text: str, width: int) -> str:
        """The text, shortened in its middle to fit into a width: beginning and end of a message with a path say most."""
        keep, shown = len(text), text
        while keep > 8 and self.width(shown) > width:
            keep -= 1
            shown = f"{text[: keep // 2]} ... {text[-(keep - keep // 2) :]}"
        return shown
