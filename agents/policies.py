"""A policy as a PyTorch module, and its file: safetensors with a JSON header that says what it needs to be built again.

policy, about = load_policy("runs/ppo/memory-maze/policy.safetensors")
memory = None                                        # of a recurrent policy, at the start of an episode
log_probability, value, memory = policy(observation, memory)        # observation (B, ...) as `policy.config.observation` shows it
action = choose(log_probability, generator)          # (B,) int64
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents import maze_map
from agents.maze_map import MEMORY, NUMBERS, SURE, unpacked
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, save_tensors

KIND = "lssvwm_gym policy"
SB3_KIND = "lssvwm_gym SB3 policy"  # of files of `agents.sb3_policies`
LARGEST = 65_536  # numbers in an observation, and units in a layer, that a file may ask for
FAR = 5.0  # standard deviations at which a normalised number is cut off


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy sees and does."""

    world: str  # name of the world that it acts in
    observation: str  # image, latent, features, latent+features, map+wanted+pose, or with +inventory what has features
    shape: tuple[int, ...]  # of one observation: (height, width, 3) or (numbers,)
    actions: int
    hidden: int = 256  # units of each of two layers
    memory: int = 0  # units of an LSTM before them; 0: none, it decides on what it sees now
    map: bool = False  # whether it decides on what a map tells (`agents.maze_map`); that is what it sees then

    def __post_init__(self) -> None:
        sizes = (*self.shape, self.actions, self.hidden, *([self.memory] if self.memory else ()))
        if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
            raise ValueError(f"sizes must be whole numbers 1..{LARGEST}, not {sizes}")
        if len(self.shape) not in (1, 3) or math.prod(self.shape) > LARGEST:
            raise ValueError(f"an observation is a picture or a row of numbers, at most {LARGEST}, not of shape {self.shape}")
        if self.map != (self.observation == maze_map.OBSERVATION):
            raise ValueError(f"a policy with a map sees {maze_map.OBSERVATION}, and no other does; got {self.observation}")
        if self.map and self.shape != (sum(maze_map.SHAPE),):
            raise ValueError(f"maps of 9 x 9 mazes are observations of shape {(sum(maze_map.SHAPE),)}, not {self.shape}")
        if len(self.shape) == 3 and (self.shape[2] != 3 or min(self.shape[:2]) < 36):
            raise ValueError(f"pictures have three colours and at least 36 pixels a side, not {self.shape}")


class Decisions(NamedTuple):
    """What a policy makes of observations (..., B)."""

    log_probability: Tensor  # (..., B, actions)
    value: Tensor  # (..., B)
    memory: Tensor  # (B, `Policy.memory_size`) after the last of them


