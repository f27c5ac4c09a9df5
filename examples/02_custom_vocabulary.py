"""A vocabulary of your own: synonyms, stuff, unseen labels and prompts, by model and processor.

python examples/02_custom_vocabulary.py CHECKPOINT IMAGE --output overlay.png

CHECKPOINT needs a text tower: one with precomputed text embeddings has no use for prompts.
"""

import argparse

import torch

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor, Vocabulary, load_image
from zsseg.visualization import draw_panoptic

# "car|automobile|lorry" is one label of three texts: a query counts for it by whichever fits best.
LABELS = ["road|street", "pavement|sidewalk", "car|automobile|lorry", "person", "tree", "lamp post"]
STUFF = ["road", "pavement", "tree"]
UNSEEN = ["lamp post"]
PROMPTS = ["a photo of a {}.", "a photo of a {} in a street."]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder, or name on the Hub")
    parser.add_argument("image", help="file or URL")
    parser.add_argument("--threshold", type=float, help="instead of the checkpoint's own")
    parser.add_argument("--output", default="overlay.png")
    arguments = parser.parse_args()

    vocabulary = Vocabulary.from_labels(LABELS, stuff_labels=STUFF, unseen_labels=UNSEEN)
    model = ConcatForPanopticSegmentation.from_pretrained(arguments.checkpoint).eval()
    processor = ConcatProcessor.from_pretrained(arguments.checkpoint)
    image = load_image(arguments.image)
    inputs = processor(images=image, candidate_labels=vocabulary, prompt_templates=PROMPTS)
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = [(image.height, image.width)]

    # Transformers' habit: a map of ids, and what each id is.
    (result,) = processor.post_process_panoptic_segmentation(
        outputs,
        threshold=arguments.threshold,
        label_ids_to_fuse=vocabulary.stuff_label_ids,
        target_sizes=sizes,
    )
    for found in result["segments_info"]:
        category = vocabulary[found["label_id"]]
        texts = " or ".join(category.texts)
        print(f"{found['id']:>3}  {texts}: score {found['score']:.2f}, {found['area']} pixels")

    # The same as one validated object, which drawing, files and metrics take.
    (segmentation,) = processor.merge_panoptic(
        outputs,
        stuff_label_ids=vocabulary.stuff_label_ids,
        target_sizes=sizes,
        threshold=arguments.threshold,
    )
    draw_panoptic(image, segmentation, vocabulary).save(arguments.output)
    print(f"saved {arguments.output}; a star marks labels unseen in training")


if __name__ == "__main__":
    main()
