"""The flow head, which samples a frame's latent, and the motion head that knows what is blocked: models, dreams, training."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stepping import SIZES, random_model
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights, read_weights
from lssvwm_gym.data.segments import Episodes
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io import legacy
from lssvwm_gym.models import rollout
from lssvwm_gym.models.diffusion import sample
from lssvwm_gym.models.flow_head import FEW_STEPS, FrameEvidence
from lssvwm_gym.models.inference.decode import PrepackedFlowHead, PrepackedWorldModel
from lssvwm_gym.models.map_memory import COLUMNS, ROWS, numbers_shown
from lssvwm_gym.models.motion_heads import is_blocked, moving_actions
from lssvwm_gym.models.rollout import LATENT_STEPS, commit, first_state, imagine, prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training import dreamed_samples as module
from lssvwm_gym.training import heads
from lssvwm_gym.training.dreamed_samples import Buffer, DreamOptions, Samples, dreamed_samples, really_came
from lssvwm_gym.training.grown import with_heads
from lssvwm_gym.training.heads import MOST_EMPHASIS, Heads, HeadTrainer, HeadTraining, few_steps_loss, flow_loss, token_weights
from lssvwm_gym.training.objectives import odometry_loss

FLOW = dict(flow_width=40, flow_heads=5, flow_layers=2, collisions=True)
STEPS = (1, 2, 4, 8)


def evidence_of(model: WorldModel, rows: int, seed: int = 0) -> FrameEvidence:
    generator, config = torch.Generator().manual_seed(seed), model.config
    latents = [torch.randn(rows, config.tokens, config.latent_channels, generator=generator) for _ in range(3)]
    tokens = torch.randn(rows, config.tokens, config.width, generator=generator)
    shown = torch.randn(rows, config.grid, numbers_shown(config.map_objects) if config.map_objects else 0, generator=generator)
    variance, action = torch.rand(rows, generator=generator), torch.zeros(rows, dtype=torch.int64)
    return FrameEvidence(tokens, *latents, variance, action, shown, torch.zeros(rows, config.map_objects))


def walled_episodes(count: int = 4, frames: int = 120) -> list[Segment]:
    """Players in a corridor along x that is 2 long: forward (1) leads a quarter ahead, where there is no wall; the rest turns."""
    episodes = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        x, heading, poses, actions = 0.0, 0.0, [], []
        for _ in range(frames):
            action = int(rng.choice([1, 1, 1, 2]))
            if action == 1:
                x = float(np.clip(x + 0.25 * np.cos(heading), 0, 2))
            else:
                heading += np.pi
            poses.append([x, 0.0, np.cos(heading), np.sin(heading)])
            actions.append(action)
        pose = torch.tensor(poses, dtype=torch.float32)
        latent = pose[:, None, :].repeat(1, 16, 1)  # 4 channels: all that there is to see is where one is
        episodes.append(Segment(latent.half(), torch.tensor(actions), torch.zeros(frames), pose, torch.zeros(frames, 0)))
    return episodes


def test_models_without_the_heads_are_what_they_were():
    model = random_model()
    assert model.flow_head is None
    assert "flow" not in repr(model.config)
    assert not any(name.startswith("flow_head") for name in model.state_dict())


@torch.no_grad()
def test_a_longer_stride_is_another_context_and_other_numbers_of_steps_are_the_flow():
    head = random_model(**FLOW).flow_head
    context = head.context(evidence_of(random_model(**FLOW), 2))
    vectors = {steps: head.for_steps(context, steps).vector for steps in (1, 2, 3, 4, 8, 50)}
    assert all(torch.equal(vectors[steps], vectors[8]) for steps in (3, 50))
    assert len({tuple(vectors[steps].flatten().tolist()) for steps in (*FEW_STEPS, 8)}) == len(FEW_STEPS) + 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, id="bfloat16")])
def test_prepacked_passes_give_the_same(dtype):
    model = random_model(**FLOW)
    head, evidence = model.flow_head, evidence_of(model, 3)
    quick = PrepackedFlowHead.of(head, dtype)
    x, level = torch.randn(3, 16, SIZES["latent_channels"]), torch.tensor([1.0, 0.5, 0.1])
    expected, got = (one(x, level, one.context(evidence)) for one in (head, quick))
    assert torch.allclose(got, expected, atol=1e-5 if dtype == torch.float32 else 0.1)
    assert expected.std() > 0.1
    with torch.enable_grad():
        assert quick(x, level.requires_grad_(), quick.context(evidence)).requires_grad  # gradients go through the plain head


@torch.no_grad()
def test_a_prepacked_model_dreams_the_same_with_a_flow_head_and_leaves_the_model_alone():
    model = random_model(**FLOW)
    quick, action = PrepackedWorldModel.of(model, torch.float32), torch.tensor([1, 2])
    assert isinstance(quick.flow_head, PrepackedFlowHead)
    assert not isinstance(model.flow_head, PrepackedFlowHead)
    for steps in STEPS:
        one, other = first_state(model, torch.arange(2)), first_state(model, torch.arange(2))
        for _ in range(3):
            one = commit(model, one, action, imagine(model, one, action, steps))
            other = commit(quick, other, action, imagine(quick, other, action, steps))
        assert torch.allclose(one.latent, other.latent, atol=1 / 32)
        assert one.latent.std() > 0.05


@torch.no_grad()
def test_one_read_only_pass_of_the_model_serves_all_steps(monkeypatch):
    model, calls = random_model(**FLOW), []
    forward = WorldModel.forward
    monkeypatch.setattr(WorldModel, "forward", lambda self, *a, **k: calls.append(a[3]) or forward(self, *a, **k))
    state = first_state(model, torch.arange(2))
    imagine(model, state, torch.tensor([1, 2]), 8)
    assert calls == [(True,)]


@torch.no_grad()
def test_noise_is_what_makes_a_sample():
    model = random_model(**FLOW)
    state, action = first_state(model, torch.arange(2)), torch.tensor([1, 1])
    state = commit(model, state, action, imagine(model, state, action, 2))
    noise = torch.randn(2, *state.latent.shape)
    one, same, other = (imagine(model, state, action, 4, noise=noise[k]).latent for k in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@torch.no_grad()
def test_the_likelier_case_is_expected_never_a_mean():
    model = random_model(**FLOW)
    head, latent = model.motion_head, torch.randn(64, 16, SIZES["latent_channels"])
    motion, action = torch.zeros(64, 3), torch.ones(64, dtype=torch.int64)
    logit, motions = head.cases(latent, motion, action)
    expected = head(latent, motion, action)
    assert 0 < (logit > 0).sum() < 64
    assert all(torch.equal(row, cases[int(value > 0)]) for row, cases, value in zip(expected, motions, logit, strict=True))


def test_the_motion_head_sees_the_frame_and_not_the_features():
    model = random_model(**FLOW)
    state, action = first_state(model, torch.arange(2)), torch.tensor([1, 1])
    with torch.no_grad():
        state = commit(model, state, action, imagine(model, state, action, 1))
        before = imagine(model, state, action, 1).motion
        assert torch.equal(before, imagine(model, state._replace(features=state.features + 1), action, 1).motion)
        assert not torch.equal(before, imagine(model, state._replace(latent=state.latent + 1), action, 1).motion)


def test_environments_dream_with_a_flow_head(tmp_path):
    folder = write_tiny_weights(tmp_path / "w", **FLOW)
    for profile, steps in PROFILES.items():
        env = DreamEnv("memory-maze", weights=folder, profile=profile)
        assert env.dream.sampling_steps == steps.flow_steps
        first, _ = env.reset(seed=1)
        frames = [env.step(1)[0] for _ in range(3)]
        again, _ = env.reset(seed=1)
        assert np.array_equal(first, again)
        assert all(np.array_equal(frame, env.step(1)[0]) for frame in frames)
    many = DreamVectorEnv("memory-maze", 2, weights=folder)
    many.reset(seed=1)
    many.save_state(tmp_path / "state.safetensors")
    kept = many.step(np.array([1, 2]))[0]
    many.load_state(tmp_path / "state.safetensors")
    assert np.array_equal(kept, many.step(np.array([1, 2]))[0])


def test_weights_with_heads_survive_writing(tmp_path):
    weights = read_weights(write_tiny_weights(tmp_path / "w", **FLOW))
    assert weights.world_model.flow_head is not None
    assert weights.world_model.config.collisions
    assert weights.world_model.config == WorldModelConfig(**{**vars(weights.world_model.config)})


def test_a_width_that_its_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="flow_width 42 is not a multiple of flow_heads 5"):
        WorldModelConfig(flow_width=42)


def test_heads_are_added_to_a_model_that_has_none():
    model = random_model()
    grown = with_heads(model, 40)
    assert grown.config == replace(model.config, flow_width=40, collisions=True)
    assert with_heads(grown, 80) is grown
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("motion_head.")}
    assert all(torch.equal(grown.state_dict()[name], tensor) for name, tensor in kept.items())


def test_forward_is_what_goes_ahead_and_a_wall_is_what_blocks_it():
    ahead, _ = moving_actions(walled_episodes(), 0.15)
    assert ahead == [1]
    motion, action = torch.tensor([[0.25, 0, 0], [0.0, 0, 0], [0.0, 0, 3]]), torch.tensor([1, 1, 2])
    assert is_blocked(motion, action, ahead, 0.15).tolist() == [False, True, False]
    assert not is_blocked(motion, torch.randn(3, 2), ahead, 0.15).any()  # continuous actions


def still_samples(evidence: FrameEvidence, latent: torch.Tensor) -> Samples:
    """Frames that came while nothing moved, without a map."""
    rows = len(latent)
    still, frame = torch.zeros(rows, 3), torch.zeros(rows, dtype=torch.int64)
    told, rest, counts = torch.zeros(rows, 0, ROWS, COLUMNS), torch.zeros(rows, 4), torch.ones(rows, 1)
    return Samples(evidence, latent, still, torch.zeros(rows, 0), still, frame, told, rest, counts)


def test_a_buffer_keeps_the_newest():
    def samples(value: float) -> Samples:
        latent = torch.full((10, 16, 4), value)
        action, shown = torch.ones(10, dtype=torch.int64), torch.zeros(10, 4, 0)
        evidence = FrameEvidence(torch.zeros(10, 16, 8), latent, latent, latent, torch.ones(10), action, shown, torch.zeros(10, 0))
        return still_samples(evidence, latent)

    buffer = Buffer(20)
    for value in range(5):
        buffer.add(samples(float(value)))
    assert buffer.held == 20
    drawn = buffer.draw(64, np.random.default_rng(0))
    assert len(drawn.latent) == 64
    assert set(drawn.latent[:, 0, 0].tolist()) == {3.0, 4.0}
    assert drawn.latent.dtype == torch.float32


def test_dreamed_samples_are_of_recorded_frames_and_of_pasts_that_count():
    model, episodes = random_model(**FLOW), Episodes.of(walled_episodes())
    options = DreamOptions(rows=4, ahead=8, recorded=1.0, context_noise=0.0)
    samples = dreamed_samples(options, model, episodes, np.random.default_rng(0))
    assert len(samples.latent) > 4
    assert samples.frame.min() == 1
    assert samples.frame.max() == 8
    recorded = {tuple(row) for row in episodes.whole.latent[:, 0].float().tolist()}
    assert {tuple(row) for row in samples.latent[:, 0].tolist()} <= recorded
    assert {tuple(row) for row in samples.evidence.last[:, 0].tolist()} <= recorded  # all pasts are recorded ones here
    dreamed = dreamed_samples(replace(options, recorded=0.0), model, episodes, np.random.default_rng(0))
    assert not {tuple(row) for row in dreamed.evidence.last[dreamed.frame > 1][:, 0].tolist()} & recorded


def test_what_a_dream_has_shown_of_an_unknown_place_is_asked_for_again(monkeypatch):
    """The frame that should come then is the dream's own, at the pose that it had; of known places and recorded pasts none is asked for."""
    model, episodes = random_model(**FLOW), Episodes.of(walled_episodes())
    options = DreamOptions(rows=6, ahead=8, recorded=0.0, context_noise=0.0)
    monkeypatch.setattr(module, "NEAR", 1e9)  # no dream strays
    monkeypatch.setattr(module, "ASTRAY", 1e9)
    monkeypatch.setattr(module, "OPEN", (0.0, 0.0))  # nothing counts as known
    samples = dreamed_samples(options, model, episodes, np.random.default_rng(0))
    again = samples.motion.isnan().all(1)
    assert 0.1 < again.float().mean() < 0.5
    assert torch.equal(really_came(samples).latent, samples.latent[~again])
    recorded = {tuple(row) for row in episodes.whole.latent[:, 0].float().tolist()}
    assert not {tuple(row) for row in samples.latent[again][:, 0].tolist()} & recorded
    monkeypatch.setattr(module, "OPEN", (2.0, 2.0))  # all counts as known
    for changed in (options, replace(options, recorded=1.0)):
        assert dreamed_samples(changed, model, episodes, np.random.default_rng(0)).motion.isfinite().all()


