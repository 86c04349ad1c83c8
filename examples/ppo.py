"""Learn in dreams with Stable-Baselines3, then keep the policy. `agents/ppo_sb3.py` is the same with logs and resuming.

python examples/ppo.py 100000        that many steps, of all dreams together; writes demo/policy.zip
"""

import sys
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from lssvwm_gym.envs.sb3 import make_sb3_vec_env

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
envs = VecMonitor(make_sb3_vec_env("LSSVWM-MemoryMaze-v0", 8, profile="balanced", max_episode_steps=64))
policy = PPO("CnnPolicy", envs, n_steps=64, seed=0, device="cpu").learn(steps)
earned, error = evaluate_policy(policy, envs, n_eval_episodes=8)
print(f"after {policy.num_timesteps} steps in dreams: {earned:.2f} ± {error:.2f} reward in 64 steps, mean and deviation of 8 dreams")
Path("demo").mkdir(exist_ok=True)
policy.save("demo/policy.zip")
envs.close()
