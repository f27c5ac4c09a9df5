"""Reports of the Patchwork benchmark that nothing was measured for."""

from zsseg.training.patchwork_report import FIGURES, BenchmarkedModel, PatchworkReport, PatchworkRow


def build_row(**changes):
    figures = {name: (position + 1) / 100 for position, name in enumerate(FIGURES)}
    figures |= {"PQ_unseen_stuff": None, "ms_per_image": 61.5}
    setup = {"preset": "easy", "split": "A", "scenes": 3, "size": 64, "seed": 9, "text": "own"}
    return PatchworkRow(**{**setup, "figures": figures, **changes})


def build_report(name="tiny", rows=None):
    model = BenchmarkedModel(name, "zsseg-concat", 1000, 100, 0.8, 0.5, 0.7)
    rows = (build_row(), build_row(text="shuffled")) if rows is None else rows
    return PatchworkReport(f"zsseg evaluate patchwork --model {name}", "a machine", model, rows)