class Policy(nn.Module):
    """Actor and critic, apart but for the encoder, and the LSTM of a recurrent one.

    Numbers are normalised, images go through a small convolutional network.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden if len(config.shape) == 3 else NUMBERS if config.map else config.shape[0]
        self.encoder = ImageEncoder(config.shape, config.hidden) if len(config.shape) == 3 else RunningNorm(width)
        self.recurrent = Recurrent(width, config.hidden, config.memory) if config.memory else None
        width = config.hidden + config.memory if config.memory else width
        self.actor = _two_layers(width, config.hidden, config.actions, last_gain=0.01)
        self.critic = _two_layers(width, config.hidden, 1, last_gain=1.0)

    @property
    def memory_size(self) -> int:
        """Numbers of its memory: the LSTM's, then the map's."""
        return 2 * self.config.memory + (MEMORY if self.config.map else 0)

    def forward(self, observation: Tensor, memory: Tensor | None = None) -> Decisions:
        """Observations (B, ...) and the memory (B, `memory_size`) of what came before them, None at the beginning of episodes."""
        seen, memory = self.see(observation, memory)
        decisions = self.along(seen[None], memory)
        return Decisions(decisions.log_probability[0], decisions.value[0], decisions.memory)

    def see(self, observation: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is decided on: observations (B, ...) themselves, or what the map in them tells; and the memory. Nothing of it is learned."""
        memory = observation.new_zeros(len(observation), self.memory_size, dtype=torch.float32) if memory is None else memory
        if not self.config.map:
            return observation, memory
        own = 2 * self.config.memory
        told, planned = maze_map.told(observation, memory[:, own:])
        return told, torch.cat([memory[:, :own], planned], 1)

    def cells_known(self, memory: Tensor) -> Tensor:
        """How many cells the maps of memories (B, `memory_size`) know of, (B,) float; 0 without a map."""
        free = unpacked(memory[:, 2 * self.config.memory :]).free if self.config.map else memory.new_zeros(len(memory), 0)
        return (free.abs() > SURE).flatten(1).sum(1).to(memory.dtype)

    def along(self, seen: Tensor, memory: Tensor | None = None, begins: Tensor | None = None) -> Decisions:
        """What was seen (T, B, ...) one after the other; `begins` (T, B) is 1 where something is the first of an episode, else 0."""
        return self.decide(self.encoder(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]), memory, begins)

    def decide(self, encoded: Tensor, memory: Tensor | None = None, begins: Tensor | None = None) -> Decisions:
        """`along` for what the encoder makes of what was seen, (T, B, numbers)."""
        memory = encoded.new_zeros(1, self.memory_size).expand(encoded.shape[1], -1) if memory is None else memory
        if self.recurrent is not None:
            own = 2 * self.config.memory
            encoded, remembered = self.recurrent(encoded, memory[:, :own], begins)
            memory = torch.cat([remembered, memory[:, own:]], 1)
        return Decisions(self.actor(encoded).log_softmax(-1), self.critic(encoded)[..., 0], memory)


class Recurrent(nn.Module):
    """An LSTM beside a layer: numbers (T, B, width) to both of them, (T, B, hidden + memory)."""

    def __init__(self, width: int, hidden: int, memory: int) -> None:
        super().__init__()
        self.layer, self.lstm = _orthogonal(nn.Linear(width, hidden)), nn.LSTM(hidden, memory)
        self.dropout = nn.Dropout(0.0)  # of what is seen and of what is remembered, while it learns; imitation asks for some

    def forward(self, x: Tensor, memory: Tensor, begins: Tensor | None) -> tuple[Tensor, Tensor]:
        x, remembered = self.dropout(torch.tanh(self.layer(x))), []
        for part, begun in [(x, None)] if begins is None else zip(x.split(1), begins, strict=True):  # in one go is twice as fast
            memory = memory if begun is None else memory * (1 - begun)[:, None]
            steps, after = self.lstm(part, tuple(half.contiguous() for half in memory[None].chunk(2, -1)))
            memory = torch.cat(after, -1)[0]
            remembered.append(steps)
        return torch.cat([x, self.dropout(torch.cat(remembered))], -1), memory


def draw(log_probability: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of (B, actions) by its probability, (B,) int64. A race of exponential clocks: nothing is checked, so nothing waits."""
    clocks = torch.empty_like(log_probability).exponential_(generator=generator)
    return (log_probability - clocks.clamp(min=1e-20).log()).argmax(-1)


def choose(log_probability: Tensor, generator: torch.Generator | None = None, greedy: bool = False) -> Tensor:
    """Actions (B,) int64 of (B, actions): drawn, or the likeliest ones."""
    return log_probability.argmax(-1) if greedy else draw(log_probability, generator)


class RunningNorm(nn.Module):
    """Numbers less their mean over their standard deviation, both counted over all that `count` was shown."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.seen = nn.Buffer(torch.zeros((), dtype=torch.float64))
        self.mean = nn.Buffer(torch.zeros(numbers))
        self.variance = nn.Buffer(torch.ones(numbers))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * (self.variance + 1e-6).rsqrt()).clamp(-FAR, FAR)

    @torch.no_grad()
    def count(self, x: Tensor) -> None:
        """Take observations (B, numbers) into account (Chan, Golub and LeVeque, 1979)."""
        total = self.seen + len(x)
        share = (len(x) / total).to(x.dtype)
        off = x.mean(0) - self.mean
        variance = torch.lerp(self.variance, x.var(0, correction=0), share) + off.square() * share * (1 - share)
        self.mean.copy_(self.mean + off * share)
        self.variance.copy_(variance)
        self.seen.copy_(total)


