"""Weights in 8 bits: half the size, nearly the same dream, read by whatever reads weights, and refused where they are broken."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch
from tiny_world import write_tiny_weights

from experiments.quantize import Quantizing, quantize
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.io.tensors import TensorFileError, into_eight_bits, load_tensors, out_of_eight_bits, save_tensors
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]


@pytest.fixture
def folder(tiny_weights, tmp_path):
    quantize(Quantizing(tmp_path / "small", weights=tiny_weights))
    return tmp_path / "small"


def test_every_channel_is_rounded_to_its_own_scale():
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([1e-4, 1.0, 1e3, 0.0, 7.0]).view(-1, 1, 1, 1)
    stored = into_eight_bits({"a": weight, "b": torch.ones(2)}, ["a"])
    assert stored["a"].dtype == torch.int8
    assert stored["a"].flatten(1).abs().amax(1).tolist() == [127, 127, 127, 0, 127]
    back = out_of_eight_bits(stored)
    assert back.keys() == {"a", "b"}
    step = weight.abs().flatten(1).amax(1) / 127
    assert ((back["a"] - weight).abs().flatten(1).amax(1) <= 0.501 * step).all()
    again = into_eight_bits(back, ["a"])
    assert torch.equal(again["a"], stored["a"])


def test_an_export_is_an_ordinary_folder_of_weights_of_half_the_size(folder, tiny_weights):
    full, compact = load_weights(tiny_weights), load_weights(folder)
    for before, after in ((full.world_model, compact.world_model), (full.autoencoder, compact.autoencoder)):
        assert before.config == after.config
        theirs = after.state_dict()
        for name, tensor in before.state_dict().items():
            assert theirs[name].dtype == tensor.dtype
            assert torch.allclose(theirs[name], tensor, atol=0.51 * float(tensor.abs().max()) / 127), name
    assert torch.equal(full.long_contexts.latent, compact.long_contexts.latent)
    sizes = [(where / "model.safetensors").stat().st_size for where in (tiny_weights, folder)]
    assert sizes[1] < 0.75 * sizes[0]  # tiny layers are mostly names
    assert json.loads((folder / "config.json").read_text())["info"]["bits"] == 8


def test_only_the_weights_of_products_are_rounded(folder, tiny_weights):
    full, compact = load_weights(tiny_weights).world_model.state_dict(), load_weights(folder).world_model.state_dict()
    changed = {name for name, tensor in full.items() if not torch.equal(tensor, compact[name])}
    assert "layers.0.scan.in_proj.weight" in changed
    assert not changed & {name for name in full if "pose_keys" in name or name.endswith(("bias", "A_log", "D", "token_position"))}


def test_it_dreams_nearly_the_same_dream(folder, tiny_weights):
    def dreamed(weights):
        env = gymnasium.make(WORLD.id, weights=weights, profile="fast", device="cpu")
        return np.stack([env.reset(seed=1)[0], *(env.step(1)[0] for _ in range(3))]).astype(int)

    off = np.abs(dreamed(folder) - dreamed(tiny_weights))
    assert 0 < off.max()
    assert off.mean() < 2


def test_fewer_starts_can_be_kept(tiny_weights, tmp_path):
    report = quantize(Quantizing(tmp_path / "few", weights=tiny_weights, short_contexts=2, long_contexts=0))
    few = load_weights(tmp_path / "few")
    assert (few.short_contexts.batch, few.long_contexts.batch) == (2, 0)
    assert report["bytes"]["compact"] == sum(path.stat().st_size for path in (tmp_path / "few").iterdir())
    assert 0 < report["relative_error"] < 0.02


def test_the_model_card_goes_along(tmp_path):
    full = write_tiny_weights(tmp_path / "full")
    (full / "README.md").write_text("# A model\n")
    quantize(Quantizing(tmp_path / "small", weights=full))
    card = (tmp_path / "small" / "README.md").read_text()
    assert "8 bits" in card.splitlines()[0]
    assert card.endswith("# A model\n")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bits": 4}, "bits must be 8, not 4"),
        ({"world": "mars"}, "no world named 'mars'"),
        ({"short_contexts": 99}, "short_contexts must be 0..5"),
        ({"long_contexts": -1}, "long_contexts must be 0..2"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tiny_weights, tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        quantize(Quantizing(**{"out": tmp_path / "out", "weights": tiny_weights, **wrong}))
    assert not (tmp_path / "out").exists()


def test_the_full_weights_are_not_overwritten(tmp_path):
    folder = write_tiny_weights(tmp_path)
    with pytest.raises(ValueError, match="would overwrite"):
        quantize(Quantizing(folder, weights=folder))


NAME = "world_model.layers.0.scan.in_proj.weight"


def _without_scale(tensors):
    del tensors[f"{NAME}_scale"]


def _scale_of_other_shape(tensors):
    tensors[f"{NAME}_scale"] = tensors[f"{NAME}_scale"][:-1]


def _scale_of_whole_numbers(tensors):
    tensors[f"{NAME}_scale"] = tensors[f"{NAME}_scale"].long()


def _scale_not_finite(tensors):
    tensors[f"{NAME}_scale"][0] = torch.nan


def _scale_of_nothing(tensors):
    tensors[NAME] = tensors[NAME].half()


def _no_channels(tensors):
    tensors[NAME] = tensors[NAME].flatten()


def _vector_in_eight_bits(tensors):
    tensors["world_model.token_in.bias"] = tensors["world_model.token_in.bias"].to(torch.int8)


def _channel_short(tensors):
    tensors[NAME], tensors[f"{NAME}_scale"] = tensors[NAME][:-1], tensors[f"{NAME}_scale"][:-1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_scale, "in_proj.weight is in 8 bits, but beside it is no"),
        (_scale_of_other_shape, "one float32 a channel"),
        (_scale_of_whole_numbers, "one float32 a channel"),
        (_scale_not_finite, "not finite"),
        (_scale_of_nothing, "unknown .*in_proj.weight_scale"),
        (_no_channels, "one float32 a channel"),
        (_vector_in_eight_bits, "token_in.bias is in 8 bits"),
        (_channel_short, "wrong shape"),
    ],
)
def test_a_hostile_file_gives_one_clear_error(folder, spoil, said):
    path = folder / "model.safetensors"
    tensors = raw(path)
    spoil(tensors)
    save_tensors(path, tensors, {})
    with pytest.raises(TensorFileError, match=rf"model\.safetensors.*{said}"):
        load_weights(folder)


def test_a_flipped_bit_is_noticed(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match="changed since it was written"):
        load_tensors(path)


def raw(path):
    """Tensors as they lie in the file."""
    from safetensors.torch import load_file

    return load_file(path)
