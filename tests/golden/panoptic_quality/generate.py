"""Write expected.json and provenance.json with panopticapi itself, which is not on PyPI.

    PYTHONPATH=tests:<checkout of cocodataset/panopticapi> python tests/golden/panoptic_quality/generate.py \
        --real-data <folder with coco_panoptic_official_sample> --commit <commit of panopticapi>
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import PIL

from oracles.panoptic_maps import write_perturbed_prediction, write_synthetic_set

SYNTHETIC_SEEDS = (0, 1, 2)
SYNTHETIC_IMAGES = 40
OFFICIAL_SEEDS = (0, 1, 2, 3)


def without_zeros(results):
    """Leave out the classes whose PQ, SQ and RQ are all 0: most of COCO's on two images."""
    per_class = {label: figures for label, figures in results["per_class"].items() if any(figures.values())}
    return results | {"per_class": per_class}


def main():
    from panopticapi.evaluation import pq_compute

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real-data", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    official = arguments.real_data / "coco_panoptic_official_sample" / "panoptic_examples.json"
    expected = {"synthetic": {}, "official_sample": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in SYNTHETIC_SEEDS:
            paths = write_synthetic_set(Path(temporary, f"synthetic_{seed}"), seed, SYNTHETIC_IMAGES)
            expected["synthetic"][seed] = without_zeros(pq_compute(*map(str, paths)))
        for seed in OFFICIAL_SEEDS:
            path = write_perturbed_prediction(official, Path(temporary, f"official_{seed}"), seed)
            expected["official_sample"][seed] = without_zeros(pq_compute(str(official), str(path)))
    provenance = {
        "command": "python tests/golden/panoptic_quality/generate.py",
        "source": "https://github.com/cocodataset/panopticapi, panopticapi.evaluation.pq_compute",
        "commit": arguments.commit,
        "inputs": "tests/oracles/panoptic_maps.py with the seeds that key expected.json",
        "images_per_synthetic_set": SYNTHETIC_IMAGES,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    folder = Path(__file__).parent
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
