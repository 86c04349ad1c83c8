"""The two pictures of docs/concepts.md, from the shipped maze model's own sizes: `python docs/_scripts/concepts.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from experiments.benchmark.machine import state_bytes
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io import legacy
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.rollout import first_state
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.worlds import WORLDS

MEDIA = Path(__file__).parent.parent / "media"
INK, PALE, STATE, PLACE, BLOCK, HEAD = "#20242c", "#f3f4f7", "#dbe9f6", "#fde7c8", "#e3f1df", "#efe3f3"
AGAIN, WRITE = "#7a2f2f", "#1f5d8f"
COLOURS = ("#8fb8de", "#f2b880", "#9fcf9a", "#c9a5d6")  # blocks of tokens


def main() -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "lssvwm_gym", "font.size": 9, "font.family": "DejaVu Sans"})
    text = (WORLDS["memory-maze"].weights / "config.json").read_text(encoding="utf-8")
    sizes = legacy.sizes(json.loads(text)["world_model"])
    config = WorldModelConfig(**{name: tuple(map(_frozen, v)) if isinstance(v, list) else v for name, v in sizes.items()})
    for name, figure in (("concept_model", model_picture(config)), ("concept_state", state_picture(config))):
        figure.savefig(MEDIA / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", facecolor="white")
        print(f"wrote {MEDIA / name}.svg")


def model_picture(config: WorldModelConfig) -> Any:
    """How one frame is dreamed: one read-only pass, steps of the flow head, then a commit."""
    figure, axes = canvas(14.0, 6.5)
    box(axes, 0.1, 5.25, 13.75, 1.05, "", STATE)
    axes.text(0.25, 6.1, "state: constant in size", weight="bold", va="top")
    for layer in range(len(config.blocks)):
        box(axes, 3.3 + 1.5 * layer, 5.4, 1.3, 0.5, f"scan state {layer + 1},\nlast {config.window} frames", "white", 7.5)
    box(axes, 1.55, 5.4, 1.5, 0.5, "spatial memory", PLACE, 8)
    box(axes, 9.45, 5.4, 2.6, 0.5, "last frame, features, pose,\ninventory, seed", "white", 7.5)

    box(axes, 0.1, 3.35, 1.2, 0.75, "noise\n(seed, age)", PALE)
    box(axes, 0.1, 2.2, 1.2, 0.75, "action", PALE)
    box(axes, 0.1, 1.05, 1.2, 0.75, "motion, pose\n(motion head)", HEAD, 8)
    box(axes, 1.65, 3.2, 1.3, 1.05, f"{config.tokens} tokens\nof {config.width}\n+ read of the\nspatial memory", PLACE, 8)
    arrow(axes, (1.3, 3.72), (1.65, 3.72))
    arrow(axes, (2.3, 5.4), (2.3, 4.25), "query by pose", PLACE)
    for layer, (high, wide) in enumerate(config.blocks):
        left = 3.3 + 1.5 * layer
        box(axes, left, 2.2, 1.3, 2.05, "", BLOCK)
        blocks_of_tokens(axes, left + 0.33, 3.42, 0.64, config.grid, high, wide)
        label = f"scan, blocks {high}×{wide}\nattention, {config.window} frames\nMLP"
        axes.text(left + 0.65, 3.3, label, ha="center", va="top", size=7.3, linespacing=1.5)
        arrow(axes, (left + 0.65, 5.4), (left + 0.65, 4.25))
        arrow(axes, (left - 0.35 if layer == 0 else left - 0.2, 3.72), (left, 3.72))
    box(axes, 3.3, 1.3, 5.8, 0.5, "adaptive norm: noise level, action, motion, pose, inventory", PALE, 8.5)
    arrow(axes, (1.3, 2.55), (3.3, 1.72))
    arrow(axes, (1.3, 1.42), (3.3, 1.5))
    for layer in range(len(config.blocks)):
        arrow(axes, (3.95 + 1.5 * layer, 1.8), (3.95 + 1.5 * layer, 2.2))
    box(axes, 9.45, 3.35, 1.3, 0.75, "estimate:\nthe mean", PALE)
    arrow(axes, (9.1, 3.72), (9.45, 3.72))
    box(axes, 9.45, 2.0, 1.3, 0.75, "flow head:\na sample", HEAD)
    arrow(axes, (10.1, 3.35), (10.1, 2.75))
    box(axes, 11.0, 3.35, 1.3, 0.75, "next frame", PALE)
    arrow(axes, (10.75, 3.72), (11.0, 3.72))
    arrow(axes, (10.75, 2.5), (11.5, 3.35))
    axes.text(10.88, 4.2, "where given frames\nhave shown the place", ha="center", size=7.3)
    axes.text(11.3, 2.6, "where it\nis open", size=7.3)
    box(axes, 12.55, 3.35, 1.3, 0.75, "decoder\n64×64×3", HEAD)
    arrow(axes, (12.3, 3.72), (12.55, 3.72))
    box(axes, 12.55, 2.2, 1.3, 0.75, "heads: reward,\nmotion,\ninventory", HEAD, 8)
    arrow(axes, (12.1, 3.35), (12.85, 2.95))
    axes.plot([10.4, 10.4, 9.8], [2.0, 1.6, 1.6], color=AGAIN, linewidth=1.1)
    arrow(axes, (9.8, 1.6), (9.8, 2.0), "", AGAIN)
    few = ", ".join(str(profile.flow_steps) for profile in PROFILES.values()).replace(", 8", " or 8")
    axes.text(9.25, 1.2, f"{few} denoising steps\n({', '.join(PROFILES)})", va="center", size=8.5, color=AGAIN)
    arrow(axes, (11.75, 4.1), (11.75, 5.25), "commit: the finished frame\nis written to all of it", WRITE)
    return figure


def state_picture(config: WorldModelConfig) -> Any:
    """What a state is made of, and what can be done with it."""
    with torch.device("meta"):
        model = WorldModel(config)
    state = first_state(model, torch.zeros(1, dtype=torch.int64, device="meta"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.4, 4.4), gridspec_kw={"width_ratios": [1.1, 1]})
    draw_parts(left, state)
    draw_branches(right)
    return figure


def draw_parts(axes: Axes, state: DreamState) -> None:
    world, layers = state.world, state.world.layers
    rest = [getattr(state, name) for name in state._fields[3:] if name != "observed"]
    parts = (
        ("spatial memory: explained", PLACE, world.spatial_memory.explained, f"{shape(world.spatial_memory.explained)} float32"),
        ("spatial memory: latents by key", PLACE, world.spatial_memory.latents, f"{shape(world.spatial_memory.latents)} float32"),
        ("its explained part after the given frames", PLACE, state.observed, f"{shape(state.observed)} float32"),
        ("scan states of all layers", STATE, [layer.ssm for layer in layers], ", ".join(shape(layer.ssm) for layer in layers[:2]) + ", …"),
        ("keys and values of the last frames", STATE, [(layer.keys, layer.values) for layer in layers], f"{shape(layers[0].keys)} each"),
        ("last frame, as latent", HEAD, state.latent, shape(state.latent)),
        ("its features", HEAD, state.features, shape(state.features)),
        ("pose, motion, inventory, age, seed, …", HEAD, (world.age, rest), f"pose {shape(state.pose)}, seed {shape(state.seed)}"),
    )
    for row, (_, colour, tensors, shapes) in enumerate(parts):
        size = state_bytes(tensors)
        axes.barh(row, max(size / 1000, 6), color=colour, edgecolor=INK, linewidth=0.7)
        amount = f"{size / 1000:,.0f} KB" if size >= 1000 else f"{size} bytes"
        axes.text(size / 1000 + 25, row, f"{amount}   {shapes}", va="center", size=8)
    axes.set_yticks(range(len(parts)), [part[0] for part in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, 2900)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(f"A row of a state: {state_bytes(state) / 1e6:.2f} MB, after one frame or ten thousand", size=10, loc="left")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def draw_branches(axes: Axes) -> None:
    axes.set(xlim=(0, 10), ylim=(0, 6))
    axes.axis("off")
    axes.set_title("A state is a value: store it, restore it, branch from it", size=10, loc="left")
    for step in range(5):
        box(axes, 0.2 + 1.9 * step, 3.6, 0.9, 0.8, f"$s_{step}$", STATE, 11)
        if step:
            arrow(axes, (1.9 * step - 0.8, 4.0), (0.2 + 1.9 * step, 4.0))
            axes.text(1.9 * step - 0.3, 4.12, f"$a_{step}$", ha="center", size=9)
    for row, y in enumerate((1.9, 0.6)):
        for step in range(3, 5):
            box(axes, 0.2 + 1.9 * step, y, 0.9, 0.8, f"$s_{step}" + "'" * (row + 1) + "$", BLOCK, 11)
        arrow(axes, (4.9, 3.65), (5.9, y + 0.5))
        arrow(axes, (6.8, y + 0.4), (7.8, y + 0.4))
    axes.text(4.2, 2.2, "branch(3)", ha="center", size=9, family="monospace")
    arrow(axes, (8.25, 4.4), (2.55, 4.4), bend=0.28)
    axes.text(5.4, 5.35, "restore_state(s1): bit for bit", ha="center", size=9, family="monospace")
    box(axes, 0.2, 0.8, 3.0, 0.8, "walk.safetensors", PALE, 9)
    arrow(axes, (2.4, 3.6), (1.9, 1.6))
    axes.text(0.0, 2.6, "save_state,\nload_state", size=9, family="monospace")


def blocks_of_tokens(axes: Axes, x: float, y: float, side: float, grid: int, high: int, wide: int) -> None:
    """A frame's tokens, those of one block in one colour: each block has a scan of its own."""
    cell, across = side / grid, grid // wide
    for row in range(grid):
        for column in range(grid):
            block = (row // high) * across + column // wide
            colour = COLOURS[(block + block // across) % len(COLOURS)]
            corner = x + column * cell, y + (grid - 1 - row) * cell
            axes.add_patch(Rectangle(corner, cell, cell, facecolor=colour, edgecolor="white", linewidth=0.6))


def canvas(width: float, height: float) -> tuple[Any, Axes]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(-0.2, width), ylim=(0.4, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 9) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor=INK, linewidth=0.9))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], note: str = "", colour: str = INK, bend: float = 0) -> None:
    dark = "#9a6a1c" if colour == PLACE else colour
    look = {"arrowstyle": "-|>", "color": dark, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=look)
    if note:
        axes.text(start[0] + 0.1, (start[1] + end[1]) / 2, note, size=8, color=dark, va="center")


def shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape[1:])) or "1"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
