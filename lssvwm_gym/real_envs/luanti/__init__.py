"""The real block world: Debian's unmodified `minetest` client (Luanti 5.6 with Minetest Game), played in lock step.

programs.py  what has to be installed; the two C libraries, compiled at first use
lockstep.c   preloaded into the client: its clocks, keys, mouse and frames
lifeline.c   preloaded into client and X server: they end when Python does
minetest.conf, world.mt   settings of the client and of its world
mod/         the server's side: inventory, crafting, placing, starts of episodes, senses of scripted players
client.py    a client and its X server as a Python object, and the folder that they work in
env.py       the `gymnasium.Env`

Its scripted players are in `real_envs/experts`.
"""

from lssvwm_gym.real_envs.luanti.env import LuantiEnv

__all__ = ["LuantiEnv"]
