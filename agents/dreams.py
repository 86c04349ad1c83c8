"""A thousand dreams side by side that never leave their device: rows of one state, begun anew one by one as they end.

Like `lssvwm_gym.envs.DreamVectorEnv`, but tensors in, tensors out, and without that one's promise that a row dreams what its
seed alone would: noise is drawn for all rows at once. New episodes begin from a bank of starts that were remembered once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten
from torch.utils._pytree import tree_structure as structure
from tqdm import tqdm

from agents.seen import observed, observed_shape
from lssvwm_gym.data.segments import LatentEpisode
from lssvwm_gym.envs.contexts import past_of
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, Dream, reward, step_of
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.models.inference.compile import replayed
from lssvwm_gym.models.rollout import DreamState, unknown_action
from lssvwm_gym.models.state import join_rows, take_rows

REWARDS = ("likeliest", "expected")
MOST_ROWS = 64  # that are remembered in one go
MOST_FRAMES = 1600  # of recorded walks; a GB or two of work


class Moment(NamedTuple):
    """What a step led to."""

    reward: Tensor  # (B,) float32, to learn from
    ended: Tensor  # (B,) float32, 1 where that step ended an episode
    rows: Tensor  # (K,) int64, those rows
    last: Tensor  # (K, ...) their last observations; `DreamRows.observation` has the first ones of what follows
    terminated: Tensor  # (K,) float32, 1 where the world ended the episode, 0 where its time was up


def bank_of_starts(dream: Dream, walk_every: int, most: int, seed: int = 0, least: int = 0) -> DreamState:
    """States to begin with, each remembered once: all openings, and the walks up to every so many frames (0: none).

    With `least` only what remembers that many frames, where there is any such. Weights without either begin with imagined frames. At
    most `most` states, drawn by the seed where there are more.
    """
    openings, walks = dream.weights.openings, dream.weights.walks
    starts: list[DreamState] = []
    if len(walks) and walk_every:
        rows = torch.arange(min(2 * len(walks), MOST_ROWS))  # a seed draws one of the walks
        lengths = range(walk_every, walks.latent.shape[1] + 1, walk_every)
        starts = [dream.reset(rows, {"context_frames": frames}) for frames in lengths if frames >= least]
    if openings.latent.shape[1] >= least or not starts:
        starts = [dream.reset(torch.tensor([clip]), {"clip": clip}) for clip in range(min(len(openings), most))] + starts
    if not starts:
        starts = [dream.reset(torch.arange(MOST_ROWS), {"start": "cold"})]
    bank = join_rows(starts)
    chosen = torch.randperm(len(bank.seed), generator=torch.Generator().manual_seed(seed))[:most]
    return take_rows(bank, chosen.to(dream.device))


@torch.no_grad()
def bank_before_rewards(
    dream: Dream, episodes: Sequence[LatentEpisode], lead: tuple[int, int], context: int, most: int, seed: int = 0
) -> DreamState:
    """States of recorded walks from which a reward is near: what the recording paid is so many frames ahead, drawn between
    the two numbers of `lead`.

    A dream can begin anywhere that was ever recorded, so that an agent meets what pays from its first hour on; the further leads
    then ask it to find the way. The last `context` frames are remembered, at their recorded poses where there are any. At most
    `most` states, drawn by the seed where there are more.

    Raises:
        ValueError: no episode has a reward with that much before it.
    """
    rng = np.random.default_rng(seed)
    paid = [(episode, int(t)) for episode in episodes for t in torch.nonzero(episode.reward > 0)[:, 0].tolist()]
    ahead = rng.integers(lead[0], lead[1], len(paid), endpoint=True)
    moments = [(episode, t + 1 - int(away)) for (episode, t), away in zip(paid, ahead, strict=True) if t + 1 - away >= context]
    if not moments:
        raise ValueError(f"none of {len(episodes)} episodes is paid for anything after {context} frames of context and {lead[0]} of lead")
    chosen = [moments[number] for number in rng.permutation(len(moments))[:most]]
    together = max(1, MOST_FRAMES // context)
    parts = [chosen[at : at + together] for at in range(0, len(chosen), together)]
    return join_rows([_remembered(dream, part, context) for part in tqdm(parts, desc="moments before rewards", leave=False)])


def _remembered(dream: Dream, moments: list[tuple[LatentEpisode, int]], context: int) -> DreamState:
    """The states after the last `context` frames before frame t, for these episodes and t."""
    cut = [(episode, slice(t - context, t)) for episode, t in moments]
    latent, action, pose, inventory = (
        torch.stack([getattr(episode, name)[part] for episode, part in cut]).to(dream.device)
        for name in ("latent", "action", "pose", "inventory")
    )
    action[:, 0] = unknown_action(dream.weights.world_model, 1)  # what led to the first is not part of the past
    return dream.prefill(torch.arange(len(moments)), past_of(latent.float(), action, pose, inventory))


class DreamRows:
    """`rows` dreams that go on for ever, each an endless series of episodes of `episode_steps` steps.

    The first episodes are cut short, each by another length, so that not all rows begin anew together; they are not counted.
    Nothing in a step waits for the device, but in worlds whose model can end an episode.
    """

    def __init__(
        self,
        dream: Dream,
        bank: DreamState,
        rows: int,
        observation: str,
        episode_steps: int,
        reward: str = "likeliest",
        seed: int = 0,
        compiled: bool = False,
        graphs: bool = True,
    ) -> None:
        """`graphs`: on a GPU the step is recorded once as a CUDA graph and then replayed."""
        for name, value in (("rows", rows), ("episode_steps", episode_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if reward not in REWARDS:
            raise ValueError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")
        self.dream, self.bank, self.episode_steps = dream, bank, episode_steps
        self.shape, self.actions = observed_shape(dream, observation), len(dream.world.actions)
        self.generator = torch.Generator(dream.device).manual_seed(seed)
        self._seen, self._reward = observation, reward
        self._advance: Callable[..., Any] = torch.compile(self._advanced, dynamic=False) if compiled else self._advanced
        if graphs and not compiled:
            model = dream.weights.world_model
            self._advance = functools.partial(replayed(lambda _, *given: self._advanced(*given), model), model)
        self.steps = np.arange(rows) * episode_steps // rows  # on the CPU: who ends when is known without asking the device
        self.whole = torch.from_numpy((self.steps == 0).astype(np.float32)).to(dream.device)  # 1 where an episode counts
        self.earned = torch.zeros(rows, device=dream.device)  # in the present episode, as the environment pays: likeliest
        self.totals = torch.zeros(2, device=dream.device)  # return and number of whole episodes since `take_totals`
        self.state = take_rows(bank, self._drawn(rows))
        self.observation = observed(dream, self.state, observation)

    def __len__(self) -> int:
        return len(self.steps)

    @torch.no_grad()
    def step(self, action: Tensor) -> Moment:
        """Dream all rows one frame on, for actions (B,) int64 on the device, and begin anew the rows that ended."""
        config = self.dream.weights.world_model.config
        noise = torch.randn((len(self), config.tokens, config.latent_channels), generator=self.generator, device=self.dream.device)
        self.state, self.observation, reward, paid, terminated = self._advance(self.state, action, noise)
        self.steps += 1
        self.earned = self.earned + paid
        done = self.steps >= self.episode_steps
        if config.termination:
            done = done | terminated.cpu().numpy()
        rows = self._on_device(np.flatnonzero(done))
        ended = torch.zeros_like(reward)
        last, terminated = self.observation[rows], terminated[rows].float()
        if len(rows):
            ended.index_fill_(0, rows, 1.0)
            self._begin_anew(rows, done)
        return Moment(reward, ended, rows, last, terminated)

    @property
    def kind(self) -> str:
        """What the rows are, in a few words."""
        return f"dreams from {len(self.bank.seed)} starts"

    def begin_anew(self, seed: int) -> None:
        """New draws from here on: of starts and of noise."""
        self.generator.manual_seed(seed)

    def close(self) -> None:
        """Nothing is open."""

    def take_totals(self) -> tuple[float, int]:
        """Return and number of the whole episodes that ended since the last call. Waits for the device."""
        earned, episodes = self.totals.tolist()
        self.totals = torch.zeros_like(self.totals)
        return earned, int(episodes)

    def tensors(self) -> dict[str, Tensor]:
        """All that the rows need to go on exactly as they would have; `load` takes it back."""
        rest = {"steps": torch.from_numpy(self.steps.copy()), "generator": self.generator.get_state(), "whole": self.whole}
        state = {f"state.{number}": leaf for number, leaf in enumerate(tree_leaves(self.state))}
        return {**state, **rest, "earned": self.earned, "totals": self.totals}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors` of rows of the same kind and number. Raises `TensorFileError` for anything else."""
        mine = self.tensors()
        unlike = [name for name in mine.keys() | tensors.keys() if _kind(mine.get(name)) != _kind(tensors.get(name))]
        if unlike:
            raise TensorFileError(f"saved dreams are of another kind or number: {', '.join(sorted(unlike)[:4])} differ")
        there = {name: tensor.to(self.dream.device) for name, tensor in tensors.items() if name not in ("steps", "generator")}
        leaves = [there[f"state.{number}"] for number in range(len(tree_leaves(self.state)))]
        self.state = tree_unflatten(leaves, structure(self.state))
        self.steps = tensors["steps"].numpy().copy()
        self.generator.set_state(tensors["generator"])
        self.whole, self.earned, self.totals = there["whole"], there["earned"], there["totals"]
        self.observation = observed(self.dream, self.state, self._seen)

    def _advanced(self, state: DreamState, action: Tensor, noise: Tensor) -> tuple[DreamState, Tensor, Tensor, Tensor, Tensor]:
        """The next state, what is seen of it, the reward (B,), what is paid (B,) and whether the episode ended there (B,) bool."""
        before, step = state, step_of(SAMPLING_STEPS[self.dream.profile])
        state, logits = step(self.dream.weights.world_model, before, action, noise)
        paid, mean = (reward(self.dream.world, before, state, logits, expected).float() for expected in (False, True))
        head = self.dream.weights.world_model.termination_head
        terminated = torch.zeros_like(state.seed, dtype=torch.bool) if head is None else head(state.features)[:, 0] > 0
        return state, observed(self.dream, state, self._seen), mean if self._reward == "expected" else paid, paid, terminated

    def _begin_anew(self, rows: Tensor, done: np.ndarray) -> None:
        """New starts for these rows. In place, for a copy of a thousand states takes longer than the rows of a step are worth."""
        self.totals += torch.stack([(self.earned * self.whole)[rows].sum(), self.whole[rows].sum()])
        for mine, fresh in zip(tree_leaves(self.state), tree_leaves(take_rows(self.bank, self._drawn(len(rows)))), strict=True):
            if mine.numel():
                mine.index_copy_(0, rows, fresh.to(mine.dtype))
        self.observation = self.observation.index_copy(0, rows, observed(self.dream, take_rows(self.state, rows), self._seen))
        self.earned.index_fill_(0, rows, 0.0)
        self.whole.index_fill_(0, rows, 1.0)
        self.steps[done] = 0

    def _drawn(self, count: int) -> Tensor:
        return torch.randint(len(self.bank.seed), (count,), generator=self.generator, device=self.dream.device)

    def _on_device(self, rows: np.ndarray) -> Tensor:
        if self.dream.device.type != "cuda" or not len(rows):
            return torch.from_numpy(rows).to(self.dream.device)
        return torch.from_numpy(rows).pin_memory().to(self.dream.device, non_blocking=True)  # from elsewhere it would wait


def _kind(tensor: Tensor | None) -> tuple[torch.dtype, torch.Size] | None:
    return None if tensor is None else (tensor.dtype, tensor.shape)
