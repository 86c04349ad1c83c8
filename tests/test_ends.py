"""Episodes that end by themselves: recorded, learned whatever their length, and as frequent in dreams as in what was learned from."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.data.collect import Source, record
from lssvwm_gym.data.episode import Episode, EpisodeError, read_episode, write_episode
from lssvwm_gym.data.segments import Episodes, SegmentIndex, draw_segment, inputs_of, read_clip
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.models.chance import chance_of
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.training import world_model as module
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import Trainer

TINY = WorldModelConfig(
    latent_channels=4,
    grid=2,
    width=32,
    blocks=((2, 2),),
    heads=2,
    head_width=16,
    d_state=8,
    memory_features=0,
    actions=4,
    window=2,
    termination=True,
)
RUN = WorldTraining(
    data="",
    autoencoder="",
    out="",
    model=TINY,
    curriculum=(Stage(0.3, 16, 1), Stage(0.7, 16, 3)),
    frames_a_step=256,
    warmup=2,
    back=0.2,
    teacher_forcing=0.6,
    self_rollout=0.0,
    odometry_updates=0,
)


def mortal_episode(seed: int, hazard: float = 0.25, least: int = 5, most: int = 60) -> Segment:
    """Frame t shows action t; after action 3 the episode ends with a chance, which nothing shows. At `most` frames it is cut."""
    rng = np.random.default_rng(seed)
    action = [int(rng.integers(4))]
    while len(action) < most and not (len(action) > least and action[-1] == 3 and rng.random() < hazard):
        action.append(int(rng.integers(4)))
    frames, taken = len(action), torch.tensor(action)
    latent = torch.nn.functional.one_hot(taken, 4).float()[:, None].expand(-1, TINY.tokens, -1) * 2 - 0.5
    terminated = torch.zeros(frames, dtype=torch.bool)
    terminated[-1] = frames < most
    nowhere = torch.full((frames, 4), torch.nan)
    return Segment(latent.half(), taken, torch.zeros(frames), nowhere, torch.zeros(frames, 0), terminated=terminated)


class Candle(gym.Env):
    """Goes out by itself after three steps, or is put out after two."""

    observation_space, action_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8), gym.spaces.Discrete(2)
    cut = False

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action):
        self.time += 1
        return np.zeros((16, 16, 3), np.uint8), 1.0, self.time == 3, self.cut and self.time == 2, {}


@pytest.mark.parametrize(("cut", "steps", "ends"), [(False, 9, [0, 0, 0, 1]), (True, 9, [0, 0, 0]), (False, 1, [0, 0])])
def test_a_recording_says_whether_its_episode_ended_or_was_cut(tmp_path, cut, steps, ends):
    env = Candle()
    env.cut = cut
    episode = record(env, lambda frame, info: 1, Source(lambda _: env, lambda rng: None, 5), 0, steps)
    write_episode(tmp_path / "0", episode, 5)
    assert read_episode(tmp_path / "0").terminated.tolist() == [bool(end) for end in ends]


def test_an_episode_that_says_nothing_counts_as_cut(tmp_path):
    silent = Episode(np.zeros((3, 16, 16, 3), np.uint8), np.zeros(3, np.uint8), np.zeros(3, np.float32))
    assert not silent.terminated.any()
    write_episode(tmp_path / "0", replace(silent, extras={"terminated": np.zeros(2, bool)}), 5)
    with pytest.raises(EpisodeError, match=r"0: terminated must be numbers \(3,\)"):
        read_episode(tmp_path / "0")


def test_every_frame_of_short_and_long_episodes_is_drawn_alike():
    lengths = (2, 5, 33, 60, 100)
    episodes = Episodes.of([mortal_episode(n, least=n, most=n) for n in lengths])
    seen, rng = np.zeros(sum(lengths)), np.random.default_rng(0)
    for _ in range(20_000):
        segment = draw_segment(episodes, 16, 3, 0.4, rng)
        assert segment.present(segment.length).all()
        frames, forward = segment.frames(segment.length)
        assert 0 <= frames.min() <= frames.max() < lengths[segment.episode]
        seen[episodes.start[segment.episode] + frames[forward]] += 1
    assert seen / seen.mean() == pytest.approx(1, abs=0.1)


def test_a_clip_longer_than_its_segment_is_filled_up_and_masked():
    episodes = Episodes.of([mortal_episode(0, least=5, most=5), mortal_episode(1)])
    clip = read_clip(episodes, [SegmentIndex(0, 1, 4, 4), SegmentIndex(1, 0, 4, 7)], 8, 4)
    assert clip.present.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]
    assert clip.recorded.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert torch.equal(clip.latent[0, 4:], clip.latent[0, 3:4].expand(4, -1, -1))
    assert (clip.action[clip.recorded == 0] == 4).all()
    assert not (clip.terminated & (clip.recorded == 0)).any()


def test_what_fills_a_clip_up_teaches_nothing(monkeypatch):
    losses = []
    for filling in (0.0, 9.0):

        def filled(*args, filling=filling):
            clip = read_clip(*args)
            assert (clip.present == 0).any()
            return replace(clip, latent=torch.where(clip.present[..., None, None] > 0, clip.latent, filling))

        monkeypatch.setattr(module, "read_clip", filled)
        trainer = Trainer(replace(RUN, steps=4), [mortal_episode(seed) for seed in range(6)])
        losses.append([{name: loss.item() for name, loss in trainer.train_step().items() if name != "gradient_norm"} for _ in range(3)])
    assert losses[0] == losses[1]


def test_ends_are_learned_from_short_episodes_and_come_as_often_as_they_did():
    """A curriculum of 16 to 48 frames, episodes of 5 to 60, whose end after action 3 is a matter of chance."""
    run = replace(RUN, steps=80, learning_rate=4e-3, average=0.9, termination_weight=1.0, reward_weight=0.0)
    trainer = Trainer(run, [mortal_episode(seed) for seed in range(300)])
    losses = [trainer.train_step() for _ in range(run.steps)]
    assert all(loss.isfinite() for one in losses for loss in one.values())
    model, episodes = trainer.average, Episodes.of([mortal_episode(seed, hazard=0.0, most=48) for seed in range(8)])
    clip, zeros = read_clip(episodes, [SegmentIndex(row, 0, 48, 48) for row in range(8)], 48, 4), torch.zeros(8, 48)
    with torch.no_grad():
        features = model(clip.latent, inputs_of(clip, zeros, zeros), model.initial_state(8)).features
        logit = model.termination_head(features[:, :-1], clip.inventory[:, 1:], clip.action[:, 1:])
        chance, shown = logit[:, 7:].sigmoid(), clip.action[:, 8:]
    assert chance[shown == 3].mean().item() == pytest.approx(0.25, abs=0.07)
    assert chance[shown < 3].mean().item() < 0.03


def test_what_is_drawn_is_uniform_and_each_row_s_own():
    noise = torch.randn(20_000, 16, 4, generator=torch.Generator().manual_seed(0))
    chance = chance_of(noise)
    assert [(chance < p).float().mean().item() for p in (0.02, 0.5, 0.9)] == pytest.approx([0.02, 0.5, 0.9], abs=0.01)
    assert torch.allclose(chance_of(noise[5:6]), chance[5:6], atol=1e-6)


def test_dreams_end_by_the_rows_own_draw_whoever_dreams_them(tmp_path):
    weights = write_tiny_weights(tmp_path, termination=True)
    how = dict(weights=weights, profile="fast", device="cpu", dtype="float32")
    env, rows = DreamEnv("memory-maze", **how), DreamVectorEnv("memory-maze", 8, **how)
    head = env.dream.weights.world_model.termination_head.network
    head[-1].weight.data.zero_(), head[-1].bias.data.fill_(-1.5)
    rows.reset(seed=0)
    ended = np.array([rows.step(np.ones(8, int))[2] for _ in range(40)])
    assert ended.mean() == pytest.approx(torch.tensor(-1.5).sigmoid().item(), abs=0.08)
    assert env.reset(seed=3)[1]["termination_probability"] == 0.0
    state, first = env.clone_state(), int(ended[:, 3].argmax())
    steps = [env.step(1) for _ in range(first + 1)]
    assert [step[2] for step in steps] == ended[: first + 1, 3].tolist()
    assert steps[0][4]["termination_probability"] == pytest.approx(0.182, abs=1e-3)
    env.restore_state(state)
    assert [env.step(1)[2] for _ in range(first + 1)] == ended[: first + 1, 3].tolist()
    tensors = DreamVectorEnv("memory-maze", 8, output="torch", **how)
    tensors.reset(seed=0)
    assert [tensors.step(torch.ones(8, dtype=torch.int64))[2].tolist() for _ in range(5)] == ended[:5].tolist()


def test_stable_baselines_hears_of_ends_and_not_of_a_time_limit(tmp_path):
    sb3 = pytest.importorskip("lssvwm_gym.envs.sb3")
    envs = sb3.make_sb3_vec_env("memory-maze", 2, weights=write_tiny_weights(tmp_path, termination=True), profile="fast", device="cpu")
    envs.envs.dream.weights.world_model.termination_head.network[-1].bias.data.fill_(50)
    envs.reset()
    seen, _, done, infos = envs.step(np.zeros(2, int))
    assert done.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    assert [info["terminal_observation"].shape for info in infos] == [seen.shape[1:]] * 2


@pytest.mark.parametrize(("contexts", "first"), [("auto", {0}), ("start", {0}), ("anywhere", set(range(5)))])
def test_dreams_begin_where_episodes_do_and_never_at_their_end(tmp_path, contexts, first):
    """Actions count the frames. A recording of 8 frames that ends by itself has 7 to begin with."""
    weights = write_tiny_weights(tmp_path / "weights", actions=9, termination=True)
    frames, ends = np.zeros((8, 64, 64, 3), np.uint8), {"terminated": np.arange(8) == 7}
    for name in "ab":
        write_episode(tmp_path / "data" / name, Episode(frames, np.arange(8, dtype=np.uint8), np.zeros(8, np.float32), ends), 5)
    how = dict(short_contexts=60, short_context_frames=3, long_contexts=1, contexts=contexts)
    packaged = package(Packaging(weights, weights, tmp_path / "out", tmp_path / "data", **how))
    assert set(packaged.short_contexts.action[:, 0].tolist()) == first
    assert packaged.long_contexts.action.tolist() == [list(range(7))]
