"""Convert a Mask2Former of detectron2 (ResNet or Swin backbone) to CONCAT.

python conversion_scripts/convert_mask2former_detectron2_to_zsseg.py model_final.pkl \
    --clip openai/clip-vit-base-patch16 --output runs/mask2former --verify
"""

from pathlib import Path

import typer
from reference_mask2former import run_mask2former
from script_options import (
    ClipOption,
    OutputOption,
    PrefixOption,
    SeedOption,
    SourceArgument,
    TextEmbeddingsOption,
    VerifyOption,
    check_text_options,
    run,
)

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.messages import TracebackOption, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder


def convert(
    source: SourceArgument,
    output: OutputOption,
    clip: ClipOption = None,
    text_embeddings: TextEmbeddingsOption = None,
    prefix: PrefixOption = "",
    seed: SeedOption = 0,
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Convert a Mask2Former of detectron2 (ResNet or Swin backbone) to CONCAT."""
    with errors_in_one_line(show_traceback=traceback):
        check_text_options(clip, text_embeddings)
        check_output_folder(output, overwrite=overwrite)
        quieten_transformers()
        from zsseg.conversion import converted_checkpoint as checkpoint
        from zsseg.conversion.mask2former_layout import (
            convert_segmentor,
            read_detectron2_weights,
            read_segmentor_config,
        )
        from zsseg.conversion.verification import (
            build_picture,
            compute_differences,
            compute_segmentor_outputs,
        )

        weights = read_detectron2_weights(source, prefix)
        config = read_segmentor_config(weights)
        converted = convert_segmentor(weights, config)
        weights.check_accounted()
        text = checkpoint.load_words(clip, text_embeddings)
        model, processor = checkpoint.build_concat(converted, config, text, weights.books, seed=seed)

        def compare(reread):
            picture = build_picture(reread)
            expected = run_mask2former(weights.tensors, picture)
            return compute_differences(expected, compute_segmentor_outputs(reread, picture))

        origin = checkpoint.Origin(
            layout="Mask2Former (detectron2)",
            script=Path(__file__).name,
            name=source.name,
            sha256=checkpoint.compute_sha256(source),
            note=checkpoint.COCO_NOTE,
        )
        differences = checkpoint.write_checkpoint(
            output, model, processor, weights.books, origin, compare if verify else None
        )
        typer.echo(checkpoint.describe_result(weights.books, differences, origin, output))


if __name__ == "__main__":
    run(convert)
