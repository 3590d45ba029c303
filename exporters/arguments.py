"""Arguments of the export; importing them needs neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..data.arguments import MAX_MEGAPIXELS_HELP, check_megapixels
from ..errors import InputError, expand_home


CALIBRATION_IMAGES = 128


@dataclass
class ExportArguments:
    """The classifier to export and the files to write."""

    model: str = field(metadata={"help": "Classifier saved by kgl train: a folder or a Hub id."})
    output: str | None = field(
        default=None, metadata={"help": "The .onnx file to write; model.onnx in the model's folder by default."}
    )
    int8: str | None = field(
        default=None,
        metadata={
            "help": "Also write an 8-bit graph beside it (model_int8.onnx), calibrated on the images in this folder; "
            f"up to {CALIBRATION_IMAGES} of them are used."
        },
    )
    max_image_megapixels: int | None = field(default=None, metadata={"help": f"int8: {MAX_MEGAPIXELS_HELP}"})

    def __post_init__(self) -> None:
        expand_home(self, "model", "output", "int8")
        check_megapixels(self.max_image_megapixels)
        if self.output is not None and Path(self.output).suffix != ".onnx":
            raise InputError(f"--output {self.output}: its name must end in .onnx.")

    def check_paths(self) -> None:
        """
        Check that the folders exist.

        Raises:
            InputError: one does not; the message names its setting.
        """
        if self.output is None and not Path(self.model).is_dir():
            raise InputError(f"--model {self.model}: it is not a folder here; name the file to write by --output.")
        if not self.path.absolute().parent.is_dir():
            raise InputError(f"--output {self.output}: the folder does not exist; create it first.")
        if self.int8 is not None and not Path(self.int8).is_dir():
            raise InputError(f"--int8 {self.int8}: the folder does not exist; name a folder of images.")

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.model) / "model.onnx" if self.output is None else Path(self.output)


__all__ = ["CALIBRATION_IMAGES", "ExportArguments"]
