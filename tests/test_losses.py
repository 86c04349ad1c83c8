"""What a clip teaches: pasts that are dreamed are what a dream gives, and leave no gradient."""

from dataclasses import replace

import pytest
import torch
from test_training import ACTIONS, RUN, TINY, signalling_episode
from torch.utils._pytree import tree_map

from lssvwm_gym.data.segments import Episodes, SegmentIndex, inputs_of, read_clip
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training.distributed import ShardedRNG
from lssvwm_gym.training.objectives import LOSSES, LossOptions, has_past, rolled_out
from lssvwm_gym.training.world_model import Trainer

REAL, FRAMES = 3, 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = WorldModel(TINY)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


@pytest.fixture
def clip():
    return read_clip(
        Episodes.of([signalling_episode()]), [SegmentIndex(0, 5, FRAMES, FRAMES), SegmentIndex(0, 60, FRAMES, FRAMES)], FRAMES, ACTIONS
    )


def draws(seed=0):
    return ShardedRNG(torch.Generator().manual_seed(seed))


def frame_of(inputs, t, noise):
    inputs = type(inputs)(*(tensor[:, t : t + 1] for tensor in inputs))
    return inputs._replace(noise=torch.full_like(inputs.noise, noise))


@torch.no_grad()
def test_a_rolled_out_is_what_peeking_and_committing_in_turn_gives(model, clip):
    known, state = torch.ones(2, FRAMES), model.initial_state(2)
    dreamed = rolled_out(model, clip.latent[:, :REAL], clip, known, state, draws())
    inputs, noises = inputs_of(clip, torch.zeros(2, FRAMES), known), draws()
    for t in range(FRAMES):
        latent = clip.latent[:, t]
        if t >= REAL:
            noise = noises.normal(*latent.shape)
            latent = model(noise[:, None], frame_of(inputs, t, 1.0), state).clean[:, 0]
        assert torch.allclose(dreamed[:, t], latent, atol=1e-5), t
        state = model(latent[:, None], frame_of(inputs, t, 0.0), state).state


def test_no_gradient_goes_through_a_rolled_out(model, clip):
    dreamed = rolled_out(model, clip.latent[:, :REAL], clip, torch.ones(2, FRAMES), model.initial_state(2), draws())
    assert not dreamed.requires_grad
    assert not torch.equal(dreamed[:, REAL:], clip.latent[:, REAL:])


def test_the_state_handed_on_remembers_the_dreamed_frames(model, clip):
    metric, options = torch.eye(TINY.tokens * TINY.latent_channels), LossOptions(context_noise=0, pose_dropout=0)
    states = {}
    for way in ("teacher_forcing", "self_rollout"):
        losses, counts, state = LOSSES[way](model, clip, model.initial_state(2), options, metric, draws())
        assert all(loss.isfinite() for loss in losses.values())
        assert counts == {"denoise": 2 * FRAMES, "reward": 2 * FRAMES, "pose": 2 * (FRAMES - 1)}
        states[way] = tree_map(torch.Tensor.detach, state)
    assert states["teacher_forcing"].age.tolist() == states["self_rollout"].age.tolist() == [FRAMES] * 2
    assert not torch.allclose(states["teacher_forcing"].layers[0].keys, states["self_rollout"].layers[0].keys, atol=1e-3)


def test_a_past_that_is_all_real_makes_dreaming_peeking(model, clip):
    known = torch.ones(2, FRAMES)
    assert torch.equal(rolled_out(model, clip.latent, clip, known, model.initial_state(2), draws()), clip.latent)


@pytest.mark.parametrize("shares", [{"teacher_forcing": 0.7, "self_rollout": 0.4}, {"teacher_forcing": -0.1, "self_rollout": 0.4}])
def test_shares_of_steps_that_make_no_whole_are_refused(shares):
    with pytest.raises(ValueError, match="together at most 1"):
        replace(RUN, **shares)


def test_shares_whose_rest_rounds_below_nothing_train():
    trainer = Trainer(replace(RUN, teacher_forcing=0.9, self_rollout=0.1), [signalling_episode()])
    assert trainer.train_step()["denoise"].isfinite()


def test_clips_keep_their_frames_whatever_way_they_teach(model, clip):
    before = clip.map(torch.clone)
    metric = torch.eye(TINY.tokens * TINY.latent_channels)
    for way in LOSSES.values():
        way(model, clip, model.initial_state(2), LossOptions(), metric, draws())
    assert all(torch.equal(a, b) for a, b in zip(before.parts().values(), clip.parts().values(), strict=True))


def test_a_model_of_changes_begins_at_the_mean_and_seldom_learns_frames_with_none_before_them():
    episodes = [signalling_episode(seed) for seed in range(4)]
    run = replace(RUN, model=replace(TINY, residual=True), teacher_forcing=1.0, self_rollout=0.0)
    trainer = Trainer(run, episodes)
    mean = Episodes.of(episodes).whole.latent.float().mean(0)
    assert torch.equal(trainer.average.residual.first, mean)
    assert torch.equal(trainer.model.initial_state(2).last, mean.expand(2, -1, -1))
    fresh, level, rng = trainer.model.initial_state(2000), torch.ones(2000, 3), ShardedRNG(torch.Generator().manual_seed(0), 0, 1)
    asked = has_past(trainer.model, fresh, rng, level)
    assert asked[:, 1:].all()
    assert asked[:, 0].mean().item() == pytest.approx(0.05, abs=0.02)
    assert has_past(trainer.model, fresh._replace(age=fresh.age + 1), rng, level).all()
    assert has_past(WorldModel(TINY), WorldModel(TINY).initial_state(2000), rng, level).all()
    losses = [trainer.train_step()["denoise"].item() for _ in range(12)]
    assert sum(losses[-3:]) < sum(losses[:3])
