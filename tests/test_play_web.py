"""The game in browsers: messages go in as a page sends them; frames, numbers and films come out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import socket
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same

from lssvwm_gym.cli import main
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.io.video import enlarged
from lssvwm_gym.play import Playing, play, visitor, web
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.web import Server, is_loopback

FORWARD, LEFT = 1, 2


class Page:
    """What the page's script does, without drawing."""

    def __init__(self, to_server):
        self.to_server, self.trail, self.marks, self.told, self.frame = to_server, [], [], None, None

    async def tell(self, name, value=None):
        await self.to_server.send_str(json.dumps({name: value}))

    async def press(self, *keys):
        for key in keys:
            await self.tell("down", key)
            await self.tell("up", key)

    async def hear(self, acknowledge=True):
        """The next message, and its files."""
        message = await self.to_server.receive(timeout=20)
        if message.type is not WSMsgType.BINARY:
            return {"is": "closed", "code": self.to_server.close_code}, []
        length = int.from_bytes(message.data[:4], "big")
        told, rest = json.loads(message.data[4 : 4 + length]), message.data[4 + length :]
        ends = np.cumsum(told["sizes"])
        files = [rest[end - size : end] for size, end in zip(told["sizes"], ends, strict=True)]
        if told["is"] == "frame":
            self.told, self.frame = told, pixels(files[0])
            self.trail = [*self.trail[: told["trail"]["keep"]], *told["trail"]["add"]]
            self.marks = [pixels(file) for file in files[1:]] or self.marks
            if acknowledge:
                await self.tell("seen", told["number"])
        return told, files

    async def until(self, condition):
        while self.told is None or not condition(self.told):
            assert (await self.hear())[0]["is"] in ("world", "frame")
        return self.frame

    async def step(self, *keys):
        """One step of a paused game while keys are held."""
        before = steps(self.told)
        for key in keys:
            await self.tell("down", key)
        await self.tell("down", "n")
        frame = await self.until(lambda told: steps(told) == before + 1)
        for key in keys:
            await self.tell("up", key)
        return frame


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file)))


def steps(told):
    return int(told["numbers"][0][1].split()[0])


@contextlib.asynccontextmanager
async def served(run, **sizes):
    server = Server(run, **sizes)
    async with TestClient(TestServer(server.app())) as client:
        yield server, client


@contextlib.asynccontextmanager
async def page(client, address="/socket", paused=True, **options):
    async with client.ws_connect(address, max_msg_size=0, **options) as to_server:
        opened = Page(to_server)
        if paused:
            await opened.press("p")
            await opened.until(lambda told: told["paused"])
        yield opened


@pytest.fixture
def run(tiny_weights, tmp_path):
    """Settings of a game that steps by itself so rarely that it never does before it is paused."""
    return lambda **settings: Playing(
        **{**dict(world="memory-maze", weights=tiny_weights, fps=0.5, seed=3, web=True, saves=tmp_path / "saves"), **settings}
    )


def dreamed(weights, actions, profile="balanced"):
    """Frames of the plain environment from seed 3."""
    env = DreamEnv("memory-maze", weights=weights, profile=profile)
    return [env.reset(seed=3)[0], *(env.step(action)[0] for action in actions)]


def test_the_page_and_all_it_loads_are_served(run):
    async def scenario():
        async with served(run()) as (_, client):
            answer = await client.get("/")
            text = await answer.text()
            assert "page/play.js" in text
            assert "http" not in text  # nothing is loaded from elsewhere
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            for name, kind in (("play.js", "javascript"), ("style.css", "css")):
                answer = await client.get(f"/page/{name}")
                assert (answer.status, kind in answer.headers["Content-Type"]) == (200, True)
            assert (await client.get("/page/../web.py")).status == 404
            assert (await client.get("/page/%2e%2e/web.py")).status in (403, 404)

    asyncio.run(scenario())


