"""Which files of a checkpoint's folder are published, and which never."""

import pickletools
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from zsseg.processing.precomputed_text_embeddings import FILE_NAME as TEXT_EMBEDDINGS_FILE
from zsseg.training.checkpointing import METRICS_FILE, TENSORBOARD_FOLDER, TRAINER_FOLDER

CARD_FILE = "README.md"
CONVERSION_FILE = "conversion.json"
"""What the weights of a checkpoint of another project became."""

ADAPTATION_FILE = "adaptation.json"
"""What an adaptation reports, with the name of the checkpoint that it began from, a folder perhaps."""

EVALUATION_FOLDER = "evaluation"
PACKAGED_EVALUATION_FILE = "evaluation.json"
EVAL_RESULTS_FOLDER = ".eval_results"

LEFT_OUT = frozenset(
    {
        *(TRAINER_FOLDER, METRICS_FILE, TENSORBOARD_FOLDER, ADAPTATION_FILE),
        *(".cache", ".git", ".gitattributes", ".DS_Store"),
    }
)
"""What trainers, adaptation, downloads and desktops leave in a folder; never published, even if included."""

CHECKPOINT_FILE = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|processor_config\.json|preprocessor_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|LICENSE(\.txt|\.md)?|NOTICE(\.txt|\.md)?|"
    + "|".join(map(re.escape, (TEXT_EMBEDDINGS_FILE, CONVERSION_FILE)))
)
"""Files that ``save_pretrained`` and converters write and licences, all at the top of the folder."""

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
LARGEST_TEXT_PICKLE = 50_000_000
"""Bytes up to which files are read to the end for a pickle of the oldest, textual protocols."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What a checkpoint's folder holds, as names relative to it.

    Attributes:
        folder: of the checkpoint.
        published: copied as they are.
        left_out: training state, logs and the like.
        card: whether there is a model card.
        evaluations: files of evaluations that lie in the folder.
        eval_results: entries for the Hub's leaderboards, which are written anew.
    """

    folder: Path
    published: tuple[str, ...]
    left_out: tuple[str, ...]
    card: bool
    evaluations: tuple[str, ...]
    eval_results: tuple[str, ...]


def collect_checkpoint_files(folder: Path, include: Sequence[str] = ()) -> CheckpointFiles:
    """Sort the files of a checkpoint's folder into what is published and what is not.

    Args:
        folder: of the checkpoint.
        include: patterns, as in ``fnmatch``, of names of further files to publish, such as ``"pictures/*"``.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if there are no safetensors weights, a file is a pickle by its name or its content, a file
            is unknown and not included, or a pattern includes nothing.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    left_out = [name for name in names if LEFT_OUT.intersection(PurePosixPath(name).parts)]
    kept = [name for name in names if name not in set(left_out)]
    if pickles := [name for name in kept if is_pickle(folder / name)]:
        raise ValueError(_describe_pickles(folder, pickles))
    evaluations = [name for name in kept if _is_evaluation(name)]
    eval_results = [name for name in kept if name.startswith(f"{EVAL_RESULTS_FOLDER}/")]
    own = {CARD_FILE, *evaluations, *eval_results}
    published = [name for name in kept if CHECKPOINT_FILE.fullmatch(name)]
    others = [name for name in kept if name not in own and name not in published]
    included = [name for name in others if any(fnmatchcase(name, pattern) for pattern in include)]
    if idle := [each for each in include if not any(fnmatchcase(name, each) for name in others)]:
        raise ValueError(
            f"{idle} include no file of {folder} beyond the checkpoint's own; training state and logs are "
            "never published"
        )
    if strangers := [name for name in others if name not in included]:
        raise ValueError(
            f"{folder} holds {len(strangers)} files that are no part of a checkpoint, first "
            f"{strangers[:10]}: take them out, or name those to be published with --include"
        )
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in published):
        raise ValueError(
            f"{folder} holds no model.safetensors: only safetensors are published; pass the folder that the "
            "model's save_pretrained wrote"
        )
    return CheckpointFiles(
        folder=folder,
        published=tuple(sorted((*published, *included))),
        left_out=tuple(left_out),
        card=CARD_FILE in kept,
        evaluations=tuple(evaluations),
        eval_results=tuple(eval_results),
    )


def is_checkpoint_part(name: str) -> bool:
    """Whether a file of this name in a repository would be loaded, or read as a result, with a checkpoint."""
    return bool(
        CHECKPOINT_FILE.fullmatch(name)
        or PurePosixPath(name).suffix in PICKLE_SUFFIXES
        or name == CARD_FILE
        or _is_evaluation(name)
        or name.startswith(f"{EVAL_RESULTS_FOLDER}/")
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or an archive of pickles as ``torch.save`` writes, by name or by content.

    Raises:
        OSError: if it cannot be read.
    """
    if path.suffix in PICKLE_SUFFIXES:
        return True
    with path.open("rb") as file:
        start = file.read(2)
        if start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            return True
        if start == b"PK":
            return zipfile.is_zipfile(path) and any(
                PurePosixPath(member).suffix in PICKLE_SUFFIXES for member in zipfile.ZipFile(path).namelist()
            )
        if path.stat().st_size > LARGEST_TEXT_PICKLE:
            return False
        file.seek(0)
        try:
            # Ends at the first byte that is no instruction, in text and tensors almost at once.
            instructions = [instruction.name for instruction, _, _ in pickletools.genops(file)]
        except (ValueError, UnicodeError):
            return False
        return len(instructions) > 1 and not file.read(1)


def _is_evaluation(name: str) -> bool:
    path = PurePosixPath(name)
    return name == PACKAGED_EVALUATION_FILE or (
        path.parent.as_posix() == EVALUATION_FOLDER and path.suffix == ".json"
    )


def _describe_pickles(folder: Path, pickles: Sequence[str]) -> str:
    remedy = (
        "the weights are there as safetensors too, so remove the pickles"
        if any(folder.glob("model*.safetensors")) and not any(name.startswith("model") for name in pickles)
        else "load the checkpoint once where you trust it and write it anew with "
        "model.save_pretrained(folder) and processor.save_pretrained(folder), which writes safetensors"
    )
    return (
        f"{folder} holds pickles, which run code on whoever loads them and are never published: "
        f"{list(pickles[:10])}; {remedy}"
    )
