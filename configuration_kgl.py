"""Configuration of knowledge-guided defect classifiers."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class KGLConfig(PreTrainedConfig):
    r"""
    Configuration of a [`KGLForImageClassification`].

    backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a `ResNetConfig`):
        Configuration of the backbone; its `out_features` name the stages whose maps are used, finest first.
    fusion_size (`int`, *optional*, defaults to 256):
        Head `"avg_max"`: channels that each stage is projected to where the backbone returns several maps. One map is
        used as it is.
    head (`str`, *optional*, defaults to `"avg_max"`):
        `"avg_max"` (arXiv 2605.17780): the saliency logits `H` are a 1x1 convolution of the features `F`, and the
        classifier reads the average and the maximum of both over the cells. `"stages"`: the classifier reads the
        average and the maximum of every stage apart, and the mean of the highest `top_cells` of `H`, which says
        how far the cells of the first `saliency_stages` stages are from stored cells of good images.
    saliency_stages (`int`, *optional*, defaults to 2):
        Head `"stages"`: how many of the backbone's maps, finest first, `H` is made of, at the resolution of the first.
    cell_size (`int`, *optional*, defaults to 64):
        Head `"stages"`: channels that the cells are projected to.
    memory_size (`int`, *optional*, defaults to 512):
        Head `"stages"`: how many cells are stored.
    top_cells (`float`, *optional*, defaults to 0.05):
        Head `"stages"`: share of the cells whose mean `H` enters the logits.
    tuned_stage (`bool`, *optional*, defaults to `False`):
        Head `"stages"` on a ResNet: whether the stage behind the first output has a fine-tuned copy, with a classifier
        of its own. The probabilities of both classifiers are averaged.
    defect_free_label (`str`, *optional*):
        Name in `id2label` of the class without defects. Its images have a blank saliency prior.
    temperature (`float`, *optional*, defaults to 1.0):
        Divisor of the logits, fitted on validation images to calibrate the probabilities.
    operating_point (`dict`, *optional*):
        Decision threshold on `P(defect)` under `threshold`, and how it was chosen. Where there is a
        `look_again_threshold`, images from there up to the threshold are neither good nor defective: look again.
    saliency_threshold (`dict`, *optional*):
        Under `threshold`, the value of the heat map (0..1) from which a cell is marked: the boxes surround marked
        cells, and overlays draw nothing below it. Beside it how it was chosen: `good_images`, the number of good
        validation images; `false_alarm_rate`, the share of them with a marked cell; and `chosen`, the rule in words.
        Without it 0.5.
    training_range (`dict`, *optional*):
        What the training images look like: `[low, high]` of `brightness`, `contrast`, `detail`, `feature_distance`,
        `width` and `height` (see [`~kgl.pipeline_kgl.image_properties`]), the numbers of `images` and of independent
        `groups` of them that were measured, and `expected_share`, the share of these images outside of the range of
        the others, which is what to expect of further images like them. `None` where nothing was measured.
    has_heat_map (`bool`, *optional*, defaults to `True`):
        Whether `H` was trained; `False` for a primary classifier, whose heat map means nothing.
    problem_type (`str`, *optional*, defaults to `"single_label_classification"`):
        Always `"single_label_classification"`: one label per image, softmax over the labels.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the heads' initial weights.

    Example:
    ```python
    >>> from transformers import ResNetConfig
    >>> from kgl import KGLConfig, KGLForImageClassification

    >>> backbone_config = ResNetConfig(layer_type="basic", depths=[2, 2, 2], hidden_sizes=[64, 128, 256])
    >>> id2label = {0: "good", 1: "defect"}
    >>> config = KGLConfig(backbone_config=backbone_config, id2label=id2label, defect_free_label="good")
    >>> model = KGLForImageClassification(config)
    ```
    """

    model_type = "kgl"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}
    # Outputs that Trainer.evaluate and predict do not gather from the processes.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["saliency", "feature_maps", "hidden_states"]

    backbone_config: dict | PreTrainedConfig | None = None
    fusion_size: int = 256
    head: str = "avg_max"
    saliency_stages: int = 2
    cell_size: int = 64
    memory_size: int = 512
    top_cells: float = 0.05
    tuned_stage: bool = False
    defect_free_label: str | None = None
    temperature: float = 1.0
    operating_point: dict | None = None
    saliency_threshold: dict | None = None
    training_range: dict | None = None
    has_heat_map: bool = True
    problem_type: str = "single_label_classification"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["resnet"]()
        elif isinstance(self.backbone_config, dict):
            model_type = self.backbone_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"backbone_config needs a `model_type` that transformers knows, got {model_type!r}.")
            self.backbone_config = CONFIG_MAPPING[model_type].from_dict(self.backbone_config)
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}

    def validate_head(self) -> None:
        """Check that there is such a head, and its sizes."""
        if self.head not in ("avg_max", "stages"):
            raise ValueError(f"head={self.head!r}: choose avg_max or stages.")
        for name in ("saliency_stages", "cell_size", "memory_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1.")
        if not 0 < self.top_cells <= 1:
            raise ValueError(f"top_cells={self.top_cells}: it must lie above 0 and up to 1.")
        if self.tuned_stage and self.head != "stages":
            raise ValueError(f"tuned_stage=True goes with head='stages', not {self.head!r}.")

    def validate_problem_type(self) -> None:
        """Check that every image has one label: there is no loss and no decision for several."""
        if self.problem_type != "single_label_classification":
            raise ValueError(
                f"problem_type={self.problem_type!r} is not supported: a kgl model has one label per image, "
                "problem_type='single_label_classification'."
            )

    def validate_fusion_size(self) -> None:
        """Check that the projection has a channel."""
        if self.fusion_size < 1:
            raise ValueError(f"fusion_size={self.fusion_size}: it must be at least 1.")

    def validate_defect_free_label(self) -> None:
        """Check that the defect-free class is one of the labels."""
        if self.defect_free_label is not None and self.defect_free_label not in self.id2label.values():
            raise ValueError(
                f"defect_free_label={self.defect_free_label!r} is not one of the labels "
                f"{list(self.id2label.values())}."
            )

    def validate_temperature(self) -> None:
        """Check that the temperature is positive."""
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: it must be above 0.")

    def validate_operating_point(self) -> None:
        """Check that the decision has a defect-free class and a threshold in 0..1."""
        if self.operating_point is None:
            return
        if self.defect_free_label is None:
            raise ValueError("operating_point needs a defect_free_label: the threshold is on P(not defect-free).")
        threshold = self.operating_point.get("threshold", -1.0)
        if not 0 <= threshold <= 1:
            raise ValueError(f"operating_point={self.operating_point}: it needs a `threshold` in 0..1.")
        if not 0 <= self.operating_point.get("look_again_threshold", 0.0) <= threshold:
            raise ValueError(
                f"operating_point={self.operating_point}: its `look_again_threshold` must lie in 0..`threshold`."
            )

    def validate_saliency_threshold(self) -> None:
        """Check that the heat map's threshold lies in 0..1."""
        if self.saliency_threshold is not None and not 0 <= self.saliency_threshold.get("threshold", -1.0) <= 1:
            raise ValueError(f"saliency_threshold={self.saliency_threshold}: it needs a `threshold` in 0..1.")

    def validate_training_range(self) -> None:
        """Check that the training range is whole."""
        if self.training_range is None:
            return
        names = ("brightness", "contrast", "detail", "feature_distance", "width", "height")
        ranges = [self.training_range.get(name) for name in names]
        whole = all(isinstance(one, list) and len(one) == 2 and one[0] <= one[1] for one in ranges)
        if not whole or not {"images", "groups", "expected_share"} <= self.training_range.keys():
            raise ValueError(
                f"training_range={self.training_range}: it needs `images`, `groups`, `expected_share`, and "
                f"`[low, high]` of {', '.join(names)}."
            )

    @property
    def threshold(self) -> float:
        """Decision threshold: an image is defective from this `P(defect)` on; 0.5 without an operating point."""
        return 0.5 if self.operating_point is None else self.operating_point["threshold"]

    @property
    def look_again_threshold(self) -> float | None:
        """From this `P(defect)` up to the threshold an image is to be looked at again; `None` without such a band."""
        return None if self.operating_point is None else self.operating_point.get("look_again_threshold")

    @property
    def good_below(self) -> float:
        """An image is good below this `P(defect)`: the look-again threshold, or the threshold where there is none."""
        return self.threshold if self.look_again_threshold is None else self.look_again_threshold

    def decision(self, defect_score: float) -> str:
        """Return `"good"`, `"look again"` or `"defective"` of a `P(defect)`."""
        if defect_score >= self.threshold:
            return "defective"
        return "look again" if defect_score >= self.good_below else "good"

    @property
    def heat_threshold(self) -> float:
        """Value of the heat map from which a cell is marked; 0.5 where none was chosen."""
        return 0.5 if self.saliency_threshold is None else self.saliency_threshold["threshold"]

    @property
    def defect_free_id(self) -> int | None:
        """Index of the class without defects, `None` where the model has no such class."""
        if self.defect_free_label is None:
            return None
        return self.label2id[self.defect_free_label]


KGLConfig.register_for_auto_class()

__all__ = ["KGLConfig"]
