"""Random ground truth and predictions in the COCO panoptic format, with void, crowds and ids up to 24 bits.

``numpy.random.RandomState`` is used because its stream never changes: golden values rest on these maps.
"""

import json

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 17, "name": "cat", "isthing": 1},
    {"id": 21, "name": "cow", "isthing": 1},
    {"id": 25, "name": "giraffe", "isthing": 1},
    {"id": 100, "name": "cardboard", "isthing": 0},
    {"id": 149, "name": "road", "isthing": 0},
    {"id": 184, "name": "tree-merged", "isthing": 0},
    {"id": 187, "name": "sky-other-merged", "isthing": 0},
]
UNSEEN_CATEGORY_IDS = [21, 25, 149, 187]
NEVER_USED_LABEL_IDS = [4, 8]


def list_segments(ids, label_by_id, crowd_ids=()):
    """Segments that have pixels, in the order of ``label_by_id``."""
    return [
        {
            "id": segment_id,
            "label_id": label_id,
            "area": int((ids == segment_id).sum()),
            "iscrowd": int(segment_id in crowd_ids),
        }
        for segment_id, label_id in label_by_id.items()
        if (ids == segment_id).any()
    ]


def random_target(random, height, width, label_ids, max_segments=8):
    """(ids (H, W) int32, segments): rectangles over void, about every fourth one a crowd."""
    ids = np.zeros((height, width), dtype=np.int32)
    label_by_id, crowd_ids = {}, set()
    for _ in range(random.randint(1, max_segments + 1)):
        segment_id = int(random.randint(1, 256**3))
        label_by_id[segment_id] = int(random.choice(label_ids))
        if random.rand() < 0.25:
            crowd_ids.add(segment_id)
        _paint_rectangle(random, ids, segment_id)
    return ids, list_segments(ids, label_by_id, crowd_ids)


def perturb(random, ids, segments, label_ids):
    """(ids, segments) of a prediction: the target shifted; segments renamed, dropped, split and added."""
    moved = np.roll(ids, (random.randint(-2, 3), random.randint(-2, 3)), axis=(0, 1))
    predicted = np.zeros_like(moved)
    first_id = int(random.randint(1, 2**23))
    new_ids = [first_id + 4099 * step for step in range(2 * len(segments) + 2)]
    label_by_id = {}
    for segment in segments:
        mask = moved == segment["id"]
        fate = random.rand()
        segment_id = new_ids.pop()
        label_by_id[segment_id] = segment["label_id"]
        if fate < 0.15:
            continue
        if fate < 0.3:
            label_by_id[segment_id] = int(random.choice(label_ids))
        predicted[mask] = segment_id
        if fate > 0.8:
            other_id = new_ids.pop()
            label_by_id[other_id] = segment["label_id"]
            rows, columns = np.nonzero(mask)
            is_left = columns < np.median(columns) if len(columns) else columns.astype(bool)
            predicted[rows[is_left], columns[is_left]] = other_id
    for _ in range(2):
        segment_id = new_ids.pop()
        label_by_id[segment_id] = int(random.choice(label_ids))
        _paint_rectangle(random, predicted, segment_id, max_share=0.3)
    return predicted, list_segments(predicted, label_by_id)


def write_coco_panoptic(folder, stem, images, categories):
    """Write ``stem``.json and a folder ``stem`` of PNGs; images are (image_id, ids, segments)."""
    (folder / stem).mkdir(parents=True)
    annotations = []
    for image_id, ids, segments in images:
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / stem / f"{image_id}.png")
        segments_info = [
            {
                "id": segment["id"],
                "category_id": categories[segment["label_id"]]["id"],
                "area": segment["area"],
                "iscrowd": segment["iscrowd"],
            }
            for segment in segments
        ]
        annotations.append(
            {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments_info}
        )
    content = {"annotations": annotations, "categories": categories}
    (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder / f"{stem}.json"


def write_synthetic_set(folder, seed, num_images):
    """Write ``target`` and ``prediction`` sets; returns the two JSON paths."""
    random = np.random.RandomState(seed)
    label_ids = [i for i in range(len(CATEGORIES)) if i not in NEVER_USED_LABEL_IDS]
    targets, predictions = [], []
    for image_id in range(num_images):
        height, width = random.randint(20, 70, size=2)
        ids, segments = random_target(random, height, width, label_ids)
        targets.append((image_id, ids, segments))
        predictions.append((image_id, *perturb(random, ids, segments, label_ids)))
    return (
        write_coco_panoptic(folder, "target", targets, CATEGORIES),
        write_coco_panoptic(folder, "prediction", predictions, CATEGORIES),
    )


def write_perturbed_prediction(gt_json, folder, seed):
    """Write a perturbed copy of a data set's ground truth as ``prediction``; returns the JSON path."""
    random = np.random.RandomState(seed)
    content = json.loads(gt_json.read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_by_category = {category["id"]: label_id for label_id, category in enumerate(categories)}
    predictions = []
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(gt_json.with_suffix("") / annotation["file_name"])).astype(np.int32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        segments = [
            {"id": segment["id"], "label_id": label_by_category[segment["category_id"]]}
            for segment in annotation["segments_info"]
        ]
        label_ids = sorted({segment["label_id"] for segment in segments})
        predictions.append((annotation["image_id"], *perturb(random, ids, segments, label_ids)))
    return write_coco_panoptic(folder, "prediction", predictions, categories)


def _paint_rectangle(random, ids, value, max_share=0.7):
    height, width = ids.shape
    box_height = random.randint(1, max(2, int(height * max_share)))
    box_width = random.randint(1, max(2, int(width * max_share)))
    top, left = random.randint(0, height - box_height + 1), random.randint(0, width - box_width + 1)
    ids[top : top + box_height, left : left + box_width] = value
