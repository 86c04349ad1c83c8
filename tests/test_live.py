"""The live page dreams in a browser what onnxruntime dreams, and says what is wrong in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.live import browse, in_browser

DOCS = Path(__file__).parent.parent / "docs"
LIVE = DOCS / "live"
PLAYED = "".join(re.findall(r"^<.*>$", (DOCS / "live.md").read_text(encoding="utf-8"), re.MULTILINE))
DRIVEN = (
    PLAYED
    + """<script type="module">
const told = (what, body) => fetch(what, { method: "POST", body });
const until = async (condition) => {
  for (let tries = 0; tries < 1200; tries++) {
    const value = condition();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`waited in vain; the page says: ${document.querySelector("#live").textContent}`);
};
const said = () => document.querySelector("#live").textContent;
try {
  const { play, wait } = await (await fetch("plan.json")).json();
  const report = {};
  const button = await until(() => document.querySelector("#live button") ?? (said().includes("part of this build") && {}));
  report.offer = button.textContent;
  button.click?.();
  await until(() => new RegExp(wait).test(said()));
  const canvas = document.querySelector("canvas");
  report.said = said();
  if (play) {
    let bubbled = 0;
    document.addEventListener("keydown", () => bubbled++);
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "w", bubbles: true }));
    const pictures = new Set();
    await until(() => pictures.add(canvas.toDataURL()).size > 8);
    report.pictures = pictures.size;
    report.bubbled = bubbled;
    report.focused = document.activeElement === canvas;
    const again = [...document.querySelectorAll("#live button")].find((one) => one.textContent === "Dream anew");
    const step = () => Number(/step (\\d+)/.exec(said())?.[1] ?? 0);
    const before = step();
    again.click();
    await until(() => step() && step() < before);
    report.after = said();
  }
  await told("frames", JSON.stringify(report));
} catch (error) { await told("failed", String(error)); }
</script>"""
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (LIVE / "live.json").is_file(), reason="docs/live is not there: python docs/_scripts/live.py makes it"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium"),
]


def driven(files: dict[str, bytes], wait: str, play: bool = False) -> dict:
    plan = json.dumps({"wait": wait, "play": play}).encode()
    told, *_ = browse(DOCS, {"/page.html": DRIVEN.encode(), "/plan.json": plan, **files})
    return json.loads(told["frames"])


@pytest.mark.parametrize("world", ["memory-maze", "minecraft"])
def test_a_page_dreams_what_onnxruntime_dreams(world):
    from lssvwm_gym.onnx_dream import OnnxDream

    random, exported, apart = np.random.default_rng(0), OnnxDream(LIVE / world), []
    actions, noise = random.integers(6, size=30), random.standard_normal((30, *exported.manifest["noise"]), np.float32)
    seen = in_browser(DOCS, world, actions, noise)
    _, now = exported.begin(0)
    for t in range(len(actions)):
        frame, _, _, now = exported.step(now, actions[t : t + 1], noise[t])
        apart.append(np.abs(frame.astype(int) - seen.frames[t]))
    assert max(one.max() for one in apart[:5]) <= 2
    assert np.mean(apart) < 0.5


def test_a_player_starts_it_and_moves():
    report = driven({}, r"step \d+ ", play=True)
    assert re.fullmatch(r"Start \(downloads (\d\.\d) MB\)", report["offer"]), report
    assert float(report["offer"].split()[-2]) < 10
    assert report["pictures"] > 8
    assert not report["bubbled"], "the page's own keys, such as s for search, would answer"
    assert report["focused"]
    assert "frames/s" in report["after"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"/live/memory-maze/weights.bin": b"cut"}, "weights.bin came with 3 bytes instead of"),
        ({"/live/memory-maze/step.onnx": bytes(1)}, "step.onnx came with 1 bytes instead of"),
        ({"/live/live.json": b"no"}, "isn't part of this build"),
    ],
)
def test_what_is_wrong_is_one_sentence(files, said):
    assert said in driven(files, said)["said"]


def test_a_changed_file_of_the_same_size_is_noticed():
    content = bytearray((LIVE / "memory-maze" / "weights.bin").read_bytes())
    content[1000] ^= 1
    said = "weights.bin is not the file that was exported"
    assert said in driven({"/live/memory-maze/weights.bin": bytes(content)}, said)["said"]
