"""A headless Chromium by its DevTools protocol, for pictures of pages, measurements and tests."""

from __future__ import annotations

import asyncio
import base64
import itertools
import mimetypes
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0")
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")  # further flags: an adapter that is a program, on any machine
PATIENCE = 60.0  # seconds


class Tab:
    """One tab. `process` is the number of its browser's process, `patience` the seconds that it is waited for."""

    def __init__(self, to_browser: aiohttp.ClientWebSocketResponse, process: int, patience: float) -> None:
        self._to_browser, self._numbers, self.process, self.patience = to_browser, itertools.count(), process, patience

    async def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._to_browser.send_json({"id": number, "method": method, "params": parameters})
        while (answer := await self._to_browser.receive_json(timeout=self.patience)).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def value(self, script: str) -> Any:
        """What an expression is there; promises are waited for."""
        answer = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression is true there."""
        return await _patiently(lambda: self.value(script), script, self.patience)

    async def open(self, address: str) -> None:
        await self.ask("Page.enable")
        await self.ask("Page.navigate", url=address)

    async def key(self, kind: str, key: str) -> None:
        """`kind` is down or up."""
        await self.ask("Input.dispatchKeyEvent", type=f"key{kind.title()}", key=key)

    async def screenshot(self, width: int, height: int) -> bytes:
        """PNG."""
        await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return base64.b64decode((await self.ask("Page.captureScreenshot", format="png"))["data"])


async def _patiently(ask: Callable[[], Awaitable[Any]], what: str, patience: float) -> Any:
    end = time.monotonic() + patience
    while not (value := await ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience:g} seconds: {what}")
        await asyncio.sleep(0.02)
    return value


async def _port(told: Path) -> str:
    """Empty before the browser has written it."""
    lines = told.read_text().splitlines() if told.is_file() else []
    return lines[0] if len(lines) > 1 else ""


@asynccontextmanager
async def tab(*flags: str, patience: float = PATIENCE) -> AsyncIterator[Tab]:
    """A browser with one tab; its profile is a folder that is deleted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM or "chromium", *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank", stderr=asyncio.subprocess.DEVNULL
        )
        try:
            port = await _patiently(lambda: _port(Path(folder) / "DevToolsActivePort"), "Chromium starts", PATIENCE)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [page for page in await answer.json() if page["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as to_browser:
                    yield Tab(to_browser, browser.pid, patience)
        finally:
            browser.terminate()
            await browser.wait()


@asynccontextmanager
async def served(folder: Path, files: Mapping[str, bytes]) -> AsyncIterator[str]:
    """The address, without a slash at its end, of a server of a folder in which `files`, by their paths, stand for others."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path in files:
            return web.Response(body=files[request.path], content_type=mimetypes.guess_type(request.path)[0] or "application/octet-stream")
        path = folder / request.path.strip("/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")
