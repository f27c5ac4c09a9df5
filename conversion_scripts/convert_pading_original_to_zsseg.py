"""Convert a PADing checkpoint to CONCAT: its segmentor, and its generator as the kind "primitives".

python conversion_scripts/convert_pading_original_to_zsseg.py model_final.pth \
    --clip openai/clip-vit-base-patch16 --output runs/pading --verify
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from reference_mask2former import run_mask2former
from reference_pading import run_generator
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

WithoutGeneratorOption = Annotated[
    bool,
    typer.Option(
        "--without-generator", help="Drop PADing's generator, as where its text vectors are of another width."
    ),
]


def convert(
    source: SourceArgument,
    output: OutputOption,
    clip: ClipOption = None,
    text_embeddings: TextEmbeddingsOption = None,
    without_generator: WithoutGeneratorOption = False,
    prefix: PrefixOption = "",
    seed: SeedOption = 0,
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Convert a PADing checkpoint to CONCAT: its segmentor, and its generator as the kind "primitives"."""
    with errors_in_one_line(show_traceback=traceback):
        check_text_options(clip, text_embeddings)
        check_output_folder(output, overwrite=overwrite)
        quieten_transformers()
        from zsseg.conversion import converted_checkpoint as checkpoint
        from zsseg.conversion.mask2former_layout import convert_segmentor, read_segmentor_config
        from zsseg.conversion.pading_layout import (
            convert_generator,
            drop_classifier,
            drop_generator,
            read_generator_sizes,
            read_pading_weights,
        )
        from zsseg.conversion.verification import (
            build_picture,
            compute_differences,
            compute_generator_outputs,
            compute_segmentor_outputs,
        )

        weights = read_pading_weights(source, prefix)
        config = read_segmentor_config(weights)
        converted = convert_segmentor(weights, config)
        drop_classifier(weights)
        generator = None
        if without_generator:
            drop_generator(weights)
        else:
            generator = read_generator_sizes(weights)
            converted |= convert_generator(weights)
        weights.check_accounted()
        text = checkpoint.load_words(clip, text_embeddings)
        model, processor = checkpoint.build_concat(
            converted, config, text, weights.books, generator=generator, seed=seed
        )

        def compare(reread):
            picture = build_picture(reread)
            expected = run_mask2former(weights.tensors, picture)
            found = compute_segmentor_outputs(reread, picture)
            if generator is not None:
                source_of_noise = torch.Generator().manual_seed(0)
                texts = torch.randn(7, generator.embed_dim, dtype=torch.float64, generator=source_of_noise)
                texts = torch.nn.functional.normalize(texts, dim=1)
                expected |= run_generator(weights.tensors, texts)
                found |= compute_generator_outputs(reread.generator, texts)
            return compute_differences(expected, found)

        origin = checkpoint.Origin(
            layout="PADing",
            script=Path(__file__).name,
            name=source.name,
            sha256=checkpoint.compute_sha256(source),
            note=checkpoint.PADING_NOTE,
        )
        differences = checkpoint.write_checkpoint(
            output, model, processor, weights.books, origin, compare if verify else None
        )
        typer.echo(checkpoint.describe_result(weights.books, differences, origin, output))


if __name__ == "__main__":
    run(convert)
