"""Size, memory and speed of an exported dream beside PyTorch's: `python -m experiments.live --out docs/scores/live.json`.

Every way of computing a step runs in a process of its own, on one thread, along the same actions and noise; milliseconds are of processor
time, so that a busy machine counts for little. The last way is Chromium without a screen, which plays `docs/live`, as
`python docs/_scripts/live.py` has made it; it is left out where one of the two is missing.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from experiments.benchmark.machine import machine, memory_bytes, peak_memory_bytes
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.export import Exporting, export
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.onnx_dream import OnnxDream
from lssvwm_gym.worlds import WORLDS

DOCS = Path(__file__).parent.parent / "docs"
WAYS = {  # title to what it is
    "PyTorch": "plain",
    "PyTorch, compiled": "compiled",
    "onnxruntime, float32": "float32",
    "onnxruntime, float16": "float16",
    "onnxruntime, int8": "int8",
}
PAGE = """<script type="module">
import { Dream } from "./assets/live.js";
const told = (what, body) => fetch(what, { method: "POST", body });
try {
  const { world, actions, warm } = await (await fetch("plan.json")).json();
  const noise = new Float32Array(await (await fetch("noise.bin")).arrayBuffer());
  const dream = await Dream.open("live/", world);
  let now = await dream.begin(0);
  const frames = [], size = dream.noiseSize;
  let begun = performance.now();
  for (const [t, action] of actions.entries()) {
    if (t === warm) { await told("begun", ""); begun = performance.now(); }
    now = await dream.step(now.state, action, noise.slice(t * size, (t + 1) * size));
    frames.push(now.frame.slice());
  }
  await told("took", String(performance.now() - begun));
  await told("frames", new Blob(frames));
} catch (error) { await told("failed", String(error)); }
</script>"""


@dataclass(frozen=True)
class LiveMeasuring:
    """What to measure."""

    world: str = "memory-maze"
    steps: int = 100
    warm: int = 10  # steps before the first that is measured
    out: Path | None = None
    way: str = ""  # one alone, in this process
    folder: Path | None = None  # of the exported dream, for that


class BrowserRun(NamedTuple):
    """What a page dreamed."""

    frames: np.ndarray  # uint8 (T, height, width, 3)
    milliseconds: float  # a step, as the page sees it
    processor_milliseconds: float  # a step, of all processes of the browser
    peak_bytes: int  # of memory, of the largest of these processes


def main(run: LiveMeasuring) -> None:
    """Measure every way, print and write a table."""
    torch.set_num_threads(1)
    if run.way:
        print(json.dumps(_of_process(run)))
        return
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for title, way in WAYS.items():
            folder = Path(temporary) / way
            row: dict[str, Any] = {}
            if way not in ("plain", "compiled"):
                report = export(Exporting(folder, run.world, weights_dtype=way, check=run.steps))  # type: ignore[arg-type]
                row = {"bytes": sum(report["bytes"].values()), "difference": report["difference"]._asdict()}
            command = [sys.executable, "-m", "experiments.live", "--world", run.world, "--steps", str(run.steps), "--warm", str(run.warm)]
            command += ["--way", way, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[title] = row | json.loads(done.stdout.splitlines()[-1])
            print(title, rows[title], flush=True)
    if (DOCS / "live" / "live.json").is_file() and shutil.which("chromium"):
        actions, noise = _plan(run)
        seen = in_browser(DOCS, run.world, actions, noise, run.warm)
        build = json.loads((DOCS / "live" / "live.json").read_text())
        size = build["runtime"]["bytes"] + next(it["bytes"] for it in build["worlds"] if it["name"] == run.world)
        row = {
            "milliseconds": seen.processor_milliseconds,
            "wall_milliseconds": seen.milliseconds,
            "peak_bytes": seen.peak_bytes,
            "bytes": size,
        }
        rows["Chromium, int8, onnxruntime-web with it"] = row
        print("Chromium", row)
    if run.out:
        write_json(run.out, {"world": run.world, "steps": run.steps, "machine": machine("cpu"), "ways": rows})


def _plan(run: LiveMeasuring) -> tuple[np.ndarray, np.ndarray]:
    """Actions (T,) and noise (T, 1, N, C)."""
    config = json.loads((WORLDS[run.world].weights / "config.json").read_text())["world_model"]  # and no weights, whose memory is measured
    generator = torch.Generator().manual_seed(0)
    count = run.warm + run.steps
    actions = torch.randint(config["actions"], (count,), generator=generator)
    return actions.numpy(), torch.randn(count, 1, config["grid"] ** 2, config["latent_channels"], generator=generator).numpy()


def _of_process(run: LiveMeasuring) -> dict[str, Any]:
    actions, noise = _plan(run)
    before = memory_bytes() or 0  # with PyTorch, which this script needs whatever computes the step
    if run.way in ("plain", "compiled"):
        dream = open_dream(run.world, "fast", "cpu", None, "float32", "torch" if run.way == "plain" else "compiled")
        state = dream.reset(torch.tensor([0]), {"context_id": 0})

        def step(t: int) -> None:
            nonlocal state
            state = dream.step(state, torch.from_numpy(actions[t : t + 1]), torch.from_numpy(noise[t])).state
            dream.frame(state)
    else:
        assert run.folder is not None
        exported = OnnxDream(run.folder)
        _, now = exported.begin(0)

        def step(t: int) -> None:
            nonlocal now
            now = exported.step(now, actions[t : t + 1], noise[t])[-1]

    milliseconds = []
    for t in range(len(actions)):
        begun = time.process_time()
        step(t)
        milliseconds.append(1000 * (time.process_time() - begun))
    return {"milliseconds": float(np.median(milliseconds[run.warm :])), "peak_bytes": (peak_memory_bytes() or 0) - before}


def in_browser(site: Path, world: str, actions: np.ndarray, noise: np.ndarray, warm: int = 0) -> BrowserRun:
    """Dream from the first context in a page, with the code and the files of a folder with `assets/live.js` and `live/`.

    Raises `RuntimeError` with what the page says where it fails.
    """
    plan = {"world": world, "actions": actions.tolist(), "warm": warm}
    files = {"/plan.json": json.dumps(plan).encode(), "/noise.bin": noise.astype(np.float32).tobytes(), "/page.html": PAGE.encode()}
    told, spent, peak = browse(site, files)
    frames = np.frombuffer(told["frames"], np.uint8).reshape(len(actions), -1)
    side, count = round((frames.shape[1] / 3) ** 0.5), len(actions) - warm
    processor = 1000 * (spent["took"] - spent.get("begun", 0.0)) / count
    return BrowserRun(frames.reshape(-1, side, side, 3), float(told["took"]) / count, processor, peak)


def browse(site: Path, files: Mapping[str, bytes], timeout: float = 300) -> tuple[dict[str, bytes], dict[str, float], int]:
    """Open `/page.html` in Chromium, without a screen, from a server of a folder in which `files`, by their paths, stand for others.

    Returns what the page has posted, by name, until it posted `frames`; the processor seconds that the browser had used at each; and the
    most memory in bytes that one of its processes has had. Raises `RuntimeError` where it posts `failed`, or nothing in time.
    """
    told, spent, done = dict[str, bytes](), dict[str, float](), threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in files:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(self.path))
            self.end_headers()
            self.wfile.write(files[self.path])

        def do_POST(self) -> None:
            name = self.path.strip("/")
            told[name] = self.rfile.read(int(self.headers["Content-Length"]))
            spent[name] = _used(browser.pid)[0]
            self.send_response(204)
            self.end_headers()
            if name in ("frames", "failed"):
                done.set()

        def log_message(self, *_: Any) -> None: ...

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,  # to which a browser that ends may still write
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        command = ["chromium", *options, f"http://127.0.0.1:{server.server_port}/page.html"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if not done.wait(timeout):
                raise RuntimeError(f"the page has not finished after {timeout:.0f} s; it told {sorted(told)}")
            peak = _used(browser.pid)[1]
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
    if "failed" in told:
        raise RuntimeError(told["failed"].decode())
    return told, spent, peak


def _used(process: int) -> tuple[float, int]:
    """Processor time of a process and of all beneath it, and the most memory in bytes that one of them has had; of Linux."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        try:
            values = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if values:
            children.setdefault(int(values[1]), []).append(int(entry.name))
            spent[int(entry.name)] = (int(values[11]) + int(values[12])) / 100
    waiting, total, peak = [process], 0.0, 0
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        total += spent.get(one, 0.0)
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
            peak = max(peak, 1024 * int(status.get("VmHWM", "0 kB").split()[0]))
        except OSError:
            continue
    return total, peak


if __name__ == "__main__":
    main(tyro.cli(LiveMeasuring))
