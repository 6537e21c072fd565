"""What ``python -m uncertainty_est.data.generate_ambiguous`` does: digits between two classes, with soft labels."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uncertainty_est import measures
from uncertainty_est.data.source import SplitName
from uncertainty_est.data.sources.dirty_mnist import FOLDER, LABELS_FILE, ORIGIN_FILE, SAMPLES_FILE
from uncertainty_est.data.sources.published import TorchvisionImages
from uncertainty_est.errors import ConfigError, DataError
from uncertainty_est.files import make_folder
from uncertainty_est.models.base import Method, scoring_mode
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.models.temperature_scaling import fit_temperature, scale
from uncertainty_est.models.vae import VAE
from uncertainty_est.networks.fc import FC
from uncertainty_est.networks.generator import FCGenerator
from uncertainty_est.networks.lenet import LeNet

log = logging.getLogger(__name__)

_SIZE = (1, 28, 28)
_BATCH = 256
# Pairs that are decoded and judged at once.
_CANDIDATES = 4096


@dataclass(frozen=True)
class Settings:
    """What decides the images and labels; all of it is written beside them.

    Attributes:
        n: images of each part, train and test.
        seed: of training, pairs and labels.
        labels_per_image: drawn from an image's soft label, with replacement.
        latent_dim: of the VAE.
        vae_epochs: its training.
        members: classifiers whose mean probability is the soft label.
        member_epochs: their training.
        blend: the weight of the first of two digits is uniform between 1 - `blend` and `blend`.
        min_entropy: of a soft label, in nats; below it an image is hardly ambiguous.
        max_entropy: above it, it is no digit at all.
        max_disagreement: mutual information of label and member, in nats; above it the classifiers guess.
    """

    n: int = 6000
    seed: int = 1
    labels_per_image: int = 10
    latent_dim: int = 16
    vae_epochs: int = 6
    members: int = 3
    member_epochs: int = 1
    blend: float = 0.7
    min_entropy: float = 0.4
    max_entropy: float = 1.4
    max_disagreement: float = 0.2


class Judges(NamedTuple):
    """Classifiers that give soft labels: their mean probability, each at the temperature fitted to its own logits."""

    members: list[CEBaseline]
    temperatures: list[Tensor]

    def probs(self, x: Tensor) -> Tensor:
        """Probabilities ``[M, B, C]`` float64 of ``x: [B, 1, 28, 28]`` in [0, 1]."""
        found = []
        for member, temperature in zip(self.members, self.temperatures, strict=True):
            found.append(scale(_logits(member, x).double(), temperature).softmax(-1))
        return torch.stack(found)


def generate(data_root: Path, settings: Settings) -> Path:
    """Write a set in the layout of the published one, with a JSON file that says how it was made.

    A variational autoencoder of MNIST's training images decodes blends of two digits' latent means: of training images
    for the training part, of test images for the test part. Kept is what classifiers of the training images find
    ambiguous, with one another in agreement. Ten labels are drawn for each image from their mean probability.

    Args:
        data_root: where MNIST is, and where the folder ``AmbiguousMNIST`` goes.
        settings: of the set.

    Returns:
        The folder; one that holds a set with the same settings is left as it is.

    References:
        Mukhoti et al., arXiv:2102.11582, Section 5.1 and its appendix, after which this is made. Their networks and
        thresholds are others.

    Raises:
        ConfigError: the folder holds another set or cannot be written, or settings make no sense.
        DataError: MNIST cannot be had, or so few blends are ambiguous that the set cannot be filled.
    """
    _check(settings)
    folder = make_folder(data_root, "--data-root") / FOLDER
    if folder.exists():
        if _settings_of(folder) != asdict(settings):
            raise ConfigError(f"--data-root: '{folder}' is there already and holds another set; remove it first")
        log.info("%s: is there already", folder)
        return folder
    source = TorchvisionImages("MNIST", str(data_root), shape=_SIZE)
    source.prepare()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        x, y, val_x, val_y = *_items(source, "train"), *_items(source, "val")
        vae = train_vae(x, y, settings)
        judges = train_judges(x, y, val_x, val_y, settings)
        parts = [make_part(vae, judges, x, y, settings), make_part(vae, judges, *_items(source, "test"), settings)]
    origin = {"train_images": settings.n, "seed": settings.seed, "settings": asdict(settings)}
    _write(folder, *(torch.cat(tensors) for tensors in zip(*parts, strict=True)), origin=origin)
    log.info("%s: %d images with %d labels each", folder, 2 * settings.n, settings.labels_per_image)
    return folder


def train_vae(x: Tensor, y: Tensor, settings: Settings) -> VAE:
    """A variational autoencoder of ``x: [N, 1, 28, 28]`` in [0, 1], trained."""
    vae = VAE(
        _SIZE,
        network=partial(FC, data_shape=_SIZE, hidden_dims=(400, 200), activation="relu"),
        decoder=partial(FCGenerator, hidden_dims=(200, 400), activation="relu", output="sigmoid"),
        latent_dim=settings.latent_dim,
        beta=0.02,  # noise of 0.1 on pixels
    )
    fit(vae, x, y, settings.vae_epochs)
    return vae


def train_judges(x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, settings: Settings) -> Judges:
    """Classifiers of ``x: [N, 1, 28, 28]`` with labels ``y: [N]``, with temperatures fitted to `val_x` and `val_y`."""
    members = [CEBaseline(LeNet(_SIZE, 10)) for _ in range(settings.members)]
    for member in members:
        fit(member, x, y, settings.member_epochs)
    return Judges(members, [fit_temperature(_logits(member, val_x), val_y) for member in members])


def fit(method: Method, x: Tensor, y: Tensor, epochs: int) -> None:
    """Train on batches in the order of PyTorch's global generator: Adam, from 2e-3 down to 0 step by step."""
    steps = epochs * -(-len(x) // _BATCH)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    method.train()
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(x)).split(_BATCH):
            loss = torch.stack(list(method.loss({"id": (x[rows], y[rows])}).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        log.info("%s: epoch %d, loss %.4f", type(method).__name__, epoch + 1, torch.stack(losses).mean())
    method.eval()


@torch.no_grad()
def make_part(vae: VAE, judges: Judges, x: Tensor, y: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Ambiguous images ``[n, 1, 28, 28]`` in [0, 1] and labels ``[n, labels_per_image]`` from images and labels.

    Raises:
        DataError: after 200 times `n` pairs there are too few.
    """
    means = torch.cat([vae.posterior(part)[0] for part in x.split(_CANDIDATES)])
    images, probs, kept, tried = [], [], 0, 0
    while kept < settings.n:
        if tried >= 200 * settings.n:
            raise DataError(
                f"of {tried} blends of two digits only {kept} are ambiguous and {settings.n} are wanted; train longer,"
                f" or allow for other entropies"
            )
        first, second = torch.randint(len(x), (2, _CANDIDATES))
        pair = y[first] != y[second]
        first, second = first[pair], second[pair]
        weight = (1 - settings.blend) + (2 * settings.blend - 1) * torch.rand(len(first), 1)
        blends = vae.decode(weight * means[first] + (1 - weight) * means[second])
        member_probs = judges.probs(blends)
        rows = ambiguous(member_probs, settings)
        images.append(blends[rows])
        probs.append(member_probs.mean(0)[rows])
        kept, tried = kept + int(rows.sum()), tried + len(first)
    log.info("%d of %d blends are ambiguous", kept, tried)
    soft = torch.cat(probs)[: settings.n]
    return torch.cat(images)[: settings.n], soft.multinomial(settings.labels_per_image, replacement=True)


def ambiguous(member_probs: Tensor, settings: Settings) -> Tensor:
    """Which inputs, ``[B]`` bool, have a mean probability of middling entropy on which the members agree.

    Args:
        member_probs: ``[M, B, C]``.
        settings: has the three bounds.
    """
    entropy = measures.entropy(member_probs.mean(0))
    agreed = measures.mutual_information(member_probs) <= settings.max_disagreement
    return (entropy >= settings.min_entropy) & (entropy <= settings.max_entropy) & agreed


def _check(settings: Settings) -> None:
    if settings.n < 1 or settings.labels_per_image < 1 or settings.members < 2:
        raise ConfigError(
            f"--n and --labels-per-image must be at least 1 and --members at least 2, got {settings.n},"
            f" {settings.labels_per_image} and {settings.members}"
        )
    if settings.vae_epochs < 1 or settings.member_epochs < 1 or settings.latent_dim < 1:
        raise ConfigError("--vae-epochs, --member-epochs and --latent-dim must be at least 1")
    if not 0.5 <= settings.blend <= 1 or not settings.min_entropy < settings.max_entropy:
        raise ConfigError(
            f"--blend must lie in [0.5, 1] and --min-entropy below --max-entropy, got {settings.blend},"
            f" {settings.min_entropy} and {settings.max_entropy}"
        )


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """Of a set that this wrote; ``None`` for anything else."""
    try:
        return json.loads((folder / ORIGIN_FILE).read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _items(source: TorchvisionImages, name: SplitName) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 28, 28]`` in [0, 1] and labels ``[N]``."""
    split = source.split(name)
    return split.x.float() / 255, split.y


def _logits(member: CEBaseline, x: Tensor) -> Tensor:
    with scoring_mode(member):
        return torch.cat([member.outputs(part)["logits"] for part in x.split(_CANDIDATES)])


def _write(folder: Path, images: Tensor, labels: Tensor, *, origin: dict[str, Any]) -> None:
    """The whole folder or nothing."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{FOLDER}-"))
    try:
        torch.save(images, temporary / SAMPLES_FILE)
        torch.save(labels, temporary / LABELS_FILE)
        (temporary / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n")
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner reads
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
