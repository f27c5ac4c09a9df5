"""Segment a picture by words and save the result drawn over it.

python examples/01_segment.py CHECKPOINT IMAGE --labels road car tree --stuff road tree --output overlay.png
"""

import argparse

from transformers import pipeline

import zsseg
from zsseg.pipelines.records import build_segmentation
from zsseg.visualization import draw_panoptic


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder, or name on the Hub")
    parser.add_argument("image", help="file or URL")
    parser.add_argument("--labels", nargs="+", default=["road", "car", "tree"])
    parser.add_argument("--stuff", nargs="*", default=["road", "tree"], help="labels that cannot be counted")
    parser.add_argument("--output", default="overlay.png")
    arguments = parser.parse_args()

    # Importing zsseg is enough for transformers to know the task and the model.
    segment = pipeline("zero-shot-panoptic-segmentation", model=arguments.checkpoint)
    image = zsseg.load_image(arguments.image)
    segments = segment(image, candidate_labels=arguments.labels, stuff_labels=arguments.stuff)
    for found in segments:
        kind = "thing" if found["isthing"] else "stuff"
        print(f"{found['label']} ({kind}): score {found['score']:.2f}, {found['area']} pixels")

    # Every segment has a mask of its own; one map of them all is what gets drawn.
    vocabulary = zsseg.Vocabulary.from_labels(arguments.labels, stuff_labels=arguments.stuff)
    segmentation = build_segmentation(segments, vocabulary, (image.height, image.width))
    draw_panoptic(image, segmentation, vocabulary).save(arguments.output)
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
