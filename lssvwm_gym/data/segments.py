"""What a world model is trained on: segments of recorded episodes, cut into clips between which the state is carried.

A segment runs forward through an episode, and in most cases back again through the same frames: the poses say where it is, so
that frames which are revisited can be known from memory alone. All that is drawn depends on (seed, step) only.

Where episodes end by themselves, or are shorter than a clip, they are cut into pieces of about equal length, and one piece of all is drawn:
so every frame is as likely as any other, the last ones too, and how often episodes end can be learned. A piece is filled up to whole clips.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.data.episode import Episode
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.geometry import PLANE, motion_between, relative_to, start_pose
from lssvwm_gym.models.segment import Segment, joined
from lssvwm_gym.models.world_model import FrameInputs


@dataclass(frozen=True)
class SegmentIndex:
    """Which frames a segment is of: start, start+1, ... and, from step `turn` on, back again; its next clip begins with step `at`."""

    episode: int
    start: int
    turn: int  # steps before it runs backwards
    length: int  # steps in all
    at: int = 0

    def frames(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the next `count` frames in the episode, and whether each was reached by its recorded action."""
        step = np.minimum(np.arange(self.at, self.at + count), self.length - 1)
        back = step >= self.turn
        return self.start + np.where(back, 2 * self.turn - 2 - step, step), ~back

    def present(self, count: int) -> np.ndarray:
        """Which of the next `count` frames are the segment's; after its end the last one stands again."""
        return np.arange(self.at, self.at + count) < self.length

    @property
    def done(self) -> bool:
        return self.at >= self.length


def inputs_of(clip: Segment, level: Tensor, pose_known: Tensor) -> FrameInputs:
    """What conditions the model on a clip, at noise levels and knowledge of poses (B, T)."""
    return FrameInputs(level, clip.action, clip.pose, clip.motion, pose_known, clip.before)


