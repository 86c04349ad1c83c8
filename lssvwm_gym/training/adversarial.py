"""One long step of the flow head as a sample: learned from a network that tells what the head samples from frames that really came.

A head that is asked for a frame in one step and judged by its error answers with the mean of all frames that could follow, however it was
distilled. Judged by such a network it has to answer with one of them. The head keeps its other losses meanwhile.
Sources: adversarial distillation of diffusion (arXiv 2311.17042), relativistic pairs (arXiv 1807.00734) with penalties on both sides
(arXiv 2501.05441), taken by differences (arXiv 2501.08316).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.flow_head import FrameEvidence

WIDTH = 384
PENALTY, APART = 0.02, 0.05  # weight of the penalties; deviation of the noise between which the differences are taken


class Discriminator(nn.Module):
    """How real a frame looks: beside what is known of it, and by itself."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        size = config.tokens * config.latent_channels
        self.frame, self.known = nn.Linear(size, WIDTH), nn.Linear(3 * size + 1, WIDTH)
        self.action = ActionEmbedding(config, WIDTH)
        self.beside = _network()
        self.alone = nn.Sequential(nn.Linear(size, WIDTH), _network())

    def forward(self, latent: Tensor, evidence: FrameEvidence) -> Tensor:
        """Latents (B, N, C) and what is known of them; logits (B, 2), high for real ones."""
        known = [part.flatten(1) for part in (evidence.last, evidence.mean, evidence.recalled)]
        hidden = self.known(torch.cat([*known, evidence.posterior_variance[:, None]], 1)) + self.action(evidence.action)
        return torch.cat([self.beside(self.frame(latent.flatten(1)) + hidden), self.alone(latent.flatten(1))], 1)


def _network() -> nn.Sequential:
    between = [layer for _ in range(2) for layer in (nn.LeakyReLU(0.2), nn.Linear(WIDTH, WIDTH))]
    return nn.Sequential(*between, nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))


def discriminator_loss(
    discriminator: Discriminator, real: Tensor, sampled: Tensor, evidence: FrameEvidence, generator: torch.Generator
) -> Tensor:
    """The real one of each pair should look more real; little may depend on what hardly shows. Latents (B, N, C), `sampled` detached."""
    looks, penalty = [], real.new_zeros(())
    for latent in (real, sampled):
        look = discriminator(latent, evidence)
        near = discriminator(latent + APART * torch.randn(latent.shape, generator=generator, device=latent.device), evidence)
        penalty = penalty + (look - near).square().mean() / APART**2
        looks.append(look)
    return F.softplus(looks[1] - looks[0]).mean() + PENALTY * penalty


def adversarial_loss(discriminator: Discriminator, real: Tensor, sampled: Tensor, evidence: FrameEvidence) -> Tensor:
    """The sampled one of each pair should look more real, in the eyes of a discriminator that stays as it is."""
    discriminator.requires_grad_(False)
    loss = F.softplus(discriminator(real, evidence) - discriminator(sampled, evidence)).mean()
    discriminator.requires_grad_(True)
    return loss
