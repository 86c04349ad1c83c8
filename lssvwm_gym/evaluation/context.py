"""Settings of an evaluation, and the models, episodes and results that its tests share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lssvwm_gym.checkpoints.checkpoint import Weights, load_weights
from lssvwm_gym.data.episode import episode_paths
from lssvwm_gym.evaluation.metrics import Score, psnr, score, ssim
from lssvwm_gym.evaluation.rollouts import decode_clips, dream_at_poses, prefill_clips, read_encoded
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.worlds import WorldSpec, chosen_world, weights_of

PREDICTION = ("reconstruction", "next_frame", "open_loop", "reward")
MEMORY = ("retrieval", "reasoning", "drift")
MEMORIES = {  # variants of retrieval, and their names in a report
    "own": "own memory",
    "stranger": "stranger's memory",
    "emptied": "emptied memory",
    "shuffled": "shuffled poses",
    "estimated_poses": "estimated poses",
    "estimated_motions": "estimated motions",
}
OTHER_WORLDS: dict[str, Any] = {"tests": (*PREDICTION, "ends", *MEMORY), "retrieval": (100,), "reasoning": (100, 50)}
SUITES: dict[str, dict[str, Any]] = {  # by world: what is measured where nothing else is asked for
    "memory-maze": {"tests": PREDICTION + MEMORY, "retrieval": (100,), "reasoning": (576, 224)},
    "minecraft": OTHER_WORLDS | {"tests": ("reconstruction", "next_frame", "open_loop", *MEMORY)},
}
PICTURED = 3  # clips, of different episodes where there are as many


class DoesNotApply(ValueError):
    """A test that says nothing about this world; the message says why."""


@dataclass(frozen=True)
class Evaluation:
    """What to measure, on what. Tests and sizes that aren't given are the world's own, see `SUITES`."""

    data: Path  # folder with real episodes
    world: str = ""  # its name; what the weights say that they dream if not given, else memory-maze
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    out: Path | None = None  # where to write the scores as JSON
    figures: Path | None = None  # folder for pictures of what the tests produced
    tests: tuple[str, ...] = ()  # if not given, all that say something about the world, but those of imagination
    steps: int = 1  # denoising steps a frame
    clips: int = 3  # clips an episode, evenly spaced
    context: int = 100  # real frames before the dream
    ahead: int = 50  # frames of open-loop dream
    retrieval: tuple[int, ...] = ()  # frames of context, revisited in reverse
    memories: tuple[str, ...] = tuple(MEMORIES)  # variants of retrieval, estimated_poses of reasoning too; own is enough to compare models
    reasoning: tuple[int, int] = (0, 0)  # frames of context, frames generated
    drift: int = 1000  # steps over which poses are estimated, fewer where episodes are shorter
    imagination: tuple[int, int] = (20, 100)  # frames of context, frames dreamed; fewer where no episode is so long
    other_data: Path | None = None  # real episodes of other places, to which imagination compares; halves of the same if not given
    known_places: tuple[int, int] = (576, 60)  # frames of context, frames dreamed
    elsewhere: tuple[int, ...] = (0, 50, 200)  # steps after which stability asks for what was dreamed before
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.memories) - MEMORIES.keys():
            raise ValueError(f"no memory named {', '.join(sorted(unknown))}; there are {', '.join(MEMORIES)}")
        for name, own in SUITES.get(self.world or chosen_world("", self.weights).name, OTHER_WORLDS).items():
            if not any(getattr(self, name)):
                object.__setattr__(self, name, own)
        check_bounds(self, steps=1, clips=1, context=2, ahead=1, retrieval=2, reasoning=1, drift=1, imagination=2)
        check_bounds(self, known_places=2, elsewhere=0)


@dataclass(frozen=True)
class EvalContext:
    """A loaded evaluation: models, world, episodes, and what the tests have left."""

    run: Evaluation
    world: WorldSpec
    weights: Weights
    episodes: list[Segment]
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # what a test produced, by its name: for figures
    recalled: dict[int, Tensor] = field(default_factory=dict)  # frames of retrieval from own memory, by length of the context

    def check_poses(self, discrete: bool = False) -> None:
        """Raise `DoesNotApply` where no episode says where the agent was; with `discrete`, where actions are not."""
        if not any(bool(one.pose.isfinite().all()) for one in self.episodes):
            raise DoesNotApply("the episodes have no poses")
        if discrete and self.world.continuous:
            raise DoesNotApply("it revisits by unknown actions, which only discrete ones have")

    def prefilled(self, clips: Segment) -> DreamState:
        """The state after real frames at their true poses."""
        return prefill_clips(self.weights.world_model, clips, self.run.seed)

    def generated(self, state: DreamState, clips: Segment) -> Tensor:
        """Frames (B, T, height, width, 3) dreamed at a clip's poses and motions."""
        return decode_clips(self.weights, dream_at_poses(self.weights.world_model, state, clips, self.run.steps))

    def frame_scores(self, name: str, frames: Tensor, truth: Tensor) -> dict[str, Score]:
        """PSNR and SSIM of frames (B, T, height, width, 3) uint8 against real ones."""
        border = self.world.border
        return {f"{name} PSNR": score(psnr(frames, truth, border)), f"{name} SSIM": score(ssim(frames, truth, border))}

    def quality(self, frames: Tensor, truth: Tensor) -> Tensor:
        """PSNR without the world's border, (B, T)."""
        return psnr(frames, truth, self.world.border)

    def keep(self, test: str, pictures: dict[str, Tensor]) -> None:
        """Put aside a few clips (B, ...) of each entry for figures."""
        self.kept[test] = {name: clips[:: self.run.clips][:PICTURED].clone() for name, clips in pictures.items()}


def open_context(run: Evaluation) -> EvalContext:
    """Load the weights and encode the episodes. Raises `ValueError` for a world that doesn't exist, and files that can't be read."""
    world = chosen_world(run.world, run.weights)
    weights = load_weights(weights_of(world, run.weights))
    return EvalContext(run, world, weights, read_encoded(episode_paths(run.data), weights))
