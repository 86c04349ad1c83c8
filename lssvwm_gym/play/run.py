"""A game in a window from its opening to its end, or the way to the browser."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from lssvwm_gym.io.video import check_movie
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import Controls, write_film
from lssvwm_gym.play.settings import Playing, open_game
from lssvwm_gym.worlds import chosen_world


def play(run: Playing) -> Game | None:
    """Open a window and play until the player quits. Returns the game, whose env is closed; None after games in browsers (`run.web`).

    However the game ends, by Ctrl-C or by an error too, what was recorded is written. Raises `ValueError` for an unknown world, for a
    policy, game or recording that can't be what it is said to be, and for options that don't fit, `OSError` where there is no screen, and
    no invisible one was asked for by `SDL_VIDEODRIVER`, or no port to serve browsers at, `ImportError` where what shows it is missing.
    """
    world = chosen_world(run.world, run.weights)
    if world.continuous:
        raise ValueError(f"an action of {world.name} is {len(world.actions)} numbers, for which there are no keys; step it from Python")
    if run.web:
        try:
            from lssvwm_gym.play.web import serve
        except ModuleNotFoundError as error:
            raise ImportError(f"playing in a browser needs {error.name}: pip install 'lssvwm_gym[web]'") from None
        serve(run)
        return None
    import pygame

    from lssvwm_gym.play.window import Window, open_display, play_until_quit

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
            film = [game.now.frame]
            game.films.append(film)
            at_the_end.callback(lambda: print(write_film(record, film, fps)))
        with suppress(KeyboardInterrupt), _closed_terminal_interrupts():  # quits, as q does
            play_until_quit(controls, Window(game, run.scale))
    return game


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
