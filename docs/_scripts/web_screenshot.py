"""The picture of `lssvwm-gym play memory-maze --web` for the documentation: `python -m docs._scripts.web_screenshot`. Needs Chromium."""

from __future__ import annotations

import asyncio
import io

from aiohttp.test_utils import TestServer
from PIL import Image

from docs._scripts.browser import tab
from docs._scripts.screenshots import MEDIA, SHOTS, Shot
from lssvwm_gym.play import Playing
from lssvwm_gym.play.web import Server
from lssvwm_gym.worlds import WORLDS

SIZE = 840, 820  # pixels
STEP = "parseInt(document.querySelector('#numbers tr td:last-child')?.textContent)"
SAID = "document.getElementById('message').textContent"


async def take(shot: Shot) -> bytes:
    """Play the actions on the page, and keep what it shows at their end. PNG."""
    world = WORLDS[shot.world]
    keys = {action: key for key, action in world.keys.items()}
    run = Playing(world=shot.world, seed=shot.seed, fps=0.5, web=True)
    async with TestServer(Server(run).app()) as server, tab() as page:
        await page.open(str(server.make_url("/")))
        await page.until(f"{STEP} === 0")
        await page.key("down", "p")
        for number, action in enumerate(shot.actions):
            key = keys[world.actions.index(action)]
            for name in (key, "n"):
                await page.key("down", name)
            await page.until(f"{STEP} === {number + 1}")
            await page.key("up", key)
            if number in shot.marks:
                await page.key("down", "m")
                await page.until(f"{SAID}.startsWith('marked')")
        return await page.screenshot(*SIZE)


def main() -> None:
    path = MEDIA / "play_web.png"
    Image.open(io.BytesIO(asyncio.run(take(SHOTS[0])))).convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
