"""The live page dreams in a browser what onnxruntime dreams, and says what is wrong in one sentence."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from docs._scripts.browser import CHROMIUM, WEBGPU, served, tab
from experiments.live import in_browser

DOCS = Path(__file__).parent.parent / "docs"
LIVE = DOCS / "live"
PLAYED = "".join(re.findall(r"^<.*>$", (DOCS / "live.md").read_text(encoding="utf-8"), re.MULTILINE))
ROOT = "document.querySelector('#live')"
SAID = f"{ROOT}.textContent"
CANVAS = f"{ROOT}.querySelector('canvas')"
STEP = f"Number(/step (\\d+) /.exec({SAID})?.[1] ?? 0)"
START = f"{ROOT}.querySelector('button')"
PROCESSOR = f"{ROOT}.querySelectorAll('select')[1]"
ADAPTER = "<script>let asked = 0; navigator.gpu.requestAdapter = async () => (asked++ ? null : {});</script>"  # one for the page alone
BROKEN = b"""export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims, location: "cpu" }); } }
export const InferenceSession = { create: async () => ({ run: async () => { throw new Error("The device is lost."); } }) };"""  # a runtime

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (LIVE / "live.json").is_file(), reason="docs/live is not there: python docs/_scripts/live.py makes it"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


def on_page(scenario, files=None, before="", flags=()):
    """What a scenario makes of the page, where `files`, by their paths, stand for others and `before` is a script."""

    async def played():
        page_files = {"/page.html": (before + PLAYED).encode(), **(files or {})}
        async with served(DOCS, page_files) as address, tab(*flags, patience=120) as page:
            await page.open(f"{address}/page.html")
            await page.until(f"Boolean({ROOT} && ({START} || {SAID}.includes('part of this build')))")
            return await scenario(page)

    return asyncio.run(played())


def said_after_start(said, files=None):
    async def scenario(page):
        await page.value(f"{START}?.click()")
        await page.until(f"{SAID}.includes({said!r})")

    on_page(scenario, files)


def exported_dream(world, folder):
    """What the page plays, without gzip."""
    from lssvwm_gym.onnx_dream import OnnxDream

    for path in (LIVE / world).iterdir():
        content = path.read_bytes()
        (folder / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
    return OnnxDream(folder)


@pytest.mark.parametrize("world", ["memory-maze", "minecraft"])
def test_a_page_dreams_what_onnxruntime_dreams(world, tmp_path):
    random, exported, apart = np.random.default_rng(0), exported_dream(world, tmp_path), []
    actions, noise = random.integers(6, size=15), random.standard_normal((15, *exported.manifest["noise"]), np.float32)
    seen = in_browser(world, actions, noise)
    _, now = exported.begin(0)
    for t in range(len(actions)):
        frame, _, _, now = exported.step(now, actions[t : t + 1], noise[t])
        apart.append(np.abs(frame.astype(int) - seen.frames[t]))
    assert max(one.max() for one in apart[:5]) <= 2
    assert np.mean(apart) < 0.5  # sums differ in their last bits: sooner or later a latent is rounded the other way, and the dreams part


@pytest.mark.parametrize("world", ["memory-maze", "minecraft"])
def test_webgpu_dreams_what_onnxruntime_dreams(world, tmp_path):
    """By a graphics processor that is a program, which takes a minute for the first steps: so one real frame is all of the context."""
    if not on_page(lambda page: page.value("navigator.gpu?.requestAdapter().then(Boolean)"), flags=WEBGPU):
        pytest.skip("this Chromium has no WebGPU without a graphics processor")
    random, exported, steps = np.random.default_rng(0), exported_dream(world, tmp_path), 3
    exported.manifest["contexts"][0]["frames"] = 1
    exported.contexts[0] = {name: part[:, :1] for name, part in exported.contexts[0].items()}
    actions, noise = random.integers(6, size=steps), random.standard_normal((steps, *exported.manifest["noise"]), np.float32)
    seen = in_browser(world, actions, noise, 0, {f"/live/{world}/manifest.json": json.dumps(exported.manifest).encode()}, webgpu=True)
    _, now = exported.begin(0)
    for t in range(steps):
        frame, _, _, now = exported.step(now, actions[t : t + 1], noise[t])
        assert np.abs(frame.astype(int) - seen.frames[t]).max() <= 1


def test_a_player_starts_it_and_moves():
    async def scenario(page):
        size = re.fullmatch(r"Start \(downloads (\d+\.\d) MB\)", await page.value(f"{START}.textContent"))
        assert float(size[1]) < 10
        await page.value(f"{START}.click()")
        await page.until(f"{STEP} > 0")
        assert await page.value(f"document.activeElement === {CANVAS}")
        await page.value(
            "globalThis.bubbled = 0, document.addEventListener('keydown', () => bubbled++), globalThis.pictures = new Set(), null"
        )
        await page.key("down", "w")
        await page.until(f"pictures.add({CANVAS}.toDataURL()).size > 8")
        assert not await page.value("bubbled"), "the page's own keys, such as s for search, would answer"
        before = await page.value(STEP)
        await page.value(f"[...{ROOT}.querySelectorAll('button')].find((one) => one.textContent === 'Dream anew').click()")
        await page.until(f"{STEP} && {STEP} < {before}")
        assert "frames/s with WebAssembly" in await page.value(SAID)

    on_page(scenario)


def test_without_an_adapter_there_is_no_choice():
    async def scenario(page):
        await page.until(f"{SAID}.includes('No graphics adapter for WebGPU.')")
        assert await page.value(f"{PROCESSOR}.disabled && {PROCESSOR}.value === 'wasm'")

    on_page(scenario)


def broken_runtime():
    build = json.loads((LIVE / "live.json").read_text())
    build["runtimes"]["webgpu"]["script"] |= {"bytes": len(BROKEN), "sha256": hashlib.sha256(BROKEN).hexdigest()}
    return {"/live/live.json": json.dumps(build).encode(), "/live/ort.webgpu.js": BROKEN}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (dict, "WebGPU has failed here (no available backend found."),
        (broken_runtime, "WebGPU has failed here (The device is lost.)"),
        (lambda: {"/live/ort.webgpu.bin": b"cut"}, "ort.webgpu.bin came with 3 bytes instead of"),
        (
            lambda: {"/live/ort.webgpu.js": bytes((LIVE / "ort.webgpu.js").stat().st_size)},
            "ort.webgpu.js is not the file that was exported.",
        ),
    ],
)
def test_where_webgpu_fails_the_dream_goes_on(files, reason):
    async def scenario(page):
        await page.until(f"!{PROCESSOR}.disabled")
        offer = await page.value(f"{START}.textContent")
        await page.value(f"{PROCESSOR}.value = 'webgpu', {PROCESSOR}.dispatchEvent(new Event('change'))")
        larger = await page.value(f"{START}.textContent")
        assert float(larger.split()[-2]) > float(offer.split()[-2]) + 2, "it says how much more is downloaded"
        await page.value(f"{START}.click()")
        await page.until(f"{STEP} > 1")
        said = await page.value(SAID)
        assert reason in said
        assert "so the dream goes on with WebAssembly." in said
        assert "frames/s with WebAssembly" in said
        assert await page.value(f"{PROCESSOR}.value") == "wasm"

    on_page(scenario, files(), ADAPTER)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"/live/memory-maze/weights.bin.gz": b"cut"}, "weights.bin.gz came with 3 bytes instead of"),
        ({"/live/memory-maze/step.onnx.gz": bytes(1)}, "step.onnx.gz came with 1 bytes instead of"),
        ({"/live/live.json": b"no"}, "isn't part of this build"),
    ],
)
def test_what_is_wrong_is_one_sentence(files, said):
    said_after_start(said, files)


def test_a_changed_file_of_the_same_size_is_noticed():
    content = bytearray((LIVE / "memory-maze" / "weights.bin.gz").read_bytes())
    content[1000] ^= 1
    said = "weights.bin.gz is not the file that was exported"
    said_after_start(said, {"/live/memory-maze/weights.bin.gz": bytes(content)})