def test_keys_give_the_frames_of_the_plain_environment(run, tiny_weights):
    async def scenario():
        async with served(run()) as (_, client), page(client) as player:
            frames = [
                player.frame,
                await player.step("w"),
                await player.step("w", "a"),
                await player.step(),
                await player.step("left"),
            ]
            assert same(frames, dreamed(tiny_weights, [FORWARD, 4, 0, LEFT]))
            assert len(player.trail) == 5
            assert {name for name, *_ in player.told["numbers"]} >= {"step", "return", "action", "can go back"}

    asyncio.run(scenario())


def test_the_page_is_told_the_keys_that_there_are(run):
    async def scenario():
        async with served(run()) as (_, client), page(client, paused=False) as player:
            told, _ = await player.hear()
            assert {"w", "up", "backspace", "p", "return", "f1", "f8", ".", "="} <= set(told["keys"])
            assert not {"v", "f9", "f10", "h", "q", "escape", "space", "t"} & set(told["keys"])
            for key in told["keys"]:
                await player.press(key)
            await player.tell("profile", "quality")
            await player.until(lambda told: told["profile"] == "quality")
            assert "not known here" not in player.told["message"]

    asyncio.run(scenario())


def test_the_game_goes_on_by_itself_and_a_tap_counts(run, tiny_weights):
    async def scenario():
        async with served(run(fps=20.0)) as (_, client), page(client, paused=False) as player:
            await player.press("left")
            assert same(await player.until(lambda told: steps(told) == 1), dreamed(tiny_weights, [LEFT])[1])
            assert same(await player.until(lambda told: steps(told) == 3), dreamed(tiny_weights, [LEFT, 0, 0])[3])

    asyncio.run(scenario())


def test_rewind_marks_and_branches_come_back_to_the_bit(run, tiny_weights):
    async def scenario():
        async with served(run(fps=30.0)) as (_, client), page(client) as player:
            begin = steps(player.told)
            first = [player.frame, await player.step("w"), await player.step("w")]
            trail = list(player.trail)
            await player.press("m")
            await player.until(lambda told: "marked: f1" in told["message"])
            assert same(player.marks, [first[2]])
            other = await player.step("a")
            await player.press("f1")
            assert same(await player.until(lambda told: told["message"] == "back at mark 1"), first[2])
            assert player.trail == trail
            assert not same(await player.step("d"), other)
            await player.tell("down", "backspace")
            assert same(await player.until(lambda told: steps(told) == begin + 2), first[2])
            assert same(await player.until(lambda told: "no earlier" in told["message"]), dreamed(tiny_weights, [])[0])
            await player.tell("up", "backspace")
            assert player.trail == trail[:1]
            for _ in range(begin):
                await player.step()
            assert same([player.frame, await player.step("w"), await player.step("w")], first)
            assert player.trail == trail

    asyncio.run(scenario())


def test_profile_policy_and_a_new_dream(run, tiny_weights):
    async def scenario():
        async with served(run(policy="wander")) as (_, client), page(client) as player:
            assert player.told["acts"] == "policy acts"
            await player.tell("profile", "fast")
            await player.until(lambda told: told["profile"] == "fast")
            assert same(await player.step("d"), dreamed(tiny_weights, [3], "fast")[1])
            assert [share for name, share in player.told["gauges"] if name == "uncertain"] == [None]
            await player.press("t")
            await player.until(lambda told: not told["acts"])
            await player.press("r")
            assert not same(await player.until(lambda told: steps(told) == 0), dreamed(tiny_weights, [])[0])

    asyncio.run(scenario())


