"""The game in browsers: `lssvwm-gym play memory-maze --web`.

A page (`web_page/`) and a web socket. Every message to the page is binary: the length of a JSON object (4 bytes, the highest first), the
object, and the files whose lengths the object has as "sizes". Messages from the page: `visitor.py`.

Steps of all visitors are taken by one thread, in turns, so that a step of one waits for one of every other at most.
"""

import asyncio
import bisect
import hmac
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from lssvwm_gym.play.settings import WEB_FASTEST, Playing, open_game
from lssvwm_gym.play.visitor import Visitor, film_file

PAGE = Path(__file__).parent / "web_page"
MAX_MESSAGE = 4096  # bytes
UNSEEN = 3  # frames under way to a page at most; those that it is too slow for are never sent
BURST = 10  # messages of a page that are read before all others have their turn
GOODBYE = 3.0  # seconds that a page has for the last message
HEARTBEAT = 20.0  # seconds without an answer after which a page is gone
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'",
    "Referrer-Policy": "no-referrer",  # the address may have a token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

log = logging.getLogger("lssvwm_gym")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(run: Playing) -> None:
    """Serve until Ctrl-C. Raises as `lssvwm_gym.play.play` does."""
    open_game(run).close()  # what is wrong is said here, not to visitors
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(run))


async def _serve(run: Playing) -> None:
    server = Server(run)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, run.host, run.port).start()
        except OSError as error:
            problem = str(error.strerror).rpartition(": ")[2]  # before it, asyncio says the address again
            raise OSError(f"can't listen at port {run.port} of {run.host} ({problem}): choose another --port, or 0") from None
        print(f"{server.address(runner.addresses[0][1])}   (Ctrl-C ends)", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


class Server:
    """All visitors, each with `fastest` steps, and frames, a second at most."""

    def __init__(self, run: Playing, fastest: float = WEB_FASTEST) -> None:
        self.run, self.fastest = run, fastest
        self.token = "" if is_loopback(run.host) else secrets.token_urlsafe(16)
        self.visitors: dict[Visitor, web.WebSocketResponse] = {}
        self._turns, self._films = ThreadPoolExecutor(1, "turns"), ThreadPoolExecutor(1, "films")

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/socket", self._socket)
        app.router.add_static("/page/", PAGE)
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._end_all)
        app.on_cleanup.append(self._end_threads)
        return app

    def address(self, port: int) -> str:
        host = socket.gethostname() if self.run.host in ("", "0.0.0.0", "::") else self.run.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={self.token}" if self.token else "")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whoever has no token, other sites' pages, and names that other sites may have given to this machine."""
        try:
            host, origin = urlsplit(f"//{request.host}").hostname or "", urlsplit(request.headers.get("Origin", f"//{request.host}"))
        except ValueError:
            raise web.HTTPBadRequest(text="no host can be named so") from None
        if origin.netloc != request.host:
            raise web.HTTPForbidden(text="this game is played from its own page, not from another site's")
        if not self.token and not is_loopback(host):
            raise web.HTTPForbidden(text="this game is played at localhost: forward a port (ssh -L), or start it with --host")
        token = request.query.get("token", "")
        if self.token and not request.path.startswith("/page/") and not hmac.compare_digest(token.encode(), self.token.encode()):
            raise web.HTTPForbidden(text="the address needs the token that was printed when the game was started")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html")

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        to_page = web.WebSocketResponse(heartbeat=HEARTBEAT, max_msg_size=MAX_MESSAGE, compress=False, timeout=2.0)
        await to_page.prepare(request)
        if len(self.visitors) >= self.run.visitors:
            await _end(to_page, f"all {self.run.visitors} places are taken: try again later")
            return to_page
        visitor = Visitor(self.run, self.fastest)
        self.visitors[visitor] = to_page
        self._share_memory()
        tasks = [asyncio.create_task(work(visitor, to_page)) for work in (self._play, self._show)]
        try:
            await _listen(visitor, to_page)
        finally:
            visitor.has_left = True
            for task in tasks:
                task.cancel()
            del self.visitors[visitor]
            self._share_memory()
            self._turns.submit(visitor.close)  # after the turn that may be under way
            await asyncio.gather(*tasks, return_exceptions=True)
        return to_page

    def _share_memory(self) -> None:
        for visitor in self.visitors:
            visitor.rewind_bytes = self.run.rewind_mb * 10**6 // len(self.visitors)
            self._turns.submit(visitor.hold)

    async def _play(self, visitor: Visitor, to_page: web.WebSocketResponse) -> None:
        loop, films = asyncio.get_running_loop(), set[asyncio.Task[None]]()

        def published() -> None:
            visitor.news.set()
            if visitor.film and not films and not visitor.has_left:
                films.add(asyncio.create_task(self._hand_over(visitor, to_page)))
                next(iter(films)).add_done_callback(films.discard)

        publish = partial(loop.call_soon_threadsafe, published)
        try:
            while True:
                visitor.is_in_line = True
                await loop.run_in_executor(self._turns, visitor.turns, publish, lambda: any(one.is_in_line for one in [*self.visitors]))
                await visitor.until_due()
        except Exception as error:
            log.exception("the game of a visitor has ended by an error")
            await _end(to_page, f"the game has ended by an error ({type(error).__name__}); more is told where it was started")
        finally:
            for film in films:
                film.cancel()

    async def _hand_over(self, visitor: Visitor, to_page: web.WebSocketResponse) -> None:
        assert visitor.film
        try:
            file = await asyncio.get_running_loop().run_in_executor(self._films, film_file, *visitor.film)
            await to_page.send_bytes(packed({"is": "film", "name": f"{visitor.world.name}{visitor.film[0]}"}, file))
        except (OSError, ValueError, ImportError) as error:
            visitor.complain(f"no film could be made: {error}")
        finally:
            visitor.film = None

    async def _show(self, visitor: Visitor, to_page: web.WebSocketResponse) -> None:
        """Send the newest view, when the page has room for it."""
        await to_page.send_bytes(packed(visitor.greeting()))
        shown = None
        while True:
            await visitor.news.wait()
            visitor.news.clear()
            view = visitor.view
            if view is None or view is shown or visitor.sent - visitor.seen >= UNSEEN:
                continue
            visitor.sent += 1
            trail = _change(shown.trail if shown else (), view.trail)
            marks = () if shown and shown.marks is view.marks else view.marks
            await to_page.send_bytes(packed({**view.panel, "number": visitor.sent, "trail": trail}, view.frame, *marks))
            shown = view
            await asyncio.sleep(1 / self.fastest)

    async def _end_all(self, _: web.Application) -> None:
        message = "the game has been ended where it was started"
        await asyncio.gather(*(_end(to_page, message, WSCloseCode.GOING_AWAY) for to_page in self.visitors.values()))

    async def _end_threads(self, _: web.Application) -> None:
        for threads in (self._turns, self._films):
            await asyncio.to_thread(threads.shutdown)


