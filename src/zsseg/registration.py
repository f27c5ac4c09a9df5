"""Tells transformers about the families, when somebody uses transformers and not before.

``import zsseg`` must stay quick, and transformers' Auto classes take seconds to import. So importing zsseg
only watches imports: once transformers' Auto classes (or pipelines) are there, by whosever doing, the
families join their tables. :func:`register` does it at once.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from zsseg._version import __version__
from zsseg.checkpoints import packaged


@dataclass(frozen=True)
class Family:
    """Where a family's classes live.

    Attributes:
        package: the family's folder below ``zsseg.models``.
        name: prefix of its classes.
        model: class of its model.
    """

    package: str
    name: str
    model: str

    def load(self, module: str, class_name: str) -> Any:
        """Import one class of the family."""
        return getattr(
            importlib.import_module(f"zsseg.models.{self.package}.{module}_{self.package}"), class_name
        )


FAMILIES = (
    Family("concat", "Concat", "ConcatForPanopticSegmentation"),
    Family("scan", "Scan", "ScanForSemanticSegmentation"),
)

TASKS = {
    "zero-shot-panoptic-segmentation": (
        "zsseg.pipelines.zero_shot_panoptic_segmentation",
        "ZeroShotPanopticSegmentationPipeline",
    ),
    "zero-shot-semantic-segmentation": (
        "zsseg.pipelines.zero_shot_semantic_segmentation",
        "ZeroShotSemanticSegmentationPipeline",
    ),
}


def register() -> None:
    """Add every family to transformers' Auto classes and both tasks to its pipelines; may be called again."""
    register_auto_classes()
    register_pipelines()


def register_auto_classes() -> None:
    """Add configs, models, processors and the MobileNetV2 backbone to transformers' Auto classes."""
    from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
    from transformers.utils import is_torchvision_available

    from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone, MobileNetV2BackboneConfig

    AutoConfig.register(MobileNetV2BackboneConfig.model_type, MobileNetV2BackboneConfig, exist_ok=True)
    AutoBackbone.register(MobileNetV2BackboneConfig, MobileNetV2Backbone, exist_ok=True)
    for family in FAMILIES:
        config_class = family.load("configuration", f"{family.name}Config")
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, family.load("modeling", family.model), exist_ok=True)
        image_processors = {"pil": family.load("image_processing", f"{family.name}ImageProcessorPil")}
        if is_torchvision_available():
            module = f"zsseg.models.{family.package}.image_processing_{family.package}_torchvision"
            image_processors["torchvision"] = getattr(
                importlib.import_module(module), f"{family.name}ImageProcessor"
            )
        AutoImageProcessor.register(config_class, image_processor_classes=image_processors, exist_ok=True)
        AutoProcessor.register(
            config_class, family.load("processing", f"{family.name}Processor"), exist_ok=True
        )


def register_pipelines() -> None:
    """Add both tasks to ``transformers.pipeline``."""
    from transformers.pipelines import PIPELINE_REGISTRY

    models = tuple(family.load("modeling", family.model) for family in FAMILIES)
    for task, (module, class_name) in TASKS.items():
        pipeline_class = getattr(importlib.import_module(module), class_name)
        # Registering a task again would print a warning.
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(
                task,
                pipeline_class=pipeline_class,
                pt_model=models,
                default=_PackagedModel(),
                type="multimodal",
            )


class _PackagedModel(Mapping[str, tuple[str, str]]):
    """The model of a pipeline that was given none, looked up only then.

    So a packaged file that is missing stops nobody else, and is reported as such. Transformers prints folder
    and revision, for which our version stands: a folder has no revision, and it comes with that version.
    """

    def __getitem__(self, key: str) -> tuple[str, str]:
        if key not in self:
            raise KeyError(key)
        return str(packaged()), __version__

    def __contains__(self, key: object) -> bool:
        return key == "model"

    def __iter__(self) -> Iterator[str]:
        return iter(("model",))

    def __len__(self) -> int:
        return 1


REGISTERED_AFTER: dict[str, Callable[[], None]] = {
    # The module of AutoConfig; those of all other Auto classes import it first.
    "transformers.models.auto.configuration_auto": register_auto_classes,
    "transformers.pipelines": register_pipelines,
}


def register_after_import() -> None:
    """Have each half of :func:`register` run as soon as the module of transformers it fills is imported.

    "As soon as" means: when no module of transformers or zsseg is half imported any more. Transformers
    imports its Auto classes in the middle of nearly everything else, where a model's import would meet
    itself.
    """
    waiting = dict(REGISTERED_AFTER)
    _register_imported(waiting)
    if waiting and not any(isinstance(finder, _ImportWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportWatcher(waiting))


def _register_imported(waiting: dict[str, Callable[[], None]]) -> None:
    for module in [name for name in waiting if name in sys.modules]:
        # Taken out first, and only if still there: registering imports modules, after which this runs again.
        register_half = waiting.pop(module, None)
        if register_half is not None:
            register_half()


class _ImportWatcher:
    """Finds modules of transformers and zsseg as Python does; knows when the outermost is imported."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self._waiting = waiting
        self._depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", "zsseg"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _WatchedLoader(spec.loader, self)
            spec.loader = loader
        return spec

    def run(self, loader: Any, module: ModuleType) -> None:
        """Execute one module; after the outermost, register what has become possible."""
        self._depth += 1
        try:
            loader.exec_module(module)
        finally:
            self._depth -= 1
        if self._depth == 0:
            _register_imported(self._waiting)
            if not self._waiting and self in sys.meta_path:
                sys.meta_path.remove(self)


class _WatchedLoader:
    def __init__(self, loader: Any, watcher: _ImportWatcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module sees its own loader, as without us.
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._watcher.run(self._loader, module)