class ImageEncoder(nn.Module):
    """uint8 images (B, height, width, 3) to numbers; the network of Mnih et al. (2015), which is known to learn from few pixels."""

    def __init__(self, shape: tuple[int, ...], numbers: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _orthogonal(nn.Conv2d(3, 32, 8, stride=4)), nn.ReLU(),
            _orthogonal(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(),
            _orthogonal(nn.Conv2d(64, 64, 3, stride=1)), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        down, across = (((side - 4) // 4 - 2) // 2 - 2 for side in shape[:2])
        self.out = _orthogonal(nn.Linear(64 * down * across, numbers))

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.out(self.convolutions(image.permute(0, 3, 1, 2).float() / 255)))


def observation_today(name: str) -> str:
    """The name of an observation, with a `DeprecationWarning` for `pixels`, which is called `image` now."""
    if name in legacy.OBSERVATIONS:
        legacy.warn(f"observation {name}", legacy.OBSERVATIONS[name])
    return legacy.OBSERVATIONS.get(name, name)


def as_json(settings: Any) -> Any:
    """A dataclass of settings as JSON can hold it."""
    return json.loads(json.dumps(asdict(settings), default=str))


def save_policy(path: str | Path, policy: Policy, about: dict[str, Any]) -> None:
    """Write a policy whole or not at all; `about` is any JSON object, such as how it was learned."""
    save_tensors(path, policy.state_dict(), {"kind": KIND, "config": asdict(policy.config), "about": about})


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> tuple[Policy, dict[str, Any]]:
    """The policy and what was written about it. Raises `TensorFileError` for a file that is not a policy, or broken."""
    tensors, header = load_tensors(path)
    policy = load_strictly(Policy(config_in(header, path)).to(device), legacy.parameters(tensors, legacy.POLICY_PARAMETERS), path)
    return policy.eval().requires_grad_(False), header.get("about", {})


def policy_for(path: str | Path, dream: Dream) -> Policy:
    """The policy in a file, on the dream's device. Raises `ValueError` for one that acts in another world or sees something else."""
    policy, _ = load_policy(path, dream.device)
    config = policy.config
    if config.world != dream.world.name or config.actions != len(dream.world.actions):
        raise ValueError(f"{path}: acts in {config.world}, not in {dream.world.name}")
    if config.shape != (shape := observed_shape(dream, config.observation)):
        raise ValueError(f"{path}: sees {config.observation} of shape {config.shape}; this model's is {shape}")
    return policy


def config_in(header: Any, path: str | Path) -> PolicyConfig:
    """What the header of a policy's file says. Raises `TensorFileError` where that is no policy."""
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise TensorFileError(f"{path}: not a policy")
    try:
        config = header["config"]
        observation = legacy.OBSERVATIONS.get(config["observation"], config["observation"])
        return PolicyConfig(**{**config, "observation": observation, "shape": tuple(config["shape"])})
    except (KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"{path}: not a policy of this version ({error})") from None


def _two_layers(inputs: int, hidden: int, outputs: int, last_gain: float) -> nn.Sequential:
    return nn.Sequential(
        _orthogonal(nn.Linear(inputs, hidden)), nn.Tanh(),
        _orthogonal(nn.Linear(hidden, hidden)), nn.Tanh(),
        _orthogonal(nn.Linear(hidden, outputs), last_gain),
    )  # fmt: skip


def _orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
