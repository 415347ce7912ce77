"""Which checkpoints of a run are intact."""

import zipfile
from contextlib import suppress
from pathlib import Path


def check_whole(path: Path) -> None:
    """Raises zipfile.BadZipFile if a byte of the checkpoint has changed since it was written, and as `check_archive`.

    torch writes a checksum for each record of the file but does not verify it when it reads the file.
    """
    from contrast.encoders.archive import check_archive

    check_archive(path)
    with zipfile.ZipFile(path) as records:
        if (damaged := records.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} does not have its checksum")


def newest(run_dir: Path, but: Path | None = None) -> tuple[Path, int] | None:
    """The newest intact checkpoint of a run other than `but`, and its step; None if there is none."""
    import torch  # imported here, so that a wrong command is refused before torch is imported

    files = [path for path in (run_dir / "checkpoints").glob("*.ckpt") if path != but]
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        with suppress(Exception):  # it is damaged, too, or was removed a moment ago
            check_whole(path)
            return path, int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    return None