def test_short_episodes_are_refused():
    with pytest.raises(ValueError, match=r"no episode has the 15 frames .*--dreams.ahead"):
        dreamed_samples(DreamOptions(rows=2, ahead=8), random_model(**FLOW), Episodes.of(walled_episodes(2, 14)), np.random.default_rng(0))


def test_flow_matching_learns_the_distribution_and_few_steps_follow_it():
    """Two latents can follow, each as often as the other: samples are of both, and one step's samples, too."""
    torch.manual_seed(0)
    model = random_model(**FLOW).requires_grad_(True)
    head, generator = model.flow_head, torch.Generator().manual_seed(0)
    average = random_model(**FLOW).flow_head
    optimizer = torch.optim.AdamW(head.parameters(), 2e-3)
    evidence = FrameEvidence(*(torch.zeros_like(part) for part in evidence_of(model, 64)))

    def samples() -> Samples:
        sign = torch.randint(2, (64, 1, 1), generator=generator) * 2.0 - 1
        latent = sign.expand(64, 16, SIZES["latent_channels"])
        return still_samples(evidence, latent)

    for step in range(500):
        optimizer.param_groups[0]["lr"] = 2e-3 if step < 350 else 5e-4
        loss = flow_loss(head, samples(), 4, generator)
        if step >= 250:
            average.load_state_dict(head.state_dict())
            loss = loss + few_steps_loss(head, average, samples(), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        context = head.context(evidence)
        for steps in STEPS:
            strides = head.for_steps(context, steps)
            noise = torch.randn(64, 16, SIZES["latent_channels"], generator=generator)
            x, _ = sample(lambda x, level, strides=strides: head(x, level, strides), noise, steps)
            means = x.mean((1, 2))
            near = (means.abs() - 1).abs() < 0.35
            assert near.float().mean() > 0.8, (steps, means)
            assert 0.08 < (means > 0).float().mean() < 0.92  # both of them


def test_heads_learn_walls_and_go_on_where_they_stopped(tmp_path):
    weights = load_weights(write_tiny_weights(tmp_path / "w", **FLOW))
    run = HeadTraining(tmp_path / "w", (), tmp_path / "out", steps=160, contexts=8, refresh=40, warmup=5, learning_rate=3e-3)
    run = replace(run, dreams=DreamOptions(rows=8, ahead=8, recorded=0.5), motion_noise=0.0, few_steps_from=0.9)
    trainer = HeadTrainer(run, weights, walled_episodes())
    first = trainer.train_step()
    losses = [trainer.train_step() for _ in range(159)]
    assert losses[-1]["motion"] < 0.4 * first["motion"]
    assert "few_steps" in losses[-1]
    assert "few_steps" not in losses[0]
    trainer.save(run.checkpoint)
    other = HeadTrainer(run, read_weights(tmp_path / "w"), walled_episodes())
    other.load(run.checkpoint)
    assert other.step == 160
    assert all(map(torch.equal, other.heads.state_dict().values(), trainer.heads.state_dict().values()))
    assert Heads.of(other.model).flow_head is other.model.flow_head


@pytest.mark.parametrize("updates", [8, 0])
def test_odometry_learns_beside_the_heads_what_a_wall_has_stopped(tmp_path, updates):
    """Frames show where one is; the motion head, which doesn't learn here, expects the same of each step, blocked or not."""
    write_tiny_weights(tmp_path / "w", **FLOW)
    run = HeadTraining(tmp_path / "w", (), tmp_path / "out", steps=40, contexts=2, learning_rate=0.0, odometry_updates=updates, warmup=1)
    run = replace(run, dreams=DreamOptions(rows=4, ahead=8), adversarial_steps=0)
    trainer = HeadTrainer(run, read_weights(tmp_path / "w"), walled_episodes())
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    def off() -> float:
        return odometry_loss(trainer.model, trainer.episodes, 2000, np.random.default_rng(9)).item()

    first = off()
    for _ in range(40):
        trainer.train_step()
    changed = {name.split(".")[0] for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == ({"odometry_head"} if updates else set())
    assert (off() < 0.5 * first) == bool(updates)
    trainer.save(run.checkpoint)
    other = HeadTrainer(run, read_weights(tmp_path / "w"), walled_episodes())
    other.load(run.checkpoint)
    assert all(map(torch.equal, other.model.state_dict().values(), trainer.model.state_dict().values()))


def test_what_the_motion_head_learns_from_can_be_hidden_from_it():
    model, episodes = random_model(**FLOW), Episodes.of(walled_episodes())
    samples = dreamed_samples(DreamOptions(rows=4, ahead=8), model, episodes, np.random.default_rng(0))

    def seen(dropout: float) -> torch.Tensor:
        shown = []
        model.motion_head.frame.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
        heads.motion_loss(model.motion_head, samples, [1], 0.0, torch.Generator().manual_seed(0), dropout)
        return shown[0][:, : 16 * 4]

    before = torch.random.get_rng_state()
    whole, part = seen(0.0), seen(0.75)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (part == 0).float().mean() == pytest.approx(0.75, abs=0.05)
    assert torch.allclose(part[part != 0], 4 * whole[part != 0])
    with pytest.raises(ValueError, match="motion_dropout is a share from 0 to below 1, not 1"):
        HeadTraining(Path("w"), (), Path("out"), motion_dropout=1.0)


def test_training_from_the_command_line_gives_a_model_that_can_be_packaged(tmp_path, monkeypatch):
    from lssvwm_gym.checkpoints.package import load_world_model

    folder = write_tiny_weights(tmp_path / "w")
    monkeypatch.setattr(heads, "latent_episodes", lambda *_: walled_episodes())
    monkeypatch.setattr(heads, "fingerprint", lambda folder: {"episodes": 4})
    dreams = DreamOptions(rows=4, ahead=8)
    run = HeadTraining(folder, (Path("train"),), tmp_path / "out", (Path("val"),), steps=6, adversarial_steps=4, contexts=8, save_every=3)
    run = replace(run, dreams=dreams, flow_width=40)
    model, trained = load_world_model(heads.train_heads(run))
    assert model.config.collisions
    assert model.flow_head is not None
    assert trained["step"] == 10
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_recordings_of_another_world_are_refused(tmp_path, monkeypatch):
    folder, episodes = write_tiny_weights(tmp_path / "w"), walled_episodes(2)
    run = heads.HeadTraining(folder, (Path("train"),), tmp_path / "out")
    monkeypatch.setattr(heads, "latent_episodes", lambda *_: episodes)
    episodes[0].action[5] = 7
    with pytest.raises(ValueError, match="actions up to 7, but the model knows 6"):
        heads.train_heads(run)
    episodes[0].action[5] = 0
    for episode in episodes:
        episode.pose[:] = torch.nan
    with pytest.raises(ValueError, match="no poses, which a spatial memory needs"):
        heads.train_heads(run)


def test_without_poses_only_the_flow_head_is_trained(tmp_path):
    write_tiny_weights(tmp_path / "w", **FLOW | {"collisions": False, "memory_features": 0})
    weights, episodes = read_weights(tmp_path / "w"), walled_episodes()
    for episode in episodes:
        episode.pose[:] = torch.nan
    before = {name: tensor.clone() for name, tensor in weights.world_model.state_dict().items()}
    run = HeadTraining(tmp_path / "w", (), tmp_path / "out", steps=4, contexts=8, warmup=1, dreams=DreamOptions(rows=4, ahead=8))
    trainer = HeadTrainer(run, weights, episodes)
    assert all("motion" not in trainer.train_step() for _ in range(4))
    after = trainer.model.state_dict()
    assert {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])} == {"flow_head"}
    assert all(step.evidence.tokens.isfinite().all() for step in trainer.buffer.parts)


