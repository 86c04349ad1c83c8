"""A game: a dream, what can be done with it, and the real world side by side with it. Without window or keys."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.saved_state import EnvState
from lssvwm_gym.envs.spaces import single
from lssvwm_gym.models.rollout import DreamState, prefill
from lssvwm_gym.play.policies import GamePolicy
from lssvwm_gym.play.save import load_game, save_game
from lssvwm_gym.play.side_by_side import RealWorld
from lssvwm_gym.play.snapshot import Move, RealView, Ring, Snapshot

MARKS = 8  # snapshots that can be marked at once


class Game:
    """One game; `now` is its snapshot.

    env           the dream; its profile may change at any time, the state is the same for all of them
    options       of the dream's reset
    rewind_bytes  that the snapshots to go back to may hold
    real          the real world, if one goes along; then the dream is given its first `context_frames` frames
    """

    def __init__(
        self,
        env: DreamEnv,
        options: dict[str, Any],
        rewind_bytes: int,
        real: RealWorld | None = None,
        context_frames: int = 0,
        seed: int | None = None,
    ) -> None:
        self.env, self.options, self.real, self.context_frames = env, options, real, context_frames
        self.world = env.dream.world
        self._dreams = {profile: replace(env.dream, profile=profile) for profile in PROFILES}
        self._rng = np.random.default_rng(seed)
        self._first_seed = seed
        self.past = Ring(rewind_bytes)
        self.marks: list[Snapshot] = []
        self.policy: GamePolicy | None = None  # chooses actions while `policy_acts`
        self.policy_acts = False
        self.replaying: deque[Move] = deque()  # moves of a saved game that are still to come
        self.real_frames_left = 0  # real frames that the dream still sees before it goes on by itself
        self.films: list[list[np.ndarray]] = []  # the picture of every snapshot shown is added to each
        self.begin()

    # ---- going on ----

    def begin(self) -> None:
        """A new dream, and a new real world if one goes along. Raises `RuntimeError` where the simulator finds no start."""
        seed = int(self._rng.integers(2**31)) if self._first_seed is None else self._first_seed
        view = self.real.reset(seed) if self.real is not None else None
        self._first_seed = None
        self.replaying.clear()
        self.past.clear()
        if self.real is None or view is None:
            _, info = self.env.reset(seed=seed, options=self.options)
            state = self.env.clone_state()
            self._show(Snapshot(state, info, begin=state, trail=_trail((), info)))
            return
        self.env.reset(seed=seed, options={"start": "cold"})
        blank = replace(self.env.clone_state(), dream=self.env.dream.empty(torch.tensor([seed])), steps=(-1,))
        self.real_frames_left = self.context_frames
        self._show(self._observed(blank, view, self.env.dream.weights.world_model.config.actions, ()))
        self.real.at = self.now

    def step(self, action: int) -> None:
        """One frame on: the real one while the dream sees the real world, else its own."""
        before, view = self.now, self._real_step(action)
        if self.real_frames_left and view is not None:
            after = self._observed(before.state, view, action, before.trail)
        else:
            after = self._dreamed(before, view, action)
        self.past.push(before)
        self._show(after)
        if view is not None and self.real is not None:
            self.real.at = after

    def policy_action(self) -> int | None:
        """What the replay, which chooses the profile too, or else the policy does now; None if there is neither."""
        if self.replaying:
            move = self.replaying.popleft()
            self.choose_profile(move.profile)
            return move.action
        if self.policy is None or not self.policy_acts:
            return None
        action = int(self.policy(self.now))
        if not 0 <= action < len(self.world.actions):
            raise ValueError(f"the policy chose {action}; {self.world.name} has the actions 0..{len(self.world.actions) - 1}")
        return action

    # ---- going elsewhere ----

    def back(self) -> bool:
        """To the snapshot before; whether there is one."""
        before = self.past.pop()
        if before is not None:
            self._go(before)
        return before is not None

    def mark(self) -> int:
        """Keep this snapshot; its number, from 0. The oldest mark goes when there are too many."""
        self.marks = [*self.marks, self.now][-MARKS:]
        return len(self.marks) - 1

    def return_to(self, number: int) -> None:
        """Go back to a mark; `back` leads here again. Raises `IndexError` if there is no such mark."""
        mark = self.marks[number]
        self.past.push(self.now)
        self._go(mark)

    def save(self, path: Path) -> None:
        save_game(path, self.now, self.env.dream)

    def load(self, path: Path) -> None:
        """Raises `TensorFileError`, and changes nothing, for what is not a saved game or state of these weights."""
        loaded = load_game(path, self.env.dream)
        self.past.push(self.now)
        self._go(loaded)

    def replay(self, path: Path) -> None:
        """Begin where a saved game began and repeat its moves. Raises as `load` does."""
        loaded = load_game(path, self.env.dream)
        info = self._info(loaded.begin)
        self.past.push(self.now)
        self._go(Snapshot(loaded.begin, info, begin=loaded.begin, trail=_trail((), info)))
        self.replaying.extend(loaded.moves)

    # ---- what is chosen ----

    @property
    def profile(self) -> str:
        return self.env.dream.profile

    def choose_profile(self, profile: str) -> None:
        """From the next frame on."""
        self.env.dream = self._dreams[profile]

    def next_profile(self) -> None:
        names = list(PROFILES)
        self.choose_profile(names[(names.index(self.profile) + 1) % len(names)])

    @property
    def goes_along(self) -> bool:
        """Whether the real world is at this frame too."""
        return self.real is not None and self.real.at is self.now and self.now.real is not None and not self.now.real.over

    def toggle_real_frames(self) -> None:
        """Give the dream the real frames from now on, or no more."""
        self.real_frames_left = 0 if self.real_frames_left or not self.goes_along else 10**9

    def close(self) -> None:
        self.env.close()
        if self.real is not None:
            self.real.close()

    def _real_step(self, action: int) -> RealView | None:
        if not self.goes_along:
            self.real_frames_left = 0
            return None
        assert self.real is not None
        return self.real.step(action)

    def _dreamed(self, before: Snapshot, view: RealView | None, action: int) -> Snapshot:
        _, reward, terminated, _, info = self.env.step(action)
        state = self.env.clone_state()
        moves = (*before.moves, Move(action, self.profile))
        trail, earned = _trail(before.trail, info), before.earned + float(reward)
        return Snapshot(state, info, before.begin, moves, trail, earned, self._over(state, terminated), view)

    @torch.no_grad()
    def _observed(self, before: EnvState, view: RealView, action: int, trail: tuple[np.ndarray, ...]) -> Snapshot:
        """The dream after an action and the real frame that it led to; the pose is the dream's own estimate."""
        dream = self.env.dream
        model, autoencoder = dream.weights.world_model, dream.weights.autoencoder
        latent = autoencoder.encode(torch.from_numpy(view.frame[None].copy()).to(dream.device)).half().float()  # rounded as contexts are
        after = _with_inventory(prefill(model, before.dream, latent[:, None], torch.tensor([[action]], device=dream.device)).state, view)
        state = replace(before, dream=after, frame=autoencoder.decode(after.latent), steps=(before.steps[0] + 1,))
        self.real_frames_left = max(self.real_frames_left - 1, 0)
        info = self._info(state)
        self.env.restore_state(state)
        return Snapshot(state, info, begin=state, trail=_trail(trail, info), earned=view.earned, real=view)

    def _over(self, state: EnvState, terminated: bool) -> str:
        if terminated:
            return "the dream has ended"
        return f"{self.world.max_episode_steps} steps: the episode is over" if state.steps[0] == self.world.max_episode_steps else ""

    def _info(self, state: EnvState) -> dict[str, Any]:
        return single(self.env.dream.info(state.dream))

    def _go(self, snapshot: Snapshot) -> None:
        self.replaying.clear()
        self.env.restore_state(snapshot.state)
        self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        for film in self.films:
            film.append(self.picture())

    def picture(self) -> np.ndarray:
        """A film's picture of now: the dream, and at its right the real world, dark where it has stayed behind."""
        frame = self.now.frame
        if self.real is None:
            return frame
        return np.concatenate([frame, np.zeros_like(frame) if self.now.real is None else self.now.real.frame], 1)


def _trail(trail: tuple[np.ndarray, ...], info: dict[str, Any]) -> tuple[np.ndarray, ...]:
    return (*trail, info["estimated_pose"]) if "estimated_pose" in info else trail


def _with_inventory(state: DreamState, view: RealView) -> DreamState:
    """The state with the real inventory, where the world has one."""
    if view.inventory is None:
        return state
    inventory = torch.from_numpy(view.inventory[None]).to(state.inventory)
    return state._replace(inventory=inventory, inventory_peak=torch.maximum(state.inventory_peak, inventory))
