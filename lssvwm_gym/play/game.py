"""A game: a dream under way, what can be done with it, and the real world beside it. Knows nothing of windows and keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, Dream
from lssvwm_gym.envs.spaces import single
from lssvwm_gym.envs.state_io import EnvState
from lssvwm_gym.models.rollout import DreamState, follow
from lssvwm_gym.play.policies import Driver, Replay
from lssvwm_gym.play.save import load_game, save_game
from lssvwm_gym.play.side_by_side import RealWorld
from lssvwm_gym.play.snapshot import Moment, Move, RealView, Ring

PROFILES = tuple(SAMPLING_STEPS)
MARKS = 8  # moments that can be kept at once


class Game:
    """One player's game. `now` is where it stands; everything else is how to go on from there.

    env           the dream; its profile may change at any time, the state is the same for all of them
    options       of the dream's reset
    rewind_bytes  that the moments to go back to may hold
    real          the real world, if one goes along; then the dream starts by watching its first `watch` frames
    """

    def __init__(
        self,
        env: DreamEnv,
        options: dict[str, Any],
        rewind_bytes: int,
        real: RealWorld | None = None,
        watch: int = 0,
        seed: int | None = None,
    ) -> None:
        self.env, self.options, self.real, self.watch = env, options, real, watch
        self.world = env.dream.world
        self._dreams = {profile: replace(env.dream, profile=profile) for profile in PROFILES}
        self._random = np.random.default_rng(seed)
        self._first_seed = seed
        self.past = Ring(rewind_bytes)
        self.marks: list[Moment] = []
        self.policy: Driver | None = None  # at the wheel while `policy_drives`
        self.policy_drives = False
        self.replaying: Replay | None = None
        self.eyes = 0  # real frames that the dream still sees before it goes on by itself
        self.films: list[list[np.ndarray]] = []  # to each of which the picture of every moment shown is added
        self.begin()

    # ---- going on ----

    def begin(self) -> None:
        """A new dream; with a real world beside it, a new one of those too. Raises `RuntimeError` where the simulator finds no start."""
        seed = int(self._random.integers(2**31)) if self._first_seed is None else self._first_seed
        view = self.real.reset(seed) if self.real is not None else None
        self._first_seed = self.replaying = None
        self.past.clear()
        if self.real is None or view is None:
            _, info = self.env.reset(seed=seed, options=self.options)
            state = self.env.clone_state()
            self._show(Moment(state, info, begin=state, trail=_trail((), info)))
            return
        self.env.reset(seed=seed, options={"start": "cold"})
        blank = replace(self.env.clone_state(), dream=self._dream.empty(torch.tensor([seed])), steps=(-1,))
        self.eyes = self.watch
        self._show(self._watched(blank, view, self._dream.weights.world_model.config.actions, ()))
        self.real.at = self.now

    def step(self, action: int) -> None:
        """One frame on. With its eyes open the dream is shown the real frame, else it dreams its own."""
        before, view = self.now, self._real_step(action)
        if self.eyes and view is not None:
            after = self._watched(before.state, view, action, before.trail)
        else:
            after = self._dreamed(before, view, action)
        self.past.push(before)
        self._show(after)
        if view is not None and self.real is not None:
            self.real.at = after

    def drive(self) -> int | None:
        """What the replay or the policy does now; None if neither is at the wheel. A replay chooses the profile too."""
        if self.replaying is not None:
            move = self.replaying.next()
            if self.replaying.ended:
                self.replaying = None
            self.choose_profile(move.profile)
            return move.action
        if self.policy is None or not self.policy_drives:
            return None
        action = int(self.policy(self.now))
        if not 0 <= action < len(self.world.actions):
            raise ValueError(f"the policy chose {action}; {self.world.name} has the actions 0..{len(self.world.actions) - 1}")
        return action

    # ---- going elsewhere ----

    def back(self) -> bool:
        """To the moment before; whether there is one."""
        before = self.past.pop()
        if before is not None:
            self._go(before)
        return before is not None

    def mark(self) -> int:
        """Keep this moment; its number, from 0. The oldest mark goes when there are too many."""
        self.marks = [*self.marks, self.now][-MARKS:]
        return len(self.marks) - 1

    def return_to(self, number: int) -> None:
        """Go back to a mark; the moment left can be gone back to. Raises `IndexError` if there is no such mark."""
        mark = self.marks[number]
        self.past.push(self.now)
        self._go(mark)

    def save(self, path: Path) -> None:
        save_game(path, self.now, self._dream)

    def load(self, path: Path) -> None:
        """Raises `TensorFileError` for what is not a saved game or state of these weights; then nothing has changed."""
        loaded = load_game(path, self._dream)
        self.past.push(self.now)
        self._go(loaded)

    def replay(self, path: Path) -> None:
        """Begin where a saved game began and repeat its moves. Raises as `load` does."""
        loaded = load_game(path, self._dream)
        info = self._info(loaded.begin)
        self.past.push(self.now)
        self._go(Moment(loaded.begin, info, begin=loaded.begin, trail=_trail((), info)))
        self.replaying = Replay(loaded.moves) if loaded.moves else None

    # ---- what is chosen ----

    @property
    def profile(self) -> str:
        return self.env.dream.profile

    def choose_profile(self, profile: str) -> None:
        """From the next frame on."""
        self.env.dream = self._dreams[profile]

    def next_profile(self) -> None:
        self.choose_profile(PROFILES[(PROFILES.index(self.profile) + 1) % len(PROFILES)])

    @property
    def goes_along(self) -> bool:
        """Whether the real world is at this moment."""
        return self.real is not None and self.real.at is self.now and self.now.real is not None and not self.now.real.over

    def toggle_eyes(self) -> None:
        """Let the dream see the real world from now on, or no more."""
        self.eyes = 0 if self.eyes or not self.goes_along else 10**9

    def close(self) -> None:
        self.env.close()
        if self.real is not None:
            self.real.close()

    @property
    def _dream(self) -> Dream:
        return self.env.dream

    def _real_step(self, action: int) -> RealView | None:
        if not self.goes_along:
            self.eyes = 0
            return None
        assert self.real is not None
        return self.real.step(action)

    def _dreamed(self, before: Moment, view: RealView | None, action: int) -> Moment:
        _, reward, terminated, _, info = self.env.step(action)
        state = self.env.clone_state()
        moves = (*before.moves, Move(action, self.profile))
        trail, earned = _trail(before.trail, info), before.earned + float(reward)
        return Moment(state, info, before.begin, moves, trail, earned, self._over(state, terminated), view)

    @torch.no_grad()
    def _watched(self, before: EnvState, view: RealView, action: int, trail: tuple[np.ndarray, ...]) -> Moment:
        """The dream after it was shown a real frame, to which an action led; where it is it finds out by itself."""
        dream = self._dream
        model, eye = dream.weights.world_model, dream.weights.autoencoder
        latent = eye.encode(torch.from_numpy(view.frame[None].copy()).to(dream.device)).half().float()  # as a remembered past
        after = _told(follow(model, before.dream, latent, torch.tensor([action], device=dream.device)), view)
        state = replace(before, dream=after, frame=eye.decode(after.latent), steps=(before.steps[0] + 1,))
        self.eyes = max(self.eyes - 1, 0)
        info = self._info(state)
        self.env.restore_state(state)
        return Moment(state, info, begin=state, trail=_trail(trail, info), earned=view.earned, real=view)

    def _over(self, state: EnvState, terminated: bool) -> str:
        if terminated:
            return "the dream has ended"
        return f"{self.world.max_episode_steps} steps: the episode is over" if state.steps[0] == self.world.max_episode_steps else ""

    def _info(self, state: EnvState) -> dict[str, Any]:
        return single(self._dream.info(state.dream))

    def _go(self, moment: Moment) -> None:
        self.replaying = None
        self.env.restore_state(moment.state)
        self._show(moment)

    def _show(self, moment: Moment) -> None:
        self.now = moment
        for film in self.films:
            film.append(self.picture())

    def picture(self) -> np.ndarray:
        """What a movie shows of this moment: the dream, and beside it the real world, dark where it has stayed behind."""
        frame = self.now.frame
        if self.real is None:
            return frame
        return np.concatenate([frame, np.zeros_like(frame) if self.now.real is None else self.now.real.frame], 1)


def _trail(trail: tuple[np.ndarray, ...], info: dict[str, Any]) -> tuple[np.ndarray, ...]:
    return (*trail, info["estimated_pose"]) if "estimated_pose" in info else trail


def _told(state: DreamState, view: RealView) -> DreamState:
    """The state with the real counts, where the world has any."""
    if view.counts is None:
        return state
    counts = torch.from_numpy(view.counts[None]).to(state.inventory)
    return state._replace(inventory=counts, inventory_peak=torch.maximum(state.inventory_peak, counts))
