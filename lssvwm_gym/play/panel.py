"""What the panel beside the dream says, for whatever shows it."""

from typing import NamedTuple

from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import Controls
from lssvwm_gym.play.snapshot import Snapshot
from lssvwm_gym.worlds import WorldSpec

MAX_UNCERTAINTY = 0.2  # mean square in latent units at which the bar is full


class Item(NamedTuple):
    """A line of the inventory."""

    name: str
    held: float
    reward: float | None  # for the first one, in worlds that have milestones
    has_been: bool  # whether there has been one


def title(world: WorldSpec) -> str:
    return world.name.replace("-", " ").title()


def numbers(controls: Controls) -> list[tuple[str, str, bool]]:
    """Names, values, and whether something is wrong with them."""
    game, now, pace = controls.game, controls.game.now, controls.pace
    measured = "-" if pace.measured is None else f"{pace.measured:.1f}"
    shown = [
        ("step", f"{now.steps} of {game.world.max_episode_steps}", False),
        ("steps a second", f"{measured} of {pace.wanted:.3g}", not pace.is_held),
        ("return", f"{now.earned:g}", False),
        ("action", "-" if now.action is None else game.world.actions[now.action].replace("_", " "), False),
        ("can go back", f"{len(game.past)} steps, {game.past.held / 1e6:.0f} MB", False),
    ]
    if not pace.is_held:
        shown.insert(2, ("", "too slow here: " + ("key f" if game.profile != "fast" else "key -"), True))
    return shown


def gauges(now: Snapshot, has_milestones: bool) -> list[tuple[str, float | None]]:
    """Names and shares 0..1 of the bars; None where the profile doesn't have it."""
    uncertainty = now.info.get("uncertainty")
    shown: list[tuple[str, float | None]] = [("uncertain", None if uncertainty is None else min(uncertainty / MAX_UNCERTAINTY, 1.0))]
    if "familiarity" in now.info:
        shown.append(("familiar", float(now.info["familiarity"])))
    if not has_milestones:
        shown.append(("reward", float(now.info["reward_probability"])))
    return shown


def inventory(game: Game) -> list[Item]:
    rewards, reached = dict(game.world.milestones), game.now.state.dream.inventory_peak[0].tolist()
    counts = game.now.info["inventory"].tolist() if game.world.inventory else ()
    lines = zip(game.world.inventory, counts, reached, strict=True)
    return [Item(name.replace("_", " "), count, rewards.get(name), has_been > 0) for name, count, has_been in lines]
