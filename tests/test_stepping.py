"""The quick way through the model for a single frame: the same outputs, states and dreams as the plain one."""

from __future__ import annotations

import timeit

import numpy as np
import pytest
import torch
from tiny_world import same
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from lssvwm_gym.checkpoints.checkpoint import load_weights, prepack
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.inference import prepacked
from lssvwm_gym.models.inference.backend import FLOAT32, Precision, chosen_precision
from lssvwm_gym.models.inference.decode import PrepackedAutoencoder, PrepackedWorldModel
from lssvwm_gym.models.inference.prepacked import PrepackedConv2d, PrepackedDecoder, PrepackedLinear, multiplies_bfloat16
from lssvwm_gym.models.rollout import commit, first_state, imagine
from lssvwm_gym.models.state import take_rows
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig

SIZES = dict(latent_channels=4, width=32, head_width=16, d_state=8, d_conv=1, memory_features=16, window=3)
VARIANTS = {
    "shipped": {},
    "short convolution": dict(d_conv=4),
    "no places": dict(memory_features=0),
    "no attention": dict(heads=0),
    "no scan": dict(d_state=0),
    "memory alone": dict(d_state=0, heads=0),
    "a map": dict(flow_width=20, collisions=True, lattice=1.0, map_objects=2),
    "wide blocks": dict(blocks=((4, 1), (1, 2), (2, 4), (4, 4))),
}
in_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16("cpu"), reason="this processor does not multiply in bfloat16")


def random_model(**sizes):
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(**{**SIZES, **sizes})).requires_grad_(False)
    for parameter in model.parameters():  # zero-initialised parts must take part
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def quick(model, dtype=torch.float32):
    """The same model, prepacked."""
    return PrepackedWorldModel.of(model, dtype)


def furthest(a, b):
    """The largest difference of two trees of tensors, over their largest numbers."""
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return max((float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs if x.numel()), default=0.0)


@torch.no_grad()
def dreamed(model, rows=3, steps=4, passes=2, state=None, seed=0):
    """All states of a dream, and what was imagined."""
    state = first_state(model, torch.arange(rows)) if state is None else state
    actions = torch.randint(6, (steps, rows), generator=torch.Generator().manual_seed(seed))
    past = []
    for action in actions:
        imagined = imagine(model, state, action, passes)
        state = commit(model, state, action, imagined)
        past.append((imagined[:3], state))
    return past


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_dream_is_the_same_in_outputs_and_states(variant):
    model = random_model(**VARIANTS[variant])
    plain, stepped = dreamed(model), dreamed(quick(model))
    assert furthest(stepped, plain) < 1e-4
    assert torch.equal(plain[-1][1].world.age, stepped[-1][1].world.age)


@pytest.mark.parametrize("variant", ["shipped", "wide blocks"])
def test_rows_do_not_depend_on_each_other(variant):
    model = quick(random_model(**VARIANTS[variant]))
    many = first_state(model, torch.tensor([5, 6, 7, 8]))
    alone = take_rows(many, torch.tensor([2]))
    action = torch.tensor([1, 2, 3, 4])
    for _ in range(3):
        many, alone = (commit(model, state, led, imagine(model, state, led, 1)) for state, led in ((many, action), (alone, action[2:3])))
    assert furthest(take_rows(many, torch.tensor([2])), alone) < 1e-4


def test_peeks_and_commits_write_to_no_tensor_of_the_caller():
    model = quick(random_model())
    state = dreamed(model)[-1][1]
    kept = tree_map(torch.clone, state)
    dreamed(model, state=state)
    assert same([x.numpy() for x in tree_leaves(state)], [x.numpy() for x in tree_leaves(kept)])


def test_a_state_copied_to_memory_of_its_own_goes_on_bit_for_bit():
    """In memory keys and values lie otherwise after a step than a file has them."""
    model = quick(random_model())
    state = dreamed(model)[-1][1]
    copied = tree_map(lambda tensor: tensor.contiguous().clone(), state)
    a, b = (dreamed(model, state=s)[-1][1] for s in (state, copied))
    assert same([x.numpy() for x in tree_leaves(a)], [x.numpy() for x in tree_leaves(b)])