async def _listen(visitor: Visitor, to_page: web.WebSocketResponse) -> None:
    count = 0
    async for message in to_page:
        if message.type is WSMsgType.TEXT:
            visitor.receive(message.data)
        elif message.type is WSMsgType.BINARY:
            visitor.complain("this page sends what can't be read: binary data")
        count += 1
        if count % BURST == 0:
            await asyncio.sleep(0.001)


async def _end(to_page: web.WebSocketResponse, message: str, code: int = WSCloseCode.TRY_AGAIN_LATER) -> None:
    async def end() -> None:
        await to_page.send_bytes(packed({"is": "end", "message": message}))
        await to_page.close(code=code)

    with suppress(ConnectionError, asyncio.TimeoutError):
        await asyncio.wait_for(end(), GOODBYE)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def packed(told: dict[str, Any], *files: bytes) -> bytes:
    """A message to a page."""
    text = json.dumps({**told, "sizes": [len(file) for file in files]}).encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *files])


def _change(before: tuple[np.ndarray, ...], now: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """What makes one trail of another: how many of its poses stay, and what follows. Trails that share a pose share all before it."""
    keep = bisect.bisect_left(range(min(len(before), len(now))), True, key=lambda number: before[number] is not now[number])
    return {"keep": keep, "add": [[round(float(part), 3) for part in pose] for pose in now[keep:]]}
