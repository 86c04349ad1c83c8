"""Make what `docs/live.md` plays, into `docs/live/`, which is not committed: `python docs/_scripts/live.py`.

Exports the shipped weights of two worlds in 8 bits and takes onnxruntime-web from npm; all of it with gzip. Where npm or onnx is missing
it says so and makes nothing, and the page says that the live dream isn't part of the build. What was made from the same weights and code
is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LIVE = ROOT / "docs" / "live"
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIMES = {  # script and WebAssembly, by what computes
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
WORLDS = ("memory-maze", "minecraft")
NEEDED = ("onnx", "onnxruntime", "onnxscript")


def main() -> None:
    """Make what is not there yet; leave out all of it where a program for it is missing."""
    made_from = fingerprint()
    stamp = LIVE / ".made_from"
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    shutil.rmtree(LIVE, ignore_errors=True)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None] + (["npm"] if shutil.which("npm") is None else [])
    if missing:
        print(f"the live dream is left out of the site: {', '.join(missing)} is not installed")
        return
    from lssvwm_gym.export import Exporting, export

    LIVE.mkdir()
    try:
        runtimes = from_npm()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"the live dream is left out of the site: npm can't get {PACKAGE} ({error})")
        return
    worlds = []
    for world in WORLDS:
        export(Exporting(LIVE / world, world, weights_dtype="int8", check=0))
        files = {path.name: _packed(path) for path in sorted((LIVE / world).iterdir()) if path.suffix != ".json"}
        worlds.append({"name": world, "bytes": sum(file["bytes"] for file in files.values()), "files": files})
    (LIVE / "live.json").write_text(json.dumps({"package": PACKAGE, "runtimes": runtimes, "worlds": worlds}, indent=1) + "\n")
    stamp.write_text(made_from)


def fingerprint() -> str:
    """A hash of all that decides what is made."""
    digest = hashlib.sha256(PACKAGE.encode())
    package = ROOT / "lssvwm_gym"
    code = [
        Path(__file__),
        package / "export.py",
        *(path for part in ("models", "envs") for path in sorted((package / part).rglob("*.py"))),
    ]
    for path in (*code, *sorted(package.glob("weights/*/*.safetensors"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def from_npm() -> dict[str, Any]:
    """The scripts and the WebAssembly of onnxruntime-web, the latter with gzip; what the page has to know of each runtime."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGE]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            return {name: _runtime(name, *(_content(package, part) for part in parts)) for name, parts in RUNTIMES.items()}


def _content(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"package/dist/{name}")
    assert file is not None
    return file.read()


def _packed(path: Path) -> dict[str, Any]:
    """Put a file with gzip in the place of another; what the page has to know of it."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return _described(packed)


def _described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _runtime(name: str, script: bytes, wasm: bytes) -> dict[str, Any]:
    runtime: dict[str, Any] = {"bytes": 0}
    for part, file, content in (("script", f"ort.{name}.js", script), ("wasm", f"ort.{name}.bin", gzip.compress(wasm, mtime=0))):
        (LIVE / file).write_bytes(content)
        runtime[part] = _described(LIVE / file)
        runtime["bytes"] += len(content)
    return runtime


if __name__ == "__main__":
    main()
