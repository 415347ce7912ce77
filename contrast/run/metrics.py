"""`metrics.jsonl`: the metrics of a run as JSON lines, which are only ever appended."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from contrast.errors import InputError

FILE = "metrics.jsonl"
RESUMED = "resumed_at"  # {"resumed_at": 20}: rows above it of step 20 and later are void

Row = dict[str, float]  # metric -> value, and "step"


class RunLog(Logger):
    """A Lightning logger without hyperparameters: the resolved configuration is a file of its own in the run folder."""

    version = ""

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Nothing to do."""


class MetricsLog(RunLog):
    """A Lightning logger that appends `{"step": 19, "epoch": 0, "train/loss": 0.1}` to `<run_dir>/metrics.jsonl`.

    Every line reaches the operating system at once, so a killed process loses none. A number that is not finite
    becomes null. Ranks other than 0 write nothing.
    """

    name = "jsonl"

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(run_dir).absolute() / FILE
        self._has_written = False

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int | Tensor], step: int | None = None) -> None:
        if step is None:
            raise InputError(f"{FILE} needs the step at which {', '.join(metrics)} were measured")
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._append({"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()})

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Declares the rows of `step` and later void: training restarts there and will log them again."""
        if self.path.exists():
            self._append({RESUMED: step})

    def _append(self, entry: Mapping[str, float | None]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if not self._has_written:  # a crash may have cut off the last line of an earlier process
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(entry).encode() + b"\n")
        self._has_written = True


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`, one for each step: of a metric that was logged twice, the later value.

    Rows that a resumed run made void are left out, and so is a last line without its newline, which a crash cut off.
    A number that is not finite reads as NaN.

    Raises:
        InputError: the file is no `metrics.jsonl`.
    """
    rows: dict[int, Row] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            if RESUMED in entry:
                rows = {step: row for step, row in rows.items() if step < entry[RESUMED]}
            else:
                values = {name: math.nan if value is None else value for name, value in entry.items()}
                rows.setdefault(entry["step"], {}).update(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: not a row of metrics with its step") from error
    return list(rows.values())
