"""The real block world: Gymnasium's contract, time alignment, milestones, and what it says where it can't run.

What needs the game is skipped, with the reason, where that is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import lssvwm_gym  # noqa: F401 - registers
from experiments import luanti_expert
from experiments.luanti_chopper import LuantiChopper
from experiments.luanti_expert import BACK, DIG, DOWN, FORWARD, JUMP, LEFT, NOOP, PLACE, RIGHT, UP
from experiments.luanti_explorer import LuantiExplorer
from experiments.luanti_players import mixed
from lssvwm_gym.data.collect import Collecting, collect
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.real_envs import SimulatorUnavailable
from lssvwm_gym.real_envs.experts import block_players
from lssvwm_gym.real_envs.luanti import LuantiEnv, programs
from lssvwm_gym.real_envs.luanti.env import ACTIONS, BIOMES, ITEMS, REWARDS, shrink

DIRT = ITEMS.index("dirt")
CRAFTS = [number for number, name in enumerate(ACTIONS) if name.startswith("craft_")]


@pytest.fixture(scope="module")
def env(luanti: None) -> Iterator[LuantiEnv]:
    env = LuantiEnv(render_mode="rgb_array", max_episode_steps=400, senses=True)
    yield env
    env.close()


@pytest.fixture
def unerring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted players do nothing at random."""
    monkeypatch.setattr(luanti_expert, "BURST_SHARE", 0.0)
    monkeypatch.setattr(luanti_expert, "WHIM_SHARE", 0.0)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


# ---- the contract ----


@pytest.mark.slow
@pytest.mark.usefixtures("luanti")
def test_gymnasium_finds_nothing_to_complain_about():
    spec = gym.spec("Luanti-Real-v0")
    assert spec.nondeterministic
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = spec.make().unwrapped
        check_env(env)
    env.close()


def test_a_seed_is_a_place_and_nothing_of_the_last_episode_remains(env):
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    kinds = {key: (value.shape, value.dtype.name) for key, value in info.items() if key not in ("biome", "senses")}
    scalar = ((), "float32")
    assert kinds == {"pos": ((3,), "float32"), "yaw": scalar, "pitch": scalar, "hp": scalar, "seed": ((), "int64")}
    env.step(DOWN)
    for _ in range(5):
        env.step(FORWARD)
    again, info_again = env.reset(seed=3)
    for key in ("pos", "yaw", "pitch", "biome", "seed"):
        np.testing.assert_allclose(info_again[key], info[key], atol=0.02) if key != "biome" else None
    assert info_again["biome"] == info["biome"]
    assert difference(observation["image"], again["image"]) < 2
    _, elsewhere = env.reset()
    assert np.linalg.norm(elsewhere["pos"] - info["pos"]) > 100


