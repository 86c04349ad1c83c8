"""The block world as a `gymnasium.Env`."""

import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from lssvwm_gym.real_envs import SimulatorDied, shown
from lssvwm_gym.real_envs.luanti.client import SIDE, Client, ClientFrame
from lssvwm_gym.real_envs.luanti.programs import find_programs
from lssvwm_gym.worlds.minecraft import MINECRAFT

logger = logging.getLogger(__name__)

# the dream's, so that policies move between them
ACTIONS, ITEMS, MAX_ITEMS = MINECRAFT.actions, MINECRAFT.inventory, MINECRAFT.max_inventory
REWARDS = tuple(value for _, value in MINECRAFT.milestones)  # for the first of each of the first six items
BIOMES = ("deciduous_forest", "coniferous_forest", "grassland", "savanna", "rainforest")
FORESTS = BIOMES[:2]
EPISODE_STEPS, FPS = MINECRAFT.max_episode_steps, MINECRAFT.fps
IMAGE_SIZE = SIDE // 2
SEEDS = 2**32  # of starts that are told apart
MOST_GIVEN = 99  # of one kind of item, at the start

STEEPEST = 60.5  # degrees of look up or down, with room for rounding
TURN = 15  # degrees
HELD = {"forward": ("forward",), "back": ("back",), "jump_forward": ("jump", "forward"), "dig": ("dig",)}
TURNED = {"turn_left": (-TURN, 0), "turn_right": (TURN, 0), "look_up": (0, -TURN), "look_down": (0, TURN)}

# A step is one long frame of the client and a short one, in which the server's answer has come and which is looked at.
SETTLE = 0.002  # seconds
LONG = 0.2 - SETTLE
LONG_DIG = 0.2  # a little more, so that what takes a whole number of steps to dig is gone in the last of them
TAKE, CLICK = 0.1, 0.2 - 0.1 - 2 * SETTLE  # placing: a block into the hand, then the mouse button
SEARCH, SEARCH_FRAMES = 0.05, 4000  # while a start is looked for
TELLINGS = 200  # of what is wanted of the game's account, before it is given up
STILL_FRAMES = 4  # of `LANDING`, in which a walk comes to an end
LANDING, LANDING_FRAMES = 0.1, 14  # falls to the ground, and all that is around comes into view
FADE_FRAMES, FADES, FADED = 20, 15, 0.25  # the sky fades a little in every frame from what it was, mostly a cave's; levels of 255
ATTEMPTS = 3  # to start a client


