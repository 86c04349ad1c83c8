"""What is asked for, what was decided, and the settings of each training that follow from both."""

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lssvwm_gym.data.collect_gym import GymCollecting
from lssvwm_gym.data.convert.convert import Converting, LayoutName
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.autoencoder import AutoencoderConfig
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.training.autoencoder import AutoencoderTraining
from lssvwm_gym.training.config import CURRICULUM, WorldTraining
from lssvwm_gym.training.dreamed_samples import DreamOptions
from lssvwm_gym.training.heads import HeadTraining
from lssvwm_gym.training.objectives import LossOptions

STICKY = (0.75, 0.0)  # of these the one with longer episodes, where they end early
ROWS = 4  # clips a step: with little time, more steps are worth more than larger ones
CONTEXT_NOISE = 0.03  # of latents, at most: the pole of CartPole moves by no more than 0.07 a frame
CRF = 8  # of recordings: what moves by less than a pixel must be seen
PATCHES = 16  # a side of a picture, so that there are always as many tokens


@dataclass(frozen=True)
class Network:
    """Sizes of the models, and the fewest steps in which they learn anything: of autoencoder, world model and flow head."""

    widths: tuple[int, ...]
    model: WorldModelConfig
    flow_width: int
    least: tuple[int, int, int]


MEDIUM = WorldModelConfig(latent_channels=16, width=96, heads=3, head_width=32, d_state=16, memory_features=256)
SMALL = replace(MEDIUM, width=64, heads=2)
TINY = replace(SMALL, latent_channels=8, width=32, head_width=16, d_state=8, memory_features=32)
NETWORKS = {  # from small to large; the last that gets its steps in the time is taken, tiny where it is asked for
    "tiny": Network((8, 8, 16), TINY, 20, (8, 8, 8)),
    "small": Network((16, 32, 64), SMALL, 80, (200, 120, 60)),
    "medium": Network((16, 32, 64), MEDIUM, 80, (1000, 1200, 600)),
    "large": Network((32, 64, 128), WorldModelConfig(), 160, (3000, 5000, 2000)),
}

FOR_ENV = ("env", "imports", "kwargs", "steps", "sticky", "odds", "pixels", "position", "plane", "angle", "unit")
FOR_DATA = ("data", "layout", "frame_skip", "images", "index", "outgoing", "cut", "skip_broken")


@dataclass(frozen=True)
class OwnWorld:
    """Which environment or recordings to dream of, and how long that may take. The same command line goes on where it was stopped."""

    env: str = ""  # id of an environment, which is played
    out: Path = Path("dream")  # folder for all that is made; the dream is in its folder `weights`
    minutes: float = 60.0  # for all stages together, on this machine
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()  # modules that register environments, such as miniworld
    kwargs: str = "{}"  # JSON object, for gymnasium.make
    episodes: int = 0  # to learn from; 0: as many as the time allows; with data the first so many recordings, 0: all
    steps: int = 250  # an episode at most
    sticky: float | None = None  # chance that an action is taken again; if not given 0.75, or 0 where episodes are longer then
    odds: tuple[float, ...] = ()  # how often each Discrete action is drawn beside the others
    pixels: Literal["auto", "observation", "render"] = "auto"  # what is recorded, as in `collect gym`
    size: int = 64  # pixels a side of the square frames, a multiple of 16
    crop: bool = False  # take the middle square of a frame
    fps: int = 0  # frames a second of world time; 0: what the environment or the recordings say
    position: str = ""  # where the agent is, as in `collect gym`; then the dream has a spatial memory
    plane: tuple[int, int] = (1, 2)
    angle: str = ""  # where it looks
    unit: Literal["radians", "degrees", "quarters"] = "radians"  # of the angle
    # sizes of the models; tiny shows the way and learns nothing, in a few steps whatever the time
    network: Literal["auto", "tiny", "small", "medium", "large"] = "auto"
    workers: int = 1  # processes that collect or convert
    seed: int = 0
    threads: int = 0  # 0: leave it to torch
    data: Path | None = None  # instead of an environment: folder of recordings, which stay as they are
    layout: Literal["", LayoutName] = ""  # of data, as in `convert`; if not given, they are episodes of this package
    frame_skip: int = 1  # keep every so many frames; this and what follows as in `convert`
    images: str = ""  # minari: the entry of the observations that is the picture
    index: Path | None = None  # vpt: JSON with the recordings to take
    outgoing: bool = False  # teco-*, videos: action t was taken at frame t
    cut: bool = False  # vpt: take what video and lines both have
    skip_broken: bool = False  # leave out recordings that can't be converted

    def __post_init__(self) -> None:
        check_bounds(self, episodes=0, workers=1, size=32)
        if bool(self.env) == (self.data is not None):
            raise ValueError("a dream is of an environment (--env ID) or of recordings (--data FOLDER): give one of them")
        if wrong := self._set_among(FOR_ENV if self.data else FOR_DATA):
            raise ValueError(f"{wrong} can't be set with --{'data' if self.data else 'env'}")
        if self.data and not self.layout and (wrong := self._set_among((*FOR_DATA[1:], "crop"))):
            raise ValueError(f"{wrong} are for recordings of a --layout; without one, those of {self.data} are learned from as they are")
        if not self.minutes > 0 or self.size % 16:
            raise ValueError(f"minutes must be above 0 and size a multiple of 16, got {self.minutes} and {self.size}")
        _ = self.converting if self.data else self.collecting

    def _set_among(self, names: tuple[str, ...]) -> str:
        return ", ".join(name for name in names if getattr(self, name) != getattr(OwnWorld, name))

    @property
    def train(self) -> Path:
        """Folder of the episodes to learn from."""
        return self.out / "data" / "train"

    @property
    def test(self) -> Path:
        """Folder of the episodes to evaluate on."""
        return self.out / "data" / "test"

    @property
    def converting(self) -> Converting | None:
        """What is converted; None where recordings are episodes already."""
        names = {field.name for field in fields(Converting)} & {field.name for field in fields(self)} - {"out"}
        if self.data is None or not self.layout:
            return None
        return Converting(self.data, self.out / "converted", crf=CRF, **{name: getattr(self, name) for name in names})

    @property
    def collecting(self) -> GymCollecting:
        """What is collected, as far as it is given."""
        names = {field.name for field in fields(GymCollecting)} & {field.name for field in fields(self)} - {"out", "episodes", "sticky"}
        given = {name: getattr(self, name) for name in names}
        return GymCollecting(**given, out=self.train, crf=CRF, sticky=STICKY[0] if self.sticky is None else self.sticky)