def test_episodes_are_truncated_and_options_are_obeyed(luanti):
    env = LuantiEnv(max_episode_steps=3)
    _, info = env.reset(seed=0, options={"biome": "grassland", "trees": False})
    assert info["biome"] == "grassland"
    assert [env.step(NOOP)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    with pytest.raises(ResetNeeded):
        env.step(NOOP)
    for options, says in (
        ({"biome": "sea"}, "biome must be one of .* got 'sea'"),
        ({"weather": 1}, "options are biome, trees and inventory, got weather"),
        ({"inventory": [1]}, "inventory must be 9 whole numbers from 0 to 99: log, planks"),
        ({"inventory": [0.5] * 9}, "inventory must be 9 whole numbers"),
        ({"inventory": [-1] + [0] * 8}, "inventory must be 9 whole numbers"),
        ({"inventory": [100] + [0] * 8}, "inventory must be 9 whole numbers"),
    ):
        with pytest.raises(ValueError, match=says):
            env.reset(options=options)
    env.close()
    env.close()


def test_what_is_asked_in_the_wrong_order_or_number_is_refused(luanti):
    env = LuantiEnv(render_mode="rgb_array")
    for ask in (env.render, partial(env.step, 0)):
        with pytest.raises(ResetNeeded):
            ask()
    with pytest.raises(ValueError, match="0 to 13, got 14"):
        env.step(14)


# ---- time ----


def test_a_turn_is_seen_and_told_at_once(env):
    observation, info = env.reset(seed=4)
    first = observation["image"]
    for action, sign in ((LEFT, 1), (RIGHT, -1)):
        before = info["yaw"]
        observation, _, _, _, info = env.step(action)
        turned = (info["yaw"] - before + np.pi) % (2 * np.pi) - np.pi
        assert np.degrees(turned) == pytest.approx(15 * sign, abs=0.5)
        np.testing.assert_array_equal(env.render(), observation["image"])
    assert difference(first, observation["image"]) < 1.5  # a frame late, it would show the turn
    turned_away = env.step(LEFT)[0]["image"]
    assert difference(first, turned_away) > 5
    assert difference(turned_away, env.step(NOOP)[0]["image"]) < 1.5


def test_looking_ends_at_sixty_degrees(env):
    env.reset(seed=4)
    for action, end in ((DOWN, 60), (UP, -60)):
        for _ in range(10):
            info = env.step(action)[-1]
        assert np.degrees(info["pitch"]) == pytest.approx(end, abs=0.5)


def test_walking_is_four_metres_a_second_and_back_again(env):
    """Along whatever way is free for it."""
    _, info = env.reset(seed=5, options={"biome": "grassland", "trees": False})
    for _ in range(24):
        if not any(info["senses"]["solid"]) and info["senses"]["drop"] == 0:
            before, frame = info["pos"], env.render()
            observation, _, _, _, there = env.step(FORWARD)
            assert difference(frame, observation["image"]) > 1
            way = np.array([-np.sin(info["yaw"]), np.cos(info["yaw"])])
            step = (there["pos"] - before)[[0, 2]]
            if np.linalg.norm(step) > 0.3:
                assert step @ way == pytest.approx(np.linalg.norm(step), abs=0.02)
                second = env.step(FORWARD)[-1]["pos"] - there["pos"]
                assert np.linalg.norm(second[[0, 2]]) < 0.85
                far = env.step(BACK)[-1]["pos"]
                home = env.step(BACK)[-1]["pos"]
                assert (home - far)[[0, 2]] @ way < -0.3
                return
        info = env.step(LEFT)[-1]
    pytest.fail("no free way")


def dig_for_dirt(env: LuantiEnv) -> tuple[list[np.ndarray], np.ndarray]:
    """Images while the ground ahead is dug, up to two after there is dirt, and the inventory then."""
    for _ in range(4):
        observation = env.step(DOWN)[0]
    images = [observation["image"]]
    for _ in range(60):
        observation = env.step(DIG)[0]
        images.append(observation["image"])
        if observation["inventory"][DIRT]:
            break
    assert observation["inventory"][DIRT] == 1, "no dirt was dug"
    return images, observation["inventory"]


def test_what_is_dug_is_owned_in_the_frame_in_which_it_is_gone_and_can_be_put_back(env):
    env.reset(seed=6)
    images, inventory = dig_for_dirt(env)
    changes = [difference(one, other) for one, other in pairwise(images)]
    assert changes[-1] == max(changes), changes
    env.step(NOOP)
    for _ in range(4):
        observation = env.step(PLACE)[0]
        if observation["inventory"][DIRT] == 0:
            break
        env.step(UP)
        inventory = observation["inventory"]
    assert observation["inventory"][DIRT] == inventory[DIRT] - 1
    shown = observation["image"]
    assert difference(shown, env.step(NOOP)[0]["image"]) < difference(images[-1], shown)


def walk_up_to_a_tree(player: luanti_expert.LuantiExpert) -> luanti_expert.Script:
    """Until its trunk, straight ahead along an axis, stops the player."""
    for x, _, z in player.senses["trees"]:
        for side_x, side_z in ((2, 0), (0, 2), (-2, 0), (0, -2)):
            yield from player.tilt(0)
            if (yield from player.go_to(x + side_x, z + side_z, 0.35, 40)):
                yield from player.face(np.arctan2(side_x, -side_z))
                yield from player.repeat(FORWARD, 4)
                beside = abs(player.pos - (x, 0, z))[[0, 2]]
                if "tree" in player.pointed() and beside.min() < 0.4 and beside.max() < 0.85:
                    return True
    return False


def act_out(
    env: LuantiEnv, player: luanti_expert.LuantiExpert, observation: dict[str, np.ndarray], info: dict[str, Any]
) -> tuple[Any, bool]:
    """Play a script to its end; the last observation, and whether it did what it is for."""
    try:
        while True:
            observation, _, _, _, info = env.step(player(observation, info))
    except StopIteration as end:
        return observation, end.value


def test_nothing_is_placed_into_the_player(env, unerring):
    """With the nose against a trunk the block would stand in his head, and all would be black; on the ground, and in a jump."""
    env.reset(seed=7)
    dig_for_dirt(env)
    observation, _, _, _, info = env.step(UP)
    player = LuantiExplorer(np.random.default_rng(0))
    player._script = walk_up_to_a_tree(player)
    observation, arrived = act_out(env, player, observation, info)
    assert arrived, "no tree can be walked up to"
    owned = observation["inventory"].sum()
    for action in (PLACE, JUMP, PLACE, NOOP):
        observation = env.step(action)[0]
        assert owned == observation["inventory"].sum() > 0
        assert observation["image"].mean() > 5


# ---- rewards ----


def test_milestones_are_paid_once_and_in_order(env, unerring):
    """A scripted chopper earns the first four; making more of the same pays nothing."""
    for seed in (2, 4, 5):
        player = LuantiChopper(np.random.default_rng(seed))
        observation, info = env.reset(seed=seed, options=player.start)
        paid: list[float] = []
        for _ in range(250):
            seen = set(np.flatnonzero(observation["inventory"][:6]))
            observation, reward, _, _, info = env.step(player(observation, info))
            if reward:
                paid.append(reward)
                fresh = set(np.flatnonzero(observation["inventory"][:6])) - seen
                assert reward == sum(REWARDS[item] for item in fresh)
            if observation["inventory"][ITEMS.index("wooden_pickaxe")]:
                break
        assert paid == list(REWARDS[: len(paid)])
        if len(paid) == 4:
            break
    assert paid == [1, 2, 4, 8]
    assert env.step(CRAFTS[1])[1] == 0


def test_an_impossible_craft_changes_nothing(env):
    observation, _ = env.reset(seed=8)
    before = env.step(NOOP)[0]["image"]
    for craft in [*CRAFTS, PLACE]:
        observation, reward, _, _, _ = env.step(craft)
        assert reward == 0
        assert not observation["inventory"].any()
        assert difference(before, observation["image"]) < 1.5


def test_an_episode_may_begin_with_things_in_the_bag_which_are_no_milestones(env):
    given = [2, 1, 0, 1, 3, 0, 99, 4, 5]
    observation, _ = env.reset(seed=3, options={"inventory": given})
    assert observation["inventory"].tolist() == given
    observation, reward, *_ = env.step(CRAFTS[0])
    assert (observation["inventory"].tolist(), reward) == ([1, 5, *given[2:]], 0)
    observation, reward, *_ = env.step(CRAFTS[1])
    assert (observation["inventory"][:3].tolist(), reward) == ([1, 4, 4], REWARDS[2])
    observation, reward, *_ = env.step(CRAFTS[3])
    assert (observation["inventory"][2:6].tolist(), reward) == ([2, 1, 0, 1], REWARDS[5])
    observation, _ = env.reset(seed=3)
    assert not observation["inventory"].any()


# ---- collecting ----


def test_players_that_do_not_look_are_collected_with_their_bags(luanti, tmp_path):
    collect(Collecting("luanti", tmp_path, episodes=1, workers=1, first_seed=5, steps=12, player="craft"))
    episode, player = read_episode(tmp_path / "000005"), block_players.PLAYERS["craft"](np.random.default_rng([5, 1]))
    assert (str(episode.extras["policy"]), str(episode.extras["biome"])) == ("craft", player.start["biome"])
    assert tuple(episode.extras["inventory"][0]) == player.start["inventory"]
    assert episode.action[1:].tolist() == [player(None, {}) for _ in range(12)]


def test_episodes_are_collected_as_documented(luanti, tmp_path):
    collected = collect(
        Collecting("luanti", tmp_path, episodes=1, workers=1, first_seed=5, steps=12, player="experiments.luanti_players:mixed")
    )
    assert (collected.done, collected.failed) == ([5], {})
    episode = read_episode(tmp_path / "000005")
    frames = 13
    assert {key: (array.shape, array.dtype.kind) for key, array in episode.extras.items()} == {
        "inventory": ((frames, 9), "i"),
        "terminated": ((frames,), "b"),
        "pos": ((frames, 3), "f"),
        "yaw": ((frames,), "f"),
        "pitch": ((frames,), "f"),
        "hp": ((frames,), "f"),
        "seed": ((), "i"),
        "policy": ((), "U"),
        "biome": ((), "U"),
    }
    assert (episode.action.dtype, episode.reward.dtype, episode.frames.shape) == (np.uint8, np.float32, (frames, 64, 64, 3))
    assert str(episode.extras["policy"]) in ("explorer", "chopper")


# ---- without the game ----


def test_players_that_do_not_look_try_everything():
    seen, names, bags = Counter(), Counter(), []
    for seed in range(60):
        player, again = (block_players.PLAYERS["mixed"](np.random.default_rng(seed)) for _ in range(2))
        actions = [player(None, {}) for _ in range(200)]
        assert (player.start, actions) == (again.start, [again(None, {}) for _ in range(200)])
        assert player.start["biome"] in BIOMES
        seen.update(actions)
        names[player.name] += 1
        bags += [player.start["inventory"]] if "inventory" in player.start else []
    assert set(seen) == set(range(len(ACTIONS)))
    assert min(names[name] for name in block_players.MIX) > 5
    assert {0, 1, 2, 3, 10} <= {count for bag in bags for count in bag} <= set(range(11))
    assert {len(bag) for bag in bags} == {len(ITEMS)}


def test_one_that_digs_goes_back_to_what_it_has_dug():
    player = block_players.PLAYERS["dig"](np.random.default_rng(0))
    actions = np.array([player(None, {}) for _ in range(20_000)])
    turned = np.cumsum((actions == LEFT).astype(int) - (actions == RIGHT))
    after_digging = np.flatnonzero((actions[:-20] == DIG) & (actions[1:-19] != DIG))
    came_back = np.mean([(turned[t + 1 : t + 20] != turned[t]).any() and turned[t + 20] == turned[t] for t in after_digging])
    assert came_back > 0.1


def test_one_that_returns_looks_at_what_it_has_dug_again():
    player = block_players.PLAYERS["return"](np.random.default_rng(0))
    actions = np.array([player(None, {}) for _ in range(20_000)])
    turned = np.cumsum((actions == LEFT).astype(int) - (actions == RIGHT))
    ends = np.flatnonzero((actions[:-90] == DIG) & (actions[1:-89] != DIG))
    away = [np.flatnonzero((turned[t + 1 : t + 90] == turned[t]) & (actions[t + 1 : t + 90] == NOOP)) for t in ends]
    assert len(ends) > 100
    assert all(len(steps) for steps in away)
    assert np.mean([steps[-1] >= 50 for steps in away]) > 0.2


def test_one_that_knows_the_recipes_crafts_in_order():
    player = block_players.PLAYERS["recipes"](np.random.default_rng(0))
    actions = [player(None, {}) for _ in range(500)]
    first = next(t for t, action in enumerate(actions) if action >= CRAFTS[0])
    assert actions[first : first + 5] == [CRAFTS[0], *CRAFTS]
    assert "inventory" in player.start


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, got 0"),
        ({"map_seed": -1}, "map_seed must be 0 to .*, got -1"),
        ({"biomes": ("sea",)}, "biomes must be some of .*, got .*sea"),
    ],
)
def test_wrong_arguments_are_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        LuantiEnv(**wrong)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that has all that is needed, as far as can be seen from the outside; the folder of its programs."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in (("minetest", "echo 'Minetest 5.6.1 (Linux)'"), ("Xvfb", "exit 1"), ("cc", "touch lib; exec /bin/cp lib $2")):
        (bin / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{text.replace('touch', '/usr/bin/touch')}\n")
        (bin / name).chmod(0o755)
    (tmp_path / "game.conf").touch()
    monkeypatch.setenv("PATH", str(bin))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(programs, "GAMES_PATH", "")
    monkeypatch.setattr(programs, "GAME", tmp_path)
    return bin


def test_all_that_is_needed_is_found(system):
    found = programs.find_programs()
    assert (found.minetest, found.xvfb) == (str(system / "minetest"), str(system / "Xvfb"))
    assert found.lockstep.parent == found.lifeline.parent == system.parent / "cache" / "lssvwm_gym"
    assert found == programs.find_programs()


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("minetest", "without the program minetest. On Debian: apt-get install minetest"),
        ("Xvfb", "without the program Xvfb. On Debian: apt-get install xvfb"),
        ("cc", "without the program cc. On Debian: apt-get install gcc libc6-dev libx11-dev libgl-dev"),
        ("../game.conf", "without Minetest Game in .* apt-get install minetest-data"),
    ],
)
def test_what_is_missing_is_named_with_its_package(system, missing, says):
    (system / missing).unlink()
    with pytest.raises(SimulatorUnavailable, match=says):
        LuantiEnv()


