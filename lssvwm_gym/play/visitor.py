"""One browser's game: what its page says, turn by turn, and what it is shown.

The page sends JSON objects of one entry:

{"down": key}, {"up": key}    a key, by the name that browsers or the window give it; commands are keys, too
{"release": null}             all keys are up
{"profile": name}             for the next frames
{"film": "mp4" or "gif"}      begin a film, or end it and have it
{"seen": number}              frame `number` has been shown

A page that floods costs itself: of keys only the present state is kept, of commands some, of complaints the last.
"""

import asyncio
import io
import json
import math
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io.video import ENDINGS
from lssvwm_gym.play import input as keys
from lssvwm_gym.play.input import Controls, Keyboard, meaning, write_film
from lssvwm_gym.play.panel import gauges, inventory, numbers, title
from lssvwm_gym.play.settings import Playing, open_game
from lssvwm_gym.play.snapshot import Snapshot
from lssvwm_gym.worlds import chosen_world

OF_THE_WINDOW = {"v", "f9", "f10", "h", "q"}  # commands about files here, or that a page has ways of its own for
MOST_COMMANDS = 16  # that wait for their turn
LONGEST_WAIT = 3600.0  # seconds
LONGEST_TURNS = 0.5  # seconds, after which the event loop hears of a visitor
FILM_FRAMES = 2000  # at which a film ends by itself
GOES_WRONG = (ValueError, AttributeError, RecursionError)  # in reading JSON of strangers


@dataclass(frozen=True)
class View:
    """What a page shows after a turn."""

    panel: dict[str, Any]  # for JSON
    frame: bytes  # PNG
    trail: tuple[np.ndarray, ...]
    marks: tuple[bytes, ...]  # PNG


