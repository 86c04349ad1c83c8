"""Convolutional autoencoder: an image becomes a small grid of latent tokens, and back.

`encode` and `decode` are the only two places where pixels (uint8, 0..255) change range.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder. Source: a plain residual convolutional network; no attention, no norm."""

    image_size: int = 64  # pixels a side
    patch: int = 4  # pixels folded into channels before the first convolution
    widths: tuple[int, ...] = (64, 128, 256)  # channels at each resolution, halved between
    residual_blocks: int = 1  # at each resolution, in the encoder and in the decoder
    latent_channels: int = 32  # C
    latent_noise: float = 0.05  # added to latents in training, in latent units before normalisation
    # the decoder's channels at each resolution, where they are others; saved states know a model without this, by its weights
    decoder_widths: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.decoder_widths and len(self.decoder_widths) != len(self.widths):
            raise ValueError(f"decoder_widths are as many as widths, one a resolution: {len(self.widths)}, not {len(self.decoder_widths)}")

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.image_size // self.patch // 2 ** (len(self.widths) - 1)

    @property
    def tokens(self) -> int:
        """N, tokens a frame."""
        return self.grid**2


class Autoencoder(nn.Module):
    """Images to latents of zero mean and unit variance a channel, and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.latent_mean = nn.Buffer(torch.zeros(config.latent_channels))
        self.latent_std = nn.Buffer(torch.ones(config.latent_channels))

    def encoding(self) -> dict[str, Tensor]:
        """The weights that decide what latents are: all but the decoder's."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("decoder.")}

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 (B, height, width, 3) to float latents (B, N, C)."""
        latent = rearrange(self.bounded_latent(frames), "b c y x -> b (y x) c")
        return (latent - self.latent_mean) / self.latent_std

    def decode(self, latent: Tensor) -> Tensor:
        """Float latents (B, N, C) to uint8 (B, height, width, 3)."""
        image = self.decode_smoothly(latent)
        return rearrange(image.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8), "b c y x -> b y x c")

    def decode_smoothly(self, latent: Tensor) -> Tensor:
        """Float latents (B, N, C) to float images (B, 3, height, width) of about -1..1, before rounding."""
        latent = latent * self.latent_std + self.latent_mean
        latent = rearrange(latent, "b (y x) c -> b c y x", y=self.config.grid)
        return self.decoded(latent.contiguous(memory_format=torch.channels_last))

    def decoded(self, latent: Tensor) -> Tensor:
        """Latents (B, C, grid, grid) within -3..3, channels last, to float images (B, 3, height, width) of about -1..1."""
        return self.decoder(latent)

    def bounded_latent(self, frames: Tensor) -> Tensor:
        """uint8 (B, height, width, 3) to latents (B, C, grid, grid) within -3..3, before normalisation."""
        image = rearrange(frames, "b y x c -> b c y x").float().div(127.5).sub(1)
        return 3 * torch.tanh(self.encoder(image.contiguous(memory_format=torch.channels_last)) / 3)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.inner(F.silu(x))))


def _encoder(config: AutoencoderConfig) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch)]
    channels = 3 * config.patch**2
    for level, width in enumerate(config.widths):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, stride=1 if level == 0 else 2))
        layers += [ResidualBlock(width) for _ in range(config.residual_blocks)]
        channels = width
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels, config.latent_channels, 1))


def _decoder(config: AutoencoderConfig) -> nn.Sequential:
    widths = config.decoder_widths or config.widths
    width = widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 1)]
    layers += [ResidualBlock(width) for _ in range(config.residual_blocks)]
    for narrower in reversed(widths[:-1]):
        layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2)]
        layers += [ResidualBlock(narrower) for _ in range(config.residual_blocks)]
        width = narrower
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3 * config.patch**2, 3, padding=1), nn.PixelShuffle(config.patch))