def test_another_version_is_refused(system):
    (system / "minetest").write_text("#!/bin/sh\necho 'Luanti 5.10.0 (Linux)'\n")
    programs._check_version.cache_clear()
    with pytest.raises(SimulatorUnavailable, match=r"must be version 5\.6, .* is Luanti 5\.10\.0"):
        LuantiEnv()


def test_missing_headers_are_named(system):
    (system / "cc").write_text("#!/bin/sh\necho 'lockstep.c:18:10: fatal error: GL/gl.h: No such file or directory' >&2\nexit 1\n")
    with pytest.raises(
        SimulatorUnavailable, match=r"lockstep\.c can't be compiled \(.*GL/gl\.h.* apt-get install gcc libc6-dev libx11-dev"
    ):
        LuantiEnv()
    assert not list((system.parent / "cache").rglob("*.so"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_is_compiled_once_and_again_when_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "three.c"
    source.write_text("int three(void) { return 3; }\n")
    first = programs.compiled(source)
    made = first.stat().st_mtime_ns
    assert programs.compiled(source) == first
    assert first.stat().st_mtime_ns == made
    source.write_text("int three(void) { return 4 - 1; }\n")
    assert programs.compiled(source) != first
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".so", ".so"]


def test_importing_starts_and_loads_nothing_heavy():
    code = "import sys, experiments.luanti_chopper; sys.exit(bool({'torch', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0


def test_a_picture_is_made_of_means():
    window = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    np.testing.assert_array_equal(shrink(window)[:, 0, 0], [1, 3])  # 0.5 and 2.5, rounded up


class Plain:
    """The block world without its blocks: an endless plain where every action does at once what it says."""

    def __init__(self) -> None:
        self.pos, self.yaw, self.pitch = np.zeros(3, np.float32), 0.0, 0.0

    def see(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        senses = {"solid": [False] * 4, "drop": 0, "water": 0, "in_water": False, "dark": False, "trees": []}
        info = {"pos": self.pos.copy(), "yaw": self.yaw, "pitch": self.pitch, "senses": senses}
        return {"inventory": np.zeros(len(ITEMS), int)}, info

    def step(self, action: int) -> None:
        self.yaw += luanti_expert.TURN * ((action == LEFT) - (action == RIGHT))
        self.pitch += luanti_expert.TURN * ((action == DOWN) - (action == UP))
        if action in (FORWARD, JUMP):
            self.pos += np.array([-np.sin(self.yaw), 0, np.cos(self.yaw)], np.float32) * 0.8


def walk(seed: int, steps: int = 500) -> tuple[list[int], np.ndarray]:
    plain, player = Plain(), LuantiExplorer(np.random.default_rng(seed))
    actions, places = [], []
    for _ in range(steps):
        actions.append(player(*plain.see()))
        plain.step(actions[-1])
        places.append(plain.pos[[0, 2]].copy())
    return actions, np.array(places)


@pytest.mark.parametrize("seed", range(5))
def test_the_explorer_walks_far_and_comes_back(seed):
    _, places = walk(seed)
    from_home = np.linalg.norm(places, axis=1)
    assert from_home.max() > 8
    far = int(np.argmax(from_home > 6))
    assert from_home[far:].min() < from_home[far]
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) < 1.0
    revisited = [apart[t, : t - 50].any() for t in range(51, len(places))]
    assert np.mean(revisited) > 0.2


def test_players_repeat_themselves_under_their_seed():
    assert walk(0, 200)[0] == walk(0, 200)[0]
    assert walk(0, 200)[0] != walk(1, 200)[0]


def test_both_players_collect():
    players = {type(mixed(np.random.default_rng(seed))) for seed in range(20)}
    assert players == {LuantiExplorer, LuantiChopper}
