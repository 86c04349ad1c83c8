"""What distinguishes one dreamed world from another, as a frozen record."""

import json
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import numpy as np

from lssvwm_gym.io import legacy
from lssvwm_gym.io.json_config import Bounds, bounded, fields_of, in_short, parsed, write_json

WEIGHTS = Path(__file__).parent.parent / "weights"

RECORD = "world.json"
FORMAT = "lssvwm_gym WorldSpec 2"
FORMAT_BEFORE = "lssvwm_gym World 1"
LARGEST = 1_000_000  # bytes
LARGEST_NUMBER = 1e9  # beside a picture, where it is no count
WHOLE = {"image_size": (8, 4096), "fps": (1, 1000), "max_episode_steps": (1, 10**9), "max_inventory": (0, 10**9), "border": (0, 2048)}
BOUNDS = Bounds(numbers=(-3e38, 3e38), most=4096, whole=WHOLE)  # float32, in which bounds and rewards come, ends above
ID = re.compile(r"[A-Za-z0-9_.-]+-v\d{1,4}")  # no namespace and no module: making it imports nothing
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
LEFT_OUT = ("weights", "real_id")  # where it lies is known, and what gymnasium.make imports is not for strangers to say


@legacy.keywords(legacy.SPEC)
@dataclass(frozen=True)
class WorldSpec:
    """A world that can be dreamed: names, sizes, and where its weights lie. Holds no code and imports none.

    Raises `ValueError` where its parts contradict each other.
    """

    id: str  # of the dream, for gymnasium.make
    name: str  # on the command line
    image_size: int  # pixels a side of the square observation
    actions: tuple[str, ...]  # names of the discrete actions; of the numbers of an action, where it is a Box
    keys: dict[str, int]  # keyboard key to action, as gymnasium.utils.play wants it
    fps: int  # frames a second of world time
    reward_values: tuple[float, ...]  # of the classes of the reward head; none where rewards are real numbers
    max_episode_steps: int
    weights: Path  # folder with config.json, model.safetensors, contexts.safetensors
    inventory: tuple[str, ...] = ()  # the numbers beside the picture, such as counts of the things in an inventory, or health
    max_inventory: int = 0  # the most that is ever counted; 0 where they are no counts
    milestones: tuple[tuple[str, float], ...] = ()  # rewards of counts that first rise above 0 in an episode, instead of reward_values
    changes: bool = False  # whether the agent can change it, so that a place need not look as it did
    length_scale: float = 0.25  # units of length within which two views of one direction show about the same
    border: int = 0  # pixels at the edge that show no part of the world and are left out of scores
    real_id: str | None = None  # the real environment of the same spaces, for gymnasium.make
    low: tuple[float, ...] = ()  # bounds of actions that are a Box, a number each; none where actions are discrete
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.actions)
        if not count or len(set(self.actions)) < count:
            raise ValueError(f"{self.name}: actions need names, each its own, got {self.actions}")
        if self.low or self.high:
            with np.errstate(over="ignore"):  # float32, as the action space has them
                low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
            if not len(low) == len(high) == count or not (low < high).all():
                raise ValueError(f"{self.name}: low and high don't bound the {count} numbers of an action: {self.low}, {self.high}")
            if self.keys:
                raise ValueError(f"{self.name}: keys are for discrete actions, but an action is {count} numbers")
        if strange := [key for key, action in self.keys.items() if not 0 <= action < count]:
            raise ValueError(f"{self.name}: keys {strange[:4]} stand for none of the {count} actions")
        uncounted = [name for name, _ in self.milestones if name not in self.inventory]
        if uncounted or len(dict(self.milestones)) < len(self.milestones):
            raise ValueError(f"{self.name}: milestones need counts, each its own, but {uncounted[:4] or 'one is there twice'}")
        if self.milestones and self.max_inventory < 1:
            some = ", ".join(self.inventory[:4])
            raise ValueError(f"{self.name}: max_inventory is {self.max_inventory}, so nothing of {some} is ever counted")
        if 2 * self.border >= self.image_size:
            raise ValueError(f"{self.name}: a border of {self.border} leaves nothing of {self.image_size} pixels")
        if self.length_scale < 0:
            raise ValueError(f"{self.name}: length_scale is {self.length_scale}, below 0")

    @property
    def continuous(self) -> bool:
        """Whether an action is numbers within `low` and `high`."""
        return bool(self.low)


class WorldError(ValueError):
    """A record of a world that is none; the message names the file and what is wrong with it."""


def write_world(folder: str | Path, world: WorldSpec) -> Path:
    """Write a world's record into a folder of weights, whole or not at all. Raises `WorldError` for one that couldn't be read again."""
    path = Path(folder).expanduser() / RECORD
    record = {"format": FORMAT} | {field.name: getattr(world, field.name) for field in fields(WorldSpec) if field.name not in LEFT_OUT}
    _world(json.dumps(record), path)
    write_json(path, record)
    return path


def read_world(folder: str | Path) -> WorldSpec:
    """The world of a folder of weights, whose weights are that folder.

    Raises `WorldError` for a folder without a record, and for one that is anything but what `write_world` writes.
    """
    path = Path(folder).expanduser() / RECORD
    try:
        text = bounded(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        instead = "`lssvwm-gym package` writes one; weights of a world that the package knows are opened by its own id"
        raise WorldError(f"{folder}: has no {RECORD}, so nothing says which world it dreams. {instead}") from None
    except (OSError, ValueError) as error:
        raise WorldError(f"{path}: can't be read ({error})") from None
    return _world(text, path)


def has_record(folder: str | Path | None) -> bool:
    """Whether a folder of weights says itself which world it dreams."""
    return folder is not None and (Path(folder).expanduser() / RECORD).is_file()


def _world(text: str, path: Path) -> WorldSpec:
    try:
        record = parsed(text)
        if not isinstance(record, dict) or record.pop("format", None) not in (FORMAT, FORMAT_BEFORE):
            raise ValueError(f"not the record of a world: its format is not {FORMAT!r}")
        record = legacy.renamed(record, legacy.SPEC)
        kinds = {field.name: field for field in fields(WorldSpec) if field.name not in LEFT_OUT}
        missing = [name for name, field in kinds.items() if field.default is MISSING and name not in record]
        if missing or record.keys() - kinds.keys():
            raise ValueError(f"missing {missing}, unknown {sorted(record.keys() - kinds.keys())[:4]}")
        values = fields_of(WorldSpec, record, BOUNDS)
        if not ID.fullmatch(values["id"]):
            raise ValueError(f"id is {values['id'][:40]!r}, not letters, numbers and hyphens that end in -v and a number")
        if not NAME.fullmatch(values["name"]):
            raise ValueError(f"name is {values['name'][:40]!r}, not small letters, numbers and hyphens")
        return WorldSpec(**values, weights=path.parent)
    except (ValueError, TypeError, RecursionError) as error:
        raise WorldError(f"{path}: {in_short(error)}") from None
