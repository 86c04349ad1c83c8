"""The memory of places: what it answers is the regression's answer, in any split, for rows of any age, after thousands of frames."""

import pytest
import torch

from lssvwm_gym.models.spatial_memory import PoseKeys, query_memory, read_write

FEATURES, VALUES = 48, 6


def keys(*shape, noise=0.05, seed=0):
    g = torch.Generator().manual_seed(seed)
    heading = torch.rand(*shape, generator=g).double() * 6.3
    pose = torch.cat([torch.randn(*shape, 2, generator=g).double(), heading.cos()[..., None], heading.sin()[..., None]], -1)
    return PoseKeys(FEATURES, ((0.35, 0.25), (1.0, 0.5)), noise).double()(pose)


def values(*shape, seed=1):
    return torch.randn(*shape, VALUES, generator=torch.Generator().manual_seed(seed)).double()


def empty(rows, dtype=torch.float64):
    return torch.zeros(rows, FEATURES, FEATURES, dtype=dtype), torch.zeros(rows, VALUES, FEATURES, dtype=dtype)


def test_every_frame_reads_what_a_regression_on_the_written_frames_before_it_gives():
    k, v, writes = keys(2, 30), values(2, 30), (torch.arange(30) % 3 != 1).double().expand(2, -1)
    known, memory = empty(2)
    memory_query, known = query_memory(k, writes, known)
    read, memory = read_write(memory_query, v, memory)
    for t in range(30):
        past, seen = (k * writes[..., None])[:, :t], v[:, :t]
        solved = torch.linalg.solve(torch.eye(FEATURES) + past.transpose(1, 2) @ past, k[:, t, :, None]).squeeze(-1)
        assert torch.allclose(read[:, t], torch.einsum("btv,btf,bf->bv", seen, past, solved)), t
        assert torch.allclose(memory_query.posterior_variance[:, t], (solved * k[:, t]).sum(-1) / k[:, t].square().sum(-1)), t


def test_what_was_written_comes_back_there_and_fades_with_distance():
    key = PoseKeys(512, ((0.35, 0.25), (1.0, 0.5)), 0.05)
    pose = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.3, 0.0, 1.0, 0.0], [3.0, 3.0, 0.0, 1.0]]])
    writes, shown = torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 4, 1)
    memory_query, _ = query_memory(key(pose), writes, torch.zeros(1, 512, 512))
    read, _ = read_write(memory_query, shown, torch.zeros(1, 1, 512))
    nothing, here, near, far = read.flatten().tolist()
    assert nothing == 0
    assert here == pytest.approx(1 / 1.05, abs=0.01)  # one observation, off by a variance of 0.05
    assert 0.3 < near < 0.9
    assert abs(far) < 0.2
    assert memory_query.posterior_variance[0, [0, 1]].tolist() == pytest.approx([1, 0.05 / 1.05], abs=0.01)
    assert memory_query.posterior_variance[0, 3] > 0.9


def test_a_place_is_told_apart_from_a_thousand_others():
    """A plain sum weighed by similarity is not: that is why queries are solved for."""
    key = PoseKeys(512, ((0.35, 0.25), (1.0, 0.5)), 0.05)
    along = torch.linspace(0, 20, 400)
    pose = torch.stack([along, (along * 2).sin(), (along * 0.7).cos(), (along * 0.7).sin()], -1)[None]
    shown = torch.randn(1, 400, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)  # views change gradually
    shown = (shown - shown.mean(1)) / shown.std(1)
    memory_query, known = query_memory(key(pose), torch.ones(1, 400), torch.zeros(1, 512, 512))
    _, memory = read_write(memory_query, shown, torch.zeros(1, 8, 512))
    back, _ = query_memory(key(pose), None, known)
    solved, _ = read_write(back, shown, memory)
    summed = key(pose) @ memory.transpose(1, 2)
    summed = summed * (summed * shown).mean() / summed.square().mean()  # at its best scale
    assert (solved - shown).square().mean() < 0.02
    assert (summed - shown).square().mean() > 10 * (solved - shown).square().mean()


def test_frames_that_only_read_change_nothing():
    k, v = keys(1, 5), values(1, 5)
    known, memory = empty(1)
    memory_query, known = query_memory(k, torch.ones(1, 5).double(), known)
    _, memory = read_write(memory_query, v, memory)
    for writes in (None, torch.zeros(1, 5).double()):
        memory_query, after = query_memory(k, writes, known)
        read, kept = read_write(memory_query, v, memory)
        assert torch.equal(after, known)
        assert torch.equal(kept, memory)
        assert torch.allclose(read, read_write(query_memory(k, None, known)[0], v, memory)[0])


@pytest.mark.slow
def test_ten_thousand_frames_in_float32_stay_close_to_float64():
    k = keys(1, 500).repeat(1, 20, 1) + 0.01 * keys(1, 10_000, seed=3)
    v = values(1, 500).repeat(1, 20, 1)
    results = []
    for dtype in (torch.float32, torch.float64):
        known, memory = empty(1, dtype)
        for part in range(0, 10_000, 50):
            memory_query, known = query_memory(k[:, part : part + 50].to(dtype), torch.ones(1, 50, dtype=dtype), known)
            read, memory = read_write(memory_query, v[:, part : part + 50].to(dtype), memory)
        results.append((read.double(), memory_query.posterior_variance.double()))
    (read, unknown), (true_read, true_unknown) = results
    assert (read - true_read).abs().max() < 0.02
    assert (unknown - true_unknown).abs().max() < 1e-3


def written(k, v, writes, share, cuts):
    """Reads of every frame and the memory after them, where that many frames at a time go through."""
    (known, memory), reads = empty(len(k)), []
    for at in range(0, k.shape[1], cuts):
        part = slice(at, at + cuts)
        memory_query, known = query_memory(k[:, part], writes[:, part], known)
        read, memory = read_write(memory_query, v[:, part], memory, share=share[:, part])
        reads.append(read)
    return torch.cat(reads, 1), memory


def test_where_the_world_changed_a_frame_overwrites_what_was_seen_often():
    k = keys(1, 1).expand(1, 12, -1)  # one view, all the time
    v = torch.tensor([[0.0] * 9 + [1.0, 1.0, 1.0]]).double()[..., None].expand(-1, -1, VALUES)
    writes, changes = torch.ones(1, 12).double(), (torch.arange(12) == 9).double()[None]
    blended, _ = written(k, v, writes, 0 * changes, 12)
    assert blended[0, 10].max() < 0.15  # a mean of ten
    replaced, _ = written(k, v, writes, 0.8 * changes, 12)
    assert torch.allclose(replaced[0, :10], blended[0, :10])
    assert torch.allclose(replaced[0, 10], torch.tensor(0.8).double())
    assert (replaced[0, 11] > 0.8).all()


@pytest.mark.parametrize("cuts", [1, 4, 30])
def test_overwriting_is_the_same_in_any_split(cuts):
    k, v, writes = keys(2, 30), values(2, 30), (torch.arange(30) % 3 != 1).double().expand(2, -1)
    share = 0.8 * (torch.arange(30) % 4 == 0).double().expand(2, -1)
    whole, memory = written(k, v, writes, share, 30)
    parts, kept = written(k, v, writes, share, cuts)
    assert torch.allclose(whole, parts)
    assert torch.allclose(memory, kept)