class Visitor:
    """A game, its controls, and what is wanted of it. `turns`, `hold` and `close` run in a thread, the rest on the event loop."""

    def __init__(self, run: Playing, fastest: float) -> None:
        self.run, self.fastest = run, fastest
        self.world = chosen_world(run.world, run.weights)
        self.commands = keys.COMMANDS.keys() - OF_THE_WINDOW | (keys.POLICY.keys() if run.policy else set())
        self.keyboard = Keyboard()  # as the page last told it
        self.waiting: deque[Callable[[], object]] = deque()  # what is to be done, one a turn
        self.complaint = ""  # about the last wrong message
        self._lock = threading.RLock()  # of what is received and taken
        self.is_in_line = self.has_left = False
        self.wake = asyncio.Event()  # something was received
        self.news = asyncio.Event()  # there is something to show, or room for it
        self.sent = self.seen = 0  # numbers of the last frames sent, and shown as the page says
        self.film: tuple[str, list[np.ndarray], float] | None = None  # ended, to be handed over: ending of the name, pictures, rate
        self.rewind_bytes = run.rewind_mb * 10**6
        self.controls: Controls | None = None
        self.view: View | None = None
        self._of: tuple[Snapshot | None, list[Snapshot]] = None, []  # what `view` has pictures of

    # ---- on the event loop ----

    def receive(self, text: str) -> None:
        """Note what the page says; it is done in the next turn."""
        try:
            ((name, value),) = json.loads(text).items()
            if name not in RECEIVED:
                raise KeyError(name)
            with self._lock:
                getattr(self, f"_{name}")(value)
        except KeyError as error:
            self.complain(f"this page sends what is not known here: {error!s:.60}")
        except GOES_WRONG as error:
            self.complain(f"this page sends what can't be read: {error!s:.60}")
        self.wake.set()
        self.news.set()

    def complain(self, about: str) -> None:
        """Say in the next turn what was wrong; the last complaint counts."""
        with self._lock:
            self.complaint = about
        self.wake.set()

    def greeting(self) -> dict[str, Any]:
        """What the page is told first."""
        helped = [(key, command.short, command.at_length) for key, command in (keys.COMMANDS | keys.POLICY).items() if key in self.commands]
        known = {*keys.MARK_KEYS, *self.commands, *"".join(self.world.keys)}
        return {
            "is": "world",
            "title": title(self.world),
            "actions": keys.action_help(self.world),
            "commands": helped,
            "keys": [*known, *(name for name in (*keys.ARROWS, *keys.OTHER_NAMES) if meaning(name, self.world.keys) in known)],
            "profiles": list(PROFILES),
        }

    async def until_due(self) -> None:
        """Wait for the next turn: at once for a command or a complaint, else when the next step is due."""
        while (wait := self.wait()) > 0:
            self.wake.clear()
            alarm = asyncio.get_running_loop().call_later(min(wait, LONGEST_WAIT), self.wake.set)
            try:
                await self.wake.wait()
            finally:
                alarm.cancel()

    def wait(self) -> float:
        """Seconds until the next turn is due; 0 or less if it is."""
        if self.controls is None or self.waiting or self.complaint:
            return 0.0
        if self.controls.paused and keys.REWIND not in self.keyboard.held:
            return math.inf
        return self.controls.pace.due - time.perf_counter()

    def _down(self, name: str) -> None:
        key = meaning(_text(name), self.world.keys)
        if key in keys.MARK_KEYS or (key in self.commands and key != keys.REWIND):
            self._do(lambda controls: controls.press(key))
        elif key == keys.REWIND or key in set("".join(self.world.keys)):
            self.keyboard.press(key)
        else:
            raise KeyError(key)

    def _up(self, name: str) -> None:
        self.keyboard.release(meaning(_text(name), self.world.keys))

    def _release(self, _: object) -> None:
        self.keyboard.forget()

    def _profile(self, name: str) -> None:
        if _text(name) not in PROFILES:
            raise KeyError(name)
        self._do(lambda controls: controls.choose_profile(name))

    def _film(self, ending: str) -> None:
        if f".{_text(ending)}" not in ENDINGS:
            raise KeyError(ending)
        self._do(lambda controls: self._begin_or_end_film(controls, f".{ending}"))

    def _seen(self, number: int) -> None:
        if type(number) is not int:
            raise KeyError(number)
        self.seen = min(max(self.seen, number), self.sent)

    def _do(self, what: Callable[[Controls], object]) -> None:
        if len(self.waiting) == MOST_COMMANDS:
            self.complain("too many commands at once: some were left out")
        else:
            self.waiting.append(lambda: what(self.controls) if self.controls else None)

    # ---- in turns ----

    def turns(self, publish: Callable[[], object], others_wait: Callable[[], bool]) -> None:
        """One turn, and more while they are due and nobody else waits: so a machine that is too slow for the pace waits for nothing."""
        self.is_in_line = False
        end = time.perf_counter() + LONGEST_TURNS
        while not self.has_left:
            self.turn()
            publish()
            if self.wait() > 0 or others_wait() or time.perf_counter() > end:
                return

    def turn(self) -> None:
        """Do one thing that is wanted, go on if it is time to, and see what is to be shown."""
        if self.controls is None:
            fps = min(self.run.fps or self.world.fps, self.fastest)
            self.controls = Controls(open_game(self.run), fps, self.run.saves, self.fastest)
            self.controls.pace.due = time.perf_counter() + 1 / fps
        else:
            self._act(self.controls, self._take(self.controls))
        self.view = self._seen_now(self.controls)

    def hold(self) -> None:
        """Keep no more for rewinding than there is room for."""
        if self.controls is not None:
            self.controls.game.past.hold(self.rewind_bytes)

    def close(self) -> None:
        if self.controls is not None:
            self.controls.game.close()
        self.controls = self.view = None
        self._of = None, []

    def _take(self, controls: Controls) -> str:
        """Take over the keys that are pressed and, after the last command, the complaint, which is returned."""
        with self._lock:
            mine, complaint = controls.keyboard, ""
            mine.held, mine.tapped = self.keyboard.held, list(dict.fromkeys([*mine.tapped, *self.keyboard.tapped]))
            self.keyboard.tapped = []
            if len(self.waiting) <= 1:
                complaint, self.complaint = self.complaint, ""
            return complaint

    def _act(self, controls: Controls, complaint: str) -> None:
        if self.waiting:
            self.waiting.popleft()()
        self.hold()
        controls.act(time.perf_counter())
        if controls.film is not None and len(controls.film) >= FILM_FRAMES:
            self._begin_or_end_film(controls, ENDINGS[0])
        if complaint:
            controls.say(complaint, is_error=True)

    def _begin_or_end_film(self, controls: Controls, ending: str) -> None:
        """A film that ends waits in `film`, until it is handed over."""
        if controls.film is None:
            controls.say(controls.begin_film())
        elif self.film is None:
            self.film = ending, controls.take_film(), controls.pace.wanted
            controls.say("the film is being written")
        else:
            controls.take_film()
            controls.say("the film before was still being written: this one is lost", is_error=True)

    def _seen_now(self, controls: Controls) -> View:
        game, now, view = controls.game, controls.game.now, self.view
        frame = view.frame if view and self._of[0] is now else png(now.frame)
        marks = view.marks if view and self._of[1] is game.marks else tuple(png(mark.frame) for mark in game.marks)
        self._of = now, game.marks
        panel = {
            "is": "frame",
            "numbers": numbers(controls),
            "gauges": gauges(now, bool(game.world.milestones)),
            "inventory": inventory(game),
            "profile": game.profile,
            "action": "" if now.action is None else game.world.actions[now.action].replace("_", " "),
            "message": controls.message if controls.is_said else controls.standing,
            "wrong": controls.is_said and controls.is_error,
            "acts": controls.acts,
            "paused": controls.paused,
            "films": controls.film is not None,
        }
        return View(panel, frame, now.trail, marks)


RECEIVED = ("down", "up", "release", "profile", "film", "seen")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise KeyError(value)
    return value


def png(frame: np.ndarray) -> bytes:
    """uint8 (height, width, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)  # no slow search for repetitions
    return file.getvalue()


def film_file(ending: str, pictures: list[np.ndarray], fps: float) -> bytes:
    """A film as a file's bytes; on disk only for as long as it is made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{ending}"
        write_film(path, pictures, fps)
        return path.read_bytes()
