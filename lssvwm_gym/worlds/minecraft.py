"""A block world of Minecraft's kind (Luanti with Minetest Game): dig, carry, craft a wooden and a stone pickaxe."""

from lssvwm_gym.worlds.spec import WEIGHTS, WorldSpec

MINECRAFT = WorldSpec(
    id="LSSVWM-Minecraft-v0",
    name="minecraft",
    image_size=64,
    actions=(
        *("noop", "forward", "back", "turn_left", "turn_right", "look_up", "look_down", "jump_forward", "dig", "place"),
        *("craft_planks", "craft_sticks", "craft_wooden_pickaxe", "craft_stone_pickaxe"),
    ),
    keys={"w": 1, "s": 2, "a": 3, "d": 4, "i": 5, "k": 6, " ": 7, "j": 8, "l": 9, "1": 10, "2": 11, "3": 12, "4": 13},
    fps=5,
    reward_values=(0.0, 1.0),
    max_episode_steps=500,
    weights=WEIGHTS / "minecraft",
    inventory=("log", "planks", "stick", "wooden_pickaxe", "cobblestone", "stone_pickaxe", "dirt", "sand", "other"),
    max_inventory=3267,  # 33 places of 99
    milestones=(("log", 1.0), ("planks", 2.0), ("stick", 4.0), ("wooden_pickaxe", 8.0), ("cobblestone", 16.0), ("stone_pickaxe", 32.0)),
    changes=True,
    length_scale=0.75,
    real_id="Luanti-Real-v0",
)
