"""The error predictor: a small network from features of an input to the loss that a model will have there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.errors import DataError

# exp of it is finite in float32, in which scores are handed out.
_LARGEST_LOG = 80.0
_VALIDATION_SHARE = 0.2
_LEARNING_RATE = 1e-3


class Transform(NamedTuple):
    """A target made of errors of at least 0, and errors made of predicted targets, likewise."""

    target: Callable[[Tensor], Tensor]
    error: Callable[[Tensor], Tensor]


TRANSFORMS = {
    "log": Transform(lambda e: (e + 1e-6).log(), lambda t: t.clamp(max=_LARGEST_LOG).exp()),
    "log10": Transform(lambda e: e.clamp(min=1e-5).log10(), lambda t: 10 ** t.clamp(max=_LARGEST_LOG / math.log(10))),
    "asinh": Transform(torch.asinh, lambda t: t.clamp(0, _LARGEST_LOG).sinh()),
    "none": Transform(lambda e: e, lambda t: t),
}


class ErrorPredictor(Fitted):
    r"""Predicts errors :math:`g(\phi) \ge 0` from features :math:`\phi`: an MLP with ReLU on standardised features.

    The MLP learns a transform of the errors by its mean square: ``log`` :math:`\ln(e + 10^{-6})`, ``log10``
    :math:`\log_{10} \max(e, 10^{-5})`, ``asinh``, or ``none``, with which it ends in a softplus. Only ``none`` predicts
    conditional means; a logarithm predicts geometric ones, which tail errors sway less.

    References:
        Lahlou et al., arXiv:2102.08501, Algorithms 1 and 2; a logarithm of the loss: its experiments on CIFAR-10.

    Args:
        num_features: F.
        hidden_dims: widths of the hidden layers.
        target: the transform.

    Raises:
        ValueError: another transform, or no hidden layer.
    """

    mean: Tensor
    scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, num_features: int, hidden_dims: Sequence[int] = (64, 64), target: str = "log") -> None:
        super().__init__()
        if target not in TRANSFORMS:
            raise ValueError(f"target must be one of {', '.join(TRANSFORMS)}, got '{target}'")
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims must be positive widths, got {list(hidden_dims)}")
        self.target = target
        layers: list[nn.Module] = []
        for width, following in zip([num_features, *hidden_dims], hidden_dims, strict=False):
            layers += [nn.Linear(width, following), nn.ReLU()]
        layers.append(nn.Linear(hidden_dims[-1], 1))
        if target == "none":
            layers.append(nn.Softplus())
        self.net = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(num_features, dtype=torch.float64))
        self.register_buffer("target_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("target_scale", torch.ones((), dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Predicted errors ``[B]``, at least 0, float64, of ``features: [B, F]``.

        Raises:
            NotFittedError: before a fit.
        """
        self.require_fit()
        predicted = self._standard_target(features).double() * self.target_scale + self.target_mean
        return TRANSFORMS[self.target].error(predicted)

    def _standard_target(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            standard = ((features.double() - self.mean) / self.scale).float()
            return self.net(standard).squeeze(-1)

    def fit(
        self,
        features: Tensor,
        errors: Tensor,
        samples: Tensor | None = None,
        *,
        seed: int = 0,
        max_epochs: int = 200,
        patience: int = 10,
    ) -> None:
        """Train anew by Adam on mini-batches; the weights kept are those best on a fifth of the samples.

        Training ends when `patience` epochs have brought no improvement. All draws come from `seed`; global
        generators stay as they are.

        Args:
            features: ``[R, F]``.
            errors: ``[R]``, at least 0.
            samples: ``[R]``, rows of the same number are of the same sample and stay on one side of the cut; all
                differ if not given.
            seed: of weights, cut and order.
            max_epochs: at most.
            patience: in epochs.

        Raises:
            DataError: fewer than 2 samples, or errors or features that are not finite.
        """
        if not (features.isfinite().all() and errors.isfinite().all()):
            raise DataError("errors and their features must be finite, got NaN or infinity: has a model diverged?")
        numbers = torch.arange(len(errors), device=errors.device) if samples is None else samples
        kinds, number = numbers.unique(return_inverse=True)
        if len(kinds) < 2:
            raise DataError(f"an error predictor needs at least 2 samples, got {len(kinds)}: add data")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(kinds), generator=generator).to(number.device)
        spared = (order < max(1, round(_VALIDATION_SHARE * len(kinds))))[number]
        device = self.mean.device
        with own_random_numbers(seed, device):
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        features, target = features.double(), TRANSFORMS[self.target].target(errors.double())
        self._standardise(features[~spared], target[~spared])
        standard = ((features - self.mean) / self.scale).float()
        aim = ((target - self.target_mean) / self.target_scale).float()
        x, t, x_val, t_val = standard[~spared], aim[~spared], standard[spared], aim[spared]

        # At least some 30 steps an epoch, however few rows there are.
        batches = len(t) // min(256, max(16, len(t) // 32)) or 1
        optimizer = torch.optim.Adam(self.net.parameters(), lr=_LEARNING_RATE, fused=True)
        best, waited, kept = math.inf, 0, copy.deepcopy(self.net.state_dict())
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for _ in range(max_epochs):
                for rows in torch.randperm(len(t), generator=generator).to(device).tensor_split(batches):
                    optimizer.zero_grad()
                    F.mse_loss(self.net(x[rows]).squeeze(-1), t[rows]).backward()
                    optimizer.step()
                with torch.no_grad():
                    loss = float(F.mse_loss(self.net(x_val).squeeze(-1), t_val))
                waited += 1
                if loss < best:
                    best, waited, kept = loss, 0, copy.deepcopy(self.net.state_dict())
                if waited == patience:
                    break
        self.net.load_state_dict(kept)
        self._finish()

    @torch.no_grad()
    def _standardise(self, features: Tensor, target: Tensor) -> None:
        std, spread = features.std(0, correction=0), target.std(correction=0)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(torch.where(std > 0, std, 1.0))
        if self.target == "none":  # a softplus starts at 0 and needs a unit only
            self.target_mean.zero_()
            spread = target.mean()
        else:
            self.target_mean.copy_(target.mean())
        self.target_scale.copy_(torch.where(spread > 0, spread, 1.0))

    def _finish(self) -> None:
        self.zero_grad(set_to_none=True)
        self.fitted.fill_(True)

    def descend(self, features: Tensor, errors: Tensor, steps: int, lr: float) -> None:
        """Full-batch steps of Adam on the mean square, of features and errors as they are, from the present weights."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                F.mse_loss(self.net(features).squeeze(-1), errors).backward()
                optimizer.step()
        self._finish()


def fit_distilled(
    make: Callable[[], ErrorPredictor],
    features: Tensor,
    errors: Tensor,
    *,
    folds: int = 5,
    steps: int = 40,
    lr: float = 1e-3,
) -> ErrorPredictor:
    """The variant of TorchUncertainty 0.13: what a last predictor learns are predictions by predictors of other folds.

    Folds are contiguous. The errors are those of one model, which no fold trains anew, and nothing is scaled.

    Args:
        make: a new predictor with the target ``none``; called once a fold, and once more.
        features: ``[N, F]``, of data that the model was not trained on.
        errors: ``[N]``.
        folds: K.
        steps: of Adam, full-batch, for each predictor.
        lr: its learning rate.

    Raises:
        DataError: fewer samples than folds.
    """
    if len(errors) < folds:
        raise DataError(f"{len(errors)} samples cannot be cut into {folds} folds: add data or choose fewer")
    features, errors = features.float(), errors.float()
    predictions = []
    for held_out in torch.arange(len(errors), device=errors.device).tensor_split(folds):
        seen = torch.ones_like(errors, dtype=torch.bool)
        seen[held_out] = False
        predictor = make()
        predictor.descend(features[seen], errors[seen], steps, lr)
        with torch.no_grad():
            predictions.append(predictor(features[held_out]).float())
    last = make()
    last.descend(features, torch.cat(predictions), steps, lr)
    return last


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, global generators draw from `seed`; afterwards they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(seed)
        yield
