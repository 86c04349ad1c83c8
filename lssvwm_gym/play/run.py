"""The loop that keeps the pace of a game in a window, or the way to the browser."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from lssvwm_gym.io.video import check_movie
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import Controls, write_film
from lssvwm_gym.play.settings import Playing, open_game
from lssvwm_gym.worlds import chosen_world

if TYPE_CHECKING:
    from lssvwm_gym.play.window import Window

REDRAWS = 30  # a second at least, so that keys are read in time between two steps


def play(run: Playing) -> Game | None:
    """Open a window and play until the player quits. Returns the game, whose env is closed; None after games in browsers (`run.web`).

    However the game ends, by Ctrl-C or by an error too, what was recorded is written. Raises `ValueError` for an unknown world, for a
    policy, game or recording that can't be what it is said to be, and for options that don't fit, `OSError` where there is no screen, and
    no invisible one was asked for by `SDL_VIDEODRIVER`, or no port to serve browsers at, `ImportError` where what shows it is not
    installed.
    """
    world = chosen_world(run.world, run.weights)
    if world.continuous:
        raise ValueError(f"an action of {world.name} is {len(world.actions)} numbers, for which there are no keys; step it from Python")
    if run.web:
        _play_in_browsers(run)
        return None
    import pygame

    from lssvwm_gym.play.window import Window, open_display

    fps, record = run.fps or world.fps, run.record
    if record:
        check_movie(record)
    with ExitStack() as at_the_end:  # the last one first, and all of them, whatever one raises
        at_the_end.callback(pygame.quit)
        open_display()
        game = open_game(run)
        at_the_end.callback(game.close)
        controls = Controls(game, fps, run.saves)
        at_the_end.callback(controls.finish)
        if record:
            film = [game.picture()]
            game.films.append(film)
            at_the_end.callback(lambda: print(write_film(record, film, fps)))
        with suppress(KeyboardInterrupt), _closed_terminal_interrupts():  # quits, as q does
            _play_until_quit(controls, Window(game, run.scale))
    return game


def _play_in_browsers(run: Playing) -> None:
    try:
        from lssvwm_gym.play.web import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"playing in a browser needs {error.name}: pip install 'lssvwm_gym[web]'") from None
    serve(run)


@contextmanager
def _closed_terminal_interrupts() -> Iterator[None]:
    """A closed terminal ends the game as Ctrl-C does, unless somebody else takes care of the signal."""
    if os.name == "nt" or threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _play_until_quit(controls: Controls, window: Window) -> None:
    import pygame

    from lssvwm_gym.play.window import obey

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
