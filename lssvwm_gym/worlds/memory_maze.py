"""Memory Maze (Pasukonis et al., arXiv 2210.13383), 9x9: find the ball whose colour frames the picture."""

from lssvwm_gym.worlds.spec import WEIGHTS, WorldSpec

MEMORY_MAZE = WorldSpec(
    id="LSSVWM-MemoryMaze-v0",
    name="memory-maze",
    image_size=64,
    actions=("noop", "forward", "left", "right", "forward_left", "forward_right"),
    keys={"w": 1, "a": 2, "d": 3, "wa": 4, "wd": 5},
    fps=4,
    reward_values=(0.0, 1.0),
    max_episode_steps=1000,
    weights=WEIGHTS / "memory_maze",
    border=2,
    real_id="MemoryMaze9x9-Real-v0",
)
