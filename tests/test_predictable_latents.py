"""An autoencoder that is trained on until its latents can be predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments import predictable_latents
from experiments.predictable_latents import PAST, Args, Predictor, normalised, prediction_error, read_recordings
from lssvwm_gym.checkpoints.checkpoint import load_autoencoder
from lssvwm_gym.data.episode import Episode, EpisodeError, write_episode
from lssvwm_gym.models.autoencoder import AutoencoderConfig
from lssvwm_gym.training.autoencoder import AutoencoderTraining, train_autoencoder

TINY = AutoencoderConfig(image_size=32, widths=(8, 16), latent_channels=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bright square that its action moves; one episode is too short for a clip."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for number, length in enumerate((20, PAST, 30)):
        action = rng.integers(3, size=length).astype(np.uint8)
        frames = np.zeros((length, 32, 32, 3), np.uint8)
        for t, place in enumerate(np.cumsum(action.astype(int) - 1)):
            frames[t, 12:20, np.arange(place, place + 8) % 32] = 250
        write_episode(folder / f"{number:06d}", Episode(frames, action, np.zeros(length, np.float32)), fps=4)
    return folder


@pytest.fixture(scope="module")
def autoencoder(folder, tmp_path_factory):
    return train_autoencoder(AutoencoderTraining(folder, tmp_path_factory.mktemp("first"), model=TINY, steps=4, batch=4))


def test_clips_lie_within_an_episode(folder):
    recordings = read_recordings([folder])
    assert recordings.frames.shape == (50 + PAST, 32, 32, 3)
    assert recordings.action.shape == (50 + PAST, 3)
    assert (recordings.action.sum(1) == 1).all()
    assert recordings.starts.tolist() == [*range(20 - PAST), *range(20 + PAST, 50)]


def test_latents_become_predictable_and_pictures_stay(folder, autoencoder, tmp_path):
    found = {}
    for predicted in (0.0, 1.0):
        args = Args(
            autoencoder, (folder,), tmp_path / str(predicted), predicted=predicted, steps=60, clips=4, learning_rate=2e-3, average=0.9
        )
        trained = load_autoencoder(predictable_latents.main(args))
        assert trained.config == TINY
        recordings = read_recordings([folder])
        latent = normalised(trained.bounded_latent(recordings.frames)).flatten(1).detach()
        past = torch.cat([latent[:-1], torch.ones(len(latent) - 1, 1)], 1)
        told = past @ torch.linalg.lstsq(past.T @ past + torch.eye(past.shape[1]), past.T @ latent[1:]).solution
        found[predicted] = (told - latent[1:]).square().mean().item()
    assert found[1.0] < 0.9 * found[0.0], found


def test_small_latents_are_no_more_predictable():
    torch.manual_seed(0)
    latent, predictor, actions = torch.randn(2 * (PAST + 1), 4, 2, 2), Predictor(16, 3, width=8), torch.zeros(2, 2, 3)
    errors = [prediction_error(predictor, normalised(scale * latent), actions, noise=0.0).item() for scale in (1.0, 0.2)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_what_is_missing_is_said(folder, autoencoder, tmp_path):
    with pytest.raises(ValueError, match="data needs at least one folder"):
        Args(autoencoder, ())
    with pytest.raises(ValueError, match="steps"):
        Args(autoencoder, (folder,), steps=0)
    short = tmp_path / "short"
    write_episode(short / "000000", Episode(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.uint8), np.zeros(2, np.float32)), fps=4)
    with pytest.raises(EpisodeError, match="no episode has the 4 frames of a clip"):
        read_recordings([short])
    with pytest.raises(SystemExit, match="no episode has the 4 frames of a clip"):
        predictable_latents.main(Args(autoencoder, (short,), tmp_path))
