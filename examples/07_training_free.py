"""Segment by words without any training: a public Mask2Former proposes masks, a public CLIP names them.

python examples/07_training_free.py street.jpg --labels road car "traffic light" --stuff road
"""

import argparse

from transformers import pipeline

import zsseg
from zsseg import ScanForSemanticSegmentation, ScanProcessor


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="file or URL")
    parser.add_argument("--labels", nargs="+", required=True, help="all there is: CLIP chooses among them")
    parser.add_argument("--stuff", nargs="*", default=[], help="those of them that are stuff")
    parser.add_argument("--mask2former", default="facebook/mask2former-swin-tiny-coco-panoptic")
    parser.add_argument("--clip", default="openai/clip-vit-base-patch16")
    parser.add_argument("--threshold", type=float, default=0.3, help="CLIP is sure of little: a low one")
    parser.add_argument("--save", help="folder for the checkpoint, which any zsseg command then takes")
    arguments = parser.parse_args()

    parts = {"mask2former": arguments.mask2former, "clip": arguments.clip}
    model = ScanForSemanticSegmentation.from_parts(**parts, mode="clip_only")
    processor = ScanProcessor.from_parts(**parts)
    if arguments.save:
        model.save_pretrained(arguments.save)
        processor.save_pretrained(arguments.save)

    segment = pipeline("zero-shot-panoptic-segmentation", model=model, processor=processor)
    segments = segment(
        arguments.image,
        candidate_labels=arguments.labels,
        stuff_labels=arguments.stuff,
        threshold=arguments.threshold,
    )
    for found in segments:
        print(f"{found['label']}: score {found['score']:.2f}, {found['area']} pixels, box {found['bbox']}")
    print(f"{len(segments)} segments by zsseg {zsseg.__version__}")


if __name__ == "__main__":
    main()
