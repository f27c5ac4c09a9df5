"""Tiny data sets in the layouts that published archives unpack to."""

import json

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_map(path, left, right, *, palette=False):
    """A map of two halves with these values; its first pixels are ``left``."""
    values = np.full((HEIGHT, WIDTH), left, dtype=np.uint8)
    values[:, WIDTH // 2 :] = right
    image = Image.fromarray(values)
    if palette:
        image = image.copy()
        image.putpalette([channel for value in range(256) for channel in (255 - value, value, 7)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_coco_panoptic(folder, maps="annotations/panoptic_val2017"):
    """Two pictures of a cow (21, unseen) beside grass (193, unseen), and of a car (3) beside void."""
    categories = [
        {"id": 3, "name": "car", "isthing": 1},
        {"id": 21, "name": "cow", "isthing": 1},
        {"id": 193, "name": "grass-merged", "isthing": 0},
    ]
    images, annotations = [], []
    for number, segments in enumerate([[(1, 21), (2, 193)], [(1, 3)]], start=1):
        stem = f"{number:012d}"
        write_picture(folder / "val2017" / f"{stem}.jpg", number)
        ids = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for place, (segment_id, _) in enumerate(segments):
            ids[:, place * WIDTH // 2 : (place + 1) * WIDTH // 2, 0] = segment_id
        (folder / maps).mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(folder / maps / f"{stem}.png")
        images.append({"id": number, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
        infos = [
            {"id": segment_id, "category_id": category_id, "iscrowd": 0, "area": HEIGHT * WIDTH // 2}
            for segment_id, category_id in segments
        ]
        annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": infos})
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / "panoptic_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco_stuff(folder):
    """A person (0) beside wood (181), and a cow (20) beside unlabelled pixels (255)."""
    for number, values in enumerate([(0, 181), (20, 255)]):
        write_picture(folder / "images" / "val2017" / f"{number:012d}.jpg", number)
        write_map(folder / "annotations" / "val2017" / f"{number:012d}.png", *values)
    # mmsegmentation leaves maps of its own numbers beside them.
    write_map(folder / "annotations" / "val2017" / "000000000000_labelTrainIds.png", 170, 171)


def write_ade(folder):
    """A wall (1) beside a flag (150), and a building (2) beside other objects (0)."""
    for number, values in enumerate([(1, 150), (2, 0)], start=1):
        stem = f"ADE_val_{number:08d}"
        write_picture(folder / "ADEChallengeData2016" / "images" / "validation" / f"{stem}.jpg", number)
        write_map(folder / "ADEChallengeData2016" / "annotations" / "validation" / f"{stem}.png", *values)


def write_pascal_context(folder):
    """An aeroplane (1) beside wood (59), and a bag (2) beside background (0)."""
    _write_pascal(
        folder / "VOCdevkit" / "VOC2010", "SegmentationClassContext", "SegmentationContext", [(1, 59), (2, 0)]
    )


def write_pascal_voc(folder):
    """An aeroplane (1) beside a monitor (20), and background (0) beside the border of objects (255)."""
    _write_pascal(folder / "VOCdevkit" / "VOC2012", "SegmentationClass", "Segmentation", [(1, 20), (0, 255)])


def _write_pascal(root, maps, lists, values):
    stems = [f"2008_{number:06d}" for number in range(len(values))]
    for number, (stem, pair) in enumerate(zip(stems, values, strict=True)):
        write_picture(root / "JPEGImages" / f"{stem}.jpg", number)
        write_map(root / maps / f"{stem}.png", *pair, palette=True)
    write_picture(root / "JPEGImages" / "2007_000032.jpg")
    write_map(root / maps / "2007_000032.png", 3, 3, palette=True)
    (root / "ImageSets" / lists).mkdir(parents=True)
    # The order of the list counts, not that of the names.
    (root / "ImageSets" / lists / "val.txt").write_text("\n".join(reversed(stems)) + "\n")
    (root / "ImageSets" / lists / "train.txt").write_text("2007_000032\n")


WRITERS = {
    "coco-panoptic-119-14": write_coco_panoptic,
    "coco-stuff-156-15": write_coco_stuff,
    "ade-150": write_ade,
    "pc-59": write_pascal_context,
    "voc-20": write_pascal_voc,
}