def test_gradients_take_the_plain_way():
    model = quick(random_model()).requires_grad_(True)
    state = first_state(model, torch.arange(2))
    imagine(model, state, torch.tensor([1, 2]), 1).latent  # noqa: B018 - with gradients on
    latent = torch.randn(2, 1, 16, 4)
    from lssvwm_gym.models.world_model import FrameInputs

    inputs = FrameInputs(
        torch.zeros(2, 1),
        torch.ones(2, 1, dtype=torch.int64),
        state.pose[:, None],
        state.motion[:, None],
        torch.ones(2, 1),
        torch.zeros(2, 1, 0),
    )
    model(latent, inputs, state.world).clean.square().sum().backward()
    assert all(layer.mlp[0].weight.grad.abs().sum() > 0 for layer in model.layers)


@torch.no_grad()
def test_what_passes_share_is_used_for_this_very_frame_only():
    model = random_model()
    state, action = dreamed(model)[-1][1], torch.tensor([1, 2, 3])
    imagined = imagine(model, state, action, 2)
    plain = commit(model, state, action, imagined._replace(shared_context=None))
    assert furthest(commit(model, state, action, imagined), plain) < 1e-5
    other = torch.tensor([4, 5, 0])
    assert furthest(commit(model, state, other, imagined), commit(model, state, other, imagined._replace(shared_context=None))) == 0
    moved = imagined._replace(motion=imagined.motion + 0.3)
    assert furthest(commit(model, state, action, moved), commit(model, state, action, moved._replace(shared_context=None))) == 0
    elsewhere = imagine(model, state, action, 1, pose=state.pose + 0.5)
    assert elsewhere.shared_context is None


@in_bfloat16
def test_layers_in_bfloat16_are_near_and_leave_a_float32_state():
    model = random_model()
    plain, rough = dreamed(model, steps=1), dreamed(quick(model, torch.bfloat16), steps=1)
    assert 0 < furthest(rough[0][0][0], plain[0][0][0]) < 0.05
    types = {leaf.dtype for leaf in tree_leaves(rough[0][1])}
    assert types == {torch.float32, torch.int64}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=in_bfloat16)])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "unpacked"])
def test_products_and_convolutions_are_those_of_torch(dtype, packs, monkeypatch):
    if not packs:  # as in a build of torch without oneDNN
        monkeypatch.setattr(prepacked, "_packs", lambda what: False)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    linear, x = torch.nn.Linear(24, 40), torch.randn(3, 5, 24)
    convolution, image = torch.nn.Conv2d(8, 12, 3, padding=1), torch.randn(3, 8, 6, 6)
    with torch.no_grad():
        for bias in (linear.bias, None):
            y = PrepackedLinear(linear.weight, bias, dtype)(x)
            assert y.dtype == dtype
            assert furthest(y.float(), torch.nn.functional.linear(x, linear.weight, bias)) < tolerance
        for silu in (False, True):
            y = PrepackedConv2d(convolution, dtype, image.shape[-1], silu)(image.to(dtype).contiguous(memory_format=torch.channels_last))
            expected = convolution(image)
            assert furthest(y.float(), torch.nn.functional.silu(expected) if silu else expected) < tolerance


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 1), pytest.param(torch.bfloat16, 4, marks=in_bfloat16)])
def test_pictures_are_the_same_but_for_rounding(dtype, levels):
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(widths=(16, 32), patch=8)).requires_grad_(False)
    latent = torch.randn(2, 16, 32)
    with torch.no_grad():
        plain = model.decode(latent)
        packed = PrepackedAutoencoder.of(model, dtype).decode(latent)
    assert packed.dtype == torch.uint8
    assert (packed.int() - plain.int()).abs().max() <= levels


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=in_bfloat16)])
@pytest.mark.parametrize("widths", [(32, 64, 192), (48, 96, 128)])
def test_no_width_of_a_decoder_falls_off_a_cliff(dtype, widths):
    """Laid out for another size of image, oneDNN takes a hundred times as long for 96 or 192 channels."""
    model = Autoencoder(AutoencoderConfig(decoder_widths=widths)).requires_grad_(False).to(memory_format=torch.channels_last)
    packed = PrepackedDecoder(model.decoder, dtype, model.config.grid)
    latent = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    fastest = [min(timeit.repeat(lambda decoder=decoder: decoder(latent), number=1, repeat=20)) for decoder in (packed, model.decoder)]
    assert fastest[0] < 5 * fastest[1]