@dataclass(frozen=True)
class Plan:
    """What was decided for a folder, and the seconds that each stage should take."""

    network: str
    episodes: int  # to learn from
    test_episodes: int  # to evaluate on
    sticky: float
    frames: int  # of a training clip
    clips: int  # of the longest segment
    ahead: int  # frames that the flow head dreams while it learns
    context_frames: int  # of real past that a dream goes on from
    autoencoder_steps: int
    world_steps: int
    head_steps: int
    seconds: dict[str, float]
    poses: bool = False  # whether they are recorded


def autoencoder_training(run: OwnWorld, network: Network, steps: int) -> AutoencoderTraining:
    model = AutoencoderConfig(run.size, run.size // PATCHES, network.widths, latent_channels=network.model.latent_channels)
    return AutoencoderTraining(
        run.train, run.out / "autoencoder", model=model, steps=steps, save_every=max(1, steps // 5), seed=run.seed, threads=run.threads
    )


def world_training(run: OwnWorld, network: Network, plan: Plan) -> WorldTraining:
    """Mostly as in a dream: from a clean past. The flow head samples anyway, so only little of it is the model's own rollout.

    Where no poses say what moves, a frame is told by how it differs from the last one, which it often hardly does.
    """
    longest = (1, min(3, plan.clips), plan.clips)
    stages = tuple(replace(stage, frames=plan.frames, clips=clips) for stage, clips in zip(CURRICULUM, longest, strict=True))
    return WorldTraining(
        run.train,
        run.out / "autoencoder" / "autoencoder.safetensors",
        run.out / "world",
        model=replace(network.model, residual=not plan.poses),
        curriculum=stages,
        steps=plan.world_steps,
        frames_a_step=ROWS * plan.frames,
        warmup=max(1, min(100, plan.world_steps // 10)),
        teacher_forcing=0.8 if plan.poses else 0.9,
        self_rollout=0.1,
        noising=LossOptions(context_noise=CONTEXT_NOISE),
        back=0.4 if plan.poses else 0.0,
        odometry_updates=4 if plan.poses else 0,
        save_every=max(1, plan.world_steps // 10),
        seed=run.seed,
        threads=run.threads,
    )


def head_training(run: OwnWorld, network: Network, plan: Plan) -> HeadTraining:
    """A third of the steps is against the discriminator, where there are enough to begin with it."""
    adversarial = plan.head_steps // 3 if plan.head_steps >= 900 else 0
    return HeadTraining(
        run.out / "without_flow_head",
        (run.train,),
        run.out / "heads",
        steps=plan.head_steps - adversarial,
        adversarial_steps=adversarial,
        warmup=max(1, min(300, plan.head_steps // 10)),
        flow_width=network.flow_width,
        dreams=DreamOptions(rows=16, ahead=plan.ahead, context_noise=CONTEXT_NOISE),
        refresh=100,
        save_every=max(1, plan.head_steps // 5),
        seed=run.seed,
        threads=run.threads,
    )


def command_line(command: str, settings: Any) -> str:
    """The command line that says what settings, a dataclass, differ in from their defaults."""
    return shlex.join(["lssvwm-gym", *command.split(), *_flags(settings)])


def _flags(settings: Any, default: Any = None, prefix: str = "--") -> Iterator[str]:
    for field in fields(settings):
        fresh: Any = field.default if field.default_factory is MISSING else field.default_factory()
        value, usual = getattr(settings, field.name), getattr(default, field.name, fresh)
        flag = prefix + ("import" if field.name == "imports" else field.name.replace("_", "-"))
        if value == usual:
            continue
        if is_dataclass(value):
            yield from _flags(value, usual, f"{flag}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for number, (one, other) in enumerate(zip(value, usual, strict=True)):
                yield from _flags(one, other, f"{flag}.{number}.")
        elif isinstance(value, bool):
            yield flag if value else prefix + "no-" + field.name.replace("_", "-")
        else:
            yield from (flag, *map(str, value if isinstance(value, tuple) else (value,)))
