"""A dream as ONNX, for programs without PyTorch such as a web page: `lssvwm-gym export memory-maze --onnx DIR`.

manifest.json         names, shapes and first values of all tensors, keys, contexts; the size and hash of every other file
step.onnx             of one row: action, noise and state in; picture, reward, whether the episode ended and the next state out
prefill.onnx          the same for a given frame: its latent, action, pose and inventory in
weights.bin           the weights of both
contexts.safetensors  what dreams can continue: real frames as latents, with actions and poses

Both programs are traced from `Dream.step` and `rollout.prefill`. A context is shipped as its latents, 1 KiB a frame in the maze, and not
as the state after it, 4.6 MB. Noise is an input, standard normal numbers of whichever generator, so a dream repeats where that does.
"""

import hashlib
import logging
import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from onnxscript import opset18 as operations
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from lssvwm_gym import __version__
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.envs.reset_options import past_of
from lssvwm_gym.envs.saved_state import named
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.atomic import replaced_together
from lssvwm_gym.io.json_config import check_bounds, write_json
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.models.rollout import prefill, unknown_action, with_layout
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.onnx_dream import CONTEXTS, FORMAT, MANIFEST, NEXT, OnnxDream, sha256
from lssvwm_gym.worlds import chosen_world, weights_of

STORED = "weights.bin"
LEFT_OUT = ("seed", "uncertainty")  # leaves of a state that no step reads
COLD = 4  # layouts from nothing
STORED_FROM = 1024  # numbers; smaller tensors stay in the program, in float32
ALIGNED = 64  # bytes
FROM_HALF = "from_float16"  # a node
MOST_PARTS = 7  # of one split: WebGPU promises eight tensors at once


@dataclass(frozen=True)
class Exporting:
    """Which dream to write as ONNX, and how."""

    onnx: Path  # folder to write
    world: str = ""  # its name may also stand first, without --world; if not given, what the weights say, else memory-maze
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    profile: Literal["fast", "balanced", "quality"] = "fast"  # denoising steps a frame
    weights_dtype: Literal["float32", "float16", "int8"] = "float16"  # as stored; computed is in float32
    short_contexts: int = 8  # how many to write, the first of those of the weights
    long_contexts: int = 1  # how many of the long ones to write
    long_frames: int = 200  # of each long context, at most
    check: int = 100  # steps to compare with PyTorch afterwards

    def __post_init__(self) -> None:
        check_bounds(self, short_contexts=0, long_contexts=0, long_frames=1, check=0)


class Difference(NamedTuple):
    """Between pictures of a dream by onnxruntime and by PyTorch, on the same actions and noise; brightness 0..255."""

    steps: int
    largest: int  # of both dreams on their own
    mean: float
    one_step: int  # the largest where each step begins with PyTorch's state
    one_step_mean: float
    rewards: int  # steps with another reward


def export(run: Exporting) -> dict[str, Any]:
    """Write the folder, compare it with PyTorch, print and return the size in bytes and the `Difference`.

    Raises `ValueError` for settings or a world that there aren't, `TensorFileError` for weights that can't be read.
    """
    world = chosen_world(run.world, run.weights)
    folder = weights_of(world, run.weights)
    print(f"{run.onnx}: {world.name} as ONNX. Two programs, a step and a given frame, are traced: about a minute each", flush=True)
    dream = portable(open_dream(world, run.profile, "cpu", folder, "float32", "torch"), folder)
    write(dream, run.onnx, run.weights_dtype, _contexts(dream, run))
    report: dict[str, Any] = {"bytes": {path.name: path.stat().st_size for path in sorted(run.onnx.expanduser().iterdir())}}
    print(f"{run.onnx}: {sum(report['bytes'].values()) / 1e6:.2f} MB: {report['bytes']}")
    if run.check:
        report["difference"] = difference(dream, OnnxDream(run.onnx), run.check)
        print(report["difference"])
    return report


def portable(dream: Dream, folder: Path) -> Dream:
    """The same dream, with the plain decoder instead of one that is laid out for this processor."""
    return replace(dream, weights=replace(dream.weights, autoencoder=load_weights(folder).autoencoder))


