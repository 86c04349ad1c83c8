"""Size, memory and speed of an exported dream beside PyTorch's: `python -m experiments.live --out docs/scores/live.json`.

Every way of computing a step runs in a process of its own, on one thread, along the same actions and noise; milliseconds are of processor
time, so that a busy machine counts for little. The last way is Chromium without a screen, which plays `docs/live`, as
`python docs/_scripts/live.py` has made it; it is left out where one of the two is missing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from docs._scripts.browser import CHROMIUM, WEBGPU, served, tab
from experiments.benchmark.machine import machine, memory_bytes, peak_memory_bytes
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.export import Exporting, export
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.onnx_dream import OnnxDream
from lssvwm_gym.worlds import WORLDS

DOCS = Path(__file__).parent.parent / "docs"
LONGEST = 600.0  # seconds that a page may compute
NO_FILES = MappingProxyType[str, bytes]({})
WAYS = {  # title to what it is
    "PyTorch": "plain",
    "PyTorch, compiled": "compiled",
    "onnxruntime, float32": "float32",
    "onnxruntime, float16": "float16",
    "onnxruntime, int8": "int8",
}
PAGE = b"""<script type="module">
import { Dream } from "./assets/live.js";
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
const frames = [];
let dream, now;
globalThis.begin = async (world, processor) => {
  dream = await Dream.open("live/", world, { processor, failed: (error) => { throw error; } });
  now = await dream.begin(0);
};
globalThis.play = async (actions, text) => {
  const noise = new Float32Array(bytes(text)), size = dream.noiseSize, begun = performance.now();
  for (const [t, action] of actions.entries()) {
    now = await dream.step(now.state, action, noise.slice(t * size, (t + 1) * size));
    frames.push(now.frame.slice());
  }
  return performance.now() - begun;
};
globalThis.told = () => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",")[1]);
  reader.readAsDataURL(new Blob(frames));
});
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
    if (DOCS / "live" / "live.json").is_file() and CHROMIUM:
        actions, noise = _plan(run)
        seen = in_browser(run.world, actions, noise, run.warm)
        build = json.loads((DOCS / "live" / "live.json").read_text())
        size = build["runtimes"]["wasm"]["bytes"] + next(it["bytes"] for it in build["worlds"] if it["name"] == run.world)
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


def in_browser(
    world: str, actions: np.ndarray, noise: np.ndarray, warm: int = 0, files: Mapping[str, bytes] = NO_FILES, webgpu: bool = False
) -> BrowserRun:
    """Dream from the first context in a page, with the files of the site, except for `files`, by their paths.

    With `webgpu` a program that stands for a graphics processor computes, so that its speed says nothing. Raises `RuntimeError` with what
    the page says where it fails.
    """

    def play(part: slice) -> str:
        drawn = base64.b64encode(noise[part].astype(np.float32).tobytes()).decode()
        return f"play({actions[part].tolist()}, {drawn!r})"

    async def played() -> BrowserRun:
        async with served(DOCS, {"/page.html": PAGE, **files}) as address, tab(*(WEBGPU if webgpu else ()), patience=LONGEST) as page:
            await page.open(f"{address}/page.html")
            await page.until("Boolean(globalThis.begin)")
            await page.value(f"begin({world!r}, {'webgpu' if webgpu else 'wasm'!r})")
            await page.value(play(slice(warm)))
            begun = _used(page.process)[0]
            took = await page.value(play(slice(warm, None)))
            spent, peak = _used(page.process)
            frames = np.frombuffer(base64.b64decode(await page.value("told()")), np.uint8).reshape(len(actions), -1)
        side, count = round((frames.shape[1] / 3) ** 0.5), len(actions) - warm
        return BrowserRun(frames.reshape(-1, side, side, 3), took / count, 1000 * (spent - begun) / count, peak)

    return asyncio.run(played())


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
