"""Pictures of `lssvwm-gym play` for the documentation: `python docs/_scripts/screenshots.py`. Needs no screen.

Each dream begins after a short real context and looks around.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import pygame
from PIL import Image

from lssvwm_gym.play import Playing
from lssvwm_gym.play.input import Controls
from lssvwm_gym.play.settings import open_game
from lssvwm_gym.play.window import Window
from lssvwm_gym.worlds import WORLDS

MEDIA = Path(__file__).parent.parent / "media"


@dataclass(frozen=True)
class Shot:
    """A game to take a picture of."""

    world: str
    seed: int
    actions: tuple[str, ...]
    marks: tuple[int, ...]  # steps after which a moment is marked

    @property
    def path(self) -> Path:
        return MEDIA / f"play_{self.world.replace('-', '_')}.png"


SHOTS = (
    Shot("memory-maze", 4, ("forward",) * 6 + ("right",) * 22 + ("left",) * 12, (4, 12, 24)),
    Shot("minecraft", 12, ("turn_right",) * 24 + ("forward",) * 6 + ("back",) * 6 + ("turn_left",) * 2, (6, 14, 30)),
)


def main() -> None:
    for shot in SHOTS:
        take(shot)
        print(f"{shot.path}: {shot.path.stat().st_size / 1e3:.0f} kB")


def take(shot: Shot) -> None:
    """Play the actions at the world's own pace and keep what the window shows at their end."""
    world = WORLDS[shot.world]
    game = open_game(Playing(world=shot.world, seed=shot.seed))
    try:
        controls = Controls(game, world.fps, Path("runs/play"))
        window = Window(game)
        for number, action in enumerate(shot.actions):
            while not controls.pace.is_due(time.perf_counter()):
                time.sleep(0.001)
            game.step(world.actions.index(action))
            controls.pace.step_times.append(time.perf_counter())
            if number in shot.marks:
                game.mark()
        window.draw(controls)
        store(window.screen, shot.path)
    finally:
        game.close()
        pygame.quit()


def store(screen: pygame.Surface, path: Path) -> None:
    """Write a small PNG."""
    picture = Image.frombytes("RGB", screen.get_size(), pygame.image.tobytes(screen, "RGB"))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    main()
