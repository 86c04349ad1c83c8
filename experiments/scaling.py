"""What a preset costs, counted from the code without running it: the tables of docs/scaling.md.

    python -m experiments.scaling            # a minute of one core, whatever the size; prints Markdown

Models are built of fake tensors, which have shapes and no numbers: PyTorch's own counter then sees every matrix product
that a training step or a dream's step makes, and autograd says what it keeps for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmark.machine import state_bytes
from experiments.benchmark.training import SavedForBackward, address, inputs_like
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.config import PRESETS
from lssvwm_gym.models.state import ReadOnly
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.config import WorldTraining

FRAMES = 80  # of a clip
SEEN = 100e6  # frames of a training run
PEAK, BANDWIDTH = 989e12, 3.35e12  # of an H100 SXM: dense bfloat16 FLOP/s, bytes/s, as NVIDIA states them
MEASURED_BANDWIDTH = 4.8e12  # of the H200 that the speeds below were measured on, as NVIDIA states it
UTILISATION = 0.3  # assumed, of the peak, in what is bound by arithmetic
ACHIEVED = 0.5  # assumed, of the bandwidth, in what is bound by memory
PARTS = ("scan", "attention", "mlp")
MEMORY = 80e9  # bytes, of an H100
MEASURED_STEP = {
    "diffusion forcing": 0.055,
    "teacher forcing": 0.12,
    "self-rollout": 0.7,
}  # seconds a step of tiny, whose GPU four other runs shared
MEASURED = {"fast": 43_242, "balanced": 33_472}  # dream steps a second of 1,024 rows of tiny, CUDA graph, on an H200


@dataclass(frozen=True)
class Cost:
    """Of one call of the model, a row and a frame of the clip."""

    parts: dict[str, float]  # FLOPs forward by part; "rest" is embeddings, norms' modulation, the memory of latents, heads
    backward: float  # FLOPs
    kept: float  # bytes for the backward pass

    @property
    def forward(self) -> float:
        return sum(self.parts.values())


def cost(config: WorldModelConfig, frames: int, read_only: ReadOnly = None, a_frame_of: int = 1) -> Cost:
    """Count a call of `frames` frames in bfloat16 products; `a_frame_of` of them make one frame of the clip."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = WorldModel(config)
        state, inputs = model.initial_state(1), inputs_like(config, 1, frames)
        latent = torch.zeros(1, frames, config.tokens, config.latent_channels)
        counter = FlopCounterMode(display=False)
        with counter, torch.autocast("cpu", torch.bfloat16), (kept := SavedForBackward()):
            output = model(latent, inputs, state, read_only)
            total = output.clean.sum() + output.features.sum()
        parts = {part: flops_of(counter, f".{part}") for part in PARTS}
        parts["rest"] = counter.get_total_flops() - sum(parts.values())
        copies = sum(2 * parameter.numel() for parameter in model.parameters())  # in bfloat16, once for all rows
        for tensor in (*model.parameters(), *model.buffers(), *torch.utils._pytree.tree_leaves(state)):
            kept.sizes.pop(address(tensor), None)
        backward = FlopCounterMode(display=False)
        with backward:
            total.backward()
    clip = frames / a_frame_of
    return Cost(
        {part: flops / clip for part, flops in parts.items()}, backward.get_total_flops() / clip, (sum(kept.sizes.values()) - copies) / clip
    )


def flops_of(counter: FlopCounterMode, suffix: str) -> float:
    return float(sum(sum(counts.values()) for name, counts in counter.flop_counts.items() if name.endswith(suffix) and ".layers." in name))


def decoder_flops() -> float:
    """Of a frame of 64x64."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = AutoencoderConfig()
        with FlopCounterMode(display=False) as counter:
            Autoencoder(config).decode(torch.zeros(1, config.tokens, config.latent_channels))
        return counter.get_total_flops()


def sizes(config: WorldModelConfig) -> tuple[int, int]:
    """Weights, and bytes of a row's state."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = WorldModel(config)
        return sum(weight.numel() for weight in model.parameters()), state_bytes(model.initial_state(1))


