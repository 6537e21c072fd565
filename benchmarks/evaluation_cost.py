"""evaluate.py over six OOD sets against the bare forward passes, and its memory with ten times as many images.

    python benchmarks/evaluation_cost.py [--images 2000]

A WRN-10-2 with DDU on images of 32 x 32, in packs for the times and in a folder of PNG files for the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ratios import ROOT, Ratio, in_turns, main, peak_memory, ratio_of

OOD = [f"other{number}" for number in range(6)]
CLASSES, BATCH = 10, 512


def trained(folder: Path) -> Path:
    """The folder of a run that was fitted, but not trained, on packs of random images."""
    from hydra import compose, initialize_config_dir

    from uncertainty_est.launch import points_of, run_points

    overrides = ["dataset=cifar10", "model=img_ddu", "network=wrn_10_2", "trainer=cpu", "logger=none"]
    overrides += [f"fixed.data_root={folder}", f"fixed.output_folder={folder / 'runs'}", "fixed.dataset=known"]
    overrides += ["fixed.trainer_config.max_epochs=0", "fixed.test_ood_datasets=[]", "fixed.ood_groups=null"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        points = points_of(compose("config", overrides=overrides), ROOT / "configs" / "source")
    return Path(run_points(points)[0]["run_dir"])


def write_packs(folder: Path, images: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    for name in ["known", *OOD]:
        x = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        y = np.arange(images) % CLASSES
        train = {"x_train": x[:1000], "y_train": y[:1000]} if name == "known" else {}
        np.savez(folder / f"{name}.npz", x_test=x, y_test=y, **train)


def write_pngs(folder: Path, images: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:06}.png")


def memory_of(run: str, data: str, output: str) -> None:
    """Prints how much memory the process has at most while it evaluates one OOD set."""
    import torch

    from uncertainty_est.evaluate import evaluate
    from uncertainty_est.request import Request

    torch.set_num_threads(1)

    def once() -> None:
        evaluate(
            Request(
                Path(output),
                ROOT / "configs" / "source",
                checkpoint=[Path(run)],
                ood_dataset=[data],
                no_plots=True,
                batch_size=BATCH,
            )
        )

    once()  # what is imported and allocated once, and images are decoded
    with peak_memory() as peaks:
        once()
    print(json.dumps(peaks[0]))


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    import torch

    from uncertainty_est import checkpoints
    from uncertainty_est.data.sources.pack import NpzPack
    from uncertainty_est.evaluate import evaluate
    from uncertainty_est.request import Request

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_packs(folder, arguments.images)
        run = trained(folder)
        network = checkpoints.load(run).method.network
        loaded = [NpzPack(root=name, name=s, shape=(3, 32, 32)).split("test").x for s in ["known", *OOD]]
        mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])

        def bare() -> None:
            with torch.no_grad():
                for x in loaded:
                    for part in x.split(BATCH):
                        network((part.float() / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))

        def ours(figures: bool) -> None:
            source_dir = ROOT / "configs" / "source"
            request = Request(folder / "out", source_dir, checkpoint=[run], ood_dataset=OOD, no_plots=not figures)
            report = evaluate(request)
            assert not report.failed, report.failed

        calls = {"bare": bare, "tables": lambda: ours(False), "figures": lambda: ours(True)}
        in_turns(calls, 1)
        times = in_turns(calls, arguments.repeats)

        peaks = []
        for number, images in enumerate((arguments.images, 10 * arguments.images)):
            write_pngs(folder / f"pngs{number}", images)
            code = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import evaluation_cost;"
                f" evaluation_cost.memory_of({str(run)!r}, 'pngs{number}', {str(folder / 'memory')!r})"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peaks.append(int(done.stdout.splitlines()[-1]) / 2**20)
    seconds = {key: sorted(values)[len(values) // 2] for key, values in times.items()}
    images = f"{7 * arguments.images:,} images"
    rival = f"forward passes alone, {seconds['bare']:.2f} s"
    return [
        Ratio(
            f"evaluate.py, {images}: load, score, tables",
            f"{seconds['tables']:.2f} s",
            rival,
            ratio_of(times, "tables", "bare"),
            1.1,
        ),
        Ratio("the same with figures", f"{seconds['figures']:.2f} s", rival, ratio_of(times, "figures", "bare")),
        Ratio(
            f"memory of the process while it evaluates an OOD set of {10 * arguments.images:,} PNG files",
            f"{peaks[1]:.0f} MB",
            f"of {arguments.images:,}: {peaks[0]:.0f} MB",
            peaks[1] / peaks[0],
            1.1,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("images", 2000), ("repeats", 2), ("threads", 2)))
