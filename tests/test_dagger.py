"""DAgger: what is played is labelled, learned from and gone on with. The simulator is not needed but where it says so."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from tiny_world import WITH_A_MAP, write_tiny_weights

from agents.maze_map import NUMBERS
from agents.policies import Policy, PolicyConfig, load_policy, save_policy
from experiments import dagger
from experiments.dagger import KIND, Args, Learner, Walk, played
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.tensors import save_tensors

CONFIG = PolicyConfig("memory-maze", "features", (4,), 6, 16, 8)


def recalling(number: int, steps: int = 12) -> Walk:
    """The first number seen says what to do all along."""
    seen, label = torch.zeros(steps, 4), number % 2
    seen[0, 0] = 2.0 * label - 1
    return Walk(seen.half(), torch.full((steps,), label), torch.zeros(steps))


@pytest.fixture
def args(tmp_path):
    (tmp_path / "walks").mkdir()
    return Args(out=tmp_path, mazes=2, steps=6, rows=4, hidden=16, memory=8, learning_rate=1e-2, dropout=0.0, observation="features")


def test_what_is_learned_is_what_walks_say_should_be_done(args):
    learner = Learner(args, CONFIG)
    learner.walks = [recalling(number) for number in range(8)]
    losses = [learner.improve().item() for _ in range(150)]
    assert losses[0] > 1.5
    assert losses[-1] < 0.2
    seen = torch.stack([walk.seen.float() for walk in learner.walks], 1)
    for policy in (learner.policy, learner.mean):  # the mean of its weights is what is saved
        assert policy.along(seen).log_probability[-1].argmax(-1).tolist() == [0, 1] * 4


def test_walks_of_all_lengths_are_learned_from_and_padding_is_not(args):
    learner = Learner(args, CONFIG)
    learner.walks = [recalling(0, 3), recalling(0, 9)]
    assert torch.isfinite(learner.improve())


def test_walks_are_taken_in_once_as_they_come(args):
    learner = Learner(args, CONFIG)
    for number in range(3):
        save_tensors(args.out / "walks" / f"0-{number:06d}.safetensors", recalling(number)._asdict(), {"kind": KIND})
        learner.take_in()
        learner.take_in()
        assert learner.played == 12 * (number + 1)


def test_frames_are_learned_from_only_so_often(args):
    """Until more is played; then it waits."""
    learner = Learner(replace(args, passes=2.0), CONFIG)
    learner.walks = [recalling(number) for number in range(4)]
    assert list(learner.learn(time.monotonic() + 2.5, [])) == []
    assert learner.learned == 3 * 48  # one batch more than twice
    assert load_policy(args.policy)[1]["frames"] == 48


def test_a_worker_that_dies_ends_the_run(args):
    class Dead:
        exitcode = 3

        def is_alive(self):
            return False

    with pytest.raises(SystemExit, match="a process that plays ended by itself, with exit code 3"):
        next(Learner(args, CONFIG).learn(time.monotonic() + 5, [Dead()]))


def test_a_run_goes_on_with_the_policy_in_its_folder(args):
    before = Learner(args, CONFIG)
    before.walks = [recalling(number) for number in range(4)]
    before.improve()
    before.save()
    learner = Learner(args, CONFIG)
    learner.restore(args.policy)
    assert (learner.updates, learner.learned) == (1, 48)
    assert all(map(torch.equal, learner.policy.state_dict().values(), before.mean.state_dict().values()))
    with pytest.raises(SystemExit, match="this run needs one of"):
        Learner(args, replace(CONFIG, memory=4)).restore(args.policy)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(expert_share=1.5), "shares from 0 to 1"),
        (dict(data=Path("a"), map=Path("b")), "recordings are not drawn as maps"),
        (dict(minutes=0), "more than 0"),
        (dict(mazes=0), "mazes must be at least 1"),
    ],
)
def test_wrong_settings_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Args(**wrong)


@pytest.mark.slow
@pytest.mark.simulator
def test_mazes_are_played_and_labelled(args, tiny_weights, monkeypatch):
    """First the scripted player acts alone; then a policy that only turns left acts, but the labels are as before."""
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    first = played(args, dream, 7)
    assert [walk.seen.shape for walk in first] == [(6, 256)] * 4
    assert [walk.seen.dtype for walk in first] == [torch.float16] * 4
    for walk, mirrored in zip(first[:2], first[2:], strict=True):
        assert torch.from_numpy(dagger.MIRRORED)[walk.label].tolist() == mirrored.label.tolist()
        assert not torch.equal(walk.seen, mirrored.seen)
        assert torch.equal(walk.reward, mirrored.reward)
    turning = Policy(PolicyConfig("memory-maze", "features", (256,), 6, 16, 8))
    turning.actor[-1].bias.data[2] += 100.0
    save_policy(args.policy, turning, {})
    monkeypatch.setattr(dagger, "SEGMENT", (1, 2))
    second = played(replace(args, expert_share=0.0), dream, 7)
    for mine, other in zip(first, second, strict=True):
        assert mine.label[0] == other.label[0]
        assert torch.equal(mine.seen[0], other.seen[0])
    assert any(not torch.equal(mine.seen, other.seen) for mine, other in zip(first, second, strict=True))
    assert np.isin(torch.cat([walk.label for walk in second]), range(1, 6)).all()


@pytest.mark.slow
@pytest.mark.simulator
def test_a_policy_with_a_map_plays_and_learns_from_what_it_tells(args, tmp_path):
    dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path / "weights", **WITH_A_MAP))
    args = replace(args, map=True, memory=0)
    learner = Learner(args, args.config(dream))
    for walks in (played(args, dream, 7), played(args, dream, 7)):  # the second time by the policy
        assert [walk.seen.shape for walk in walks] == [(6, NUMBERS)] * 4
        learner.walks += walks
        assert torch.isfinite(learner.improve())
        learner.save()


def test_recordings_are_labelled_in_pieces(args, monkeypatch):
    from lssvwm_gym.models.segment import Segment

    frames = 14
    layout, here = np.ones((9, 9), np.uint8), np.full((frames, 2), 4.5)
    arrays = {"agent_pos": here, "agent_dir": np.tile([1.0, 0.0], (frames, 1)), "target_pos": np.tile([8.5, 4.5], (frames, 1))}
    arrays |= {"targets_pos": np.array([[8.5, 4.5]]), "maze_layout": layout}
    episode = Segment(torch.zeros(frames, 1, 1), torch.zeros(frames, dtype=torch.int64), torch.arange(float(frames)), None, None)
    monkeypatch.setattr(dagger, "latent_episodes", lambda *_: [episode])
    monkeypatch.setattr(dagger, "episode_paths", lambda _: [Path("one")])
    monkeypatch.setattr(dagger, "read_arrays", lambda _: arrays)
    monkeypatch.setattr(dagger, "watched", lambda *_: torch.arange(float(frames))[:, None])

    class Weights:
        autoencoder = None

    class Dream:
        weights = Weights()

    walks = dagger.recorded(replace(args, data=Path("data")), Dream())
    assert [len(walk.label) for walk in walks] == [6, 6, 1]
    assert torch.cat([walk.seen[:, 0] for walk in walks]).tolist() == list(range(13))
    assert torch.cat([walk.reward for walk in walks]).tolist() == list(range(1, 14))  # what follows each step
    assert torch.cat([walk.label for walk in walks]).unique().tolist() == [1]  # ahead, where the ball is
