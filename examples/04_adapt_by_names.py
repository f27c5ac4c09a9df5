"""Teach a trained checkpoint new labels by their names alone: no image, no mask, less than a minute.

python examples/04_adapt_by_names.py CHECKPOINT --labels zebra giraffe --stuff savanna --output adapted

CHECKPOINT needs a query generator and stored queries: `zsseg train concat --stage generator` makes both.
"""

import argparse

from zsseg import ConcatForPanopticSegmentation, ConcatProcessor


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder, or name on the Hub")
    parser.add_argument("--labels", nargs="+", required=True, help='"car|automobile" has a synonym')
    parser.add_argument("--stuff", nargs="*", default=[], help="new labels that are stuff")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output", required=True, help="folder of the adapted checkpoint")
    arguments = parser.parse_args()

    model = ConcatForPanopticSegmentation.from_pretrained(arguments.checkpoint)
    processor = ConcatProcessor.from_pretrained(arguments.checkpoint)
    print("known so far:", ", ".join(model.config.known_labels))

    # Only the projector to the text space and the no-object embedding change.
    result = model.adapt(
        processor,
        [*arguments.labels, *arguments.stuff],
        stuff_labels=arguments.stuff,
        steps=arguments.steps,
    )
    print(f"learnt {', '.join(result.new_labels)} in {result.seconds:.1f} s")
    before, after = result.known_accuracy
    print(f"stored queries of known labels named right: {before:.1%} before, {after:.1%} after")

    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    print(f"saved {arguments.output}")


if __name__ == "__main__":
    main()
