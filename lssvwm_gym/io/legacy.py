"""Names of version 0.1: the one map by which weights, states, records and options of before are still read.

Nothing is written under these names any more. The next release but one may drop this file.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

V = TypeVar("V")
C = TypeVar("C")

PARAMETERS = {  # prefixes of the names of a world model's parameters, the longest first
    "condition.vector.": "conditioning.inventory.",
    "condition.": "conditioning.",
    "place_latents.": "spatial_memory.",
    "pose_head.": "motion_head.",
    "sight_head.": "odometry_head.",
    "vector_head.": "inventory_head.",
}
SIZES = {  # fields of `WorldModelConfig`
    "place_features": "memory_features",
    "place_scales": "memory_scales",
    "place_noise": "memory_noise",
    "vector_size": "inventory_size",
    "vector_change": "max_inventory_change",
}
STATES = {  # leaves of `DreamState`
    "world.place.known": "world.spatial_memory.explained",
    "world.place.latents": "world.spatial_memory.latents",
    "vector": "inventory",
    "peak": "inventory_peak",
    "unknown": "posterior_variance",
}
DREAM = {"begin": "reset", "remember": "prefill", "arithmetic": "precision"}  # methods and an attribute of `Dream`
WEIGHTS = {"openings": "short_contexts", "walks": "long_contexts"}  # attributes of `Weights`
CONTEXTS_FILE = "starts.safetensors"  # in a folder of weights, for contexts.safetensors
CONTEXTS = {"openings": "short", "walks": "long"}  # prefixes of its tensors
SEGMENTS = {"vector": "inventory"}  # tensors of recorded frames
SPEC = {"counts": "inventory", "most_counted": "max_inventory", "near": "length_scale"}  # fields of `WorldSpec`
INFO = {"believed_pose": "estimated_pose"}  # keys of an environment's info
ENVS = {"SeenThroughModel": "WorldModelObservation", "SeenThroughModelVec": "WorldModelObservationVec"}  # names of `lssvwm_gym.envs`
POSES = {"told_poses": "true_poses"}  # `WorldModelObservation`
CHECKPOINT = {"walks": "segments"}  # fields of the header of a training checkpoint
OPTIONS = {"clip": "context_id"}  # options of reset
POLICY_PARAMETERS = {"eyes.": "encoder."}  # prefixes of the names of parameters of policies of `agents`
OBSERVATIONS = {"pixels": "image"}  # what such a policy sees


def warn(old: str, new: str) -> None:
    """Say to the caller's caller that what it uses has a new name."""
    warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=3)


def renamed(values: Mapping[str, V], names: Mapping[str, str]) -> dict[str, V]:
    """The same values under the names of today. Raises `ValueError` where both names of one are there."""
    if both := [f"{old} and {new}" for old, new in names.items() if old in values and new in values]:
        raise ValueError(f"{', '.join(both)} are two names for the same: leave out the first")
    return {names.get(name, name): value for name, value in values.items()}


def renamed_with_warning(values: Mapping[str, V], names: Mapping[str, str], where: str) -> dict[str, V]:
    """`renamed`, with a `DeprecationWarning` for every name of before; `where` says whose names they are."""
    for old in values.keys() & names.keys():
        warnings.warn(f"{where}: {old!r} is now called {names[old]!r}", DeprecationWarning, stacklevel=3)
    return renamed(values, names)


def keywords(names: Mapping[str, str]) -> Callable[[type[C]], type[C]]:
    """A decorator for classes of which the keywords of before still make one, with a `DeprecationWarning`."""

    def accepting(cls: type[C]) -> type[C]:
        make = cls.__init__

        @functools.wraps(make)
        def renamed_keywords(self: C, *args: Any, **values: Any) -> None:
            make(self, *args, **renamed_with_warning(values, names, cls.__name__))

        setattr(cls, "__init__", renamed_keywords)  # noqa: B010 - mypy minds the assignment
        return cls

    return accepting


def attribute(thing: Any, name: str, names: Mapping[str, str]) -> Any:
    """What `thing` has under the name of today; for its `__getattr__`."""
    if name not in names:
        raise AttributeError(f"{type(thing).__name__!r} object has no attribute {name!r}")
    kind = type(thing).__name__
    warnings.warn(f"{kind}.{name} is now called {kind}.{names[name]}", DeprecationWarning, stacklevel=3)
    return getattr(thing, names[name])


def parameters(tensors: Mapping[str, V], prefixes: Mapping[str, str] = PARAMETERS) -> dict[str, V]:
    """A world model's parameters, or whatever is kept for each of them, by their names of today; `prefixes` for other models'."""

    def today(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)

    return {today(name): tensor for name, tensor in tensors.items()}


def contexts(tensors: Mapping[str, V]) -> dict[str, V]:
    """The tensors of real contexts, `short.latent` and so on, by their names of today."""
    parts = [(*name.partition("."), tensor) for name, tensor in tensors.items()]
    return {f"{CONTEXTS.get(kind, kind)}{dot}{SEGMENTS.get(part, part)}": tensor for kind, dot, part, tensor in parts}


def sizes(config: Any) -> Any:
    """The fields of a `WorldModelConfig` by their names of today. Raises `ValueError` for a model with place heads, which are gone."""
    if not isinstance(config, dict):
        return config
    if isinstance(config.get("place"), list) and any(config["place"]):
        raise ValueError("it has place heads, which only version 0.1 knows")
    return {name: value for name, value in renamed(config, SIZES).items() if name not in ("place", "place_width")}


def state(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a `DreamState` by their names of today; what place heads remembered, always empty, is left out."""
    kept = {name: tensor for name, tensor in tensors.items() if not (name.startswith("world.layers[") and name.endswith("].place"))}
    named = dict(renamed(kept, STATES))
    if "world.spatial_memory.explained" in named:  # all that was in the memory counts as given
        named.setdefault("observed", named["world.spatial_memory.explained"])
    if "pose" in named:  # it has not been seen how the state lies in a lattice
        named.setdefault("lattice", 0 * named["pose"][..., :4])
    if "world.age" in named:
        nothing = named["world.age"].reshape(-1, 1)[:, :0].float()
        for name in ("last_action", "map", "layout", "wanted", "world.last"):
            named.setdefault(name, nothing)
    return named


def sizes_said_before(config: Any) -> str:
    """How version 0.1 wrote a `WorldModelConfig`: fingerprints of its weights begin with it."""
    before, said = {new: old for old, new in SIZES.items()}, list[str]()
    for name, value in {field.name: getattr(config, field.name) for field in fields(config) if field.repr}.items():
        said.append(f"{before.get(name, name)}={value!r}")
        if name == "blocks":
            said.append(f"place={(False,) * len(value)!r}")
        if name == "memory_noise":
            said.append("place_width=64")
    return f"WorldModelConfig({', '.join(said)})"
