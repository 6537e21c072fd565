"""All ratios with limits in one page.

    python benchmarks/performance.py --output docs/performance.md

Every program runs in a process of its own, one after the other; wants a machine that does nothing else. Exits with 1
where a limit is not kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

from ratios import ROOT, Ratio, markdown

PARTS = {
    "training_step": "Training on tables",
    "image_pipeline": "Images",
    "startup": "Starting",
    "evaluation_cost": "Evaluation",
    "gaussians": "DDU's Gaussians",
    "training_options": "Options of training, on a CPU",
}
HEAD = """# Performance

Ratios measured in one process, ours and the other in turns, medians over rounds; the program of each part is named. A
limit is what the project promises. Written by `python benchmarks/performance.py --output docs/performance.md` on
{machine}.
"""
TAIL = """
Transfers to a GPU are from pinned memory and do not block; a split of less than 2 GB stays on the GPU and is not
transferred at all. `trainer=gpu_fast` compiles networks, keeps channels innermost and takes bfloat16;
`fixed.compile=true` and `fixed.channels_last=true` do so one by one, `trainer=bf16` the last. All are off by default:
compiling costs the time of thousands of steps of a small network and cannot differentiate twice (score matching,
gradient penalties), and a CPU without bfloat16 is slow with it.

The test suite (`make test`) is to take less than 15 minutes on two cores: 4,399 tests took 12.5 in November 2026.

Float32 products of Gaussians are used where a trial on the fitted state agrees with float64 to 1e-6: where no feature
is nearly a sum of others. Features of trained networks often are; there all is float64, as in the last row of that
table.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part (repeatable), keep the others"
    )
    arguments = parser.parse_args()
    kept_file = ROOT / "runs" / "performance.json"
    kept_file.parent.mkdir(exist_ok=True)
    rows: dict[str, list[Ratio]] = {}
    if kept_file.is_file():
        rows = {part: [Ratio(**row) for row in found] for part, found in json.loads(kept_file.read_text()).items()}
    for part in arguments.only or PARTS:
        command = [sys.executable, str(Path(__file__).with_name(f"{part}.py")), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        try:
            rows[part] = [Ratio(**row) for row in json.loads(done.stdout.splitlines()[-1])]
        except (IndexError, ValueError) as error:
            raise SystemExit(f"{part}.py gave no rows (exit code {done.returncode})") from error
        kept_file.write_text(json.dumps({name: [vars(row) for row in found] for name, found in rows.items()}, indent=1))
    machine = f"{platform.processor() or platform.machine()}, 2 cores, Python {platform.python_version()}"
    parts = [HEAD.format(machine=machine)]
    for part, title in PARTS.items():
        if part in rows:
            parts.append(f"## {title} (`benchmarks/{part}.py`)\n\n{markdown(rows[part])}\n")
    arguments.output.write_text("\n".join(parts) + TAIL)
    return 0 if all(row.is_kept for found in rows.values() for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
