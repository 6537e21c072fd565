"""DDU's Gaussians: memory of the fit with ten times the data, and distances by float32 products against float64.

    python benchmarks/gaussians.py

The rival of the fit keeps all features and takes the covariance of each class from them, as the paper's code does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

from ratios import Ratio, in_turns, main, peak_memory, ratio_of

CLASSES, DIM, BATCH = 10, 512, 512


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    import torch
    from torch import Tensor

    from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics
    from uncertainty_est.models.ddu import DDU
    from uncertainty_est.networks.fc import FC

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = FC(data_shape=[DIM], num_classes=CLASSES, hidden_dims=[DIM])

    def batches(images: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(images // BATCH):
            x = torch.randn(BATCH, DIM, generator=generator)
            yield x, torch.randint(CLASSES, (BATCH,), generator=generator)

    def ours(images: int) -> None:
        DDU(network).fit_posthoc(batches(images))

    def theirs(images: int) -> None:
        with torch.no_grad():
            pairs = [(network.features(x).double(), y) for x, y in batches(images)]
            z, y = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
            covariances = torch.stack([torch.cov(z[y == c].T) for c in range(CLASSES)])
            torch.linalg.cholesky(covariances + 1e-6 * torch.eye(DIM, dtype=torch.float64))

    def peak(fit: object, images: int) -> float:
        fit(BATCH * CLASSES)  # type: ignore[operator]
        with peak_memory() as peaks:
            fit(images)  # type: ignore[operator]
        return peaks[0] / 2**20

    few, many = arguments.images, 10 * arguments.images
    memory = {(fit.__name__, n): peak(fit, n) for fit in (ours, theirs) for n in (few, many)}
    rows = [
        Ratio(
            f"memory of the process while DDU is fitted to {many:,} images",
            f"{memory['ours', many]:.0f} MB",
            f"to {few:,}: {memory['ours', few]:.0f} MB",
            memory["ours", many] / memory["ours", few],
            1.1,
        ),
        Ratio(
            "the same",
            f"{memory['ours', many]:.0f} MB",
            f"keeping all features: {memory['theirs', many]:.0f} MB",
            memory["ours", many] / memory["theirs", many],
        ),
    ]
    for classes, dim, longest in ((10, 64, 3), (10, 512, 3), (100, 512, 3), (10, 512, 1000)):
        statistics_ = GaussianStatistics(classes, dim)
        axes, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
        # Standard deviations of 1 to `longest`, along axes of no feature's direction.
        mixing = torch.linspace(1, longest, dim, dtype=torch.float64)[:, None] * axes
        n = 4 * dim * classes
        for part in range(0, n, 4096):
            y = torch.arange(part, min(n, part + 4096)) % classes
            statistics_.update(torch.randn(len(y), dim, dtype=torch.float64) @ mixing + 0.1 * y[:, None], y)
        density = ClassGaussians(classes, dim)
        density.fit(statistics_)
        z = torch.randn(BATCH, dim)
        exact = density.log_prob(z.double())
        difference = float(((density.log_prob(z) - exact) / exact).abs().max())
        calls = {"mixed": lambda z=z, d=density: d.log_prob(z), "exact": lambda z=z, d=density: d.log_prob(z.double())}
        in_turns(calls, 2)
        times = in_turns(calls, 7)
        mixed, float64 = (1e3 * statistics.median(times[name]) for name in ("mixed", "exact"))
        what = f"log-densities, {classes} classes, {dim} features, standard deviations of 1 to {longest}, batch {BATCH}"
        rival = f"float64 throughout: {float64:.1f} ms"
        rows += [
            Ratio(what, f"{mixed:.1f} ms", rival, ratio_of(times, "mixed", "exact")),
            Ratio("their largest relative difference", f"{difference:.0e}", "float64", difference / 1e-6, 1.0),
        ]
    return rows


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("images", 20_480), ("threads", 1)))
