"""Tells transformers about the families, when transformers is there and not before.

``import zsseg`` must stay quick, and most of transformers' Auto classes cost seconds to import. So importing
zsseg only leaves a note in the import system: once ``transformers.models.auto.modeling_auto`` (or
``transformers.pipelines``) has been imported, by whomever, the families join its tables. :func:`register`
does it at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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


FAMILIES = (Family("concat", "Concat", "ConcatForPanopticSegmentation"),)

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
        # Registering a task again would print a warning.
        if task not in PIPELINE_REGISTRY.supported_tasks:
            pipeline_class = getattr(importlib.import_module(module), class_name)
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=models, type="multimodal"
            )


WAITING: dict[str, Callable[[], None]] = {
    "transformers.models.auto.modeling_auto": register_auto_classes,
    "transformers.pipelines": register_pipelines,
}


def register_when_transformers_is_imported() -> None:
    """Have each half of :func:`register` run as soon as the module it needs has been imported."""
    for module, register_half in WAITING.items():
        if module in sys.modules:
            register_half()
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the awaited modules as the other finders do, and has the registration run after them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in WAITING:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader, WAITING[fullname])
                return spec
        return None


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, register_half: Callable[[], None]) -> None:
        self._loader = loader
        self._register_half = register_half

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # What transformers sees of its module afterwards is its own loader, as without us.
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._loader.exec_module(module)
        self._register_half()