def test_a_world_with_an_inventory_shows_it(run, tmp_path):
    async def scenario():
        settings = run(world="minecraft", weights=write_tiny_minecraft(tmp_path / "weights"))
        async with served(settings) as (_, client), page(client) as player:
            await player.step(" ")
            assert player.told["action"] == "jump forward"
            assert [len(item) for item in player.told["inventory"]] == [4] * 9

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_film_is_handed_over_and_left_nowhere(run, tmp_path, ending, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def scenario():
        async with served(run()) as (_, client), page(client) as player:
            await player.tell("film", ending)
            shown = [await player.until(lambda told: told["films"]), await player.step("w"), await player.step("w")]
            await player.tell("film", ending)
            while (heard := await player.hear())[0]["is"] != "film":
                pass
            return shown, *heard

    shown, told, (file,) = asyncio.run(scenario())
    assert told["name"] == f"memory-maze.{ending}"
    with av.open(io.BytesIO(file)) as film:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    wanted = enlarged(np.stack(shown), 4)
    assert decoded.shape == wanted.shape
    assert np.abs(decoded.astype(int) - wanted).mean() < 12  # lossy
    assert not list(tmp_path.iterdir())


def test_a_long_film_ends_by_itself(run, monkeypatch):
    monkeypatch.setattr(visitor, "FILM_FRAMES", 3)

    async def scenario():
        async with served(run()) as (_, client), page(client) as player:
            await player.tell("film", "mp4")
            await player.until(lambda told: told["films"])
            await player.step()
            await player.tell("down", "n")
            while (await player.hear())[0]["is"] != "film":
                pass
            await player.until(lambda told: not told["films"])

    asyncio.run(scenario())


# ---- who may come in ----


@pytest.mark.parametrize(
    ("host", "is_ours"), [("localhost", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("", False), ("a.example", False)]
)
def test_addresses_of_this_machine_alone_are_known(host, is_ours):
    assert is_loopback(host) == is_ours


async def status(client, address, **headers):
    return (await client.get(address, headers=headers)).status


async def refused(client, address="/socket", **options):
    with pytest.raises(WSServerHandshakeError) as error:
        async with client.ws_connect(address, **options):
            pass
    return error.value.status


def test_other_addresses_need_the_token(run):
    async def scenario():
        async with served(run(host="0.0.0.0")) as (server, client):
            assert f"?token={server.token}" in server.address(8765)
            assert len(server.token) > 20
            for wrong in ("", "?token=", "?token=wrong", "?token=%F0%9F%92%A9"):
                assert await status(client, f"/{wrong}") == await refused(client, f"/socket{wrong}") == 403
            assert await status(client, f"/?token={server.token}", Host="my.machine.example") == 200
            async with page(client, f"/socket?token={server.token}") as player:
                assert await refused(client, f"/socket?token={server.token}", origin="http://evil.example") == 403
                await player.step()

    asyncio.run(scenario())


def test_other_sites_and_names_given_by_them_are_refused(run):
    async def scenario():
        async with served(run()) as (server, client):
            own = f"{client.host}:{client.port}"
            for origin in ("http://evil.example", "null", f"http://{client.host}:1", "http://[", f"http://{own}.evil.example"):
                assert await refused(client, origin=origin) in (400, 403)
            assert await status(client, "/", Host="evil.example", Origin="http://evil.example") == 403  # a name that leads here
            assert await status(client, "/", Host="[") in (400, 403)
            assert await status(client, "/", Host="localhost:9999") == 200  # a tunnel
            async with page(client, origin=f"http://{own}") as player:
                await player.step()
            assert server.address(8765) == "http://127.0.0.1:8765/"

    asyncio.run(scenario())


def test_the_visitor_too_many_is_told_so_and_the_place_is_free_again(run, tiny_weights):
    async def scenario():
        async with served(run(visitors=2)) as (server, client), page(client) as first:
            async with page(client) as second:
                assert same(await second.step("a"), dreamed(tiny_weights, [LEFT])[1])
                async with page(client, paused=False) as third:
                    assert (await third.hear())[0] == {"is": "end", "message": "all 2 places are taken: try again later", "sizes": []}
                    assert (await third.hear())[0] == {"is": "closed", "code": 1013}
                assert same(await first.step("w"), dreamed(tiny_weights, [FORWARD])[1])
                assert [visitor.controls.game.past.limit for visitor in server.visitors] == [400 * 10**6] * 2  # though both are paused
            await gone(server, 1)
            async with page(client) as third:
                await third.step()

    asyncio.run(scenario())


def test_200_tabs_leave_no_objects_behind(run):
    async def scenario():
        async with served(run()) as (server, client):
            objects = []
            for number in range(200):
                async with client.session.ws_connect(client.make_url("/socket")) as to_server:  # the client itself would keep every socket
                    assert (await Page(to_server).hear())[0]["is"] == "world"
                    await to_server.receive(timeout=20)
                await gone(server)
                if number == 99:
                    objects.append(alive())
            for _ in range(50):  # timers and answers of the last tabs still run out
                left = alive() - objects[0]
                if left.total() < 300:
                    break
                await asyncio.sleep(0.2)
            assert not left.keys() & {"Visitor", "Game", "Controls", "DreamEnv", "Snapshot", "WebSocketResponse", "Task"}, left
            assert left.total() < 300, left.most_common(20)  # less than 3 a tab: caches of the libraries

    asyncio.run(scenario())


def alive():
    """How many objects of each type there are."""
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects())


async def gone(server, left=0):
    for _ in range(1000):
        if len(server.visitors) == left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(server.visitors)} visitors instead of {left}")


