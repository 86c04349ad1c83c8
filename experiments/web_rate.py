"""How fast `lssvwm-gym play --web` is: frames a second over the socket beside steps of the plain environment, from key to picture, and
many visitors at once.

    python experiments/web_rate.py --out docs/scores/web_rate.json

Frames and plain steps are measured by turns in the same process, so that other work on the machine slows both down. The page is one that
does not draw. A key press waits for nothing but its step: the game is paused, and "n" takes one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from aiohttp import ClientWebSocketResponse
from aiohttp.test_utils import TestClient, TestServer

from experiments.benchmark.machine import Times, machine, memory_bytes
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.play import Playing
from lssvwm_gym.play.web import Server

UNCAPPED = 1000.0  # steps, and frames, a second


@dataclass(frozen=True)
class Args:
    world: str = "memory-maze"
    profile: str = "fast"
    weights: Path | None = None
    rounds: int = 10  # of plain steps, then frames
    steps: int = 30  # a round
    warm_up: int = 200  # frames before: until the memory for rewinding is full, every state needs fresh memory
    presses: int = 200
    visitors: int = 8
    seconds: float = 20.0  # that all visitors play
    tabs: int = 100  # opened and closed
    out: Path | None = None


class Page:
    """A page that does not draw."""

    def __init__(self, to_server: ClientWebSocketResponse) -> None:
        self._to_server, self.told = to_server, dict[str, Any]()

    async def tell(self, name: str, value: Any) -> None:
        await self._to_server.send_str(json.dumps({name: value}))

    async def frame(self) -> int:
        """The step that the next frame shows."""
        while True:
            data = await self._to_server.receive_bytes()
            self.told = json.loads(data[4 : 4 + int.from_bytes(data[:4], "big")])
            if self.told["is"] == "frame":
                await self.tell("seen", self.told["number"])
                return int(self.told["numbers"][0][1].split()[0])

    async def until_paused(self, paused: bool) -> None:
        await self.tell("down", "p")
        while self.told.get("paused") is not paused:
            await self.frame()


@asynccontextmanager
async def page(client: TestClient[Any, Any]) -> AsyncIterator[Page]:
    # by its session: the client itself would keep every socket
    async with client.session.ws_connect(client.make_url("/socket"), max_msg_size=0) as to_server:
        opened = Page(to_server)
        await opened.frame()
        yield opened


async def rates(args: Args, client: TestClient[Any, Any], env: DreamEnv) -> dict[str, Any]:
    plain, delivered, work = [], [], []
    async with page(client) as player:
        for _ in range(args.warm_up):
            await player.frame()
        await player.until_paused(True)
        for _ in range(args.rounds):
            used = time.process_time()
            plain.append(args.steps / await asyncio.to_thread(seconds_of_steps, env, args.steps))
            used = time.process_time() - used
            await player.until_paused(False)
            began, used_before = time.perf_counter(), time.process_time()
            for _ in range(args.steps):
                await player.frame()
            delivered.append(args.steps / (time.perf_counter() - began))
            work.append((used / args.steps, (time.process_time() - used_before) / args.steps))
            await player.until_paused(True)
    shares = np.array(delivered) / np.minimum(plain, 30.0)
    return {
        "plain_steps_a_second": float(np.median(plain)),
        "frames_a_second": float(np.median(delivered)),
        "share_up_to_30": float(np.median(shares)),
        "share_standard_error": float(shares.std(ddof=1) / len(shares) ** 0.5),
        "processor_ms": dict(zip(("plain_step", "frame"), (np.median(work, 0) * 1000).tolist(), strict=True)),
    }


def seconds_of_steps(env: DreamEnv, steps: int) -> float:
    began = time.perf_counter()
    for number in range(steps):
        env.step(number % int(env.action_space.n))  # type: ignore[attr-defined]
    return time.perf_counter() - began


async def latency(args: Args, client: TestClient[Any, Any], env: DreamEnv) -> dict[str, Any]:
    presses, steps = [], []
    async with page(client) as player:
        await player.until_paused(True)
        for number in range(args.presses):
            steps.append(await asyncio.to_thread(seconds_of_steps, env, 1))
            key = "wad"[number % 3]
            before, began = int(player.told["numbers"][0][1].split()[0]), time.perf_counter()
            await player.tell("down", key)
            await player.tell("down", "n")
            while await player.frame() == before:
                pass
            presses.append(time.perf_counter() - began)
            await player.tell("up", key)
    return {"key_to_picture": asdict(Times.of(presses)), "plain_step": asdict(Times.of(steps))}


async def together(args: Args, client: TestClient[Any, Any]) -> list[float]:
    """Frames a second of each of the visitors."""

    async def play() -> float:
        async with page(client) as player:
            await ready.wait()
            end, count = time.perf_counter() + args.seconds, 0
            while time.perf_counter() < end:
                await player.frame()
                count += 1
            return count / args.seconds

    ready = asyncio.Event()
    visitors = [asyncio.create_task(play()) for _ in range(args.visitors)]
    await asyncio.sleep(args.visitors)  # until all have begun
    ready.set()
    return sorted(await asyncio.gather(*visitors))


async def come_and_go(args: Args, server: Server, client: TestClient[Any, Any]) -> dict[str, Any]:
    """Memory of the process, in MiB, after a tenth of the tabs and after all."""
    memory = []
    for number in range(args.tabs):
        async with page(client) as player:
            await player.frame()
        while server.visitors:
            await asyncio.sleep(0.01)
        if number in (args.tabs // 10, args.tabs - 1):
            memory.append((memory_bytes() or 0) / 2**20)
    return {"tabs": args.tabs, "memory_mib": memory}


async def measured(args: Args) -> dict[str, Any]:
    run = Playing(world=args.world, weights=args.weights, profile=args.profile, visitors=args.visitors)  # type: ignore[arg-type]
    env = DreamEnv(args.world, weights=args.weights, profile=args.profile)
    env.reset(seed=0)
    found: dict[str, Any] = {}
    async with TestClient(TestServer(Server(replace(run, fps=UNCAPPED), UNCAPPED).app())) as client:
        found |= await rates(args, client, env)
        found |= await latency(args, client, env)
    server = Server(run)
    async with TestClient(TestServer(server.app())) as client:
        found["visitors_frames_a_second"] = await together(args, client)
        found |= await come_and_go(args, server, client)
    return found


def main() -> None:
    args = tyro.cli(Args)
    keep_freed_memory()  # as the command does
    found = {"machine": machine(), "world": args.world, "profile": args.profile, **asyncio.run(measured(args))}
    print(json.dumps(found, indent=1))
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
