"""The game's page in a real browser: headless Chromium."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from aiohttp.test_utils import TestServer
from tiny_world import same

from docs._scripts.browser import CHROMIUM, tab
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.play import Playing
from lssvwm_gym.play.web import Server

PIXELS = "[...document.getElementById('frame').getContext('2d').getImageData(0, 0, 64, 64).data]"
STEP = "parseInt(document.querySelector('#numbers tr td:last-child')?.textContent)"


async def frame(page):
    return np.array(await page.value(PIXELS), np.uint8).reshape(64, 64, 4)[:, :, :3]


async def step(page, key, number):
    """One step of a paused game with a key held."""
    for kind, name in (("down", key), ("down", "n"), ("up", "n")):
        await page.key(kind, name)
    await page.until(f"{STEP} === {number}")
    await page.key("up", key)
    return await frame(page)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_plays_rewinds_marks_and_films(tiny_weights, tmp_path):
    run = Playing(world="memory-maze", weights=tiny_weights, fps=0.5, seed=3, web=True, saves=tmp_path / "saves")

    async def scenario():
        async with TestServer(Server(run).app()) as server, tab() as page:
            await page.open(str(server.make_url("/")))
            await page.until(f"{STEP} === 0")
            await page.key("down", "p")
            await page.until("document.getElementById('message').textContent.startsWith('paused')")
            await page.key("down", "v")
            frames = [await frame(page), await step(page, "w", 1), await step(page, "a", 2), await step(page, "ArrowRight", 3)]
            env = DreamEnv("memory-maze", weights=tiny_weights)
            assert same(frames, [env.reset(seed=3)[0], *(env.step(action)[0] for action in (1, 2, 3))])
            await page.value("document.querySelectorAll('#commands button')[3].click()")  # mark
            await page.until("document.querySelectorAll('#marks img').length === 1")
            for _ in range(4):
                await page.key("down", "=")  # so that it rewinds faster
            await page.key("down", "Backspace")
            await page.until(f"{STEP} === 1")
            await page.key("up", "Backspace")
            assert same(await frame(page), frames[await page.value(STEP)])
            await page.key("down", "F1")
            await page.until(f"{STEP} === 3")
            assert same(await frame(page), frames[3])
            await page.key("down", "v")
            assert await page.until("document.body.dataset.film") > "0"
            await page.value("document.getElementById('profile').value = 'fast', document.getElementById('profile').onchange()")
            await page.until("document.getElementById('message').textContent === 'profile fast'")
            await step(page, "w", 4)
            assert "not with this profile" in await page.value("document.getElementById('gauges').textContent")
            assert (await page.screenshot(900, 760)).startswith(b"\x89PNG")

    asyncio.run(scenario())