# ---- what pages may do ----


def hostile(rng):
    """Messages that no page of ours sends."""
    words = ["down", "up", "release", "profile", "film", "seen", "receive", "turn", "__class__", "", "say"]
    values = [
        None,
        1,
        -1,
        1e300,
        True,
        [],
        {},
        "w" * 3000,
        "f9",
        "f10",
        "v",
        "q",
        "avi",
        "/etc/passwd",
        "..",
        "\x00",
        "\ud800",
        "f99",
        "Ctrl",
    ]
    for _ in range(2000):
        kind = rng.integers(5)
        if kind == 0:
            yield rng.bytes(int(rng.integers(100)))
        elif kind == 1:
            yield ["", "{", "[]", "3", "null", '"down"', "[" * 4000, '{"a":' * 700, '{"down": "w", "up": "w"}', "{}", "NaN", "1" * 4000][
                rng.integers(12)
            ]
        elif kind == 2:
            yield json.dumps({words[rng.integers(len(words))]: values[rng.integers(len(values))]})
        elif kind == 3:
            yield json.dumps({"down": ["q", "f9", "f10", "v", "h", "\t", "wad"][rng.integers(7)]})
        else:
            yield json.dumps({["down", "up"][rng.integers(2)]: "wasd"[rng.integers(4)]})