def test_arranged_weights_are_shared_and_the_plain_ones_stay_plain(tiny_weights):
    plain = load_weights(tiny_weights)
    quick = prepack(plain, FLOAT32)
    assert type(plain.world_model) is WorldModel
    assert type(plain.autoencoder) is Autoencoder
    assert isinstance(quick.world_model, PrepackedWorldModel)
    assert quick.world_model.state_dict().keys() == plain.world_model.state_dict().keys()
    assert quick.world_model.token_in.weight is plain.world_model.token_in.weight


def test_a_dream_says_what_it_computes_in(tiny_weights):
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights, "float32")
    assert "dtype='float32'" in repr(dream)
    assert "dtype='bfloat16'" in repr(open_dream("memory-maze", "fast", "cpu", tiny_weights, "bfloat16"))
    assert str(Precision(pictures=torch.bfloat16)) == "float32, samples and pictures bfloat16"
    assert dream.fingerprint == open_dream("memory-maze", "fast", "cpu", tiny_weights, "auto").fingerprint


def test_auto_takes_bfloat16_for_pictures_where_the_processor_multiplies_in_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr("lssvwm_gym.models.inference.backend.multiplies_bfloat16", lambda device, has=has: has)
        assert chosen_precision("auto", "cpu") == Precision(pictures=torch.bfloat16 if has else torch.float32)
        assert chosen_precision("float32", "cpu") == FLOAT32
    assert chosen_precision("auto", "cuda") == FLOAT32


@pytest.mark.parametrize(
    ("dtype", "device", "said"), [("half", "cpu", "float32, bfloat16, not 'half'"), ("bfloat16", "cuda", "is for the CPU")]
)
def test_arithmetic_that_does_not_exist_is_refused(dtype, device, said):
    with pytest.raises(ValueError, match=said):
        chosen_precision(dtype, device)


@pytest.mark.parametrize("dtype", ["float32", "auto", pytest.param("bfloat16", marks=in_bfloat16)])
def test_restoring_and_saving_go_on_bit_for_bit_in_every_arithmetic(tiny_weights, tmp_path, dtype):
    env = DreamEnv("memory-maze", weights=tiny_weights, device="cpu", dtype=dtype)
    env.reset(seed=0)
    for action in (1, 2, 3):
        env.step(action)
    moment = env.clone_state()
    env.save_state(tmp_path / "moment.safetensors")
    first = [env.step(action) for action in (1, 3, 5)]
    env.restore_state(moment)
    assert same(first, [env.step(action) for action in (1, 3, 5)])
    env.load_state(tmp_path / "moment.safetensors")
    assert same(first, [env.step(action) for action in (1, 3, 5)])


def test_a_batch_takes_the_arithmetic_too(tiny_weights):
    envs = DreamVectorEnv("memory-maze", 2, weights=tiny_weights, device="cpu", dtype="float32")
    envs.reset(seed=0)
    frames, *_ = envs.step(np.array([1, 2]))
    assert frames.shape == (2, 64, 64, 3)
    assert "dtype='float32'" in repr(envs)
    names = ["".join(map(str, path)) for path, leaf in tree_flatten_with_path(envs.clone_state().dream)[0] if leaf.dtype == torch.float64]
    assert not names
