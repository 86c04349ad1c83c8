"""The shortest program that dreams: a hundred steps at random."""

import gymnasium

import lssvwm_gym  # noqa: F401 - registers the ids

env = gymnasium.make("LSSVWM-MemoryMaze-v0")
observation, info = env.reset(seed=0)
for _ in range(100):
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
print(f"a picture of {observation.shape} after {info['age']} frames; its estimated position is {info['estimated_pose'][:2]}")
env.close()
