"""One client of the game with its own X server, as an object that is asked for one frame after another.

Whatever ends this Python process, or loses this object, ends both processes and removes their folder.
"""

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.real_envs.luanti.programs import HERE, Programs

logger = logging.getLogger(__name__)

KEYS = ("forward", "back", "jump", "dig", "place")  # order of KEYS in lockstep.c
ANSWER = struct.Struct("=4I")  # struct answer in lockstep.c
REQUEST = struct.Struct("=I2i3I")  # struct request in lockstep.c
SIDE = 128  # pixels of the square window
PIXEL_DEGREES = 1.402  # that a mouse pixel turns, at this field of view and sensitivity 1
SECONDS_TO_START = 120.0
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_END = 5.0
MESA = "libgl1-mesa-dri"
LOG_LINES = 5  # shown of a client that has died


class ClientFrame(NamedTuple):
    pixels: np.ndarray  # (SIDE, SIDE, 3) uint8
    account: dict[str, Any]  # what the server's mod tells, see lockstep.accounts there


class Client:
    """A running client, which stands still between frames.

    Raises `SimulatorDied` where one of the two processes has ended or does not answer, with the end of the log, and `SimulatorUnavailable`
    where there is no renderer.
    """

    def __init__(self, programs: Programs, map_seed: int) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []  # X server, client
        self._resources = contextlib.ExitStack()
        self._end = weakref.finalize(self, _end, self._resources, os.getpid())
        try:
            kept = KeptFolder()
            self._resources.callback(kept.remove)
            self.folder, self._keeps_folder = kept.path, kept.descriptor
            for name in ("lifeline", "lockstep"):
                (self.folder / f"{name}.so").symlink_to(getattr(programs, name))  # LD_PRELOAD could not take any path
            display = self._start_x_server(programs)
            _furnish(self.folder, map_seed)
            self._start_client(programs, display)
            self._socket.settimeout(SECONDS_TO_START)
            self._hear()
            self._socket.settimeout(SECONDS_TO_ANSWER)
        except BaseException:
            self.close()
            raise

    def frame(
        self,
        seconds: float,
        keys: tuple[str, ...] = (),
        turn: tuple[int, int] = (0, 0),
        command: dict[str, Any] | None = None,
        *,
        seen: bool = False,
    ) -> ClientFrame:
        """Let the next frame take `seconds`, with keys of `KEYS` held, a turn by degrees to the right and down, and a command for the
        server's mod: `name`, and what that takes. With `seen` the answer has its pixels and the server's account."""
        held = sum(1 << KEYS.index(key) for key in keys)
        text = json.dumps(command).encode() if command else b""
        try:
            self._send(REQUEST.pack(held, *turn, round(seconds * 1e6), seen, len(text)) + text)
            return self._hear()
        except BaseException:
            self.close()
            raise

    @property
    def is_running(self) -> bool:
        """Whether it can be asked for a frame. It is closed by any error, because half an answer leaves nothing to go on with."""
        return self._end.alive

    def close(self) -> None:
        """End both processes and remove their files. May be called again."""
        self._end()

    def _start_x_server(self, programs: Programs) -> str:
        """Start an X server on whichever display is free, and return its name."""
        reads, writes = os.pipe()
        with open(reads, "rb", buffering=0) as number, open(writes, "wb", buffering=0) as theirs:
            command = [programs.xvfb, "-displayfd", str(writes), "-screen", "0", f"{SIDE}x{SIDE}x24", "-nolisten", "tcp"]
            self._start("xvfb", command, {"LD_PRELOAD": "./lifeline.so"}, writes)
            theirs.close()
            said = b""
            while not said.endswith(b"\n"):
                more = number.read(16) if select.select([number], [], [], SECONDS_TO_START)[0] else b""
                if not more:
                    raise SimulatorDied(self._obituary("xvfb"))
                said += more
        return f":{int(said)}"

    def _start_client(self, programs: Programs, display: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._resources.callback(self._socket.close)
        with theirs:
            environment = {
                "DISPLAY": display,
                "LD_PRELOAD": "./lifeline.so:./lockstep.so",
                "LOCKSTEP_SOCKET": str(theirs.fileno()),
                "LIBGL_ALWAYS_SOFTWARE": "1",
                "LP_NUM_THREADS": "0",  # the client's own thread draws
            }
            command = [programs.minetest, "--config", "minetest.conf", "--world", "world", "--gameid", "minetest_game", "--go"]
            self._start("minetest", command, environment, theirs.fileno())

    def _start(self, name: str, command: list[str], environment: dict[str, str], descriptor: int) -> None:
        """Start a process in the folder that inherits `descriptor`; what it says goes to `<name>.log` there."""
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                command,
                env=os.environ | {"HOME": str(self.folder), "LIFELINE_OWNER": str(os.getpid())} | environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(descriptor, self._keeps_folder),
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )
        self._resources.callback(_stop, process, signal.SIGTERM if name == "xvfb" else signal.SIGKILL)
        self.processes.append(process)

    def _hear(self) -> ClientFrame:
        width, height, account_bytes, in_time = ANSWER.unpack(self._receive(ANSWER.size))
        account = json.loads(self._receive(account_bytes)) if account_bytes else {}
        if not in_time:
            logger.warning("the game was not done with a frame in time; this moment may lack a part of the world")
        return ClientFrame(np.frombuffer(self._receive(width * height * 3), np.uint8).reshape(height, width, 3)[::-1], account)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._died() from error

    def _receive(self, size: int) -> bytearray:
        buffer, got = bytearray(size), 0
        while got < size:
            try:
                more = self._socket.recv_into(memoryview(buffer)[got:])
            except OSError as error:  # among them the time-out
                raise self._died() from error
            if not more:
                raise self._died()
            got += more
        return buffer

    def _died(self) -> Exception:
        said = self._obituary("minetest")
        if "No GLX support" in said:
            return SimulatorUnavailable(f"Luanti can't draw without Mesa's software renderer. On Debian: apt-get install {MESA} ({said})")
        return SimulatorDied(said)

    def _obituary(self, name: str) -> str:
        """What became of the process that was started last, and what it said."""
        process = self.processes[-1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        code = process.poll()
        end = "does not answer" if code is None else f"ended with exit code {code}"
        lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return f"{name} {end}; it said: " + (" | ".join(lines[-LOG_LINES:]) or "nothing")


# Makes the folder, says its path or what went wrong, and waits until its standard input ends, which it does when no process has the
# other end any more. A signal for all of a terminal's processes is not for it, and neither is an owner who died before it heard the path.
KEEPER = """
trap '' HUP INT PIPE TERM
folder=$(mktemp -d "$1/lssvwm-luanti-XXXXXXXX" 2>&1)
echo "$folder"
read -r _
rm -rf "$folder"
"""


class KeptFolder:
    """A new temporary folder, `path`. It stays for as long as its maker or a child that inherited `descriptor` lives.

    The maker may be killed at any moment, also in the midst of this: the folder is made and removed by a shell, which asks nobody. Raises
    `OSError` where it can't be made.
    """

    def __init__(self) -> None:
        reads, self.descriptor = os.pipe()
        with open(reads, "rb", buffering=0) as waiting:
            command = ["/bin/sh", "-c", KEEPER, "sh", tempfile.gettempdir()]
            self._keeper = subprocess.Popen(
                command, stdin=waiting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True
            )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as stdout:
            said = stdout.readline().rstrip("\n")
        self.path = Path(said)
        if not self.path.is_dir():
            self.remove()
            raise OSError(f"Luanti needs a temporary folder, and there can be none ({said}). TMPDIR can name another place for it")

    def remove(self) -> None:
        """Remove the folder now, with whatever is in it."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.descriptor, b"\n")
        os.close(self.descriptor)
        self._keeper.wait()


def _furnish(folder: Path, map_seed: int) -> None:
    """Put into the client's folder all that it reads, so that it touches nothing of the user's."""
    sizes = {"fixed_map_seed": map_seed, "screen_w": SIDE, "screen_h": SIDE, "mouse_sensitivity": 1 / PIXEL_DEGREES}  # a pixel, a degree
    settings = (HERE / "minetest.conf").read_text() + "".join(f"{name} = {value}\n" for name, value in sizes.items())
    (folder / "minetest.conf").write_text(settings)
    shutil.copytree(HERE / "mod", folder / "world" / "worldmods" / "lockstep")
    shutil.copy(HERE / "world.mt", folder / "world")


def _stop(process: subprocess.Popen[bytes], politely: signal.Signals) -> None:
    process.send_signal(politely)
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end(resources: contextlib.ExitStack, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it, which has the object but not the processes
        resources.close()
