"""A folder of pictures of coloured rectangles with semantic maps, as ``SemanticMapDataset`` reads it."""

import json

import numpy as np
from PIL import Image

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
SIZE = 32


def write_semantic_maps(folder, count=6, unseen=("blue",)):
    """Write ``count`` pictures of two rectangles; those of odd index hold the unseen colour."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    names = list(COLORS)
    classes = [{"id": i + 1, "name": name, "isthing": False} for i, name in enumerate(names)]
    text = json.dumps({"classes": classes, "ignore_index": 255, "unseen_split": list(unseen)})
    (folder / "classes.json").write_text(text)
    for index in range(count):
        generator = np.random.default_rng(index)
        left, right = (0, 1) if index % 2 == 0 else (1, 2)
        border = int(generator.integers(10, 22))
        label_map = np.full((SIZE, SIZE), left + 1, dtype=np.uint8)
        label_map[:, border:] = right + 1
        label_map[0, :4] = 255
        pixels = np.array([(0, 0, 0), *COLORS.values()])[np.minimum(label_map, 3)]
        noise = generator.normal(0.0, 10.0, pixels.shape)
        image = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{index:03d}.png")
        Image.fromarray(label_map).save(folder / "labels" / f"{index:03d}.png")
    return folder
