"""Return type of every reader."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset


@dataclass(frozen=True)
class SourceDataset:
    """
    A dataset as its reader found it, before any image is opened.

    Args:
        splits: rows of the data contract ([`~kgl.data.schema.defect_dataset`]) by the name of their split: `train`
            always, `validation` and `test` where the source has them. All splits have the same classes.
        description: the setting that names the source, for messages, such as `--data_dir images`.
        notes: sentences about how the source was read that its owner should see.
    """

    splits: dict[str, Dataset]
    description: str
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of their indices."""
        return self.splits["train"].features["label"].names


__all__ = ["SourceDataset"]
