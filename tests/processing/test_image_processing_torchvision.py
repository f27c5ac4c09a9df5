"""The torchvision processor against the PIL one, in a process of its own.

Beside a CPU build of torch, torchvision's compiled operators do not load and importing it fails; it then lies
in a folder of its own beside the environment, and the two operators it asks for are declared by hand.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from testing.tiny_models import build_scan_processor

FOLDER = Path(sys.prefix) / "torchvision"

SCRIPT = """
import json, sys
import numpy as np
import torch

folder, checkpoint, processor_name = sys.argv[1:]
if folder:
    sys.path.append(folder)
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import zsseg
from transformers import AutoImageProcessor

results = {}
for backend in ("pil", "torchvision"):
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend=backend)
    results[backend] = type(processor).__name__
    generator = np.random.default_rng(0)
    # Smooth, as photographs are: in noise the two roundings of PIL's two passes show at once.
    pictures = []
    for height, width in ((50, 80), (200, 120), (31, 97), (64, 96)):
        coarse = generator.uniform(0, 255, (height // 10 + 2, width // 10 + 2, 3))
        picture = coarse.repeat(10, 0).repeat(10, 1)[:height, :width]
        pictures.append(picture.astype(np.uint8))
    options = {"do_normalize": False, "do_rescale": False}
    results[backend + " batch"] = processor(pictures, return_tensors="pt", **options)
    results[backend + " normal"] = processor(pictures[:1], return_tensors="pt", do_resize=False)
pil, torchvision = results.pop("pil batch"), results.pop("torchvision batch")
results["masks"] = torch.equal(pil["pixel_mask"], torchvision["pixel_mask"])
results["levels"] = (pil["pixel_values"] - torchvision["pixel_values"]).abs().max().item()
results["spread"] = pil["pixel_values"].std().item()
pil, torchvision = results.pop("pil normal"), results.pop("torchvision normal")
results["normalised"] = (pil["pixel_values"] - torchvision["pixel_values"]).abs().max().item()
results["shape"] = list(torchvision["pixel_values"].shape)
processor = getattr(zsseg, processor_name).from_pretrained(checkpoint, backend="torchvision")
results["processor"] = type(processor.image_processor).__name__
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folders(concat_checkpoint, tmp_path_factory):
    scan = tmp_path_factory.mktemp("scan")
    build_scan_processor().save_pretrained(scan)
    return {"Concat": concat_checkpoint, "Scan": scan}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Concat", "Scan"])
def test_both_backends_give_the_same_within_a_level(family, folders):
    if FOLDER.is_dir():
        folder = str(FOLDER)
    elif importlib.util.find_spec("torchvision") is not None:
        folder = ""
    else:
        pytest.skip(f"torchvision is neither installed nor in {FOLDER}")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, str(folders[family]), f"{family}Processor"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["pil"] == f"{family}ImageProcessorPil"
    assert results["torchvision"] == results["processor"] == f"{family}ImageProcessor"
    assert results["masks"]
    assert results["levels"] <= 1.0
    assert results["spread"] > 50
    assert results["normalised"] <= 1e-5
    assert results["shape"] == [1, 3, 64, 96]
