"""What the block world needs of the system: three Debian packages, and two small libraries that are compiled at first use."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.real_envs import SimulatorUnavailable

HERE = Path(__file__).parent
VERSION = "5.6"  # of Luanti, whose client the libraries know
GAMES_PATH = "/usr/games"  # where Debian installs it, which is not on everyone's PATH
GAME = Path("/usr/share/games/minetest/games/minetest_game")
FLAGS = ("-O2", "-shared", "-fPIC", "-ldl", "-lpthread")


@dataclass(frozen=True)
class Programs:
    minetest: str
    xvfb: str
    lockstep: Path  # shared libraries, to be preloaded
    lifeline: Path


def find_programs() -> Programs:
    """Find what is installed and compile what is not yet. Raises `SimulatorUnavailable` for the first thing that is missing."""
    minetest = _find("minetest", "minetest", f"{os.environ.get('PATH', '')}{os.pathsep}{GAMES_PATH}")
    _check_version(minetest)
    if not (GAME / "game.conf").exists():
        raise SimulatorUnavailable(f"Luanti can't run without Minetest Game in {GAME}. On Debian: apt-get install minetest-data")
    return Programs(minetest, _find("Xvfb", "xvfb"), compiled(HERE / "lockstep.c"), compiled(HERE / "lifeline.c"))


def compiled(source: Path) -> Path:
    """The shared library made of a C file, from the user's cache or else compiled. Raises `SimulatorUnavailable`."""
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    library = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lssvwm_gym" / f"{source.stem}-{digest}.so"
    if not library.exists():
        with renamed_when_whole(library) as unfinished:
            needs = "gcc libc6-dev libx11-dev libgl-dev"
            command = [*(os.environ.get("CC") or _find("cc", needs)).split(), "-o", str(unfinished), str(source), *FLAGS]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
                raise SimulatorUnavailable(f"Luanti's {source.name} can't be compiled ({said}). On Debian: apt-get install {needs}")
    return library


def _find(program: str, packages: str, path: str | None = None) -> str:
    if (found := shutil.which(program, path=path)) is None:
        raise SimulatorUnavailable(f"Luanti can't run without the program {program}. On Debian: apt-get install {packages}")
    return found


@functools.cache
def _check_version(minetest: str) -> None:
    said = subprocess.run([minetest, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"\w+ (\d+\.\d+)", said)
    if version is None or version[1] != VERSION:
        is_what = said.splitlines()[0] if said else "not known"
        raise SimulatorUnavailable(f"Luanti must be version {VERSION}, that of Debian 12, and {minetest} is {is_what}")
