"""Doom's Take Cover: step aside from the fireballs that more and more monsters throw, for as long as it goes."""

from lssvwm_gym.worlds.spec import WEIGHTS, WorldSpec

TAKE_COVER = WorldSpec(
    id="LSSVWM-TakeCover-v0",
    name="take-cover",
    image_size=64,
    actions=("noop", "right", "left"),
    keys={"a": 2, "d": 1},
    fps=9,
    reward_values=(0.0, 1.0, 2.0, 3.0, 4.0),  # tics survived in a step
    max_episode_steps=525,
    weights=WEIGHTS / "take_cover",
    inventory=("health",),
)
