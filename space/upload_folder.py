"""The folder of uploads: its size, and files that Gradio does not delete."""

import contextlib
import time
from pathlib import Path

import quotas


_ENTRY_BYTES = 4096  # about what even an empty file takes


class UploadFolder:
    """
    Folder of uploads with a limit on its total size.

    Gradio's `delete_cache` deletes complete uploads by age. It keeps cancelled and rejected uploads and the folders
    of deleted ones, and has no limit on bytes (see `test_gradio_leaves_incomplete_uploads`): that is done here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.used = 0  # bytes: counted by the last sweep, and received since

    def has_room(self, size: int = 0) -> bool:
        """Return whether `size` more bytes may be stored."""
        return self.used + size <= quotas.MAX_STORED_BYTES

    def close(self) -> None:
        """Refuse everything from now on."""
        self.used = quotas.MAX_STORED_BYTES + 1

    def sweep(self) -> None:
        """Delete leftovers and count the bytes of the rest."""
        oldest, used = time.time() - quotas.LEFTOVER_SECONDS, 0
        for path in sorted(self._path.rglob("*"), reverse=True):  # contents before their folder
            with contextlib.suppress(FileNotFoundError):  # Gradio moves and deletes files meanwhile
                status = path.lstat()
                if status.st_mtime >= oldest:
                    used += status.st_size + _ENTRY_BYTES
                elif not path.is_dir():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()
        self.used = used
