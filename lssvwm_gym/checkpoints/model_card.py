"""The record of a new world, and the model card of its weights."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.collect_gym import Collection, read_collection
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.worlds import WORLDS, WorldSpec

FPS = 15
KEYS = {  # what a key means, by a word in the action's name; the first action that has the word takes it
    "w": ("forward", "up"),
    "a": ("left",),
    "d": ("right",),
    "s": ("back", "down"),
    " ": ("jump", "fire", "shoot", "attack"),
}
WRITTEN = "<!-- written by lssvwm-gym "  # a card without these words is never replaced
CARD = WRITTEN + "package; a card without this line is never replaced -->"


@dataclass(frozen=True)
class Naming:
    """The world's record; what is not given is taken from `collecting.json` of the episodes, or from the episodes."""

    world: str = ""  # a world that the package knows, such as memory-maze: no other setting is needed then
    name: str = ""  # of a new world, small letters; with it, weights say themselves which world they dream
    actions: tuple[str, ...] = ()  # names of the discrete actions, or of the numbers of a continuous one
    keys: dict[str, int] = field(default_factory=dict)  # keyboard key and action, as in --keys w 2 a 0
    fps: int = 0  # frames a second of world time
    reward: float = 0.0  # of a frame that the model takes for a rewarded one
    max_episode_steps: int = 0
    length_scale: float = 0.25  # units of length within which two views of one direction show about the same


def described(naming: Naming, data: Path, weights: Weights) -> WorldSpec | None:
    """The world that weights have learned from recordings; None where nothing names it.

    Raises `ValueError` for a world that doesn't exist or names that don't fit the weights.
    """
    if naming.world:
        if naming.world not in WORLDS:
            raise ValueError(f"no world named {naming.world!r}; there are {', '.join(WORLDS)}; a new one is named with --name")
        return WORLDS[naming.world]
    collection = read_collection(data)
    if not naming.name and collection is None:
        return None
    title = naming.name or re.sub(r"-v\d+$", "", (collection.env if collection else "").split(":")[-1].split("/")[-1])
    arrays = [read_arrays(path) for path in episode_paths(data)]
    model = weights.world_model.config
    count = model.action_size or model.actions
    numbered = tuple(f"{'number' if model.action_size else 'action'} {number}" for number in range(count))
    actions = naming.actions or (collection.actions if collection else ()) or numbered
    if len(actions) != count:
        raise ValueError(f"{len(actions)} names of actions, but the model was trained with {count}: {', '.join(actions)}")
    low, high = _bounds(collection, arrays) if model.action_size else ((), ())
    if model.inventory_size and not model.inventory_changes:
        raise ValueError("a world with an inventory is registered by a record of its own, see docs/own_world.md: leave out --name")
    return WorldSpec(
        id=f"LSSVWM-{title}-v0",
        name=re.sub(r"[^a-z0-9_.-]", "-", title.lower()),
        image_size=weights.autoencoder.config.image_size,
        actions=actions,
        keys={} if model.action_size else naming.keys or _keys(actions),
        fps=naming.fps or (collection.fps if collection else FPS),
        reward_values=_reward_values(naming, arrays, model),
        max_episode_steps=naming.max_episode_steps or (collection.steps if collection else max(1, *(len(a["action"]) - 1 for a in arrays))),
        weights=data,
        length_scale=naming.length_scale,
        inventory=collection.inventory if collection and model.inventory_size else (),
        low=low,
        high=high,
    )


def _reward_values(naming: Naming, arrays: list[dict[str, np.ndarray]], model: WorldModelConfig) -> tuple[float, ...]:
    """What the reward head has learned to tell; none where it predicts numbers."""
    if naming.reward and (model.reward_bins or model.reward_values != 2):
        raise ValueError(f"--reward {naming.reward} is for weights that tell one reward from none, and these know others: leave it out")
    if model.reward_bins:
        return ()
    if model.class_rewards and not naming.reward:
        return model.class_rewards
    rewards = np.concatenate([a["reward"] for a in arrays]).astype(np.float64)
    told = rewards[rewards > 0.5]  # by a head of two values
    reward = naming.reward or (round(float(told.mean()), 4) if len(told) else 1.0)
    return (0.0, reward, *[0.0] * (model.reward_values - 2))[: model.reward_values]


def _bounds(collection: Collection | None, arrays: list[dict[str, np.ndarray]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the environment where it has some, else of the recorded actions."""
    taken = np.concatenate([a["action"][1:] for a in arrays]).astype(np.float64)
    least, most = taken.min(0), taken.max(0)
    most = np.where(most > least, most, least + 1)
    if collection is None or len(collection.low) != taken.shape[1]:
        return tuple(least.tolist()), tuple(most.tolist())
    low = tuple(float(b if a is None else a) for a, b in zip(collection.low, least, strict=True))
    return low, tuple(float(b if a is None else a) for a, b in zip(collection.high, most, strict=True))


def _keys(actions: tuple[str, ...]) -> dict[str, int]:
    """Keys by the names of the actions, and 1 to 9 for the first nine."""
    keys = {str(number + 1): number for number in range(min(9, len(actions)))}
    for key, words in KEYS.items():
        found = next((n for word in words for n, name in enumerate(actions) if word in re.split(r"[^a-z]+", name.lower())), None)
        if found is not None:
            keys[key] = found
    return keys


def card(world: WorldSpec, weights: Weights, out: Path) -> str:
    """A model card for the folder, in the Hub's form."""
    trained, data = weights.info.get("training", {}), weights.info.get("starts_from", {})
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (weights.autoencoder, weights.world_model)]
    rows: dict[str, Any] = {
        "world": f"`{world.id}`, {len(world.actions)} {'numbers an action' if world.continuous else 'actions'}: {', '.join(world.actions)}",
        "frames": f"{world.image_size}x{world.image_size}, {world.fps} a second",
        "autoencoder": f"{millions[0]:.2f} M weights, float16",
        "world model": f"{millions[1]:.2f} M weights, float16",
        "trained": f"{trained.get('step', '?')} steps, {trained.get('frames', '?')} frames, {trained.get('seconds', '?')} s",
        "data": f"{data.get('episodes', '?')} episodes, fingerprint {data.get('sha256', '?')}",
        "contexts": f"{weights.short_contexts.batch} short, {weights.long_contexts.batch} long",
        "licence": "to be said by whoever trained it; starts are real frames of the world, so its own licence counts too",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "---\nlibrary_name: lssvwm_gym\ntags: [reinforcement-learning, world-model, gymnasium]\n---\n"
        f"{CARD}\n\n# Model card: dreamed {world.name}\n\n| | |\n|---|---|\n{table}\n\n"
        f'```python\nimport lssvwm_gym\n\nenv = lssvwm_gym.load("{out.name}")\n```\n\n'
        "Scores are not measured by themselves: `lssvwm-gym evaluate --data DIR --weights .` on episodes that it has not learned from.\n"
    )


def write_card(folder: Path, text: str) -> bool:
    """Write the card unless somebody has written one by hand; whether it was written."""
    path = folder / "README.md"
    if path.exists() and WRITTEN not in path.read_text(encoding="utf-8"):
        return False
    path.write_text(text, encoding="utf-8")
    return True
