"""A training step of JEM: ours against the same step in plain PyTorch, and against the naive way, in the same process.

    python benchmarks/jem_step.py

Twenty Langevin steps and the update of a WRN-10-2 on 64 images of 32 x 32. The naive way keeps every graph, lets the
gradients of the parameters accumulate while it samples, keeps its chains on the CPU and passes data and samples through
the network one after the other. The weights of ours and of plain PyTorch are compared after three steps from the same
state and random numbers. Prints a Markdown table; exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from uncertainty_est.models.ebm.mcmc import MCMC
from uncertainty_est.networks.wide_resnet import WideResNet
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.samplers.sgld import SGLD

SHAPE, CLASSES, CHAINS, REINIT = (3, 32, 32), 10, 1000, 0.05
STEP_SIZE, NOISE, CONTROL = 1.0, 0.01, 0.1
PROMISED = 1.1  # most time of ours, as a multiple of plain PyTorch's
TOLERANCE = 1e-6

Step = Callable[[Tensor, Tensor], None]
Optimizer = Callable[..., torch.optim.Optimizer]
ADAM: Optimizer = partial(torch.optim.Adam, lr=1e-4)
# For comparisons: Adam divides by gradients that may be no more than rounding.
SGD: Optimizer = partial(torch.optim.SGD, lr=1e-3)


def make_network() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(data_shape=SHAPE, num_classes=CLASSES, depth=10, widen_factor=2, norm="none")


def ours(network: WideResNet, sgld_steps: int, optimizer_of: Optimizer) -> Step:
    buffer = ReplayBuffer(SHAPE, size=CHAINS, reinit_freq=REINIT)
    buffer.samples.zero_()
    sampler = SGLD(steps=sgld_steps, lr=STEP_SIZE, std=NOISE)
    method = MCMC(network, sampler, buffer, pyxce=1.0, p_control=CONTROL, optimizer=optimizer_of)
    method.train()
    optimizer = method.configure_optimizers()

    def step(x: Tensor, y: Tensor) -> None:
        loss = torch.stack(list(method.loss({"id": (x, y)}).values())).sum()
        method._take_notes()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain(network: WideResNet, sgld_steps: int, optimizer_of: Optimizer) -> Step:
    buffer = torch.zeros(CHAINS, *SHAPE)
    optimizer = optimizer_of(network.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        slots = torch.randperm(CHAINS)[: len(x)]
        anew = torch.rand(len(x)) < REINIT
        z = torch.where(anew.view(-1, 1, 1, 1), torch.empty(len(x), *SHAPE).uniform_(-1, 1), buffer[slots])
        network.eval()
        for _ in range(sgld_steps):
            z.requires_grad_()
            (gradient,) = torch.autograd.grad(network(z).logsumexp(-1).sum(), z)
            z = z.detach() + STEP_SIZE * gradient + NOISE * torch.randn(z.shape)
        network.train()
        buffer[slots] = z
        logits, of_samples = network(torch.cat([x, z])).split(len(x))
        known, drawn = logits.logsumexp(-1), of_samples.logsumexp(-1)
        loss = drawn.mean() - known.mean() + CONTROL * (known.square().mean() + drawn.square().mean())
        loss = loss + F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def naive(network: WideResNet, sgld_steps: int, optimizer_of: Optimizer) -> Step:
    buffer = torch.zeros(CHAINS, *SHAPE)  # on the CPU, whatever the network's device
    optimizer = optimizer_of(network.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        slots = torch.randint(CHAINS, (len(x),))
        anew = (torch.rand(len(x)) < REINIT).float().view(-1, 1, 1, 1)
        start = anew * torch.empty(len(x), *SHAPE).uniform_(-1, 1) + (1 - anew) * buffer[slots]
        z = nn.Parameter(start.to(x.device))
        network.eval()
        for _ in range(sgld_steps):
            z.grad = None
            network(z).logsumexp(-1).sum().backward(retain_graph=True)
            z.data += STEP_SIZE * z.grad + NOISE * torch.randn_like(z)
        network.train()
        samples = z.detach()
        buffer[slots] = samples.cpu()
        known, drawn = network(x).logsumexp(-1), network(samples).logsumexp(-1)
        loss = drawn.mean() - known.mean() + CONTROL * (known.square().mean() + drawn.square().mean())
        loss = loss + F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def difference(x: Tensor, y: Tensor) -> float:
    """Largest difference between the weights of ours and of plain PyTorch, after three steps of SGD."""
    ends = []
    for make in (ours, plain):
        network = make_network()
        step = make(network, 3, SGD)
        torch.manual_seed(1)
        for _ in range(3):
            step(x, y)
        ends.append(list(network.parameters()))
    return max(float((a - b).detach().abs().max()) for a, b in zip(*ends, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x, y = torch.rand(arguments.batch_size, *SHAPE) * 2 - 1, torch.randint(CLASSES, (arguments.batch_size,))
    gap = difference(x[:8], y[:8])
    start = make_network()
    steps = {make.__name__: make(copy.deepcopy(start), 20, ADAM) for make in (ours, plain, naive)}
    for step in steps.values():
        step(x, y)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        # In turns, so that a machine that slows down slows all.
        for name, step in steps.items():
            times[name].append(seconds(lambda step=step: step(x, y)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    of_plain = statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True))
    print(f"WRN-10-2, {arguments.batch_size} images of 32 x 32, 20 SGLD steps, {arguments.threads} thread(s)\n")
    print("| step | seconds | as a multiple of plain PyTorch | promised |")
    print("|---|---|---|---|")
    print(f"| ours | {medians['ours']:.2f} | {of_plain:.3f} | at most {PROMISED} |")
    print(f"| plain PyTorch | {medians['plain']:.2f} | 1 | |")
    print(f"| naive | {medians['naive']:.2f} | {medians['naive'] / medians['plain']:.2f} | |")
    print(f"\nLargest difference between the weights of ours and of plain PyTorch after three steps: {gap:.0e}")
    return 0 if of_plain <= PROMISED and gap <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
