"""Free video: it goes on with a clip, finds out what was done in it, a frame or a chunk at a time, and says what it can't take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.cli import main
from lssvwm_gym.data.episode import EpisodeError, read_video, write_arrays
from lssvwm_gym.generate import Generating, by_chunks, generate, imagined_chunk, prefill_clip
from lssvwm_gym.io.video import write_video
from lssvwm_gym.models.rollout import first_state, imagine, prefill
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import Trainer


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(tmp_path / "clip.mp4", frames, fps=6, crf=0)
    return tmp_path / "clip.mp4"


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunked")
    return write_tiny_weights(
        folder,
        openings=0,
        walks=0,
        chunk=5,
        window=10,
        memory_features=0,
    )


def test_a_clip_goes_on_by_one_command(clip, tiny_weights, tmp_path, capsys):
    out = tmp_path / "new" / "more.mp4"
    main(["generate", str(clip), "--frames", "3", "--weights", str(tiny_weights), "--steps", "1", "--out", str(out), "--scale", "2"])
    assert read_video(out).shape == (3, 128, 128, 3)
    assert "3 frames, of which 3 are dreamed, after 12 of" in capsys.readouterr().out


def test_beside_shows_what_followed_in_the_clip(clip, tiny_weights, tmp_path):
    run = Generating(clip, tmp_path / "more.gif", frames=5, weights=tiny_weights, context_frames=9, side_by_side=True, steps=1, scale=1)
    film, real = generate(run), read_video(clip)
    assert film.shape == (14, 64, 128, 3)
    assert (film[:12, :, :64] == real).all()
    assert (film[12:, :, :64] == 0).all()
    assert run.out.exists()


def test_the_same_seed_gives_the_same_film(clip, tiny_weights, tmp_path):
    run = Generating(clip, tmp_path / "more.mp4", frames=3, weights=tiny_weights, steps=2)
    first, again, other = (generate(dataclasses.replace(run, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_another_size_is_resized_with_a_note(tiny_weights, tmp_path, capsys):
    write_video(tmp_path / "wide.mp4", np.full((4, 48, 96, 3), 90, np.uint8), fps=6)
    generate(Generating(tmp_path / "wide.mp4", tmp_path / "more.mp4", frames=1, weights=tiny_weights, steps=1))
    assert "frames of 96x48 pixels become 64x64" in capsys.readouterr().out


def test_actions_are_inferred_from_the_frames_that_they_would_have_led_to(tiny_weights):
    model = load_weights(tiny_weights).world_model
    state, latents, taken = first_state(model, torch.tensor([0])), [torch.randn(1, 16, 4)], [2, 5, 0, 3, 3]
    unknown, pose = torch.tensor([[model.config.actions]]), state.pose[:, None]
    state = prefill(model, state, latents[0][None], unknown, pose).state
    for action in taken:  # a world in which the model is right
        action = torch.tensor([action])
        imagined = imagine(model, state, action, 1)
        latents.append(imagined.latent)
        state = prefill(model, state, imagined.latent[:, None], action[:, None]).state
    assert prefill_clip(model, torch.cat(latents), seed=0)[1] == taken


def test_of_a_recorded_episode_it_says_how_many_actions_were_inferred(clip, tiny_weights, tmp_path, capsys):
    write_arrays(clip, {"action": np.full(12, 3), "reward": np.zeros(12)})
    generate(Generating(clip, tmp_path / "more.mp4", frames=1, weights=tiny_weights, steps=1))
    assert " of 11 actions were inferred as recorded" in capsys.readouterr().out


def test_a_chunk_is_dreamed_at_once(clip, chunked, tmp_path):
    film = generate(Generating(clip, tmp_path / "more.mp4", frames=7, weights=chunked, steps=2))
    assert film.shape == (7, 64, 64, 3)
    model = load_weights(chunked).world_model
    state, noise = first_state(model, torch.tensor([0]), pose_known=False), torch.randn(1, 5, 16, 4)
    other = torch.cat([noise[:, :4], torch.randn(1, 1, 16, 4)], 1)
    first, changed = (imagined_chunk(model, state, x, 2) for x in (noise, other))
    assert (first[:, 0] != changed[:, 0]).any()  # the first frame sees the last one of its chunk


def test_chunks_follow_the_clips_last_frames(chunked):
    model = load_weights(chunked).world_model
    latents = torch.randn(12, 16, 4)
    whole, cut = by_chunks(model, latents, 5, 1, 0), by_chunks(model, latents[2:], 5, 1, 0)
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, by_chunks(model, latents.flip(0), 5, 1, 0))


def test_what_is_no_clip_is_one_clear_error(clip, chunked, tiny_weights, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(EpisodeError, match=r"text.mp4: not a readable video"):
        generate(Generating(tmp_path / "text.mp4", tmp_path / "o.mp4", weights=tiny_weights))
    with pytest.raises(EpisodeError, match="no such file"):
        generate(Generating(tmp_path / "none.mp4", tmp_path / "o.mp4", weights=tiny_weights))
    with pytest.raises(ValueError, match="12 frames are too few: at least 50 of context are needed"):
        generate(Generating(clip, tmp_path / "o.mp4", weights=tiny_weights, context_frames=50))
    with pytest.raises(ValueError, match="3 frames are too few: at least 5 of"):
        generate(Generating(clip, tmp_path / "o.mp4", weights=chunked, context_frames=3))
    with pytest.raises(ValueError, match=r"ends in \.mp4 or \.gif"):
        Generating(clip, tmp_path / "o.avi")
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        Generating(clip, frames=0)


def test_a_model_of_chunks_learns_by_forcing_alone(tmp_path):
    config = load_weights(write_tiny_weights(tmp_path, openings=0, walks=0)).world_model.config
    config = dataclasses.replace(
        config,
        chunk=5,
        window=10,
        memory_features=0,
    )
    nowhere = torch.full((30, 4), torch.nan)
    episode = Segment(torch.randn(30, 16, 4).half(), torch.zeros(30, dtype=torch.int64), torch.zeros(30), nowhere, torch.zeros(30, 0))
    run = WorldTraining(
        tmp_path, tmp_path, tmp_path, model=config, frames_a_step=20, curriculum=(Stage(1.0, 10, 2),), teacher_forcing=0, self_rollout=0
    )
    trainer = Trainer(run, [episode])
    before = trainer.model.token_out.weight.clone()
    assert torch.isfinite(torch.stack([trainer.train_step()["denoise"] for _ in range(2)])).all()
    assert not torch.equal(before, trainer.model.token_out.weight)
