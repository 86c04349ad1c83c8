"""A dream as ONNX: onnxruntime dreams what PyTorch dreams, from a folder that says when it is broken."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tiny_world import WITH_A_MAP, write_tiny_weights

import lssvwm_gym.export as exporting
from lssvwm_gym.cli import main
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.export import Difference, Exporting, difference, export, portable, write
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.onnx_dream import OnnxDream
from lssvwm_gym.worlds import WORLDS, write_world

pytestmark = pytest.mark.slow
BOTH = {**WITH_A_MAP, "flow_layers": 1}
BESIDE = dict(actions=4, inventory_size=2, termination=True, inventory_changes=((-1.0, 0.0), (0.0, 2.0)), inventory_range=((0.0, 9.0),) * 2)


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    """Tracing takes longest, and is the same for all types of weights."""
    original, kept = exporting._traced, dict[tuple[str, str], bytes]()

    def traced(program):
        key = type(program).__name__, program.dream.fingerprint
        if key not in kept:
            kept[key] = original(program).SerializeToString()
        return onnx.load_model_from_string(kept[key])

    exporting._traced = traced
    yield
    exporting._traced = original


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_tiny_weights(tmp_path_factory.mktemp("maze"), **BOTH)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(Exporting(folder, "memory-maze", weights, weights_dtype="float32", long_frames=12, check=0))
    return folder


@functools.cache
def dream_of(folder: Path) -> Dream:
    return portable(open_dream("memory-maze", "fast", "cpu", folder, "float32", "torch"), folder)


def test_it_dreams_what_pytorch_dreams(weights, folder):
    apart = difference(dream_of(weights), OnnxDream(folder), 100)
    assert apart.one_step <= 1
    assert apart.mean < 0.1  # latents are rounded: on the edge either way, and then a little is different for some frames
    assert apart.rewards <= 1


def test_all_contexts_lead_where_they_lead_in_pytorch(weights, folder):
    exported, dream = OnnxDream(folder), dream_of(weights)
    assert [len(one["action"][0]) for one in exported.contexts] == [6, 6, 6, 6, 6, 12]
    state = dream.reset(torch.tensor([0]), {"context_id": 3})
    frame, own = exported.begin(3)
    np.testing.assert_allclose(frame.astype(int), dream.frame(state)[0].numpy(), atol=1)
    for name, leaf in exporting._carried(state).items():
        exact = 2e-2 if name == "map" else 2e-4  # a map squares what a frame says, of untaught weights much
        np.testing.assert_allclose(own[name], leaf, atol=exact, rtol=1e-4, err_msg=name)


def test_a_dream_begins_with_nothing(weights, folder):
    exported, dream, seed = OnnxDream(folder), dream_of(weights), torch.tensor([2])
    assert len(exported.starts) == 4
    frame, own = exported.cold(frame_noise(dream.empty(seed), dream.weights.world_model).numpy(), 2)
    state = dream.reset(seed, {"start": "cold"})
    np.testing.assert_allclose(frame.astype(int), dream.frame(state)[0].numpy(), atol=1)
    assert own["world_age"] == 1
    np.testing.assert_allclose(own["layout"], state.layout, atol=1e-3)  # colours in 16 bits
    np.testing.assert_array_equal(own["lattice"], state.lattice)


def test_a_thousand_steps_leave_the_state_as_large_as_it_was(folder):
    exported, random = OnnxDream(folder), np.random.default_rng(0)
    _, first = exported.begin(0)
    state = first
    for _ in range(1000):
        noise = random.standard_normal(exported.manifest["noise"], np.float32)
        frame, _, _, state = exported.step(state, random.integers(6, size=1), noise)
    assert {name: (part.shape, part.dtype) for name, part in state.items()} == {
        name: (part.shape, part.dtype) for name, part in first.items()
    }
    assert all(np.isfinite(part).all() for part in state.values())
    assert frame.shape == (64, 64, 3)
    assert state["world_age"] == 1006


def test_its_programs_suit_webgpu(folder):
    for name, from_half in (("step", []), ("prefill", ["Cast"])):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        splits = [len(node.output) for node in graph.node if node.op_type == "Split"]
        assert 3 in splits, "nine parts are made by threes"
        assert max(splits) <= exporting.MOST_PARTS
        assert not [one.name for one in graph.initializer if one.data_type == onnx.TensorProto.DOUBLE]
        assert [node.op_type for node in graph.node if node.name == exporting.FROM_HALF] == from_half


@pytest.mark.parametrize("count", [8, 9, 11, 20, 56])
def test_wide_splits_are_made_narrow(count):
    names = [f"part_{number}" for number in range(count)]
    nodes = exporting._narrow(onnx.helper.make_node("Split", ["whole"], names, axis=1, num_outputs=count))
    assert max(len(node.output) for node in nodes) <= exporting.MOST_PARTS or count == 11  # which has no small divisor
    tensors = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("whole", *names)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "splits", tensors[:1], tensors[1:]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    whole = np.arange(6 * count, dtype=np.float32).reshape(3, 2 * count)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"whole": whole}), np.split(whole, count, 1))


@pytest.mark.parametrize(("dtype", "mean"), [("float16", 0.2), ("int8", 3.0)])
def test_fewer_bits_are_a_smaller_download_of_nearly_the_same_dream(dtype, mean, weights, folder, tmp_path):
    write(dream_of(weights), tmp_path, dtype, [])
    size = (folder / "weights.bin").stat().st_size
    assert (tmp_path / "weights.bin").stat().st_size < size * (0.6 if dtype == "float16" else 0.4)
    assert difference(dream_of(weights), OnnxDream(tmp_path), 20).one_step_mean < mean


def test_numbers_beside_the_picture_and_ends_are_those_of_pytorch(tmp_path, caplog, capsys):
    weights = write_tiny_weights(tmp_path / "weights", memory_features=0, **BESIDE)
    world = replace(WORLDS["memory-maze"], name="pond", actions=("a", "b", "c", "d"), keys={}, inventory=("health", "speed"))
    write_world(weights, world)
    with caplog.at_level("WARNING"):
        report = export(
            Exporting(tmp_path / "exported", weights=weights, weights_dtype="float32", short_contexts=1, long_contexts=0, check=40)
        )
    assert not caplog.records  # nor does the tracer warn
    assert "pond as ONNX" in capsys.readouterr().out
    assert isinstance(report["difference"], Difference)
    assert report["difference"].one_step <= 1
    exported = OnnxDream(tmp_path / "exported")
    dream = portable(open_dream(exporting.chosen_world("", weights), "fast", "cpu", weights, "float32", "torch"), weights)
    state, (_, own) = dream.reset(torch.tensor([0]), {"context_id": 0}), exported.begin(0)
    ended = []
    for t in range(30):
        action, noise = torch.tensor([t % 4]), torch.randn(1, 16, 4)
        step = dream.step(state, action, noise)
        _, _, terminated, own = exported.step(own, action.numpy(), noise.numpy())
        state = step.state
        np.testing.assert_array_equal(own["inventory"], state.inventory)
        assert terminated == step.terminated.item()
        ended.append(terminated)
    assert 0 < sum(ended) < 30


def test_the_manifest_says_what_a_page_needs(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["world"]["keys"]["wa"] == 4
    assert manifest["unknown_action"] == 6
    assert manifest["contexts"][-1] == {"frames": 12}
    assert manifest["files"].keys() == {"step.onnx", "prefill.onnx", "weights.bin", "contexts.safetensors"}
    assert all((folder / name).stat().st_size == it["bytes"] for name, it in manifest["files"].items())
    graph = onnx.load(folder / "step.onnx", load_external_data=False)
    assert "lssvwm_gym/" not in str(graph), "paths of whoever exported it"


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"cut short"), "weights.bin changed since it was exported"),
        (lambda folder: (folder / "step.onnx").unlink(), "not a dream written by"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "its format is not"),
        (lambda folder: (folder / "manifest.json").write_text("[1"), "not a dream written by"),
    ],
)
def test_a_broken_folder_is_one_error(breaking, said, folder, tmp_path):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    breaking(broken)
    with pytest.raises(ValueError, match=said):
        OnnxDream(broken)


def test_wrong_settings_are_one_error(tmp_path):
    with pytest.raises(SystemExit, match="no world named 'mars'"):
        main(["export", "mars", "--onnx", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="long_frames"):
        Exporting(tmp_path, long_frames=0)
