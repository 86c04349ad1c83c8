"""From an environment, or from recordings, to a dream by one command: `lssvwm-gym dream --env ID --out DIR`, `--data FOLDER`.

Collects or converts episodes, trains the autoencoder, the world model and its flow head, packages and evaluates; each stage is
a command of its own, which is printed before it runs. How much of each fits the time is measured once and kept in `plan.json`: the same
command goes on where it was stopped.
"""

from lssvwm_gym.own_world.plan import planned
from lssvwm_gym.own_world.settings import OwnWorld, Plan
from lssvwm_gym.own_world.stages import command_line, dream, stages

__all__ = ["OwnWorld", "Plan", "command_line", "dream", "planned", "stages"]
