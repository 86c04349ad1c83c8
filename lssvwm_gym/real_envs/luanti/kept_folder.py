"""A folder for several processes that is removed when the last of them is gone, whatever ended it and whenever."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

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
    """A new temporary folder. It stays for as long as its maker or a child that inherited `descriptor` lives.

    The maker may be killed at any moment, also in the midst of this: the folder is made and removed by a shell, which asks nobody.

    Attributes:
        path: the folder.
        descriptor: what a child that is to work in it has to inherit.

    Raises:
        OSError: it can't be made.
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
