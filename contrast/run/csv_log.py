"""`metrics.csv`: one row per logged step, safe to append to after a crash and a resume."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from contrast.atomic import replacing
from contrast.errors import InputError

Row = dict[str, str]  # column -> its text in the file, absent where the step did not log it


class CSVLog(Logger):
    """A Lightning logger that keeps `<run_dir>/metrics.csv`: columns step, epoch, then metrics as they first appear.

    All metrics of one step share one row, whoever logged them; a metric logged twice keeps the later value. Every
    row reaches the operating system at once, so a killed process loses none. A new metric rewrites the file through
    a temporary one. Floats carry nine significant digits, enough for a float32. Ranks other than 0 write nothing.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(run_dir).absolute() / "metrics.csv"
        self._columns: list[str] = []
        self._file: BinaryIO | None = None
        self._row: Row = {}  # the last row of the file, where more metrics of its step may still arrive
        self._row_start = 0  # the byte at which it starts

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the resolved config is a file of its own in the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int | Tensor], step: int | None = None) -> None:
        if step is None:
            raise InputError(f"metrics.csv needs the step at which {', '.join(metrics)} were measured")
        new = {"step": str(step)} | {name: _text(value) for name, value in metrics.items()}
        file = self._open()
        same_step = self._row.get("step") == new["step"]
        row = self._row | new if same_step else new
        if missing := [name for name in row if name not in self._columns]:
            rows = read_rows(self.path)[1]
            self._rewrite([*self._columns, *missing], [*(rows[:-1] if same_step else rows), row])
            return
        if same_step:
            file.seek(self._row_start)
        else:
            self._row_start = file.tell()
        file.write(_line([row.get(name, "") for name in self._columns]))
        file.flush()
        if same_step:
            file.truncate()  # a value logged again may have become shorter
        self._row = row

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Drops the rows of `step` and later: training restarts there (0: from scratch) and will log them again."""
        if not self.path.exists():
            return
        columns, rows = read_rows(self.path)
        kept = [row for row in rows if int(row["step"]) < step]
        if len(kept) < len(rows):
            self._rewrite(columns, kept)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; a later `log_metrics` opens it again at its end."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._rewrite(*(read_rows(self.path) if self.path.exists() else (["step", "epoch"], [])))
        assert self._file is not None
        return self._file

    def _rewrite(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Replaces the file as a whole, atomically, and stays open at its end."""
        if self._file is not None:
            self._file.close()
        lines = [_line(columns), *(_line([row.get(name, "") for name in columns]) for row in rows)]
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(lines))
        self._file = open(self.path, "r+b")  # noqa: SIM115, open as long as the run
        self._row_start = self._file.seek(0, os.SEEK_END) - len(lines[-1])
        self._columns = list(columns)
        self._row = dict(rows[-1]) if rows else {}


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The columns and rows of a `metrics.csv`, empty cells left out.

    A last line without its newline was cut off by a crash and is left out too.

    Raises:
        InputError: the file is no `metrics.csv`: no `step` column, or a line that does not fit the columns.
    """
    text = path.read_text(encoding="utf-8")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not lines or "step" not in lines[0]:
        raise InputError(f"{path} has no column 'step', so it is not a metrics.csv")
    columns, rows = lines[0], []
    for number, cells in enumerate(lines[1:], start=2):
        row = {name: cell for name, cell in zip(columns, cells, strict=False) if cell}
        if len(cells) != len(columns) or not row.get("step", "").isdecimal():
            raise InputError(f"{path}, line {number}: {len(cells)} cells for {len(columns)} columns, or no step")
        rows.append(row)
    return columns, rows


def _text(value: float | int | Tensor) -> str:
    if isinstance(value, Tensor):
        value = value.item()
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