@torch.no_grad()
def test_what_given_frames_have_shown_is_recalled_and_what_is_open_is_sampled(monkeypatch):
    model, means = random_model(**FLOW), []
    evidence = rollout.frame_evidence
    monkeypatch.setattr(rollout, "frame_evidence", lambda *a: means.append(evidence(*a)) or means[-1])
    latent, pose = torch.randn(1, 4, 16, SIZES["latent_channels"]), torch.tensor([[[0.0, 0, 1, 0]] * 4])
    seen = prefill(model, first_state(model, torch.zeros(1, dtype=torch.int64)), latent, torch.full((1, 4), 6), pose).state
    assert torch.equal(seen.observed, seen.world.spatial_memory.explained)
    assert seen.observed.any()
    action, still, far = torch.tensor([1]), torch.zeros(1, 3), torch.tensor([[50.0, 0, 0]])
    here, there = (imagine(model, seen, action, 4, motion) for motion in (still, far))
    assert torch.allclose(here.latent, means[0].mean, atol=0.5 / LATENT_STEPS)
    assert here.uncertainty == 0 < there.uncertainty
    assert not torch.allclose(there.latent, means[1].mean, atol=0.1)
    imagined = commit(model, seen, action, there)
    assert torch.equal(imagined.observed, seen.observed)  # what was dreamed was not given
    assert not torch.equal(imagined.world.spatial_memory.explained, seen.observed)
    back = imagine(model, imagined, action, 4, still)  # what comes next there: only a dream has shown it
    assert not torch.allclose(back.latent, means[2].mean, atol=0.1)
    monkeypatch.setattr(rollout, "NEW", (0.1, 0.2))  # more than the memory's noise leaves of one frame
    again = imagine(model, imagined, action, 4, far, imagined.pose)  # the very view, come back to
    assert torch.allclose(again.latent, means[3].mean, atol=0.5 / LATENT_STEPS)
    beside = imagine(model, imagined, action, 4, far, imagined.pose + torch.tensor([9.0, 0, 0, 0]))
    assert not torch.allclose(beside.latent, means[4].mean, atol=0.1)


