"""Spherical mixtures of images: distances by a product of matrices against the tensor of all differences.

    python benchmarks/ccu_mixture.py

Times the log-density of the same whitened batch under the same mixture, forward, and forward with the backward pass to
inputs, means and variances, in one process and one type (float64), and checks that values and gradients agree. Prints a
Markdown table; exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable

import torch
from timing import seconds
from torch import Tensor

from uncertainty_est.densities.spherical_mixture import SphericalMixture

DIM, COMPONENTS, BATCH = 784, 100, 128
PROMISED = {"forward": 10.0, "forward and backward": 25.0}
TOLERANCE = 1e-9


def by_differences(mixture: SphericalMixture, z: Tensor) -> Tensor:
    """Log-density ``[B]`` from the tensor ``z_b - mu_k: [B, K, D]``, as the formula is written."""
    squared = (z[:, None, :] - mixture.mean[None, :, :]).square().sum(-1)
    constant = mixture.log_weight - 0.5 * DIM * (mixture.log_var + math.log(2 * math.pi))
    return (constant - squared / (2 * mixture.log_var.exp())).logsumexp(-1)


def step(mixture: SphericalMixture, z: Tensor, log_prob: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Mean log-density and its gradients, as in a training step."""
    inputs = [z, mixture.mean, mixture.log_var]
    mean = log_prob(z).mean()
    return [mean.detach(), *torch.autograd.grad(mean, inputs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    mixture = SphericalMixture(COMPONENTS, DIM)
    with torch.no_grad():
        mixture.mean.normal_()
        mixture.log_var.uniform_(-1, 1)
        mixture.fitted.fill_(True)
    z = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)

    def slow_log_prob(x: Tensor) -> Tensor:
        return by_differences(mixture, x)

    pairs = zip(step(mixture, z, slow_log_prob), step(mixture, z, mixture.log_prob), strict=True)
    difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "forward": (torch.no_grad()(lambda: slow_log_prob(z)), torch.no_grad()(lambda: mixture.log_prob(z))),
        "forward and backward": (
            lambda: step(mixture, z, slow_log_prob),
            lambda: step(mixture, z, mixture.log_prob),
        ),
    }
    kept = difference <= TOLERANCE
    print(f"{DIM} dimensions, {COMPONENTS} components, batch {BATCH}, {arguments.threads} thread(s); ms per call\n")
    print("| | differences | product | ratio | promised | largest relative difference |")
    print("|---|---|---|---|---|---|")
    for name, (differences, product) in runs.items():
        # In turns, so that a machine that slows down slows both.
        ratios, slow, fast = [], [], []
        for _ in range(5):
            slow.append(seconds(differences, max(1, arguments.repeats // 10), warm_up=1))
            fast.append(seconds(product, arguments.repeats, warm_up=1))
            ratios.append(slow[-1] / fast[-1])
        ratio = statistics.median(ratios)
        kept = kept and ratio >= PROMISED[name]
        print(
            f"| {name} | {1e3 * statistics.median(slow):.1f} | {1e3 * statistics.median(fast):.2f}"
            f" | {ratio:.1f} | {PROMISED[name]:.0f} | {difference:.0e} |"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