def write(dream: Dream, folder: Path, dtype: str, contexts: list[Segment]) -> None:
    """Write a portable dream in float32 and contexts of one row each, as `past_of` gives them; the files are replaced together."""
    blank, real = dream.empty(torch.zeros(1, dtype=torch.int64)), dream.weights.short_contexts
    if dream.weights.world_model.config.inventory_changes and real.batch:  # numbers beside the picture begin as in a real episode
        blank = blank._replace(inventory=real.inventory[:1, 0])
    if not dream.weights.world_model.config.has_spatial_memory:
        blank = blank._replace(pose_known=torch.zeros(1))
    programs = {"step": _Step(dream, blank), "prefill": _Prefill(dream, blank)}
    folder = Path(folder).expanduser()
    with replaced_together(folder, last=MANIFEST) as unfinished:
        store = _Store(dtype)
        for name, program in programs.items():
            model = _traced(program)
            _suit_webgpu(model.graph)
            store.take(model.graph)
            del model.metadata_props[:]
            onnx.save(model, unfinished / f"{name}.onnx")
        (unfinished / STORED).write_bytes(b"".join(store.parts))
        parts = {f"{number}.{name}": part for number, one in enumerate(contexts) for name, part in one.parts().items()}
        parts |= _layouts(dream, contexts)
        save_tensors(unfinished / CONTEXTS, parts, {})
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(unfinished.iterdir())}
        write_json(unfinished / MANIFEST, _manifest(dream, blank, dtype, contexts, files))


def _contexts(dream: Dream, run: Exporting) -> list[Segment]:
    """The first of those that come with the weights; a memory of places needs poses, which no program here estimates from frames."""
    kept, needs_poses = [], dream.weights.world_model.config.has_spatial_memory
    for segment, count in ((dream.weights.short_contexts, run.short_contexts), (dream.weights.long_contexts, run.long_contexts)):
        for row in range(min(count, segment.batch)):
            one = segment.take([row])[: run.long_frames]
            past = past_of(one.latent, one.action, one.pose, one.inventory, one.inventory_peak)
            kept += [past] if past.pose_known.any() or not needs_poses else []
    return kept


def _layouts(dream: Dream, contexts: list[Segment]) -> dict[str, Tensor]:
    """What a world with a map imagines after each context, and from nothing by some seeds: no program here draws layouts."""
    model, seed = dream.weights.world_model, torch.zeros(1, dtype=torch.int64)
    if model.layout_model is None:
        return {}
    pasts = (replace(one, latent=one.latent.float()) for one in contexts)
    layouts = {f"layout.{number}": dream.prefill(seed, past).layout.half() for number, past in enumerate(pasts)}
    for number in range(COLD):
        state = with_layout(model, dream.empty(seed + number))
        layouts |= {f"cold.{number}.layout": state.layout.half(), f"cold.{number}.lattice": state.lattice}
    return layouts


def _manifest(dream: Dream, blank: DreamState, dtype: str, contexts: list[Segment], files: dict[str, Any]) -> dict[str, Any]:
    world, model = dream.world, dream.weights.world_model
    return {
        "format": FORMAT,
        "version": __version__,
        "fingerprint": dream.fingerprint,
        "world": {name: value for name, value in asdict(world).items() if name not in ("weights", "real_id", "low", "high")},
        "profile": dream.profile,
        "weights_dtype": dtype,
        "noise": [1, model.config.tokens, model.config.latent_channels],  # float32
        "unknown_action": None if world.continuous else model.config.actions,
        "state": {name: _first_value(leaf) for name, leaf in _carried(blank).items()},
        "contexts": [{"frames": len(one)} for one in contexts],
        "files": files,
    }


def _first_value(leaf: Tensor) -> dict[str, Any]:
    """A tensor as JSON; of one number where all are the same."""
    value = leaf.flatten().tolist()
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch."), "value": value[0] if len({*value}) == 1 else value}


def _carried(state: DreamState) -> dict[str, Tensor]:
    """The leaves of a state that go from step to step."""
    return {re.sub(r"\W+", "_", name): leaf for name, leaf in named(state).items() if name not in LEFT_OUT and leaf.numel()}


class _Program(nn.Module):
    """What is traced: the tensors of `arguments`, then the leaves of a state, to the tensors of `results`, then the next state's."""

    arguments: dict[str, Tensor]
    results: tuple[str, ...]
    kept: tuple[str, ...]  # leaves that stay as they are

    def __init__(self, dream: Dream, blank: DreamState) -> None:
        super().__init__()
        self.dream, self.blank, self.names = dream, blank, list(_carried(blank))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.arguments)
        given = dict(zip(self.names, tensors[count:], strict=True))
        names = [re.sub(r"\W+", "_", name) for name in named(self.blank)]
        leaves = [given.get(name, leaf) for name, leaf in zip(names, tree_leaves(self.blank), strict=True)]
        results, state = self.run(tree_unflatten(leaves, tree_structure(self.blank)), *tensors[:count])
        return (*results, *(leaf for name, leaf in _carried(state).items() if name not in self.kept))

    def run(self, state: DreamState, *tensors: Tensor) -> tuple[tuple[Tensor, ...], DreamState]:
        raise NotImplementedError


