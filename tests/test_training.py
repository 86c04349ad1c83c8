"""Training: clips are aligned, runs resume exactly, and a world in which an off-by-one shows is learned."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lssvwm_gym.checkpoints.checkpoint import load_autoencoder
from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.data.segments import Episodes, SegmentIndex, draw_segment, read_clip
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import AutoencoderConfig
from lssvwm_gym.models.diffusion import NoiseLevels, draw_noise_levels, sample
from lssvwm_gym.models.geometry import integrate_motion, motion_between
from lssvwm_gym.models.rollout import commit, first_state, imagine, prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.autoencoder import AutoencoderTraining, train_autoencoder
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.objectives import odometry_loss
from lssvwm_gym.training.optim import learning_rate, mixed_precision
from lssvwm_gym.training.world_model import Trainer

ACTIONS = 4
TINY = WorldModelConfig(
    latent_channels=4,
    grid=2,
    width=32,
    blocks=((2, 2), (1, 1)),
    heads=2,
    head_width=16,
    d_state=8,
    memory_features=32,
    actions=ACTIONS,
    window=2,
)
RUN = WorldTraining(
    data="", autoencoder="", out="", model=TINY, curriculum=(Stage(0.5, 8, 1), Stage(0.5, 16, 3)), frames_a_step=64, steps=12, warmup=2
)


def signalling_episode(frames=200, seed=0):
    """A world in which frame t shows action t, action 1 pays at once, and action t turns by its number: an off-by-one is visible."""
    rng = np.random.default_rng(seed)
    action = torch.from_numpy(rng.integers(ACTIONS, size=frames))
    latent = torch.nn.functional.one_hot(action, ACTIONS).float()[:, None].expand(-1, TINY.tokens, -1) * 2 - 0.5
    motion = torch.stack([0.1 + 0 * action, 0 * action, 0.1 * action], -1).float()
    pose = [torch.tensor([1.0, 2.0, 0.0, 1.0])]
    for t in range(1, frames):
        pose.append(integrate_motion(pose[-1], motion[t]))
    return Segment(latent.half(), action, (action == 1).float(), torch.stack(pose), torch.zeros(frames, 0))


@pytest.fixture(scope="module")
def episodes():
    return [signalling_episode(seed=seed) for seed in range(4)]


def test_clips_keep_frame_action_reward_and_motion_of_one_moment_together(episodes):
    clip = read_clip(Episodes.of(episodes), [SegmentIndex(0, 5, 40, 40, at=8), SegmentIndex(1, 50, 12, 24)], 16, ACTIONS)
    shown = clip.latent.mean(2).argmax(-1)
    recorded = clip.recorded.bool()
    assert torch.equal(shown[recorded], clip.action[recorded])
    assert torch.equal((shown == 1)[recorded].float(), clip.reward[recorded])
    assert torch.allclose(clip.motion[0, :, 2], 0.1 * clip.action[0].float(), atol=1e-5)
    assert (clip.action[~recorded] == ACTIONS).all()
    assert recorded[0].all()
    assert recorded[1].tolist() == [True] * 12 + [False] * 4


def test_the_way_back_goes_through_the_same_frames_and_poses(episodes):
    clip = read_clip(Episodes.of(episodes), [SegmentIndex(0, 30, 9, 17)], 17, ACTIONS)
    assert torch.equal(clip.latent, clip.latent.flip(1))
    assert torch.allclose(clip.pose, clip.pose.flip(1))
    assert torch.allclose(integrate_motion(clip.pose[:, :-1], clip.motion[:, 1:]), clip.pose[:, 1:], atol=1e-5)


def test_consecutive_clips_of_a_walk_join_without_a_seam(episodes):
    walk = SegmentIndex(2, 10, 60, 60)
    whole = read_clip(Episodes.of(episodes), [walk], 40, ACTIONS)
    parts = [read_clip(Episodes.of(episodes), [replace(walk, at=walk.at + at)], 20, ACTIONS) for at in (0, 20)]
    for name in ("latent", "action", "pose", "motion"):
        assert torch.allclose(torch.cat([getattr(p, name) for p in parts], 1), getattr(whole, name), atol=1e-6), name


def test_walks_stay_inside_their_episode(episodes):
    for seed in range(300):
        walk = draw_segment(Episodes.of(episodes), 16, 4, 0.6, np.random.default_rng(seed))
        index, _ = walk.frames(walk.length)
        assert index.min() >= 0
        assert index.max() < len(episodes[walk.episode])


@pytest.mark.parametrize("wrong", [{"step": "4"}, {"segments": [{}]}, {"segments": []}, {"frames": None}, {"segments": 3}])
def test_a_checkpoint_with_a_strange_header_is_refused(episodes, tmp_path, wrong):
    trainer, path = Trainer(RUN, episodes), tmp_path / "checkpoint.safetensors"
    trainer.train_step()
    trainer.save(path)
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | wrong)
    with pytest.raises(TensorFileError, match="checkpoint"):
        Trainer(RUN, episodes).load(path)


def test_motion_is_the_inverse_of_advance():
    pose = integrate_motion(torch.tensor([1.0, 2.0, 0.6, 0.8]), torch.tensor([0.3, -0.2, 1.0]))
    assert torch.allclose(motion_between(torch.tensor([1.0, 2.0, 0.6, 0.8]), pose), torch.tensor([0.3, -0.2, 1.0]), atol=1e-6)


def test_noise_levels_hold_clean_prefixes_and_recalls():
    levels = draw_noise_levels(2000, 40, NoiseLevels(), torch.Generator().manual_seed(0))
    prefix = (levels[:, :20] == 0).all(1)
    recall = prefix & ((levels[:, -2:] >= 0.85).all(1))
    assert levels.min() == 0
    assert levels.max() == 1
    assert 0.45 < prefix.float().mean() < 0.55
    assert 0.25 < recall.float().mean() < 0.35


def test_sampler_in_one_step_is_the_estimate_and_in_many_ends_there():
    target = torch.full((2, 3), 4.0)
    for steps in (1, 2, 5):
        assert torch.allclose(sample(lambda x, level: target, torch.randn(2, 3), steps)[0], target)
    guesses = iter([torch.zeros(2, 3), torch.tensor([[1.0], [2.0]]).expand(2, 3)])
    assert sample(lambda x, level: next(guesses), target, 2)[1].tolist() == [1, 4]  # how far the last guess is from the first
    assert sample(lambda x, level: x / 2, target, 1)[1].tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least 1 step"):
        sample(lambda x, level: x, target, 0)


def test_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(step, 100, 2.0, 10, 0.4) for step in range(101)]
    assert rates[0] < rates[5] < rates[10] == rates[59] == 2.0
    assert rates[60] >= rates[80] > rates[99] > rates[100] == 0


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_stopped_run_goes_on_exactly(episodes, tmp_path, stop):
    straight, first = Trainer(RUN, episodes), Trainer(RUN, episodes)
    losses = [straight.train_step()["denoise"].item() for _ in range(RUN.steps)]
    for _ in range(stop):
        first.train_step()
    first.save(tmp_path / "checkpoint.safetensors")
    second = Trainer(RUN, episodes)
    second.load(tmp_path / "checkpoint.safetensors")
    assert [second.train_step()["denoise"].item() for _ in range(RUN.steps - stop)] == losses[stop:]
    for mine, theirs in zip(second.average.parameters(), straight.average.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoint_of_another_model_or_seed_is_refused(episodes, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    Trainer(RUN, episodes).save(path)
    for other in (replace(RUN, seed=1), replace(RUN, model=replace(TINY, width=64))):
        with pytest.raises(TensorFileError, match="choose another --out"):
            Trainer(other, episodes).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TensorFileError, match="not a safetensors file"):
        Trainer(RUN, episodes).load(path)


def test_a_small_model_learns_which_frame_motion_and_reward_an_action_leads_to(episodes):
    run = replace(RUN, steps=150, learning_rate=3e-3, average=0.9, reward_weight=1.0, pose_weight=1.0)
    trainer = Trainer(run, episodes)
    for _ in range(run.steps):
        trainer.train_step()
    model, episode = trainer.average, signalling_episode(seed=9)
    clip = read_clip(Episodes.of([episode]), [SegmentIndex(0, 0, 24, 24)], 24, ACTIONS)
    state = prefill(model, first_state(model, torch.tensor([0])), clip.latent[:, :20], clip.action[:, :20], clip.pose[:, :20]).state
    for action in range(ACTIONS):
        imagined = imagine(model, state, torch.tensor([action]), steps=1)
        assert imagined.latent.mean((0, 1)).argmax() == action
        assert abs(imagined.motion[0, 2].item() - 0.1 * action) < 0.06
        after = commit(model, state, torch.tensor([action]), imagined)
        assert (model.reward_head(after.features).argmax(-1) == 1).item() == (action == 1)


@pytest.fixture(scope="module")
def episode_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    for seed in range(2):
        frames = np.repeat(rng.integers(256, size=(30, 1, 1, 3), dtype=np.uint8), 32, 1).repeat(32, 2)
        write_episode(folder / f"{seed:06d}", Episode(frames, np.zeros(30, np.uint8), np.zeros(30, np.float32)), fps=4)
    return folder


def test_autoencoder_learns_and_resumes_exactly(episode_folder, tmp_path):
    model = AutoencoderConfig(image_size=32, widths=(8, 16), latent_channels=4)
    run = AutoencoderTraining(data=episode_folder, out=tmp_path / "straight", model=model, steps=8, batch=4, save_every=4, warmup=1)
    straight = load_autoencoder(train_autoencoder(run))
    stopped = replace(run, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(stopped, at_step=6)
    resumed = load_autoencoder(train_autoencoder(stopped))
    for mine, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    frames = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    assert resumed.encode(frames).shape == (3, model.tokens, 4)
    assert resumed.decode(resumed.encode(frames)).shape == frames.shape


def test_a_decoder_learns_alone_for_the_latents_that_there_are(episode_folder, tmp_path):
    model = AutoencoderConfig(image_size=32, widths=(8, 16), latent_channels=4)
    plan = AutoencoderTraining(data=episode_folder, out=tmp_path / "both", model=model, steps=8, batch=4, save_every=4, warmup=1)
    both = train_autoencoder(plan)
    narrow = replace(model, decoder_widths=(4, 8))
    run = replace(plan, out=tmp_path / "decoder", encoder=both, model=narrow)
    old, new = load_autoencoder(both), load_autoencoder(train_autoencoder(run))
    kept = [name for name in old.state_dict() if not name.startswith("decoder.")]
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in kept)
    assert len(kept) > 2
    torch.manual_seed(0)
    assert not torch.equal(new.decoder[0].weight, type(new)(narrow).decoder[0].weight)  # it learned
    assert new.decode(torch.zeros(2, model.tokens, 4)).shape == (2, 32, 32, 3)

    stopped = replace(run, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(stopped, at_step=6)
    resumed = load_autoencoder(train_autoencoder(stopped))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed.parameters(), new.parameters(), strict=True))
    with pytest.raises(TensorFileError, match="was made with decoder_only True, not False"):
        train_autoencoder(replace(stopped, encoder=None))
    with pytest.raises(ValueError, match=r"--encoder is of .* but for decoder_widths and latent_noise"):
        train_autoencoder(replace(run, out=tmp_path / "wider", model=replace(narrow, latent_channels=8)))
    with pytest.raises(ValueError, match="decoder_widths are as many as widths, one a resolution: 2, not 1"):
        AutoencoderConfig(widths=(8, 16), decoder_widths=(8,))


@pytest.mark.parametrize(("emphasis", "weight"), [(0.0, 1.0), (2.0, 1 + 2 * 16.0), (2e9, 1 + 2e9 * 16.0)])
def test_pixels_that_are_missed_weigh_more(emphasis, weight):
    from types import SimpleNamespace

    from lssvwm_gym.training.autoencoder import reconstruction_loss
    from lssvwm_gym.training.distributed import ShardedRNG

    frames = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    seen = torch.ones(2, 3, 4, 4)
    seen[:, :, 0, 0] = 0.0  # one pixel of sixteen is missed by 1
    blind = SimpleNamespace(
        bounded_latent=lambda frames: torch.zeros(2, 1), decoder=lambda latent: seen, config=SimpleNamespace(latent_noise=0.0)
    )
    loss, error = reconstruction_loss(blind, frames, ShardedRNG(torch.Generator()), emphasis)
    assert loss.item() == pytest.approx((weight / 16 + 1e-6) ** 0.5)
    assert error.item() == pytest.approx(1 / 16)


def _interrupted(run, at_step):
    """Train, and be stopped after the checkpoint of step 4."""
    import lssvwm_gym.training.autoencoder as module

    original = module.optim.update_average
    try:

        def stop_at(average, model, step, decay):
            if step == at_step:
                raise KeyboardInterrupt
            original(average, model, step, decay)

        module.optim.update_average = stop_at
        module.train_autoencoder(run)
    finally:
        module.optim.update_average = original


def test_finished_autoencoder_says_what_it_saw(episode_folder, tmp_path):
    from safetensors import safe_open

    model = AutoencoderConfig(image_size=32, widths=(8,), latent_channels=4)
    path = train_autoencoder(AutoencoderTraining(data=episode_folder, out=tmp_path, model=model, steps=1, batch=2))
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["data"]["episodes"] == 2


def test_the_latent_metric_weighs_errors_as_the_decoder_shows_them(tmp_path):
    from lssvwm_gym.models.autoencoder import Autoencoder
    from lssvwm_gym.training.latents import latent_metric

    autoencoder = Autoencoder(AutoencoderConfig(image_size=16, widths=(8, 8), latent_channels=4)).requires_grad_(False)
    latent = torch.randn(3, autoencoder.config.tokens, 4)
    episodes = [Segment(latent, torch.zeros(3).long(), torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 0))]
    metric = latent_metric(autoencoder, episodes, tmp_path / "metric.safetensors", frames=1)
    assert torch.equal(metric, latent_metric(autoencoder, episodes, tmp_path / "metric.safetensors"))
    before = autoencoder.decode_smoothly(latent[1:2])
    seen, shown = [], []
    for error in 0.1 * torch.randn(20, 1, autoencoder.config.tokens, 4):
        shown.append((autoencoder.decode_smoothly(latent[1:2] + error) - before).square().mean())
        seen.append(error.flatten() @ metric @ error.flatten())
    ratio = torch.stack(seen) / torch.stack(shown)
    assert ratio.std() < 0.1 * ratio.mean()


def test_training_runs_in_bfloat16_and_keeps_its_state_in_float32(episodes):
    run = replace(RUN, precision="bfloat16", teacher_forcing=0.5)
    trainer = Trainer(run, episodes)
    losses = [trainer.train_step()["denoise"].item() for _ in range(8)]
    assert np.isfinite(losses).all()
    assert all(layer.ssm.dtype == layer.keys.dtype == torch.float32 for layer in trainer.state.layers)


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(ValueError, match="auto, bfloat16 or float32"):
        mixed_precision("half")


def test_the_sight_head_learns_motion_from_what_frames_show(episodes):
    """Frame t shows by how much its action turned: motions told wrongly are corrected, those of unrecorded poses are left out."""
    torch.manual_seed(0)
    model = WorldModel(TINY)
    optimizer = torch.optim.AdamW(model.odometry_head.parameters(), lr=3e-3)
    losses = []
    for step in range(150):
        optimizer.zero_grad()
        loss = odometry_loss(model, Episodes.of(episodes), 128, np.random.default_rng(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < 0.3 * losses[0]
    episode, wrong = episodes[0], torch.tensor([0.1, 0.0, 0.9])
    frames = episode.latent.float()
    seen = [model.odometry_head(frames[t - 1], frames[t], episode.action[t], wrong, wrong)[2].item() for t in (10, 11, 12)]
    assert seen == pytest.approx([0.1 * episode.action[t].item() for t in (10, 11, 12)], abs=0.08)
    blind = [replace(e, pose=torch.full_like(e.pose, torch.nan)) for e in episodes]
    assert odometry_loss(model, Episodes.of(blind), 8, np.random.default_rng(0)) == 0