@dataclass(frozen=True)
class Episodes:
    """Episodes laid end to end on one device, so that a batch of clips is one gather."""

    lengths: tuple[int, ...]
    start: np.ndarray  # of each episode, in what follows
    whole: Segment

    @classmethod
    def of(cls, episodes: list[Segment], device: torch.device | str = "cpu") -> "Episodes":
        lengths = tuple(map(len, episodes))
        return cls(lengths, np.cumsum([0, *lengths[:-1]]), joined(episodes, torch.cat).to(device))

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def ends(self) -> int:
        """How many of them end by themselves."""
        return 0 if self.whole.terminated is None else int(self.whole.terminated.sum())

    @functools.cached_property
    def posed(self) -> bool:
        """Whether a pose was recorded anywhere."""
        return bool(self.whole.pose.isfinite().all(1).any())

    @property
    def device(self) -> torch.device:
        return self.whole.latent.device

    def index(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def draw_segment(episodes: Episodes, frames: int, clips: int, back: float, rng: np.random.Generator) -> SegmentIndex:
    """A segment of up to `clips` clips of `frames` frames; `back` is the share of segments that run back."""
    length = frames * int(rng.integers(1, clips + 1))
    if episodes.ends or min(episodes.lengths) <= frames:
        return _piece(episodes, length, back, rng)
    episode = int(rng.integers(len(episodes)))
    recorded = episodes.lengths[episode]
    length = min(length, (recorded - 1) // frames * frames)
    turn = min(length, length // 2 + 1 + int(rng.integers(max(1, length // 4)))) if rng.random() < back else length
    return SegmentIndex(episode, int(rng.integers(recorded - turn + 1)), turn, length)


def _piece(episodes: Episodes, longest: int, back: float, rng: np.random.Generator) -> SegmentIndex:
    """One of the pieces of at most `longest` frames into which all episodes are cut, each as likely as any other."""
    runs_back = rng.random() < back
    forward = min(longest, longest // 2 + 1 + int(rng.integers(max(1, longest // 4)))) if runs_back else longest
    counts = -(-np.array(episodes.lengths) // forward)
    number = int(rng.integers(counts.sum()))
    episode = int(np.searchsorted(counts.cumsum(), number, side="right"))
    recorded, count = episodes.lengths[episode], int(counts[episode])
    slack = np.sort(rng.integers(count * forward - recorded + 1, size=count - 1))  # the cuts are others every time
    cuts = [0, *(np.arange(1, count) * forward - slack).tolist(), recorded]
    number -= int(counts[:episode].sum())
    turn = cuts[number + 1] - cuts[number]
    return SegmentIndex(episode, cuts[number], turn, min(longest, 2 * turn - 1) if runs_back else turn)


def read_clip(episodes: Episodes, segments: list[SegmentIndex], frames: int, unknown_action: int) -> Segment:
    """The next `frames` frames of each segment; poses are seen from the first frame of the whole segment."""
    offset = np.array([episodes.start[segment.episode] for segment in segments])[:, None]
    numbers, known = (np.stack(column) for column in zip(*(segment.frames(frames) for segment in segments), strict=True))
    present = np.stack([segment.present(frames) for segment in segments])
    known &= present
    last = np.stack([replace(segment, at=max(0, segment.at - 1)).frames(1)[0] for segment in segments])
    origin = np.array([[segment.start] for segment in segments])
    index, recorded = episodes.index(offset + numbers), episodes.index(known)
    whole = episodes.whole
    pose = relative_to(whole.pose[episodes.index(offset + np.concatenate([last, numbers], 1))], whole.pose[episodes.index(offset + origin)])
    pose_known = pose.isfinite().flatten(1).all(1)[:, None, None]
    pose = torch.where(pose_known, pose, start_pose(1, pose.shape[-1], pose.device))
    earlier = episodes.index(offset + np.where(known, np.maximum(numbers - 1, 0), numbers))
    taken = whole.action[index]  # (B, T), or continuous (B, T, A); unknown but where it was recorded
    continuous = taken.is_floating_point()
    action = torch.where(recorded.unsqueeze(-1), taken, torch.nan) if continuous else torch.where(recorded, taken, unknown_action)
    return Segment(
        latent=whole.latent[index].float(),
        action=action,
        reward=whole.reward[index] * recorded,
        pose=pose[:, 1:],
        inventory=whole.inventory[index],
        before=whole.inventory[earlier],
        motion=motion_between(pose[:, :-1], pose[:, 1:]),
        pose_known=pose_known.squeeze(2).float().expand(index.shape),
        recorded=recorded.float(),
        terminated=torch.zeros_like(recorded) if whole.terminated is None else whole.terminated[index] & recorded,
        present=episodes.index(present).float(),
    )


@torch.no_grad()
def encoded(episode: Episode, autoencoder: Autoencoder, part: slice = slice(None)) -> Segment:
    """Encode an episode's frames, or a part of them: latents in float16, poses in world units."""
    device = autoencoder.latent_mean.device
    latent = torch.cat([autoencoder.encode(batch.to(device)) for batch in torch.from_numpy(episode.frames[part]).split(100)])
    pose = np.full((len(episode), PLANE), np.nan, np.float32) if episode.pose is None else episode.pose
    whole = episode.action.dtype.kind in "iu"
    numbers = (episode.action.astype(np.int64 if whole else np.float32), episode.reward, pose, episode.inventory)
    action, reward, place, inventory, terminated = (torch.from_numpy(array[part]) for array in (*numbers, episode.terminated))
    return Segment(latent.half(), action, reward, place, inventory, terminated=terminated)


@torch.no_grad()
def flipped(episode: Segment, autoencoder: Autoencoder, actions: tuple[int, ...]) -> Segment:
    """The episode with left and right exchanged; `actions` names each action's mirror image.

    The frames are those that the autoencoder makes of the latents. Raises `ValueError` if `actions` is no exchange of the
    actions that are in the episode.
    """
    if any(not 0 <= other < len(actions) or actions[other] != action for action, other in enumerate(actions)):
        raise ValueError(f"augmentation must name each action's mirror image, and that one's image the action; got {actions}")
    if int(episode.action.max()) >= len(actions):
        raise ValueError(f"augmentation names {len(actions)} actions, but an episode has action {int(episode.action.max())}")
    device = autoencoder.latent_mean.device
    batches = episode.latent.float().split(100)
    latent = torch.cat([autoencoder.encode(autoencoder.decode(batch.to(device)).flip(2)).cpu() for batch in batches])
    action = torch.tensor(actions)[episode.action]
    sign = torch.ones(episode.pose.shape[-1])
    sign[[1, 3]] = -1  # y and the sine of the heading
    return replace(episode, latent=latent.half(), action=action, pose=episode.pose * sign)