class _Step(_Program):
    results = ("frame", "reward", "terminated")
    kept = ("pose_known", "observed", "lattice", "layout")

    def __init__(self, dream: Dream, blank: DreamState) -> None:
        super().__init__(dream, blank)
        model = dream.weights.world_model
        self.arguments = {"action": unknown_action(model, 1), "noise": torch.zeros_like(blank.latent)}

    def run(self, state: DreamState, *tensors: Tensor) -> tuple[tuple[Tensor, ...], DreamState]:
        step = self.dream.step(state, *tensors)
        return (self.dream.frame(step.state), step.reward.float(), step.terminated), step.state


class _Prefill(_Program):
    results = ("frame",)

    def __init__(self, dream: Dream, blank: DreamState) -> None:
        super().__init__(dream, blank)
        self.kept = ("pose_known", "layout", *(() if blank.map.numel() else ("lattice",)))  # a map lies in the lattice
        action = unknown_action(dream.weights.world_model, 1)
        self.arguments = {"given_latent": blank.latent.half(), "given_action": action, "given_pose": blank.pose}
        self.arguments |= {"given_inventory": blank.inventory} if blank.inventory.numel() else {}

    def run(self, state: DreamState, *tensors: Tensor) -> tuple[tuple[Tensor, ...], DreamState]:
        latent, action, pose, *inventory = (tensor.unsqueeze(1) for tensor in (tensors[0].float(), *tensors[1:]))
        counts = inventory[0] if inventory else state.inventory.unsqueeze(1)
        after = prefill(self.dream.weights.world_model, state, latent, action, pose, counts, imagines=False).state
        return (self.dream.frame(after),), after


def _hypot(x: Any, y: Any) -> Any:
    return operations.Sqrt(operations.Add(operations.Mul(x, x), operations.Mul(y, y)))


def _traced(program: _Program) -> onnx.ModelProto:
    leaves, log_level = _carried(program.blank), logging.root.manager.disable
    examples = tuple(one.clone() for one in (*program.arguments.values(), *leaves.values()))  # one that came twice would be one input
    logging.disable(logging.WARNING)  # what torch and onnxscript say of themselves; what they can't trace is an error
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.eval()(*examples)  # so that what is kept between calls is made of real tensors, not of the tracer's
            traced = torch.onnx.export(
                program,
                examples,
                input_names=[*program.arguments, *leaves],
                output_names=[*program.results, *(NEXT + name for name in leaves if name not in program.kept)],
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.hypot.default: _hypot},
            )
    finally:
        logging.disable(log_level)
    assert traced is not None
    return traced.model_proto


