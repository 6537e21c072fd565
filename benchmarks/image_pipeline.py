"""Images from memory to augmented batches: the share of a training step, and against torchvision's transforms.

    python benchmarks/image_pipeline.py [--images 10000]

Images of 32 x 32 are shifted by up to 4 pixels, mirrored and normalised. The rival does the same to one PIL image after
another, in a DataLoader with two worker processes.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from ratios import Ratio, in_turns, main, ratio_of

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
BATCH = 128


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from uncertainty_est.data.loader import TensorLoader
    from uncertainty_est.data.source import Split
    from uncertainty_est.data.transforms import ImageTransform
    from uncertainty_est.networks.resnet import ResNet

    torch.set_num_threads(arguments.threads)
    n = arguments.images
    x, y = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,))
    transform = ImageTransform(mean=MEAN, std=STD, crop_padding=4, flip=True)
    split = Split(x, y, torch.arange(n), "train")
    loader = TensorLoader(split, BATCH, transform=transform, augment=True, shuffle=True)

    class Items(Dataset[tuple[torch.Tensor, int]]):
        """One image after another."""

        def __init__(self) -> None:
            self.images = x.permute(0, 2, 3, 1).contiguous().numpy()
            steps = [transforms.RandomCrop(32, 4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
            self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

        def __len__(self) -> int:
            return n

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(Image.fromarray(self.images[index])), int(y[index])

    theirs = DataLoader(Items(), BATCH, shuffle=True, num_workers=2, persistent_workers=True)

    def exhaust(batches: object) -> None:
        for _ in batches:  # type: ignore[attr-defined]
            pass

    calls = {"ours": lambda: exhaust(loader), "theirs": lambda: exhaust(theirs)}
    in_turns(calls, 1)  # workers are started, caches filled
    times = in_turns(calls, arguments.repeats)

    network = ResNet(data_shape=(3, 32, 32), num_classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    inputs, labels = next(iter(loader))

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    of_step = statistics.median(in_turns({"step": step}, 3)["step"])
    of_batch = statistics.median(times["ours"]) / len(loader)
    a, b = (n / statistics.median(times[name]) for name in ("ours", "theirs"))
    return [
        Ratio(
            f"batching and augmentation, share of a step of ResNet-18 (batch {BATCH})",
            f"{1e3 * of_batch:.2f} ms",
            f"forward, backward, update: {of_step:.2f} s",
            of_batch / of_step,
            0.05,
        ),
        Ratio(
            "images a second, loader alone",
            f"{a:,.0f}",
            f"torchvision's PIL transforms, DataLoader with 2 workers: {b:,.0f}",
            1 / ratio_of(times, "ours", "theirs"),
            20,
            at_least=True,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("images", 10_000), ("repeats", 7), ("threads", 2)))
