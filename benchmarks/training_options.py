"""What fixed.compile, fixed.channels_last and bf16 do to a training step on this machine's CPU.

python benchmarks/training_options.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack

from ratios import Ratio, in_turns, main, ratio_of

BATCH = 64
OPTIONS = ("default", "compile", "channels_last", "bf16")


def measure(arguments: argparse.Namespace) -> list[Ratio]:
    import torch

    from uncertainty_est.models.ce_baseline import CEBaseline
    from uncertainty_est.networks.base import Network
    from uncertainty_est.networks.fc import FC
    from uncertainty_est.networks.wide_resnet import WideResNet
    from uncertainty_est.training import accelerated

    torch.set_num_threads(arguments.threads)
    y = torch.randint(0, 10, (BATCH,))
    cases: dict[str, tuple[Callable[[], Network], torch.Tensor]] = {
        "WRN-10-2, 64 images of 32 x 32": (
            lambda: WideResNet(data_shape=(3, 32, 32), num_classes=10, depth=10, widen_factor=2),
            torch.randn(BATCH, 3, 32, 32),
        ),
        "fc 5 x 100, 64 rows of 48 features": (lambda: FC(data_shape=[48], num_classes=10), torch.randn(BATCH, 48)),
    }
    rows = []
    for what, (make, x) in cases.items():
        calls: dict[str, Callable[[], object]] = {}
        with ExitStack() as options:
            for name in OPTIONS:
                torch.manual_seed(0)
                method = CEBaseline(make(), optimizer=lambda weights: torch.optim.SGD(weights, lr=0.01))
                optimizer = method.configure_optimizers()
                options.enter_context(
                    accelerated(method, compiled=name == "compile", channels_last=name == "channels_last")
                )

                def step(method=method, optimizer=optimizer, x=x, bf16=name == "bf16") -> None:  # type: ignore[no-untyped-def]
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                        (loss,) = method.loss({"id": (x, y)}).values()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

                calls[name] = step
            in_turns(calls, 3)
            times = in_turns(calls, arguments.repeats)
        median = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        for name in OPTIONS[1:]:
            rival = f"without: {median['default']:.1f} ms"
            rows.append(Ratio(f"{what}: {name}", f"{median[name]:.1f} ms", rival, ratio_of(times, name, "default")))
    return rows


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure, ("repeats", 15), ("threads", 1)))