def _suit_webgpu(graph: onnx.GraphProto) -> None:
    """In place, for that build of onnxruntime: rewards in float32, since it can't cast float64; no wide `Split`; and a name for what makes
    float16 inputs float32, by which a page keeps it from graphics processors without float16."""
    halves = {one.name for one in graph.input if one.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for one in graph.initializer:
        if one.data_type == TensorProto.DOUBLE:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float32), one.name))
    for node in graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.DOUBLE:
            node.attribute[0].i = TensorProto.FLOAT
        node.name = FROM_HALF if halves & {*node.input} else node.name
    nodes = [part for node in graph.node for part in _narrow(node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _narrow(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A split into many equal parts as one into groups, and one of each group; as it is, where their number has no small divisor."""
    groups = next((few for few in range(MOST_PARTS, 1, -1) if len(node.output) % few == 0), 0)
    if node.op_type != "Split" or len(node.input) > 1 or len(node.output) <= MOST_PARTS or not groups:
        return [node]
    axis, size = next(one.i for one in node.attribute if one.name == "axis"), len(node.output) // groups
    names = [f"{node.input[0]}_{node.output[0]}_{number}" for number in range(groups)]
    outputs = [node.output[size * number : size * (number + 1)] for number in range(groups)]
    parts = (helper.make_node("Split", [name], some, axis=axis, num_outputs=size) for name, some in zip(names, outputs, strict=True))
    return [helper.make_node("Split", node.input, names, axis=axis, num_outputs=groups), *(one for part in parts for one in _narrow(part))]


class _Store:
    """The large tensors of several programs in one file, each once."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.parts, self.size = dtype, list[bytes](), 0
        self.places: dict[bytes, tuple[int, int]] = {}

    def take(self, graph: onnx.GraphProto) -> None:
        """Move the large tensors of a program here; where they are smaller than float32, it makes them that when it is loaded."""
        large = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        large = {name: array for name, array in large.items() if array.dtype == np.float32 and array.size >= STORED_FROM}
        rest = []
        for node in graph.node:
            del node.metadata_props[:]  # where in which file it was written
            if node.op_type == "Transpose" and node.input[0] in large:  # programs would share one only where both turn it, or neither does
                large[node.output[0]] = np.ascontiguousarray(large[node.input[0]].transpose(node.attribute[0].ints))
            else:
                rest.append(node)
        used = {name for node in rest for name in node.input} | {output.name for output in graph.output}
        kept, first = [one for one in graph.initializer if one.name in used - large.keys()], []
        for name in sorted(used & large.keys()):
            stored, nodes = _in_fewer_bits(name, large[name], self.dtype)
            kept += [self._placed(*one) for one in stored.items()]
            first += nodes
        del graph.initializer[:], graph.node[:], graph.value_info[:], graph.metadata_props[:]
        graph.initializer.extend(kept)
        graph.node.extend([*first, *rest])

    def _placed(self, name: str, array: np.ndarray) -> TensorProto:
        tensor = numpy_helper.from_array(array, name)
        if array.size < STORED_FROM:
            return tensor
        content = array.tobytes()
        key = hashlib.sha256(content).digest()
        if key not in self.places:
            self.places[key] = self.size, len(content)
            content += bytes(-len(content) % ALIGNED)
            self.parts.append(content)
            self.size += len(content)
        set_external_data(tensor, STORED, *self.places[key])
        tensor.ClearField("raw_data")
        return tensor


def _in_fewer_bits(name: str, array: np.ndarray, dtype: str) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """What is stored of a tensor, and what makes the tensor of it."""
    if dtype == "float32":
        return {name: array}, []
    small = name + "_small"
    if dtype == "float16" or array.ndim < 2:
        return {small: array.astype(np.float16)}, [helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT)]
    stored, scale = min((_in_eight_bits(array, axis) for axis in range(array.ndim)), key=lambda it: np.square(it[0] * it[1] - array).sum())
    scale_name, whole = name + "_scale", name + "_whole"
    cast = helper.make_node("Cast", [small], [whole], to=TensorProto.FLOAT)
    return {small: stored, scale_name: scale}, [cast, helper.make_node("Mul", [whole, scale_name], [name])]


def _in_eight_bits(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127..127 and their scales, float32, one for each entry along an axis."""
    others = tuple(other for other in range(array.ndim) if other != axis)
    scale = np.maximum(np.abs(array).max(others, keepdims=True), 1e-12) / np.float32(127)
    return np.rint(array / scale).astype(np.int8), scale.astype(np.float32)


@torch.no_grad()
def difference(dream: Dream, exported: OnnxDream, steps: int, seed: int = 0) -> Difference:
    """Step both along the same random actions and noise from the first context, or where there is none, from nothing."""
    model, generator, seeds = dream.weights.world_model, torch.Generator().manual_seed(seed), torch.tensor([seed])
    if exported.contexts:
        past = Segment(**{name: torch.from_numpy(part) for name, part in exported.contexts[0].items()})
        state, own = dream.prefill(seeds, replace(past, latent=past.latent.float())), exported.begin(0)[1]
    else:
        state, own = dream.reset(seeds, {"start": "cold"}), exported.cold(frame_noise(dream.empty(seeds), model).numpy())[1]
    apart, one_step, rewards = [], [], 0
    for _ in range(steps):
        action = torch.rand(1, model.config.action_size, generator=generator)
        action = action if model.config.action_size else torch.randint(model.config.actions, (1,), generator=generator)
        noise, lent = torch.randn(state.latent.shape, generator=generator), {name: leaf.numpy() for name, leaf in _carried(state).items()}
        step = dream.step(state, action, noise)
        state, expected = step.state, dream.frame(step.state)[0].numpy().astype(int)
        frame, reward, _, own = exported.step(own, action.numpy(), noise.numpy())
        apart.append(np.abs(frame - expected))
        one_step.append(np.abs(exported.step(lent, action.numpy(), noise.numpy())[0] - expected))
        rewards += not np.isclose(reward, step.reward.item(), 1e-5)
    return Difference(steps, int(np.max(apart)), float(np.mean(apart)), int(np.max(one_step)), float(np.mean(one_step)), rewards)
