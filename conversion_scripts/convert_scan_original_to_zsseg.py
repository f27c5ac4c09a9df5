"""Convert a SCAN checkpoint of its authors, perhaps with a CLIP fine-tuned for contextual shift.

python conversion_scripts/convert_scan_original_to_zsseg.py SCAN.pth --size L \
    --tokenizer openai/clip-vit-large-patch14 --output runs/scan --verify
python conversion_scripts/convert_scan_original_to_zsseg.py Seg_model.pth --cs-clip CS_CLIP.pt --size L \
    --tokenizer open_clip --settings PC-59 --output runs/scan
"""

from pathlib import Path
from typing import Annotated

import typer
from reference_scan import ScanSettings as ReferenceSettings
from reference_scan import fuse_fine_tuned_clip, run_scan
from script_options import OutputOption, PrefixOption, SourceArgument, VerifyOption, run

from zsseg.cli.checkpoint_loading import quieten_transformers
from zsseg.cli.messages import TracebackOption, UsageError, errors_in_one_line
from zsseg.cli.options import OverwriteOption
from zsseg.cli.output_folder import check_output_folder

SizeOption = Annotated[
    str, typer.Option("--size", metavar="SIZE", help="Which of the paper's: L (ViT-L/14) or B (ViT-B/16).")
]
TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="NAME",
        help='Folder or Hub id of CLIP\'s tokenizer, such as openai/clip-vit-base-patch16; or "open_clip".',
    ),
]
ClipOption = Annotated[
    Path | None,
    typer.Option(
        "--cs-clip",
        metavar="FILE",
        help="CS_CLIP.pt, the CLIP fine-tuned for contextual shift; the crops go through its tower.",
        show_default=False,
    ),
]
SettingsOption = Annotated[
    str,
    typer.Option(
        "--settings",
        metavar="NAME",
        help="Data set whose thresholds and weights go into the configuration: A-847, A-150, PC-459, PC-59 "
        "or VOC-20.",
    ),
]


def convert(
    source: SourceArgument,
    output: OutputOption,
    size: SizeOption,
    tokenizer: TokenizerOption,
    cs_clip: ClipOption = None,
    settings: SettingsOption = "A-150",
    prefix: PrefixOption = "",
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    traceback: TracebackOption = False,
) -> None:
    """Convert a SCAN checkpoint of its authors, perhaps with a CLIP fine-tuned for contextual shift."""
    with errors_in_one_line(show_traceback=traceback):
        quieten_transformers()
        from zsseg.conversion.scan_layout import SCAN_SIZES

        if size not in SCAN_SIZES:
            raise UsageError(f"--size must be one of {list(SCAN_SIZES)}, got {size!r}")
        convert_size(
            source,
            output,
            SCAN_SIZES[size],
            tokenizer,
            cs_clip=cs_clip,
            settings=settings,
            prefix=prefix,
            verify=verify,
            overwrite=overwrite,
        )


def convert_size(
    source,
    output,
    size,
    tokenizer,
    *,
    cs_clip=None,
    settings="A-150",
    prefix="",
    verify=False,
    overwrite=False,
):
    """The same for any :class:`~zsseg.conversion.scan_layout.ScanSize`; errors are raised."""
    from zsseg.conversion import converted_checkpoint as checkpoint
    from zsseg.conversion.converted_clip import load_tokenizer
    from zsseg.conversion.scan_layout import add_cs_clip, convert_scan, read_scan_weights
    from zsseg.conversion.weight_files import load_weight_file

    if settings not in size.settings:
        raise UsageError(f"--settings must be one of {list(size.settings)}, got {settings!r}")
    check_output_folder(output, overwrite=overwrite)
    weights = read_scan_weights(source, prefix)
    own_tensors = dict(weights.tensors)
    if cs_clip is not None:
        add_cs_clip(weights, cs_clip)
    chosen = size.settings[settings]
    converted = convert_scan(weights, size, chosen)
    words = load_tokenizer(tokenizer, converted.config.text_config.vocab_size)
    model, processor = checkpoint.build_scan(converted, words, weights.books)

    def compare(reread):
        fused = own_tensors
        if cs_clip is not None:
            fused = fuse_fine_tuned_clip(own_tensors, load_weight_file(cs_clip).tensors)
        return compare_with_reference(reread, fused, size, chosen)

    origin = checkpoint.Origin(
        layout=f"{size.name} (official)",
        script=Path(__file__).name,
        name=source.name,
        sha256=checkpoint.compute_sha256(source),
        note=checkpoint.SCAN_NOTE,
        title=f"{size.name},",
        is_whole=True,
        further_files={} if cs_clip is None else {cs_clip.name: checkpoint.compute_sha256(cs_clip)},
    )
    differences = checkpoint.write_checkpoint(
        output, model, processor, weights.books, origin, compare if verify else None
    )
    typer.echo(checkpoint.describe_result(weights.books, differences, origin, output))


def compare_with_reference(model, tensors, size, settings):
    """Largest difference of each output between a model in float64 and the reference on SCAN's weights."""
    from zsseg.conversion.verification import (
        build_picture,
        build_scan_inputs,
        compute_differences,
        compute_scan_outputs,
    )

    picture = build_picture(model)
    mask_logits, input_ids = build_scan_inputs(model)
    read_settings = ReferenceSettings(
        taps=size.integration_layers,
        sigmas=size.low_frequency_sigmas,
        shift_layers=size.shift_layers,
        shift_ratio=settings.shift_ratio,
        mask_threshold=settings.crop_mask_threshold,
        clip_weight=settings.ensemble_weight,
    )
    expected = run_scan(tensors, picture, mask_logits, input_ids, read_settings)
    is_shifted = expected.pop("is shifted")
    found = compute_scan_outputs(model, picture, mask_logits, input_ids, is_shifted)
    return compute_differences(expected, found)


if __name__ == "__main__":
    run(convert)