def test_garbage_costs_whoever_sends_it_one_message_and_others_nothing(run, tiny_weights, tmp_path):
    async def scenario():
        async with served(run()) as (server, client), page(client) as other, page(client) as wrong:
            for number, message in enumerate(hostile(np.random.default_rng(0))):
                await (wrong.to_server.send_bytes if isinstance(message, bytes) else wrong.to_server.send_str)(message)
                if number in (500, 1500):
                    assert same(await other.step("w"), dreamed(tiny_weights, [FORWARD] * (1 + number // 1000))[-1])
            await wrong.tell("nonsense")
            await wrong.until(lambda told: told["wrong"] and "not known here: 'nonsense'" in told["message"])
            mine = list(server.visitors)[1]
            assert len(mine.keyboard.held) <= 5
            assert len(mine.waiting) <= visitor.MOST_COMMANDS
            await wrong.to_server.send_str("x" * 5000)
            assert (await until_closed(wrong))["code"] == 1009
            await gone(server, 1)
            assert same(await other.step("a"), dreamed(tiny_weights, [FORWARD, FORWARD, LEFT])[-1])

    asyncio.run(scenario())
    assert not (tmp_path / "saves").exists()


async def until_closed(player):
    while (told := (await player.hear(acknowledge=False))[0])["is"] != "closed":
        pass
    return told


def test_ten_thousand_keys_and_commands_are_kept_as_few(run):
    async def scenario():
        async with served(run()) as (server, client), page(client) as player:
            (mine,) = server.visitors
            for number in range(10_000):
                await player.tell("up" if number % 2 else "down", "wasd"[number % 3])
                assert len(mine.keyboard.held) + len(mine.keyboard.tapped) <= 8
            for _ in range(300):
                await player.tell("down", "m")
                assert len(mine.waiting) <= visitor.MOST_COMMANDS
            await player.until(lambda told: "too many commands" in told["message"])
            assert len(mine.controls.game.marks) <= 8
            await player.tell("release")
            await player.until(lambda told: not mine.waiting)
            await player.step()

    asyncio.run(scenario())


def test_a_page_that_is_slow_gets_the_newest_frame_and_no_queue(run):
    async def scenario():
        async with served(run(fps=30.0)) as (server, client), page(client, paused=False) as slow:
            (mine,) = server.visitors
            numbers = [(await slow.hear(acknowledge=False))[0].get("number") for _ in range(web.UNSEEN + 1)]
            assert numbers == [None, 1, 2, 3]
            await asyncio.sleep(0.5)
            assert mine.sent == web.UNSEEN
            late = steps(slow.told)
            await slow.tell("seen", 10**9)
            await slow.hear()
            assert steps(slow.told) > late + 3
            assert mine.seen == web.UNSEEN

    asyncio.run(scenario())


def test_pages_that_come_and_go_leave_nothing(run):
    async def scenario():
        async with served(run()) as (server, client), page(client) as stays:
            for number in range(200):
                async with client.ws_connect("/socket") as to_server:
                    if number % 3:
                        await to_server.receive()
                    if number % 20 == 0:
                        to_server._response.connection.transport.abort()  # a lost connection
                await gone(server, 1)
            assert len(asyncio.all_tasks()) < 12
            await stays.step()
        assert not server.visitors

    asyncio.run(scenario())


def test_an_error_in_a_game_ends_that_game_alone(run, monkeypatch, caplog):
    step = Game.step

    def breaking(self, action):
        if action == LEFT:
            raise RuntimeError("a secret of this machine")
        step(self, action)

    monkeypatch.setattr(Game, "step", breaking)

    async def scenario():
        async with served(run()) as (server, client), page(client) as other, page(client) as player:
            await player.tell("down", "a")
            await player.tell("down", "n")
            while (told := (await player.hear())[0])["is"] != "end":
                pass
            assert "ended by an error (RuntimeError)" in told["message"]
            assert "secret" not in told["message"]
            await until_closed(player)
            await gone(server, 1)
            await other.step("w")

    asyncio.run(scenario())
    assert "a secret of this machine" in caplog.text


def test_pages_are_told_when_the_game_is_ended(run):
    async def scenario():
        async with served(run()) as (_, client), page(client, paused=False) as player:
            await player.hear()
            await client.server.close()
            heard = [(await player.hear(acknowledge=False))[0] for _ in range(20) if not player.to_server.closed]
            assert any(told["is"] == "end" and "ended where it was started" in told["message"] for told in heard)

    asyncio.run(scenario())


# ---- the command ----


def test_the_command_serves_until_it_is_interrupted(run, monkeypatch, capsys):
    async def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio.Event, "wait", interrupted)
    assert play(run(port=0)) is None
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(run):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"can't listen at port \d+ of 127.0.0.1 \([^():]*in use\): .*--port"),
    ):
        play(run(port=taken.getsockname()[1]))


def test_what_is_missing_is_named_with_its_extra(tiny_weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "lssvwm_gym.play.web")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit, match=r"needs aiohttp: pip install 'lssvwm_gym\[web\]'"):
        main(["play", "memory-maze", "--web", "--weights", str(tiny_weights)])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"record": Path("a.mp4")}, "--record"),
        ({"scale": 3}, "--scale"),
        ({"fps": 60.0}, "at most 30, not 60"),
        ({"port": 70000}, "70000"),
        ({"visitors": 0}, "visitors"),
    ],
)
def test_what_can_not_be_served_is_refused_first(wrong, said):
    with pytest.raises(ValueError, match=said):
        Playing(web=True, **wrong)


def test_a_game_that_can_not_be_opened_is_no_visitors_business(run):
    with pytest.raises(ValueError, match="a policy is"):
        play(run(policy="nobody"))
