"""Sizes of the world model."""

from dataclasses import dataclass, field

from lssvwm_gym.models.geometry import PLANE, SPACE

FEATURES = 256  # numbers that sum up a frame and its past, for the heads and for agents

_FOUR = ((4, 4), (1, 1), (2, 2), (1, 1))


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the world model; flat, so that a JSON object says all."""

    latent_channels: int = 32  # C
    grid: int = 4  # tokens a side; N = grid * grid
    width: int = 128  # D
    blocks: tuple[tuple[int, int], ...] = ((4, 4), (1, 1), (2, 2), (1, 1))  # block of tokens with a scan of its own, a layer each
    heads: int = 4  # of attention; 0 for none
    head_width: int = 64  # P, of the block-wise scan
    d_state: int = 32  # S; 0 for no block-wise scan
    d_conv: int = 1  # tokens in Mamba-2's short convolution, 4 in the paper; 1 for none: attention sees the neighbours too
    window: int = 4  # W, frames that attention looks back
    chunk: int = 1  # frames that attention sees at once in both directions
    mlp: int = 4  # width of the hidden layer over D
    memory_features: int = 512  # F, random Fourier features of a pose, the spatial memory's keys; 0 for no such memory
    memory_scales: tuple[tuple[float, float], ...] = ((0.35, 0.25), (1.0, 0.5))  # over which views change: units of length, radians
    memory_noise: float = 0.05  # variance that a remembered latent is off by, beside the latents' own of 1
    motion_scale: tuple[float, ...] = (0.15, 0.05, 0.25)  # typical forward, left, turn a frame; in space also rise and tilt
    actions: int = 6  # number of discrete actions; 0 for continuous ones
    action_size: int = 0  # length of a continuous action
    reward_values: int = 2  # classes of the reward head, where it has no bins
    termination: bool = False  # whether frames can end the episode
    inventory_size: int = 0  # V, length of a vector that goes with every frame: counts such as an inventory, or numbers such as health
    max_inventory_change: int = 4  # the most that a count changes by in a frame
    # what came later isn't in the repr, by which saved states know their model
    flow_width: int = field(default=0, repr=False)  # of the flow head, which samples a frame's latent; 0 for none: the model denoises it
    flow_layers: int = field(default=3, repr=False)
    flow_heads: int = field(default=5, repr=False)  # of its attention
    collisions: bool = field(default=False, repr=False)  # whether the motion head looks at the last frame for what blocks a step
    class_rewards: tuple[float, ...] = field(default=(), repr=False)  # what each class of the reward head stands for; none: 0 and 1
    reward_bins: int = field(default=0, repr=False)  # of the reward head, an odd number, for rewards of any size; 0: classes
    reward_limit: float = field(default=20.0, repr=False)  # symlog of the largest reward, and of minus the smallest, that bins tell
    inventory_changes: tuple[tuple[float, ...], ...] = field(default=(), repr=False)  # of each number, in order; none: V are counts
    inventory_range: tuple[tuple[float, float], ...] = field(default=(), repr=False)  # the least and the most of each of these numbers

    changing_actions: tuple[int, ...] = field(default=(), repr=False)  # that change the world: what they show overwrites the spatial memory
    most_tilt: float = field(default=0.0, repr=False)  # radians up or down that the view can be tilted by in space; 0: any
    lattice: float = field(default=0.0, repr=False)  # side of the cells in which the world's walls stand at right angles; 0: no such cells
    map_objects: int = field(default=0, repr=False)  # kinds of objects on the map of the world's lattice; 0: no map
    layout_width: int = field(default=0, repr=False)  # of what imagines the rest of a map; 0: none, and no motion is told by a map
    residual: bool = field(default=False, repr=False)  # whether a frame is told by how it differs from the last one

    def __post_init__(self) -> None:
        if len(self.motion_scale) not in (3, 5):
            raise ValueError(f"motion_scale has 3 numbers in the plane or 5 in space, not {len(self.motion_scale)}")
        if self.flow_width % self.flow_heads:
            raise ValueError(f"flow_width {self.flow_width} is not a multiple of flow_heads {self.flow_heads}")
        if self.class_rewards and len(set(self.class_rewards)) != self.reward_values:
            raise ValueError(f"class_rewards are as many as reward_values, {self.reward_values}, each its own; got {self.class_rewards}")
        if self.lattice < 0:
            raise ValueError(f"lattice is the side of a cell, or 0 for none; got {self.lattice}")
        if self.map_objects and not (self.lattice and self.flow_width):
            raise ValueError(f"a map of {self.map_objects} kinds of objects needs a lattice to lie in and a flow head that is told of it")
        if self.layout_width and not (self.map_objects and self.collisions):
            raise ValueError(f"a layout of width {self.layout_width} needs a map that it completes, and a head for collisions with it")
        if self.reward_bins and not self.reward_bins % 2:
            raise ValueError(f"reward_bins is an odd number, for one of them stands for 0; got {self.reward_bins}")
        if any(len(part) not in (0, self.inventory_size) for part in (self.inventory_changes, self.inventory_range)) or (
            bool(self.inventory_changes) != bool(self.inventory_range)
        ):
            raise ValueError(f"inventory_changes and inventory_range are given together, for each of the {self.inventory_size} numbers")
        if any(len(values) < 2 or sorted(set(values)) != list(values) for values in (*self.inventory_changes, *self.inventory_range)):
            raise ValueError("inventory_changes and inventory_range list two or more numbers each, from small to large")
        if bool(self.actions) == bool(self.action_size):
            raise ValueError(f"either actions or action_size must be set, got {self.actions} and {self.action_size}")

    @property
    def tokens(self) -> int:
        """N, tokens a frame."""
        return self.grid**2

    @property
    def spatial(self) -> bool:
        """Whether poses have height and tilt."""
        return len(self.motion_scale) > 3

    @property
    def pose_size(self) -> int:
        """Numbers of a pose: 4 in the plane, 6 in space."""
        return SPACE if self.spatial else PLANE

    @property
    def has_spatial_memory(self) -> bool:
        """Whether there is a spatial memory, queried by pose."""
        return self.memory_features > 0


PRESETS = {
    "tiny": WorldModelConfig(),
    "base": WorldModelConfig(width=512, blocks=_FOUR + _FOUR[:2], heads=8, d_state=64, d_conv=4, window=8, memory_features=1024),
    "paper": WorldModelConfig(width=768, blocks=_FOUR * 3, heads=12, d_state=128, d_conv=4, window=10, memory_features=2048),
}


def preset(name: str) -> WorldModelConfig:
    """The sizes of a preset. Raises `ValueError` for a name that is none."""
    if name not in PRESETS:
        raise ValueError(f"no preset named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
