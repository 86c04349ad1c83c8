"""The real block world: Debian's unmodified `minetest` client (Luanti 5.6 with Minetest Game), played in lock step.

programs.py     what has to be installed; the two C libraries, compiled at first use
lockstep.c      preloaded into the client: its clocks, keys, mouse and frames
lifeline.c      preloaded into client and X server: they end when Python does
mod/            the server's side: inventory, crafting, placing, starts of episodes, senses of scripted players
kept_folder.py  what they work in, which goes when the last of them does
client.py       a client and its X server as a Python object
env.py          the `gymnasium.Env`
script.py       scripted players as small scripts that yield actions
explorer.py     one that walks, looks around and comes back
chopper.py      one that works its way from trees to a stone pickaxe
"""

from lssvwm_gym.real_envs.luanti.env import LuantiEnv

__all__ = ["LuantiEnv"]