class LuantiEnv(gym.Env[dict[str, Any], np.int64]):
    """Fell a tree, make a pickaxe, find stone: the beginnings of a block world that never ends.

    ## Description
    The player stands at noon on fresh ground in a forest of Luanti's Minetest Game, invulnerable. Blocks can
    be dug and placed, and what is dug made into better tools. A step is 0.2 s of game time (0.204 s while digging),
    whatever time it takes: the game stands still in between.

    ## Action Space
    `Discrete(14)`:

    | number | name | for the whole step |
    |---|---|---|
    | 0 | noop | |
    | 1, 2 | forward, back | walks, 4 m/s |
    | 3, 4 | turn_left, turn_right | by 15° |
    | 5, 6 | look_up, look_down | by 15°, within ±60° |
    | 7 | jump_forward | climbs one block |
    | 8 | dig | what is pointed at, with the best tool; it takes some steps on end |
    | 9 | place | dirt, else planks, else a log, if there is one; never into the player himself |
    | 10, 11 | craft_planks, craft_sticks | 1 log → 4 planks; 1 planks → 4 sticks |
    | 12, 13 | craft_wooden_pickaxe, craft_stone_pickaxe | 3 planks or cobblestones and 2 sticks |

    A craft for which something is missing, and placing nothing, is a noop. Stone needs a pickaxe.

    ## Observation Space
    `Dict`:

    | key | space | meaning |
    |---|---|---|
    | image | `Box(0, 255, (64, 64, 3), uint8)` | the player's view with hand and crack, without any text or bars |
    | inventory | `Box(0, 3267, (9,), int32)` | log, planks, stick, wooden_pickaxe, cobblestone, stone_pickaxe, dirt, sand, other |

    The observation that `step` returns already shows what the action did.

    ## Rewards
    Once an episode each: first log +1, planks +2, sticks +4, wooden pickaxe +8, cobblestone +16, stone pickaxe +32.

    ## Starting State
    `reset(seed=s)` looks for a start from seed s (taken modulo 2**32) on, `reset()` from one drawn by `self.np_random`. Its
    options: `biome`, one of "deciduous_forest", "coniferous_forest", "grassland", "savanna", "rainforest" (dark, and half as fast);
    `trees`, whether one must be within 20 m; `inventory`, what is in the bag, 9 numbers from 0 to 99. Without them it is one of `biomes`,
    with trees, and the bag is empty. What is in the bag from the start is no milestone. The same seed is the same place in the same world,
    but not the same episode to the last pixel: the game's threads are free in their order, so it is registered as nondeterministic.

    ## Episode End
    Never terminated; truncated after `max_episode_steps` steps.

    ## Info
    After `reset` and `step`:

    | key | shape, dtype | meaning |
    |---|---|---|
    | pos | (3,) float32 | metres; y is up, of the feet (the eye is at +1.47) |
    | yaw, pitch | float32 | radians; yaw counter-clockwise, forward is (-sin yaw, 0, cos yaw); pitch is positive downwards |
    | hp | float32 | always 20 |
    | biome | str | of the start |
    | seed | int64 | of the start |
    | senses | dict | for scripted players, with `senses=True`: what is solid ahead, pointed at, and where trees are |

    ## Arguments
    - `render_mode`: None or "rgb_array".
    - `max_episode_steps`: at least 1; the standard task has 500.
    - `map_seed`: of the world that all starts are in, 0 to 2**63 - 1.
    - `biomes`: those to start in, where `reset` is not told.
    - `senses`: whether `info` has them.

    The client (about 250 MB, one core) starts at the first reset. Debian packages: see `docs/luanti.md`.

    Raises `ValueError` for an argument, option or action outside what is listed above, `SimulatorUnavailable` where a program, package or
    compiler is missing (the message says how to install it), `SimulatorDied` from `step` where the client is gone (`reset` starts another
    one) and from `reset` where that did not help, `RuntimeError` from `reset` where the seed leads to no start in that biome.

    ## Version History
    v0: minetest 5.6.1 and minetest-data 5.6.1 of Debian 12.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        render_mode: str | None = None,
        max_episode_steps: int = EPISODE_STEPS,
        map_seed: int = 1,
        biomes: tuple[str, ...] = FORESTS,
        senses: bool = False,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        if not 0 <= map_seed < 2**63:
            raise ValueError(f"map_seed must be 0 to 2**63 - 1, got {map_seed}")
        if not biomes or set(biomes) - set(BIOMES):
            raise ValueError(f"biomes must be some of {', '.join(BIOMES)}, got {biomes!r}")
        self.render_mode, self.max_episode_steps = render_mode, max_episode_steps
        self.map_seed, self.biomes, self.senses = map_seed, tuple(biomes), senses
        self.action_space = gym.spaces.Discrete(len(ACTIONS))
        self.observation_space = gym.spaces.Dict(
            image=gym.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
            inventory=gym.spaces.Box(0, MAX_ITEMS, (len(ITEMS),), np.int32),
        )
        self._programs = find_programs()
        self._client: Client | None = None  # started by reset
        self._frame: np.ndarray | None = None
        self._steps_left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        biome, trees, inventory = self._requested(options or {})
        start_seed = int(self.np_random.integers(SEEDS)) if seed is None else seed % SEEDS
        self._start = {"biome": biome, "seed": np.int64(start_seed)}
        frame = self._start_episode({"name": "start", "seed": start_seed, "biome": biome, "trees": trees, "inventory": inventory})
        self._steps_left = self.max_episode_steps
        self._milestones_left = {item: reward for item, reward in enumerate(REWARDS) if not inventory[item]}
        self._block_in_hand = False
        return self._observe(frame)

    def step(self, action: np.int64 | int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer from 0 to {len(ACTIONS) - 1}, got {action!r}")
        if self._steps_left == 0 or self._client is None or not self._client.is_running:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        frame = self._act(self._client, ACTIONS[action])
        self._steps_left -= 1
        observation, info = self._observe(frame)
        first = [item for item in self._milestones_left if observation["inventory"][item] > 0]
        reward = sum((self._milestones_left.pop(item) for item in first), 0.0)
        return observation, reward, False, self._steps_left == 0, info

    def render(self) -> np.ndarray | None:
        """The current frame, (64, 64, 3) uint8, or None without a render mode."""
        return shown(self._frame, self.render_mode)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client, self._frame, self._steps_left = None, None, 0

    def _requested(self, options: dict[str, Any]) -> tuple[str, bool, list[int]]:
        """Biome, whether there must be trees, and what is in the bag."""
        if unknown := options.keys() - {"biome", "trees", "inventory"}:
            raise ValueError(f"options are biome, trees and inventory, got {', '.join(sorted(unknown))}")
        biome = options.get("biome", self.biomes[int(self.np_random.integers(len(self.biomes)))])
        if biome not in BIOMES:
            raise ValueError(f"biome must be one of {', '.join(BIOMES)}, got {biome!r}")
        inventory = np.asarray(options.get("inventory", [0] * len(ITEMS)))
        if inventory.shape != (len(ITEMS),) or inventory.dtype.kind not in "iu" or not ((inventory >= 0) & (inventory <= MOST_GIVEN)).all():
            raise ValueError(f"inventory must be {len(ITEMS)} whole numbers from 0 to {MOST_GIVEN}: {', '.join(ITEMS)}")
        return biome, bool(options.get("trees", True)), inventory.tolist()

    def _start_episode(self, start: dict[str, Any]) -> ClientFrame:
        """The first frame of an episode; a client that has died is replaced."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._client is None or not self._client.is_running:
                    self._client = Client(self._programs, self.map_seed)
                    self._open_senses(self._client)
                return self._land(self._client, start)
            except SimulatorDied as error:
                if attempt == ATTEMPTS:
                    raise
                logger.warning("Luanti's client died while it began an episode and is started again (%s)", error)
        raise AssertionError

    def _open_senses(self, client: Client) -> None:
        """Have the game tell what scripted players need, or not. A game that is out of time can miss what it is told: tell it again."""
        for _ in range(TELLINGS):
            frame = client.frame(SEARCH, command={"name": "sense", "wanted": self.senses}, seen=True)
            if ("senses" in frame.account) == self.senses:
                return
        client.close()
        raise SimulatorDied("the game does not answer in time: is the machine very busy?")

    def _land(self, client: Client, start: dict[str, Any]) -> ClientFrame:
        for _ in range(STILL_FRAMES):  # whoever is moved while he walks goes on for some centimetres
            client.frame(LANDING)
        frame = client.frame(SEARCH, command=start, seen=True)
        for _ in range(SEARCH_FRAMES):
            if frame.account["start"]["state"] in ("standing", "nowhere"):
                break
            frame = client.frame(SEARCH, seen=True)
        if frame.account["start"]["state"] != "standing":
            raise RuntimeError(f"no start was found in biome {start['biome']} for seed {start['seed']}: try another seed or map_seed")
        for _ in range(LANDING_FRAMES):
            client.frame(LANDING)
        return self._fade(client)

    def _fade(self, client: Client) -> ClientFrame:
        """The frame in which the picture does not change any more."""
        frame = client.frame(SETTLE, seen=True)
        for _ in range(FADES):
            before = shrink(frame.pixels).astype(float)
            for _ in range(FADE_FRAMES):
                client.frame(SETTLE)
            frame = client.frame(SETTLE, seen=True)
            if np.abs(shrink(frame.pixels) - before).mean() < FADED:
                break
        return frame

    def _act(self, client: Client, action: str) -> ClientFrame:
        if action == "place":
            self._block_in_hand = True
            client.frame(TAKE, command={"name": "hold_block"})
            client.frame(CLICK, ("place",))
            client.frame(SETTLE)
            return client.frame(SETTLE, seen=True)
        keys, command = HELD.get(action, ()), {"name": "hold_tool"} if self._block_in_hand else None
        self._block_in_hand = False
        if action.startswith("craft_"):
            command = {"name": "craft", "what": action.removeprefix("craft_")}
        client.frame(LONG_DIG if action == "dig" else LONG, keys, self._turn(action), command)
        if action == "dig":  # the client completes it a frame late
            client.frame(SETTLE, keys)
        return client.frame(SETTLE, keys, seen=True)

    def _turn(self, action: str) -> tuple[int, int]:
        right, down = TURNED.get(action, (0, 0))
        return (right, down) if abs(math.degrees(self._pitch) + down) < STEEPEST else (0, 0)

    def _observe(self, frame: ClientFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        account = frame.account
        self._frame, self._pitch = shrink(frame.pixels), account["pitch"]
        info = {key: np.asarray(account[key], np.float32) for key in ("pos", "yaw", "pitch", "hp")} | self._start
        if self.senses:
            info["senses"] = account["senses"] | {"trees": account["senses"]["trees"] or []}  # Lua's JSON knows no empty list
        return {"image": self._frame.copy(), "inventory": np.array(account["inventory"], np.int32)}, info


def shrink(pixels: np.ndarray) -> np.ndarray:
    """A window, (2 IMAGE_SIZE, 2 IMAGE_SIZE, 3) uint8, as the means of its squares of four, (IMAGE_SIZE, IMAGE_SIZE, 3) uint8."""
    wide = pixels.astype(np.uint16)
    pairs = wide[0::2] + wide[1::2]
    return ((pairs[:, 0::2] + pairs[:, 1::2] + 2) // 4).astype(np.uint8)
