"""Small shards of a folder of images, for several tests."""

import io
import tarfile
from pathlib import Path

import pytest

import kgl.data.shard_writer
from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.data.shard_writer import write_shards


def small_shards(monkeypatch: pytest.MonkeyPatch, group: int = 2, shard_bytes: int = 12_000) -> None:
    """Make row groups of few images, and shards of few row groups."""
    monkeypatch.setattr(kgl.data.shard_writer, "GROUP_IMAGES", group)
    monkeypatch.setattr(kgl.data.shard_writer, "SHARD_BYTES", shard_bytes)


def shards_of(images: Path, folder: Path, **settings: object) -> Path:
    """Write a folder of images as shards."""
    write_shards(read_images(DataArguments(data_dir=str(images), **settings)), folder)
    return folder


def tars_of(images: Path, folder: Path, count: int = 3, ending: str = "txt") -> Path:
    """Write a folder of images, one folder per class, as WebDataset shards with the class in a field."""
    folder.mkdir(parents=True)
    for number in range(count):
        with tarfile.open(folder / f"train-{number:05d}.tar", "w") as archive:
            for image in sorted(images.rglob("*.png"))[number::count]:
                key = f"{image.parent.name}_{image.stem}"
                for field, content in (("png", image.read_bytes()), (ending, image.parent.name.encode())):
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder
