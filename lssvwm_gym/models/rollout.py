"""Dreaming as pure functions of a state: prefill it with given frames, imagine the next one, commit it.

state = prefill(model, first_state(model, seeds), latents, actions, poses).state    # a real past; without poses they are estimated
imagined = imagine(model, state, action, steps)                                     # reads only: the state stays as it is
state = commit(model, state, action, imagined)                                      # now it has happened
state, reward_logits = step_of(steps)(model, state, action, noise)                  # both in one
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from lssvwm_gym.models.chance import chance_of, drawn_chances, frame_noise
from lssvwm_gym.models.collisions import held_back
from lssvwm_gym.models.diffusion import sample
from lssvwm_gym.models.flow_head import FrameEvidence
from lssvwm_gym.models.geometry import PLANE, integrate_motion, motion_between, start_pose
from lssvwm_gym.models.map_layout import CHANCES, LAYOUT, around, believed, imagined_layout, is_sure
from lssvwm_gym.models.map_memory import SIDE, GridPose, channels_of, drawn, grid_pose, in_lattice, shown
from lssvwm_gym.models.motion_heads import YOUNG, CollisionMotionHead
from lssvwm_gym.models.spatial_memory import variance_at
from lssvwm_gym.models.state import DreamState, WorldState
from lssvwm_gym.models.world_model import FEATURES, FrameContext, FrameInputs, WorldModel

PREFILL_FRAMES = 128  # that go through the model in one call
LATENT_STEPS = 64  # committed latents are rounded to 1/64, poses to 1/1024: differences in the last bit of a sum, which
POSE_STEPS = 1024  # depend on the number of rows computed together, die out instead of growing from frame to frame
OPEN = (0.3, 0.8)  # posterior variances after the given frames below which a place is known, and above which it is open
NEW = (0.03, 0.07)  # after dreamed ones too: below it the view is one that was dreamed before, above it it is another


def first_state(model: WorldModel, seed: Tensor, pose_known: bool = True) -> DreamState:
    """The state before any frame; seed (B,) int64."""
    rows, config, world = len(seed), model.config, model.initial_state(len(seed))
    like = model.token_in.weight
    return DreamState(
        world,
        like.new_zeros(rows, config.tokens, config.latent_channels),
        like.new_zeros(rows, FEATURES),
        start_pose(rows, config.pose_size, like.device),
        like.new_zeros(rows, len(config.motion_scale)),
        unknown_action(model, rows) if config.layout_width else like.new_zeros(rows, 0),
        like.new_zeros(rows, config.inventory_size),
        like.new_zeros(rows, config.inventory_size),
        like.new_zeros(rows),
        like.new_ones(rows),
        like.new_full((rows,), float(pose_known)),
        like.new_zeros(rows, PLANE),
        like.new_zeros(rows, channels_of(config.map_objects), SIDE, SIDE) if config.map_objects else like.new_zeros(rows, 0),
        like.new_zeros(rows, channels_of(config.map_objects), SIDE, SIDE) if config.layout_width else like.new_zeros(rows, 0),
        like.new_zeros(rows, config.map_objects),
        world.spatial_memory.explained,
        seed,
    )


def unknown_action(model: WorldModel, rows: int) -> Tensor:
    """The action that stands for an unknown one: (B,) int64, or for continuous ones (B, A) of NaN."""
    config, device = model.config, model.token_in.weight.device
    if config.action_size:
        return torch.full((rows, config.action_size), torch.nan, device=device)
    return torch.full((rows,), config.actions, dtype=torch.int64, device=device)


class Prefilled(NamedTuple):
    """What given frames lead to."""

    state: DreamState  # after the last of them
    features: Tensor  # (B, T, FEATURES) of every frame
    pose: Tensor  # (B, T, 4 or 6) of every frame, as given or as estimated


def prefill(
    model: WorldModel,
    state: DreamState,
    latent: Tensor,
    action: Tensor,
    pose: Tensor | None = None,
    inventory: Tensor | None = None,
    odometry: bool = True,
    imagines: bool = True,
) -> Prefilled:
    """Feed given frames into the state, in chunks: latents (B, T, N, C), actions that led to them (B, T), poses (B, T, 4 or 6).

    Poses are seen from where the state began. Without them the model estimates its pose from the actions (dead reckoning) and,
    with `odometry`, corrects each motion by what the frames show, and each pose where the world has a lattice (`CompassHead`).
    Inventories (B, T, V) that aren't given are predicted, too. Last, what the map does not show yet is `imagines`d.
    """
    alone = pose is None or (inventory is None and model.inventory_head is not None)
    size = 1 if alone else PREFILL_FRAMES // model.config.chunk * model.config.chunk
    features, poses = [], []  # and not the states between, of megabytes each
    for t in range(0, latent.shape[1], size):
        frames = slice(t, t + size)
        given = None if inventory is None else inventory[:, frames]
        if pose is not None:
            if model.compass_head is not None and t < YOUNG:  # after so many frames it stays as it is
                state = state._replace(lattice=model.compass_head.found(pose[:, frames], latent[:, frames], state.lattice, state.world.age))
            part = _commit_given(model, state, latent[:, frames], action[:, frames], pose[:, frames], given)
        else:
            motion = estimated_motion(model, state, action[:, t])
            if odometry:
                seen = model.odometry_head(state.latent, latent[:, t], action[:, t], motion, state.motion)
                motion = torch.where((state.world.age > 0).unsqueeze(-1), seen, motion)
            there = next_pose(state, motion)
            if odometry and model.compass_head is not None:
                there, lattice = model.compass_head.corrected(there, latent[:, t], state.lattice, state.world.age)
                there, state = rounded(there, POSE_STEPS), state._replace(lattice=lattice)
            part = _commit_given(model, state, latent[:, frames], action[:, frames], there.unsqueeze(1), given)
            part = part._replace(state=part.state._replace(motion=motion))
        state = part.state._replace(observed=part.state.world.spatial_memory.explained)
        features.append(part.features)
        poses.append(part.pose)
    return Prefilled(with_layout(model, state) if imagines else state, torch.cat(features, 1), torch.cat(poses, 1))


def with_layout(model: WorldModel, state: DreamState) -> DreamState:
    """The state with a layout of what its map does not show, another for each seed and age; itself in a world without.

    Before any frame it stands in the middle of a free cell, and looks anywhere.
    """
    if model.layout_model is None:
        return state
    needed = CHANCES + model.config.map_objects
    turn, chance = drawn_chances(state, 1 + needed).split((1, needed), 1)
    maps, new, turn = state.map.clone(), state.world.age == 0, (turn - 0.5) * (math.pi / 2)
    maps[:, 0, SIDE // 2, SIDE // 2] += LAYOUT * new
    anywhere, unseen = F.pad(torch.cat([turn.cos(), turn.sin()], 1), (2, 0)), (state.lattice == 0).all(1)
    lattice = torch.where((new & unseen)[:, None], anywhere, state.lattice)
    return state._replace(layout=imagined_layout(model.layout_model, maps, chance), lattice=lattice)


def _commit_given(
    model: WorldModel,
    state: DreamState,
    latent: Tensor,
    action: Tensor,
    pose: Tensor,
    inventory: Tensor | None,
    frame_context: FrameContext | None = None,
    chance: Tensor | None = None,
) -> Prefilled:
    """One call of the model for frames that all are given; inventories are predicted for a single frame only, with `chance` (B, V) drawn.

    `frame_context`: what `condition` gave for this very frame and state.
    """
    begins = (state.world.age == 0).unsqueeze(-1)  # nothing led to the first frame, whatever its tilt is
    motion = motion_between(torch.cat([torch.where(begins, pose[:, 0], state.pose).unsqueeze(1), pose[:, :-1]], 1), pose)
    known = state.pose_known[:, None].expand(pose.shape[:2])
    inventories = state.inventory.unsqueeze(1) if inventory is None else torch.cat([state.inventory.unsqueeze(1), inventory], 1)
    inputs = FrameInputs(torch.zeros_like(pose[..., 0]), action, pose, motion, known, inventories[:, : latent.shape[1]])
    output = model(latent, inputs, state.world, None, frame_context)
    if inventory is None and model.inventory_head is not None:
        inventories = model.inventory_head.after(output.features, inventories, action, None if chance is None else chance.unsqueeze(1))
    maps, wanted = map_after(model, state, latent, pose)
    after = state._replace(
        world=output.state,
        latent=latent[:, -1],
        features=output.features[:, -1],
        pose=pose[:, -1],
        motion=motion[:, -1],
        last_action=state.last_action if model.layout_model is None else action[:, -1],
        inventory=inventories[:, -1],
        inventory_peak=torch.maximum(state.inventory_peak, inventories.amax(1)),
        uncertainty=torch.zeros_like(state.uncertainty),
        posterior_variance=output.posterior_variance[:, -1],
        map=maps,
        wanted=wanted,
    )
    return Prefilled(after, output.features, pose)


def map_after(model: WorldModel, state: DreamState, latent: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """The map after frames (B, T, N, C) at poses (B, T, 4 or 6), and what is wanted in the last of them.

    Where the lattice or the pose isn't known the map stays as it is.
    """
    if model.map_reader is None:
        return state.map, state.wanted
    frames, maps = latent.shape[1], state.map
    here, found = _on_grid(model, pose.flatten(0, 1), state.lattice.repeat_interleave(frames, 0))
    reading = model.map_reader(latent.flatten(0, 1), here.rest)
    parts = reading, here, found
    for t in range(frames):
        reading, here, found = tree_map(lambda part, t=t: part[t::frames], parts) if frames > 1 else parts
        maps = torch.where((found & (state.pose_known > 0))[:, None, None, None], drawn(maps, reading, here), maps)
    return maps, one_hot(reading.wanted)


def one_hot(logits: Tensor) -> Tensor:
    """1 for the largest of (B, K), else 0."""
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


def _on_grid(model: WorldModel, pose: Tensor, lattice: Tensor) -> tuple[GridPose, Tensor]:
    """Poses (B, 4 or 6) on the map's grid, in cells; and whether they are known, (B,)."""
    there, found = in_lattice(pose, lattice)
    return grid_pose(torch.cat([there[:, :2] / model.config.lattice, there[:, 2:]], 1)), found


def estimated_motion(model: WorldModel, state: DreamState, action: Tensor) -> Tensor:
    """The motion (B, 3 or 5) that the motion head expects of an action (B,) after the last frame; none where there is no frame yet."""
    motion = model.motion_head(state.latent if isinstance(model.motion_head, CollisionMotionHead) else state.features, state.motion, action)
    if model.map_reader is not None:
        maps, here, _ = standing(model, state, state.pose)
        if model.map_motion_head is not None:
            told = model.map_motion_head(beside := around(maps, here), state.motion, state.last_action, action)
            motion = torch.where(is_sure(beside)[:, None], told, motion)
        motion = held_back(maps[:, 0], here, motion, model.config.lattice)
    motion = motion * (state.world.age > 0).unsqueeze(-1)
    if not model.config.most_tilt:
        return motion
    tilt = (state.pose[..., -1:] + motion[..., -1:]).clamp(-model.config.most_tilt, model.config.most_tilt) - state.pose[..., -1:]
    return torch.cat([motion[..., :-1], tilt], -1)


def standing(model: WorldModel, state: DreamState, pose: Tensor) -> tuple[Tensor, GridPose, Tensor]:
    """The map (B, `channels_of`, side, side) as the world takes it to be, zeros where it isn't known where poses (B, 4 or 6) are on it;
    where they are; and 1 or 0 (B, 1, 1), whether that is known."""
    here, found = _on_grid(model, pose, state.lattice)
    known, maps = (found * state.pose_known)[:, None, None], state.map if model.layout_model is None else believed(state.map, state.layout)
    return maps * known[..., None], here, known


class SharedContext(NamedTuple):
    """What passes over a frame share, and the very tensors that it was worked out from: it holds for no others."""

    frame_context: FrameContext
    world: WorldState
    action: Tensor
    motion: Tensor

    def for_commit(self, state: DreamState, action: Tensor, motion: Tensor) -> FrameContext | None:
        """The part that a commit shares: its motion is that between rounded poses, so its condition is its own."""
        same = self.world is state.world and self.action is action and self.motion is motion
        return self.frame_context._replace(condition=None) if same else None


class Imagined(NamedTuple):
    """A frame that has not happened yet."""

    latent: Tensor  # (B, N, C)
    motion: Tensor  # (B, 3 or 5) that leads there
    uncertainty: Tensor  # (B,) mean square difference of the first and the last estimate of the latent; 0 with one step
    shared_context: SharedContext | None = None  # what was worked out on the way and committing it needs again
    wanted: Tensor | None = None  # (B, K) 1 for the kind of object that is wanted in it, else 0; where none, it is read from the latent
    chance: Tensor | None = None  # (B, V) from 0 to 1, which draws how the numbers beside the frame change; where none, the likeliest


def imagine(
    model: WorldModel,
    state: DreamState,
    action: Tensor,
    steps: int,
    motion: Tensor | None = None,
    pose: Tensor | None = None,
    noise: Tensor | None = None,
) -> Imagined:
    """The next frame, for actions (B,), in a number of denoising steps.

    Without a given motion the model's own motion head says where the action leads. A given pose (B, 4 or 6) asks for the view
    from there instead of from where the motion leads. The noise (B, N, C) to begin with is `frame_noise`'s unless another
    is given: for a thousand rows, one draw on their device is much quicker, but then a row's dream is not its seed's.
    """
    if motion is None:
        motion = estimated_motion(model, state, action)
    there = next_pose(state, motion) if pose is None else pose
    inputs = next_inputs(state, action, motion, there)
    frame_context = model.condition(inputs, state.world)
    noise = frame_noise(state, model) if noise is None else noise
    latent, uncertainty, wanted = _sampled(model, state, inputs, frame_context, noise, steps)
    shared_context = SharedContext(frame_context, state.world, action, motion) if pose is None else None
    drawn = model.inventory_head is not None and model.inventory_head.is_drawn
    chance = torch.stack([chance_of(noise, 1 + number) for number in range(model.config.inventory_size)], 1) if drawn else None
    return Imagined(rounded(latent, LATENT_STEPS), motion, uncertainty, shared_context, wanted, chance)


def next_pose(state: DreamState, motion: Tensor) -> Tensor:
    """Where a motion (B, 3 or 5) leads, (B, 4 or 6)."""
    return rounded(integrate_motion(state.pose, motion), POSE_STEPS)


def next_inputs(state: DreamState, action: Tensor, motion: Tensor, pose: Tensor) -> FrameInputs:
    """What is known of the next frame, (B, 1), its noise level aside, which is that of pure noise where poses are known."""
    return FrameInputs(*(known.unsqueeze(1) for known in (state.pose_known, action, pose, motion, state.pose_known, state.inventory)))


def _sampled(
    model: WorldModel, state: DreamState, inputs: FrameInputs, frame_context: FrameContext, noise: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The latent, its uncertainty, and which object is wanted in it.

    Sampled by the flow head, after one read-only pass of the model; without one, by the model itself.

    Where given frames have shown the place, or any frame this very view, the mean is taken, for that is what stays the same over hundreds
    of frames: the flow head's where it is told of a map, else the model's. What is open is sampled. Places near dreamed
    frames count as open: the head knows by the memory how they go on.
    """
    if model.flow_head is None:
        return *sample(functools.partial(denoise, model, state.world, inputs, frame_context), noise, steps), None
    evidence = frame_evidence(model, state, inputs, frame_context, noise.flip(1))  # noise of its own: that of other tokens will do
    context = model.flow_head.context(evidence)
    if frame_context.memory_query is None:
        return *model.flow_head.sample(context, noise, steps), evidence.wanted
    moved = zip(inputs.motion[:, 0].unbind(-1), model.config.motion_scale, strict=True)
    moves = torch.stack([part.abs() > scale / 3 for part, scale in moved]).any(0)  # frames of one place in a row stay samples
    new = torch.where(moves, _openness(evidence.posterior_variance, NEW), 1.0)
    share = _openness(observed_variance(state, frame_context), OPEN) * new
    if model.map_reader is None:
        latent, uncertainty = model.flow_head.sample(context, noise, steps)
        return torch.lerp(evidence.mean, latent, share[:, None, None]), uncertainty * share, evidence.wanted
    latent, uncertainty = model.flow_head.sample(context, noise, steps, share < 0.5)
    return latent, uncertainty * share, evidence.wanted


def _openness(variance: Tensor, bounds: tuple[float, float]) -> Tensor:
    known, unknown = bounds
    return ((variance - known) / (unknown - known)).clamp(0, 1)


def observed_variance(state: DreamState, context: FrameContext) -> Tensor:
    """Posterior variance (B,) after the given frames alone, where a frame is asked for: 1 nothing is known, 0 all."""
    if context.memory_query is None:
        return torch.ones_like(state.uncertainty)
    return 1 - state.pose_known * (1 - variance_at(context.memory_query.keys, state.observed)[:, 0])


def frame_evidence(
    model: WorldModel,
    state: DreamState,
    inputs: FrameInputs,
    frame_context: FrameContext,
    noise: Tensor,
    wanted: Tensor | None = None,
) -> FrameEvidence:
    """What the model makes of the next frame in one read-only pass from noise (B, N, C).

    Inputs are (B, 1), and the context what `condition` gave for them. Which object is wanted in the frame, (B, K), is drawn by the noise
    unless it is given.
    """
    pure = inputs._replace(noise=torch.ones_like(inputs.noise))
    output = model(noise[:, None], pure, state.world, (True,), frame_context)
    recalled = torch.zeros_like(noise) if frame_context.recalled is None else frame_context.recalled[:, 0]
    tokens, clean, variance = output.tokens[:, 0], output.clean[:, 0], output.posterior_variance[:, 0]
    seen = noise.new_zeros(len(noise), 1, 0)
    if model.map_reader is not None:
        maps, here, known = standing(model, state, inputs.pose[:, 0])
        seen = shown(maps, model.config.map_objects, here, model.config.grid) * known
    if model.wanted_head is not None and wanted is None:
        likely = model.wanted_head(seen, state.wanted).softmax(1).cumsum(1)[:, :-1]
        wanted = F.one_hot((likely < chance_of(noise)[:, None]).sum(1), likely.shape[1] + 1).to(likely.dtype)
    return FrameEvidence(
        tokens, clean, state.latent, recalled, variance, inputs.action[:, 0], seen, state.wanted if wanted is None else wanted
    )


def denoise(model: WorldModel, state: WorldState, inputs: FrameInputs, frame_context: FrameContext, x: Tensor, level: Tensor) -> Tensor:
    """The estimate of the clean latent (B, N, C) from x of that shape at noise levels (B,); the state is read only."""
    return model(x[:, None], inputs._replace(noise=level.unsqueeze(1)), state, (True,), frame_context).clean[:, 0]


def commit(model: WorldModel, state: DreamState, action: Tensor, imagined: Imagined) -> DreamState:
    """Make an imagined frame, to which actions (B,) led, part of the past."""
    pose = next_pose(state, imagined.motion)
    frame_context = imagined.shared_context and imagined.shared_context.for_commit(state, action, imagined.motion)
    frame, action, pose = imagined.latent[:, None], action[:, None], pose[:, None]
    after = _commit_given(model, state, frame, action, pose, None, frame_context, imagined.chance).state
    wanted = after.wanted if imagined.wanted is None else imagined.wanted
    return after._replace(motion=imagined.motion, uncertainty=imagined.uncertainty, wanted=wanted)


def rounded(x: Tensor, steps: int) -> Tensor:
    """To the nearest of so many steps a unit."""
    return (x * steps).round() / steps


StepFunction = Callable[[WorldModel, DreamState, Tensor, Tensor], tuple[DreamState, Tensor]]


@functools.cache  # a recording is known by its function
def step_of(passes: int) -> StepFunction:
    """One frame on, as a function of tensors alone that never waits for a device: model, state, actions (B,), noise (B, N, C).

    Returns the next state and the logits of the reward values, (B, K).
    """

    def step(model: WorldModel, state: DreamState, action: Tensor, noise: Tensor) -> tuple[DreamState, Tensor]:
        state = commit(model, state, action, imagine(model, state, action, passes, noise=noise))
        return state, model.reward_head(state.features)

    return step
