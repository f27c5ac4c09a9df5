"""Draws what training runs logged, one panel a figure, one line a run, and prints how long they took.

    python benchmarks/training_curves.py runs/patchwork/{clip,vision,warmup,segmentor} --output curves.png

Each RUN is the folder of a stage, with its ``metrics.jsonl``. Needs matplotlib (``pip install matplotlib``).
"""

import argparse
import json
from pathlib import Path

PANELS = (
    "loss",
    "top1_seen",
    "top1_unseen",
    "pixel_accuracy",
    "segment_class",
    "segment_mask",
    "PQ_th",
    "PQ_st",
)
COLUMNS = 4


def read_curve(run: Path, figure: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure, from training records or evaluations, whichever hold it."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(record["step"], record[figure]) for record in records if figure in record]
    return [step for step, _ in points], [value for _, value in points]


def describe_time(run: Path) -> str:
    """Steps, seconds of each and minutes of all, as a row of a Markdown table."""
    steps, seconds = read_curve(run, "seconds_per_step")
    # Each record is the mean over the steps since the one before.
    total = sum(
        each * (step - before) for each, step, before in zip(seconds, steps, [0, *steps], strict=False)
    )
    return f"| `{run.name}` | {steps[-1]:,} | {total / steps[-1]:.2f} | {total / 60:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = {
        figure: {run.name: curve for run in arguments.runs if (curve := read_curve(run, figure))[0]}
        for figure in PANELS
    }
    curves = {figure: lines for figure, lines in curves.items() if lines}
    rows = -(-len(curves) // COLUMNS)
    plot, axes = plt.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 2.8 * rows), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (figure, lines) in zip(axes.flat, curves.items(), strict=False):
        for run, (steps, values) in lines.items():
            axis.plot(steps, values, marker="o" if len(steps) < 30 else None, markersize=3, label=run)
        axis.set_title(figure)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        if figure == "loss":
            axis.set_yscale("log")
    plot.tight_layout()
    plot.savefig(arguments.output, dpi=80)
    print("| stage | steps | seconds a step | minutes |\n|---|---:|---:|---:|")
    print("\n".join(map(describe_time, arguments.runs)))


if __name__ == "__main__":
    main()