def table(title: str, *rows: list[str]) -> None:
    print("\n".join([f"\n{title}\n", *("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))]))


def main() -> None:
    names = list(PRESETS)
    weights, states = zip(*(sizes(PRESETS[name]) for name in names), strict=True)
    forcing = [cost(PRESETS[name], FRAMES) for name in names]
    teacher_forcing = [cost(PRESETS[name], 2 * FRAMES, (True, False) * FRAMES, 2) for name in names]
    dreamed = [cost(PRESETS[name], 2, (False, True), 2).forward for name in names]
    commit, read_only_cost = ([cost(PRESETS[name], 1, read_only).forward for name in names] for read_only in (None, (True,)))
    parts = [[part, *(f"{c.parts[part] / 1e6:,.1f}" for c in forcing)] for part in (*PARTS, "rest")]
    total = ["together", *(f"{c.forward / 1e6:,.1f}" for c in forcing)]
    table("Forward pass of a clip of 80 frames, MFLOP a frame:", ["part", *names], *parts, total)

    run = WorldTraining(*[torch.__file__] * 3)  # type: ignore[arg-type]  # only its shares of steps are looked at
    shares = {
        "diffusion forcing": 1 - run.teacher_forcing - run.self_rollout,
        "teacher forcing": run.teacher_forcing,
        "self-rollout": run.self_rollout,
    }
    part_dreamed = sum(run.noising.self_rollout_from) / 2  # of a clip, in the mean
    ways = {
        "diffusion forcing": [2 * f.forward + f.backward for f in forcing],  # the clean clip is committed in a call of its own
        "teacher forcing": [p.forward + p.backward for p in teacher_forcing],
        "self-rollout": [p.forward + p.backward + part_dreamed * d for p, d in zip(teacher_forcing, dreamed, strict=True)],
    }
    mean = [sum(shares[way] * flops[i] for way, flops in ways.items()) for i in range(len(names))]
    rows = [[f"{way}, {shares[way]:.0%} of the steps", *(f"{flops / 1e9:,.2f}" for flops in ways[way])] for way in ways]
    table("Training, forward and backward, GFLOP a frame:", ["step", *names], *rows, ["mean", *(f"{m / 1e9:,.2f}" for m in mean)])

    arithmetic = [SEEN * flops / (UTILISATION * PEAK) / 3600 for flops in mean]
    # dreamed frames go one by one, each reading and writing the state of its row
    memory = [SEEN * run.self_rollout * part_dreamed * 2 * size / (ACHIEVED * BANDWIDTH) / 3600 for size in states]
    a_row = [c.kept * FRAMES + 3 * size for c, size in zip(teacher_forcing, states, strict=True)]
    fitting = [int((MEMORY - 7 * 4 * count - 2 * count) / row) for count, row in zip(weights, a_row, strict=True)]
    # where the GPU waits for Python, a step takes as long for few rows as for many, and longer for more layers
    step = sum(shares[way] * MEASURED_STEP[way] for way in ways) / len(PRESETS["tiny"].blocks)
    launches = [SEEN / (rows * FRAMES) * step * len(PRESETS[name].blocks) / 3600 for rows, name in zip(fitting, names, strict=True)]
    table(
        f"{SEEN / 1e6:.0f} M frames on an H100:",
        ["", *names],
        [f"arithmetic at {UTILISATION:.0%} of the peak, GPU-hours", *(f"{hours:,.1f}" for hours in arithmetic)],
        [f"states of dreamed pasts at {ACHIEVED:.0%} of the bandwidth, GPU-hours", *(f"{hours:,.1f}" for hours in memory)],
        ["together, GPU-hours", *(f"{a + m:,.1f}" for a, m in zip(arithmetic, memory, strict=True))],
        [f"rows that fit into {MEMORY / 1e9:.0f} GB", *(f"{count:,}" for count in fitting)],
        ["steps of so many rows, at tiny's measured time a layer, GPU-hours", *(f"{hours:,.1f}" for hours in launches)],
    )
    table(
        "Memory:",
        ["", *names],
        ["weights, M", *(f"{count / 1e6:,.1f}" for count in weights)],
        ["weights, their average, gradients, two moments, float32, GB", *(f"{5 * 4 * count / 1e9:,.2f}" for count in weights)],
        ["the exchange of gradients, GB more", *(f"{2 * 4 * count / 1e9:,.2f}" for count in weights)],
        ["state of a row, MB", *(f"{size / 1e6:,.1f}" for size in states)],
        ["kept for the backward pass, diffusion forcing, MB a frame", *(f"{c.kept / 1e6:,.1f}" for c in forcing)],
        ["kept for the backward pass, teacher forcing, MB a frame", *(f"{c.kept / 1e6:,.1f}" for c in teacher_forcing)],
        [f"a row of a clip of {FRAMES} frames in teacher forcing, three states included, GB", *(f"{row / 1e9:,.2f}" for row in a_row)],
    )
    passes = {"fast": 1, "balanced": 2}
    rows = []
    for profile, count in passes.items():
        flops = [count * p + c + decoder_flops() for p, c in zip(read_only_cost, commit, strict=True)]
        traffic = [(count + 2) * size for size in states]  # each read-only pass reads the state, the commit reads and writes it
        gap = (1 / MEASURED[profile]) / (traffic[0] / MEASURED_BANDWIDTH)
        rows += [
            [f"{profile}: GFLOP a step, decoding included", *(f"{f / 1e9:,.2f}" for f in flops)],
            [f"{profile}: MB of states a step", *(f"{t / 1e6:,.1f}" for t in traffic)],
            [f"{profile}: arithmetic, GPU-seconds a million", *(f"{1e6 * f / (UTILISATION * PEAK):,.0f}" for f in flops)],
            [f"{profile}: states at the whole bandwidth, GPU-seconds a million", *(f"{1e6 * t / BANDWIDTH:,.0f}" for t in traffic)],
            [f"{profile}: the same, {gap:.0f} times as slow as tiny was measured", *(f"{1e6 * gap * t / BANDWIDTH:,.0f}" for t in traffic)],
        ]
    table("A million dream steps in large batches on an H100:", ["", *names], *rows)


if __name__ == "__main__":
    main()
