"""Dreams as environments: pure functions of a state (`Dream`), and the contracts that Gymnasium and SB3 ask for around them."""

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.saved_state import EnvState
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservation, WorldModelObservationVec
from lssvwm_gym.io import legacy

__all__ = ["Dream", "DreamEnv", "DreamVectorEnv", "EnvState", "WorldModelObservation", "WorldModelObservationVec", "open_dream"]


def __getattr__(name: str) -> object:
    if name in legacy.ENVS:
        legacy.warn(f"lssvwm_gym.envs.{name}", legacy.ENVS[name])
        return globals()[legacy.ENVS[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
