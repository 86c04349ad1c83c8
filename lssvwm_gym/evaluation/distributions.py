"""Whether two sets of frames look the same in distribution: distances, nearest neighbours, a network that tells them apart.

Sets are (E, F, ...): E episodes, F frames or stacks of frames of each. Both sets have equal numbers, so that what a distance of few
samples has too much, it has everywhere alike. Standard errors are over episodes, see `jackknife`.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.evaluation.metrics import Score

GROUPS = 10  # of episodes, that are left out one after the other for standard errors
SAMPLES = 1000  # at most, where every one is compared with every other
NEIGHBOURS = 5
FRAMES, EVERY = 4, 2  # of a stack of which the untrained network has features, and from one stack to the next
WIDTHS = (32, 64, 128)  # channels of the untrained network; all are its features
FOLDS = 4  # of episodes, each told apart by a network that has learned from the others
HIDDEN, STEPS, BATCH = 64, 300, 64  # width of that network; steps of its training, each with so many stacks of both sets
Distance = Callable[[Tensor, Tensor], float]


def jackknife(measure: Distance, a: Tensor, b: Tensor) -> Score:
    """A measure of two sets and its standard error over episodes, each group of them left out once (Efron, 1982).

    A bootstrap would draw episodes twice, and their frames would be each other's nearest neighbours.
    """
    groups = min(GROUPS, len(a))
    group = torch.arange(len(a)) % groups
    parts = torch.tensor([measure(a[group != left], b[group != left]) for left in range(groups)] if groups > 2 else [math.nan])
    return Score(measure(a, b), math.sqrt(groups - 1) * parts.std(correction=0).item(), len(a))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the normal distributions of the means and covariances of two sets of features (E, F, D). Source: arXiv 1706.08500."""
    a, b = a.flatten(0, 1).double(), b.flatten(0, 1).double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Maximum mean discrepancy of two sets of features (E, F, D), cubic kernel. Source: arXiv 1801.01401.

    Pairs of different episodes only (other places of the first axis, in both sets), so that it is 0 on average for equal distributions
    although the frames of one episode are alike.
    """
    a, b = thinned(a).double(), thinned(b).double()
    others = ~torch.eye(len(a), dtype=torch.bool)

    def similarity(x: Tensor, y: Tensor) -> float:
        kernel = (x.flatten(0, 1) @ y.flatten(0, 1).T / x.shape[2] + 1) ** 3
        return kernel.unflatten(0, x.shape[:2]).unflatten(2, y.shape[:2]).mean((1, 3))[others].mean().item()

    return similarity(a, a) + similarity(b, b) - 2 * similarity(a, b)


def precision(real: Tensor, dreamed: Tensor) -> float:
    """Share of dreamed features within the reach of a real one: is it real? Source: arXiv 1904.06991.

    The reach of a feature is the distance to its fifth neighbour. Neighbours are of other episodes (other places of the first axis, in
    both sets), for the frames of one episode are alike.
    """
    real, dreamed = thinned(real), thinned(dreamed)
    reach = _apart(real, real).kthvalue(min(NEIGHBOURS, (len(real) - 1) * real.shape[1]), 1).values
    return (_apart(real, dreamed) <= reach.unsqueeze(1)).any(0).float().mean().item()


def recall(real: Tensor, dreamed: Tensor) -> float:
    """Share of real features within the reach of a dreamed one: is everything there?"""
    return precision(dreamed, real)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances (E F, E F) between features (E, F, D); infinite within an episode."""
    episode = torch.arange(len(a)).repeat_interleave(a.shape[1])
    return torch.cdist(a.flatten(0, 1), b.flatten(0, 1)).masked_fill(episode.unsqueeze(1) == episode, math.inf)


def thinned(features: Tensor) -> Tensor:
    """The same number of features of every episode, evenly spaced, `SAMPLES` at most in all."""
    return features[:, :: math.ceil(len(features) * features.shape[1] / SAMPLES)]


def area_under_curve(real: Tensor, dreamed: Tensor) -> float:
    """How well a number, (E, F, 1) for each set, tells dreamed (larger) from real: 0.5 not at all, 1 always."""
    from torchmetrics.functional.classification import binary_auroc

    told = torch.cat([real.flatten(), dreamed.flatten()])
    return binary_auroc(told.sigmoid(), (torch.arange(len(told)) >= real.numel()).long()).item()


DISTANCES = {"Fréchet distance": frechet_distance, "kernel distance": kernel_distance, "precision": precision, "recall": recall}


def untrained_features(latent: Tensor, shown: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean activations of the layers of a random convolutional network, always the same one, on stacks of frames, every second begun:
    (E, clips, stacks, sum of `WIDTHS`). `shown` makes latents (clips, T, N, C) frames (clips, T, height, width, 3) of 0..255."""
    generator, sizes = torch.Generator().manual_seed(0), pairwise((3 * FRAMES, *WIDTHS))
    filters = [torch.randn(out, into, 3, 3, generator=generator) * math.sqrt(2 / (9 * into)) for into, out in sizes]
    return torch.stack([torch.stack([_activations(clip, filters) for clip in shown(episode)]) for episode in latent])


def _activations(clip: Tensor, filters: list[Tensor]) -> Tensor:
    """Of frames (T, height, width, 3), 0..255, to (stacks, sum of widths)."""
    x, means = clip.unfold(0, FRAMES, EVERY).permute(0, 4, 3, 1, 2).flatten(1, 2) / 127.5 - 1, []
    for weights in filters:
        x = F.relu(F.conv2d(x, weights, stride=2, padding=1))
        means.append(x.mean((2, 3)))
    return torch.cat(means, 1)


def stacks_of(latent: Tensor, frames: int) -> Tensor:
    """Stacks of so many successive latents (..., T, N, C), half of each the next one's too: (..., stacks, N, C frames)."""
    return latent.unfold(-3, frames, max(1, frames // 2)).flatten(-2)


def told_apart(real: Tensor, dreamed: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What a small network, trained on other episodes, says of each of two sets of stacks (E, clips, stacks, N, C): logits
    (E, clips, stacks, 1), high for dreamed, of mean 0 and deviation 1 in each fold. Source: arXiv 1610.06545."""
    shape, (real, dreamed) = real.shape[:3], (one.flatten(1, 2) for one in (real, dreamed))
    folds, logits = min(FOLDS, len(real)), torch.zeros(2, *real.shape[:2])
    for fold in range(folds):
        held = torch.arange(len(real)) % folds == fold
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed + fold)
            network = _trained(real[~held], dreamed[~held])
        said = torch.stack([_said(network, real[held]), _said(network, dreamed[held])])
        logits[:, held] = (said - said.mean()) / said.std().clamp(min=1e-6)
    return logits[0].view(*shape, 1), logits[1].view(*shape, 1)


def _trained(real: Tensor, dreamed: Tensor) -> nn.Module:
    tokens, size = real.shape[2:]
    network = nn.Sequential(
        *(nn.Linear(size, HIDDEN), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)),
        *(nn.Linear(HIDDEN * tokens, HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, 1)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    label = torch.arange(2 * BATCH) >= BATCH
    for _ in range(STEPS):  # of both sets the same stacks, so that actions and moments tell nothing
        episode, frame = torch.randint(len(real), (BATCH,)), torch.randint(real.shape[1], (BATCH,))
        loss = F.binary_cross_entropy_with_logits(network(torch.cat([real[episode, frame], dreamed[episode, frame]]))[:, 0], label.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def _said(network: nn.Module, stacks: Tensor) -> Tensor:
    return torch.stack([torch.cat([network(part)[:, 0] for part in episode.split(256)]) for episode in stacks])