def test_states_of_before_count_all_that_they_remember_as_seen():
    explained = torch.rand(1, 3, 3)
    assert torch.equal(legacy.state({"world.place.known": explained})["observed"], explained)


@torch.no_grad()
def test_prefilling_frame_by_frame_keeps_no_state_but_the_last(monkeypatch):
    """A state of the shipped maze takes megabytes a row: 600 of them, of twelve rows, took all memory of a machine."""
    model, alive = random_model(), []
    commit_given = rollout._commit_given

    def watched(*arguments):
        part = commit_given(*arguments)
        alive.append(weakref.ref(part.state.world.spatial_memory.latents))
        return part

    monkeypatch.setattr(rollout, "_commit_given", watched)
    latent = torch.randn(1, 12, 16, SIZES["latent_channels"])
    kept = prefill(model, first_state(model, torch.zeros(1, dtype=torch.int64)), latent, torch.ones(1, 12, dtype=torch.int64))
    assert len(alive) == 12
    assert kept.features.shape[1] == 12
    assert sum(one() is not None for one in alive) == 1


def test_one_step_against_a_discriminator_is_a_sample_and_not_the_mean(tmp_path):
    write_tiny_weights(tmp_path / "w", **FLOW)
    weights = read_weights(tmp_path / "w")
    run = HeadTraining(tmp_path / "w", (), tmp_path / "out", steps=0, adversarial_steps=300, contexts=24, decay=0.2)
    trainer = HeadTrainer(run, weights, walled_episodes())
    evidence, generator = evidence_of(trainer.model, 256), torch.Generator().manual_seed(0)
    real = torch.randint(2, (256, 1, 1), generator=generator) * 2.0 - 1 + 0.05 * torch.randn(evidence.mean.shape, generator=generator)
    trainer.buffer.add(still_samples(evidence, real))
    trainer.run = run = replace(run, refresh=10**9)
    trainer.step = 1
    noise = torch.randn(real.shape, generator=generator)
    losses = [trainer.train_step() for _ in range(290)]
    assert "adversarial" not in losses[0]
    assert losses[-1]["adversarial"].isfinite()
    with torch.no_grad():
        spread = trainer.average.flow_head.sample(trainer.average.flow_head.context(evidence), noise, 1)[0].mean((1, 2)).std()
    assert spread > 0.5  # the mean of the two is 0
    trainer.save(run.checkpoint)
    other = HeadTrainer(run, read_weights(tmp_path / "w"), walled_episodes())
    other.load(run.checkpoint)
    assert all(map(torch.equal, other.discriminator.state_dict().values(), trainer.discriminator.state_dict().values()))


def test_what_the_mean_misses_weighs_more():
    """A small thing in one token of a frame: the loss is that of its errors, mostly."""
    model = random_model(**FLOW)
    evidence = FrameEvidence(*(torch.zeros_like(part) for part in evidence_of(model, 2)))
    latent = 0.1 * torch.ones(2, 16, SIZES["latent_channels"])
    latent[0, 3] = 2.0
    samples = still_samples(evidence, latent)
    weights = token_weights(samples, 2.0)
    assert weights.shape == (2, 16, 1)
    assert weights[0, 3] == 1 + 2 * MOST_EMPHASIS
    assert weights[1].max() < 1.2
    assert torch.equal(token_weights(samples, 0.0), torch.ones(2, 16, 1))
    some = samples._replace(counts=torch.tensor([[1.0], [0.0]]))  # the second can't follow from its past
    assert torch.equal(token_weights(some, 0.0), torch.tensor([2.0, 0.0])[:, None, None].expand(2, 16, 1))
    plain, emphasised = (flow_loss(model.flow_head, samples, 4, torch.Generator().manual_seed(0), weight) for weight in (0.0, 2.0))
    assert emphasised > 3 * plain
