"""Posterior Network's densities: all classes in one call against a loop over classes, in the same process.

    python benchmarks/flows_per_class.py

Times forward pass, uncertain cross-entropy and backward pass of the same radial flows with the same parameters, and
checks that losses and gradients agree in float64. Prints a Markdown table; exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys

import torch
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.densities.radial import RadialFlows
from uncertainty_est.losses.dirichlet import uncertain_cross_entropy

CLASSES, LAYERS, LATENT = 10, 8, 10
PROMISED = {64: 15.0, 512: 4.0}  # batch size to least speed-up
TOLERANCE = 1e-6
COUNT = 1000.0  # samples of each class


class RadialFlow(nn.Module):
    """One map of one class, written as the paper's equations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.centre = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        self.raw_a = nn.Parameter(torch.empty(1).uniform_(-bound, bound))
        self.raw_b = nn.Parameter(torch.empty(1).uniform_(-bound, bound))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a = F.softplus(self.raw_a)
        b = F.softplus(self.raw_b) - a
        offset = z - self.centre
        radius = offset.norm(dim=-1, keepdim=True)
        h = 1 / (a + radius)
        log_det = (z.shape[-1] - 1) * torch.log1p(b * h) + torch.log1p(b * h - b * h * h * radius)
        return z + b * h * offset, log_det.squeeze(-1)


class Loop(nn.Module):
    """The densities of all classes, one class after another."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = nn.ModuleList(nn.ModuleList(RadialFlow(LATENT) for _ in range(LAYERS)) for _ in range(CLASSES))

    def log_prob(self, z: Tensor) -> Tensor:
        columns = []
        for flow in self.flows:
            x, total = z, z.new_zeros(len(z))
            for layer in flow:
                x, log_det = layer(x)
                total = total + log_det
            columns.append(total - 0.5 * x.square().sum(-1) - 0.5 * LATENT * math.log(2 * math.pi))
        return torch.stack(columns, dim=-1)


def batched_copy(loop: Loop) -> RadialFlows:
    """Our flows with the loop's parameters."""
    flows = RadialFlows(CLASSES, LATENT, LAYERS)
    with torch.no_grad():
        for c, flow in enumerate(loop.flows):
            for i, layer in enumerate(flow):
                flows.centre[i, :, c, 0] = layer.centre
                flows.raw_a[i, c], flows.raw_b[i, c] = layer.raw_a, layer.raw_b
    return flows


def step(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Loss and gradients, as in a training step of a Posterior Network."""
    model.zero_grad()
    z.grad = None
    alpha = 1 + COUNT * model.log_prob(z).double().clamp(max=80).exp()
    cross_entropy, entropy = uncertain_cross_entropy(alpha, y)
    loss = cross_entropy.mean() - 1e-5 * entropy.mean()
    loss.backward()
    return loss.detach()


def compare(loop: Loop, batch_size: int) -> float:
    """Largest difference of losses and gradients in float64."""
    loop = loop.double()
    flows = batched_copy(loop).double()
    z = torch.randn(batch_size, LATENT, dtype=torch.float64, requires_grad=True)
    y = torch.randint(CLASSES, (batch_size,))
    losses, grads = [], []
    for model in (loop, flows):
        losses.append(step(model, z, y))
        assert z.grad is not None
        grads.append(z.grad.clone())
    of_centre = torch.stack([torch.stack([layer.centre.grad for layer in flow], 0) for flow in loop.flows], -1)
    of_a = torch.stack([torch.cat([layer.raw_a.grad for layer in flow]) for flow in loop.flows], -1)
    of_b = torch.stack([torch.cat([layer.raw_b.grad for layer in flow]) for flow in loop.flows], -1)
    pairs = [
        (losses[0], losses[1]),
        (grads[0], grads[1]),
        (of_centre, flows.centre.grad.squeeze(-1)),
        (of_a, flows.raw_a.grad.squeeze(-1)),
        (of_b, flows.raw_b.grad.squeeze(-1)),
    ]
    loop.float()
    return max(float((first - second).abs().max()) for first, second in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    loop = Loop()
    kept = True
    print(f"{CLASSES} classes, {LAYERS} radial layers, latent {LATENT}, {arguments.threads} thread(s); ms per step\n")
    print("| batch | loop over classes | one call | ratio | promised | largest difference (float64) |")
    print("|---|---|---|---|---|---|")
    for batch_size, promised in PROMISED.items():
        difference = compare(loop, batch_size)
        flows = batched_copy(loop)
        z = torch.randn(batch_size, LATENT, requires_grad=True)
        y = torch.randint(CLASSES, (batch_size,))
        # In turns, so that a machine that slows down slows both.
        ratios, slow, fast = [], [], []
        for _ in range(5):
            slow.append(seconds(lambda z=z, y=y: step(loop, z, y), arguments.repeats // 5, warm_up=5))
            fast.append(seconds(lambda z=z, y=y, flows=flows: step(flows, z, y), arguments.repeats, warm_up=5))
            ratios.append(slow[-1] / fast[-1])
        ratio = statistics.median(ratios)
        kept = kept and ratio >= promised and difference <= TOLERANCE
        print(
            f"| {batch_size} | {1e3 * statistics.median(slow):.2f} | {1e3 * statistics.median(fast):.2f}"
            f" | {ratio:.1f} | {promised:.0f} | {difference:.0e} |"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
