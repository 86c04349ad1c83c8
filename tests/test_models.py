"""What goes wrong in such models, each with a test that would catch it: splits, causality, leaks, batches, peeking."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from ssd_reference import ssd_recurrence
from torch.utils._pytree import tree_leaves, tree_map

from lssvwm_gym.checkpoints import build
from lssvwm_gym.io.json_config import fields_of
from lssvwm_gym.models.attention import FrameAttention
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.ops.ssd import ssd_scan
from lssvwm_gym.models.state import put_rows, take_rows
from lssvwm_gym.models.world_model import FrameInputs, WorldModel, WorldModelConfig

SIZES = dict(latent_channels=4, width=32, head_width=16, d_state=8, memory_features=16)
SMALL = WorldModelConfig(window=3, d_conv=4, **SIZES)


@pytest.fixture(scope="module", params=[False, True], ids=["frames", "changes of frames"])
def model(request):
    torch.manual_seed(0)
    model = WorldModel(replace(SMALL, residual=request.param)).double().requires_grad_(False)
    for parameter in model.parameters():  # zero-initialised parts must take part
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def clip(rows, frames, seed=0, noise=None):
    g = torch.Generator().manual_seed(seed)
    heading = torch.randn(rows, frames, generator=g).double()
    pose = torch.cat([torch.randn(rows, frames, 2, generator=g).double(), heading.cos()[..., None], heading.sin()[..., None]], -1)
    level = torch.rand(rows, frames, generator=g).double().round() if noise is None else torch.full((rows, frames), noise).double()
    motion = torch.randn(rows, frames, 3, generator=g).double() * 0.1
    inputs = FrameInputs(
        level,
        torch.randint(7, (rows, frames), generator=g),
        pose,
        motion,
        torch.ones(rows, frames).double(),
        torch.zeros(rows, frames, 0).double(),
    )
    return torch.randn(rows, frames, 16, 4, generator=g).double(), inputs


def close(a, b, tolerance=1e-9):
    return all(torch.allclose(x, y, atol=tolerance, rtol=tolerance) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


def cut(inputs, frames):
    return tree_map(lambda t: t[:, frames], inputs)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 5, 32, 75])
def test_chunked_scan_equals_recurrence_in_outputs_state_and_gradients(length, groups):
    g = torch.Generator().manual_seed(length)

    def arguments():
        g.manual_seed(length)
        shapes = dict(x=(2, length, 4, 3), dt=(2, length, 4), A=(4,), B=(2, length, groups, 5), C=(2, length, groups, 5), D=(4,))
        made = {k: torch.randn(*s, generator=g, dtype=torch.float64) for k, s in shapes.items()}
        made["dt"], made["A"] = made["dt"].exp() * 0.3, -made["A"].exp()
        made["initial_state"] = torch.randn(2, 4, 3, 5, generator=g, dtype=torch.float64)
        return {k: v.requires_grad_() for k, v in made.items()}

    mine, reference = arguments(), arguments()
    results = ssd_scan(chunk=8, **mine), ssd_recurrence(**reference)
    assert close(*results)
    for y, state in results:
        (y.square().sum() + state.sin().sum()).backward()
    for name in mine:
        assert torch.allclose(mine[name].grad, reference[name].grad, atol=1e-8), name


@pytest.mark.parametrize("split", [[1] * 9, [4, 5], [2, 1, 6]])
def test_any_split_gives_the_same_outputs_and_state(model, split):
    latent, inputs = clip(2, 9)
    whole = model(latent, inputs, model.initial_state(2))
    state, parts, at = model.initial_state(2), [], 0
    for frames in split:
        part = slice(at, at + frames)
        output = model(latent[:, part], cut(inputs, part), state)
        state, at = output.state, at + frames
        parts.append(output)
    assert close(torch.cat([p.clean for p in parts], 1), whole.clean)
    assert close(torch.cat([p.features for p in parts], 1), whole.features)
    assert close(state, whole.state)


def test_no_frame_sees_a_later_one(model):
    latent, inputs = clip(1, 7)
    latent.requires_grad_()
    model(latent, inputs, model.initial_state(1)).clean[:, 3].square().sum().backward()
    reach = latent.grad.abs().sum((0, 2, 3))
    assert (reach[4:] == 0).all()
    assert (reach[:4] > 0).all()


def test_blocks_do_not_leak_into_each_other():
    torch.manual_seed(0)
    scan = BlockScan(8, grid=4, block=(2, 2), d_state=4, head_width=8)
    x = torch.randn(1, 3, 16, 8, requires_grad=True)
    scan(x, *scan.initial_state(1))[0][:, -1, 0].sum().backward()  # token 0 lies in the upper left block
    touched = x.grad.abs().sum((0, 1, 3)) > 0
    assert touched[[0]].all()
    assert not touched[[2, 3, 6, 7, *range(8, 16)]].any()


@pytest.mark.parametrize(
    ("window", "chunk", "frames", "read_only"),
    [
        (3, 1, 9, None),
        (10, 1, 12, None),  # further than biases tell apart
        (5, 5, 15, None),
        (2, 3, 6, None),
        (3, 1, 7, (False, True, False, True, True, False, False)),
        (3, 1, 6, (True, False) * 3),
        (3, 1, 3, (True,) * 3),
    ],
)
@torch.no_grad()
def test_attention_is_a_softmax_over_all_tokens_of_the_frames_that_are_seen(window, chunk, frames, read_only):
    layer = FrameAttention(32, 4, 2, window, chunk)
    layer.bias += torch.randn_like(layer.bias)
    _, *state = layer(torch.randn(2, chunk, 4, 32), *layer.initial_state(2))
    x = torch.randn(2, frames, 4, 32)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 16)).permute(3, 0, 1, 4, 2, 5)  # (B, T, H, N, P)
    q, k = F.layer_norm(q, (16,)) / 4 + 1, F.layer_norm(k, (16,))
    committed = [(number - window, *pair) for number, pair in enumerate(zip(*(part.unbind(1) for part in state), strict=True))]
    expected = []
    for first in range(0, frames, chunk):
        at, own = committed[-1][0] + 1, range(first, first + chunk)
        seen = committed[-window:] + [(at + place, k[:, t], v[:, t]) for place, t in enumerate(own)]
        for place, t in enumerate(own):
            bias = [layer.bias[:, min(at + place - there + chunk - 1, layer.bias.shape[1] - 1)] for there, _, _ in seen]
            keys, values = (torch.cat([each[part] for each in seen], 2) for part in (1, 2))
            weights = (q[:, t] @ keys.transpose(-1, -2) + torch.cat(bias, -1)).softmax(-1)
            expected.append((weights @ values).transpose(1, 2).flatten(2))
        committed += [each for each, t in zip(seen[-chunk:], own, strict=True) if not (read_only and read_only[t])]
    assert torch.allclose(layer(x, *state, read_only)[0], layer.out(torch.stack(expected, 1)), atol=1e-5)


def test_attention_sees_its_window_and_chunk_only():
    torch.manual_seed(0)
    for chunk, window, query, seen in ((1, 2, 5, {3, 4, 5}), (3, 3, 4, {0, 1, 2, 3, 4, 5}), (3, 3, 7, {3, 4, 5, 6, 7, 8})):
        attention = FrameAttention(8, tokens=4, heads=2, window=window, chunk=chunk)
        x = torch.randn(1, 9, 4, 8, requires_grad=True)
        attention(x, *attention.initial_state(1))[0][:, query].sum().backward()
        assert set(x.grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist()) == seen


def test_grouping_of_frames_does_not_change_attention():
    torch.manual_seed(0)
    one, many = (FrameAttention(8, 4, 2, window=3, chunks_together=n).double() for n in (1, 4))
    many.load_state_dict(one.state_dict())
    x = torch.randn(2, 10, 4, 8).double()
    assert close(one(x, *one.initial_state(2)), many(x, *many.initial_state(2)))


def test_a_row_depends_neither_on_its_neighbours_nor_on_their_number(model):
    latent, inputs = clip(5, 4)
    together = model(latent, inputs, model.initial_state(5))
    alone = model(latent[2:3], tree_map(lambda t: t[2:3], inputs), model.initial_state(1))
    assert close(take_rows(together, torch.tensor([2])), alone)


def test_reset_of_one_row_leaves_the_others(model):
    latent, inputs = clip(3, 4)
    state = model(latent, inputs, model.initial_state(3)).state
    row = torch.tensor([1])
    reset = put_rows(state, row, model.initial_state(1))
    latent, inputs = clip(3, 1, seed=1)
    before, after = model(latent, inputs, state).clean, model(latent, inputs, reset).clean
    assert close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])
    assert close(after[row], model(latent[row], tree_map(lambda t: t[row], inputs), model.initial_state(1)).clean)


def test_peeking_changes_no_state(model):
    latent, inputs = clip(2, 3)
    state = model(latent, inputs, model.initial_state(2)).state
    kept = tree_map(torch.clone, state)
    noisy, peek = clip(2, 1, seed=2, noise=0.7)
    for _ in range(3):
        model(noisy, peek, state)
    assert close(state, kept, tolerance=0)


@pytest.mark.parametrize("pattern", ["10110010", "10101010", "00000001", "00000000", "11111111"])
def test_frames_peeked_at_in_one_call_are_what_a_call_each_gives(model, pattern):
    latent, inputs = clip(2, 8)
    read_only = tuple(peek == "1" for peek in pattern)
    inputs = inputs._replace(noise=torch.tensor(read_only) * 0.7 + torch.zeros(2, 8).double())
    together = model(latent, inputs, model.initial_state(2), read_only)
    state = model.initial_state(2)
    for t, peek in enumerate(read_only):
        frame = slice(t, t + 1)
        alone = model(latent[:, frame], cut(inputs, frame), state)
        assert torch.allclose(together.clean[:, frame], alone.clean, atol=1e-9), t
        assert torch.allclose(together.features[:, frame], alone.features, atol=1e-9), t
        state = state if peek else alone.state
    assert close(together.state, state)


def test_only_clean_frames_with_a_pose_write_to_places(model):
    latent, inputs = clip(1, 3, noise=0.5)
    blank = inputs._replace(noise=torch.zeros_like(inputs.noise), pose_known=torch.zeros_like(inputs.pose_known))
    for unwritten in (inputs, blank):
        assert (model(latent, unwritten, model.initial_state(1)).state.spatial_memory.latents == 0).all()
    clean = inputs._replace(noise=torch.zeros_like(inputs.noise))
    assert model(latent, clean, model.initial_state(1)).state.spatial_memory.latents.abs().sum() > 0


def test_unknown_pose_hides_the_pose(model):
    latent, inputs = clip(1, 3)
    hidden = inputs._replace(pose_known=torch.zeros_like(inputs.pose_known))
    moved = hidden._replace(pose=hidden.pose + 3, motion=hidden.motion + 1)
    assert close(model(latent, hidden, model.initial_state(1)).clean, model(latent, moved, model.initial_state(1)).clean)


def test_config_survives_json():
    import dataclasses
    import json

    assert WorldModelConfig(**fields_of(WorldModelConfig, json.loads(json.dumps(dataclasses.asdict(SMALL))), build.SIZES)) == SMALL


def test_config_refuses_contradictions():
    with pytest.raises(ValueError, match="action_size"):
        WorldModelConfig(actions=0)
    with pytest.raises(ValueError, match="doesn't tile"):
        BlockScan(8, grid=4, block=(3, 1), d_state=4, head_width=8)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 2.8), ("base", 45), ("paper", 200)])
def test_presets_have_the_size_they_claim(name, millions):
    from lssvwm_gym.models.config import preset

    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in WorldModel(preset(name)).parameters())
    assert weights == pytest.approx(millions * 1e6, rel=0.1)


def test_a_model_of_changes_begins_with_the_last_committed_frame():
    torch.manual_seed(0)
    model = WorldModel(replace(SMALL, residual=True, memory_features=0)).double()
    latent, inputs = clip(2, 5)
    output = model(latent, inputs, model.initial_state(2), (False, True, True, False, True))
    assert torch.equal(output.clean, torch.stack([torch.zeros_like(latent[:, 0]), *latent[:, [0, 0, 0, 3]].unbind(1)], 1))
    assert torch.equal(output.state.last, latent[:, 3])
    again = model(latent[:, :1], cut(inputs, slice(0, 1)), output.state, (True,))
    assert torch.equal(again.clean[:, 0], latent[:, 3])


def test_an_unknown_preset_names_the_known_ones():
    from lssvwm_gym.models.config import preset

    with pytest.raises(ValueError, match="tiny, base, paper"):
        preset("huge")


@pytest.mark.parametrize("read_only", [None, (True, False) * 6])
def test_gradients_of_long_windows_are_the_same_though_less_is_kept(read_only, monkeypatch):
    torch.manual_seed(0)
    attention, x = FrameAttention(32, 4, 2, window=20), torch.randn(2, 12, 4, 32, requires_grad=True)
    keys, values = attention.initial_state(2)
    gradients, kept = [], []
    for longest in (20, 19):
        monkeypatch.setattr(FrameAttention, "kept", longest)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            y, *_ = attention(x, keys, values, read_only)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, attention.bias, attention.qkv.weight]))
        kept.append(sum(saved))
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2
