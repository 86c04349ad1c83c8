"""A game: a dream, and what can be done with it. Without window or keys."""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.spaces import single
from lssvwm_gym.play.policies import GamePolicy
from lssvwm_gym.play.save import load_game, save_game
from lssvwm_gym.play.snapshot import Move, Ring, Snapshot

MARKS = 8  # snapshots that can be marked at once


class Game:
    """One game; `now` is its snapshot. The dream's profile may change at any time, the state is the same for all of them.

    Options are those of its reset; the snapshots to go back to may hold `rewind_bytes`.
    """

    def __init__(self, env: DreamEnv, options: dict[str, Any], rewind_bytes: int, seed: int | None = None) -> None:
        self.env, self.options = env, options
        self.world = env.dream.world
        self._dreams = {profile: replace(env.dream, profile=profile) for profile in PROFILES}
        self._rng = np.random.default_rng(seed)
        self._first_seed = seed
        self.past = Ring(rewind_bytes)
        self.marks: list[Snapshot] = []
        self.policy: GamePolicy | None = None  # chooses actions while `policy_acts`
        self.policy_acts = False
        self.replaying: deque[Move] = deque()  # moves of a saved game that are still to come
        self.films: list[list[np.ndarray]] = []  # the picture of every snapshot shown is added to each
        self.begin()

    # ---- going on ----

    def begin(self) -> None:
        seed = int(self._rng.integers(2**31)) if self._first_seed is None else self._first_seed
        self._first_seed = None
        self.replaying.clear()
        self.past.clear()
        _, info = self.env.reset(seed=seed, options=self.options)
        state = self.env.clone_state()
        self._show(Snapshot(state, info, begin=state, trail=_trail((), info)))

    def step(self, action: int) -> None:
        before = self.now
        _, reward, terminated, _, info = self.env.step(action)
        state = self.env.clone_state()
        moves = (*before.moves, Move(action, self.profile))
        trail, earned = _trail(before.trail, info), before.earned + float(reward)
        limit = self.world.max_episode_steps
        over = "the dream has ended" if terminated else f"{limit} steps: the episode is over" if state.steps[0] == limit else ""
        self.past.push(before)
        self._show(Snapshot(state, info, before.begin, moves, trail, earned, over))

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
        if (before := self.past.pop()) is not None:
            self._go(before, comes_back=False)
        return before is not None

    def mark(self) -> int:
        """Keep this snapshot; its number, from 0. The oldest mark goes when there are too many."""
        self.marks = [*self.marks, self.now][-MARKS:]
        return len(self.marks) - 1

    def return_to(self, number: int) -> None:
        """Go back to a mark; `back` leads here again. Raises `IndexError` if there is no such mark."""
        self._go(self.marks[number])

    def save(self, path: Path) -> None:
        save_game(path, self.now, self.env.dream)

    def load(self, path: Path) -> None:
        """Raises `TensorFileError`, and changes nothing, for what is not a saved game or state of these weights."""
        self._go(load_game(path, self.env.dream))

    def replay(self, path: Path) -> None:
        """Begin where a saved game began and repeat its moves. Raises as `load` does."""
        loaded = load_game(path, self.env.dream)
        info = single(self.env.dream.info(loaded.begin.dream))
        self._go(Snapshot(loaded.begin, info, begin=loaded.begin, trail=_trail((), info)))
        self.replaying.extend(loaded.moves)

    # ---- what is chosen ----

    @property
    def profile(self) -> str:
        return self.env.dream.profile

    def choose_profile(self, profile: str) -> None:
        """From the next frame on."""
        self.env.dream = self._dreams[profile]

    def close(self) -> None:
        self.env.close()

    def _go(self, snapshot: Snapshot, comes_back: bool = True) -> None:
        if comes_back:
            self.past.push(self.now)
        self.replaying.clear()
        self.env.restore_state(snapshot.state)
        self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        for film in self.films:
            film.append(snapshot.frame)


def _trail(trail: tuple[np.ndarray, ...], info: dict[str, Any]) -> tuple[np.ndarray, ...]:
    return (*trail, info["estimated_pose"]) if "estimated_pose" in info else trail
