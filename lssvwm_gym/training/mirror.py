"""Mirror images: in a world that knows no left and right, every episode is two."""

from __future__ import annotations

import torch
from torch import Tensor

from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.latents import LatentEpisode


@torch.no_grad()
def mirrored(episode: LatentEpisode, autoencoder: Autoencoder, actions: tuple[int, ...]) -> LatentEpisode:
    """What the episode looks like in a mirror; `actions` names each action's mirror image.

    The frames are those that the autoencoder makes of the latents. Raises `ValueError` if `actions` is no exchange of the
    actions that are in the episode.
    """
    if any(not 0 <= other < len(actions) or actions[other] != action for action, other in enumerate(actions)):
        raise ValueError(f"mirror must name each action's mirror image, and that one's image the action; got {actions}")
    if int(episode.action.max()) >= len(actions):
        raise ValueError(f"mirror names {len(actions)} actions, but an episode has action {int(episode.action.max())}")
    device = autoencoder.latent_mean.device
    batches = episode.latent.float().split(100)
    latent = torch.cat([autoencoder.encode(autoencoder.decode(batch.to(device)).flip(2)).cpu() for batch in batches])
    action = torch.tensor(actions)[episode.action]
    return LatentEpisode(latent.half(), action, episode.reward, _mirrored_pose(episode.pose), episode.vector)


def _mirrored_pose(pose: Tensor) -> Tensor:
    sign = torch.ones(pose.shape[-1])
    sign[[1, 3]] = -1  # y and the sine of the heading
    return pose * sign
