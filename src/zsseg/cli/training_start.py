"""What the commands that train on a data set check and open before they load weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsseg.cli.checkpoint_loading import find_checkpoint
from zsseg.cli.ground_truth import LabelSetup, find_dataset, open_dataset, open_stream
from zsseg.cli.messages import UsageError
from zsseg.data.examples import PanopticDataset
from zsseg.data.streaming import StreamedPanopticDataset


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What to train on and what to evaluate on, as options say it.

    Attributes:
        dataset: folder, file or name on the Hub.
        images: pictures of a COCO JSON.
        part: of a data set that has several.
        config: of a data set on the Hub that has several.
        revision: of a data set on the Hub.
        streaming: read columns as they come in.
        val: what to evaluate on, likewise; None does not evaluate.
        val_images: pictures of its COCO JSON.
        labels: which labels are unseen, and their spelling.
    """

    dataset: str
    images: Path | None
    part: str | None
    config: str | None
    revision: str | None
    streaming: bool
    val: str | None
    val_images: Path | None
    labels: LabelSetup

    def open(self) -> tuple[PanopticDataset | StreamedPanopticDataset, PanopticDataset | None]:
        """The pictures to train on, and those to evaluate on.

        Raises:
            UsageError: if a name does not lead to one data set, or options do not fit each other.
            ValueError: if a data set is damaged.
        """
        on_hub = {"config": self.config, "revision": self.revision}
        location = find_dataset(self.dataset, part=self.part, default_part="train", **on_hub)
        if self.streaming and self.images is not None:
            raise UsageError("--images are those of a COCO JSON, which --streaming does not read")
        pictures = (
            open_stream(location, self.labels)
            if self.streaming
            else open_dataset(location, self.images, self.labels)
        )
        if self.val is None:
            return pictures, None
        # Where the same data set has both, it is the same version of it.
        on_hub = on_hub if self.val == self.dataset else {"config": None, "revision": None}
        val_location = find_dataset(self.val, default_part="validation", **on_hub)
        return pictures, open_dataset(val_location, self.val_images, self.labels)


def check_start_options(
    *,
    output: Path | None,
    model: str | None,
    mask2former: str | None,
    clip: str | None,
    val: str | None,
    val_images: Path | None,
    evaluate_every: int | None,
) -> Path:
    """Check that a run knows its folder, its start weights, and what it evaluates on, and return the folder.

    Raises:
        UsageError: if it does not.
    """
    if output is None:
        raise UsageError("name the folder of the run: --output FOLDER")
    if (model is None) == (mask2former is None) or (mask2former is None) != (clip is None):
        raise UsageError("name the start weights: either --model, or --mask2former with --clip")
    if val is None and (val_images is not None or evaluate_every is not None):
        raise UsageError("--val-images and --evaluate-every need --val, the data to evaluate on")
    return output


def find_start_weights(*names: str | None) -> list[str | None]:
    """What ``from_pretrained`` takes of each name that was given; those of open_clip stay as they are.

    Raises:
        FileNotFoundError: if a path holds no checkpoint.
    """
    return [
        name if name is None or name.startswith("open_clip:") else find_checkpoint(name) for name in names
    ]


def drop_missing(**arguments: Any) -> dict[str, Any]:
    """The training arguments that options give, by name; choices by their values."""
    return {name: getattr(value, "value", value) for name, value in arguments.items() if value is not None}
