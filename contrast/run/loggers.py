"""Loggers besides `metrics.jsonl`: a W&B run that never waits for an input, TensorBoard and MLflow."""

import functools
import netrc
import os
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from contrast.atomic import rewrite
from contrast.errors import InputError, need
from contrast.network import is_reachable
from contrast.run.folder import MLFLOW, is_first_rank, mlflow_store, read_mlflow
from contrast.run.metrics import FILE, RunLog, read_rows

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled", "shared"]

STEP = "trainer/global_step"  # the horizontal axis of W&B's plots


class WandbLog(RunLog):
    """Logs to an open W&B run. Lightning's own logger imports names that future versions of wandb no longer have."""

    name = "wandb"

    def __init__(self, run: "wandb.Run", run_dir: Path) -> None:
        super().__init__()
        self.run, self.version, self.run_dir = run, run.id, run_dir

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Logs the rows before `step` again where W&B does not continue a run, so that its new part is the whole run.

        Offline, each start is a part of its own. When it is uploaded, it replaces the rows of the parts before it.
        """
        file = self.run_dir / FILE
        for row in read_rows(file) if file.exists() and not self.run.resumed else ():
            if row["step"] < step:
                self.log_metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, STEP: step})

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        """Uploads image files under the name `key`."""
        from wandb import Image

        self.run.log({key: [Image(image) for image in images]})


def wandb_logger(
    run_dir: str | os.PathLike[str], name: str, group: str | None, config: Mapping[str, object], **settings: Any
) -> WandbLog | None:
    """Starts the W&B run of this job on rank 0, prints its mode in one line and returns the logger for it.

    The run is offline if there is no login or no network; `WANDB_MODE`, if it is set, decides. It is None for
    `WANDB_MODE=disabled` and `WANDB_DISABLED=true`, and on other ranks. `<run_dir>/wandb_id` holds the run's id, so
    that a resumed job continues its run, or begins another one if that was deleted. A W&B run that an earlier job of
    this process left open is finished first, or two jobs would share it. `group` is that of a sweep's jobs. `config` is
    uploaded as it is: plain values. `settings` go to wandb.init: project, entity, tags and the rest; the tags are by
    default the words of the name.

    Raises:
        InputError: W&B refuses to start the run.
    """
    if not is_first_rank():
        return None
    run_dir = Path(run_dir).absolute()
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    if disabled or os.environ.get("WANDB_MODE") == "disabled":
        print(f"W&B: disabled ({'WANDB_DISABLED' if disabled else 'WANDB_MODE'})")
        return None
    import wandb

    wandb.finish()
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))  # in place of the home folder
    try:
        mode, reason = wandb_mode(wandb.setup().settings)
        start = functools.partial(
            wandb.init,
            name=name,
            group=group,
            dir=run_dir,
            resume="allow",
            mode=mode,
            config=dict(config),
            tags=settings.pop("tags", None) or [tag[:64] for tag in name.partition(" ")[0].split("-")],
            # The run folder has the console output and the commit; W&B need not capture them again.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        try:
            run = start(**settings | run_path(run_dir))
        except wandb.Error as error:
            if "deleted" not in str(error):
                raise
            print(f"W&B: the run of {run_dir} was deleted, and another one begins")
            (run_dir / "wandb_id").unlink()
            run = start(**settings | run_path(run_dir))
    except wandb.Error as error:
        raise InputError(f"W&B cannot start a run: {error} (WANDB_MODE=offline or logger=csv do without)") from error
    # W&B's link to the log of its process is an absolute path, so a moved or copied run would lead out of its folder.
    (Path(run.dir).parent / "logs" / "debug-core.log").unlink(missing_ok=True)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    upload = f"; to upload: wandb sync {shlex.quote(str(Path(run.dir).parent))}" if mode == "offline" else ""
    print(f"W&B: {mode} ({reason}){upload}{f': {run.url}' if not upload and run.url else ''}")
    return WandbLog(run, run_dir)


def wandb_mode(settings: "wandb.Settings") -> tuple[Mode, str]:
    """The mode of the run, and the reason for it."""
    is_set = bool(os.environ.get("WANDB_MODE"))
    if settings.mode in ("offline", "dryrun", "disabled"):
        return "disabled" if settings.mode == "disabled" else "offline", "WANDB_MODE" if is_set else "W&B settings"
    if not has_login(settings):
        return "offline", "no W&B login; `wandb login` makes one"
    if not is_set and not is_reachable(settings.base_url):
        return "offline", f"{settings.base_url} does not respond"
    return "shared" if settings.mode == "shared" else "online", "WANDB_MODE" if is_set else "logged in"


def has_login(settings: "wandb.Settings") -> bool:
    """Whether W&B will find credentials by itself: in the environment, its settings or the netrc file."""
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    path = path if path.exists() else path.with_name("_netrc")
    try:
        return urlsplit(settings.base_url).netloc in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):  # absent or unreadable: W&B finds nothing in it either
        return False


def run_path(run_dir: Path) -> dict[str, str]:
    """The id of the folder's W&B run and, if the folder names them, its entity and project.

    Under `wandb agent` it is the run that the agent has set, whatever the folder's run was, because W&B accepts no
    other. `wandb_id` then holds ENTITY/PROJECT/ID, so that the run can be resumed without the agent.
    W&B names the folder of each start by the current second, and a second start within it would overwrite that folder.
    So this waits until no earlier start has the current second.
    """
    path, agent = run_dir / "wandb_id", "WANDB_SWEEP_ID" in os.environ
    if agent or not path.exists():
        place = [os.environ.get(f"WANDB_{name}", "") for name in ("ENTITY", "PROJECT")] if agent else []
        rewrite(path, "/".join([*place, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(6)]) + "\n")
    *place, saved = path.read_text(encoding="utf-8").strip().split("/")
    while list(run_dir.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{saved}")):
        time.sleep(0.05)
    return {"id": saved} | {key: value for key, value in zip(("entity", "project"), place, strict=False) if value}


def tensorboard_logger(run_dir: str | os.PathLike[str]) -> TensorBoardLogger:
    """Lightning's logger, writing to `<run_dir>/tensorboard`.

    Raises:
        InputError: the package is not installed.
    """
    need("tensorboard", "tensorboard", "logger=tensorboard")
    return TensorBoardLogger(save_dir=str(Path(run_dir).absolute()), name="tensorboard", version="")


def mlflow_logger(
    run_dir: str | os.PathLike[str], name: str, group: str | None, config: Mapping[str, object]
) -> Logger:
    """Lightning's logger to the MLflow store `runs/mlflow.db`, or to the one that MLFLOW_TRACKING_URI names.

    The jobs of a sweep are one experiment. `<run_dir>/mlflow_id` holds the run's id and its store, so that a resumed
    job continues its run from any folder, if the store still has it. The parameters of a new run are `config`.

    Raises:
        InputError: the package is not installed.
    """
    need("mlflow", "mlflow", "logger=mlflow")
    from mlflow.exceptions import MlflowException

    path, store = Path(run_dir).absolute() / MLFLOW, mlflow_store()
    run, kept = read_mlflow(Path(run_dir))
    uri = os.environ.get("MLFLOW_TRACKING_URI") or kept or f"sqlite:///{store}"
    if uri.endswith(str(store)):
        store.parent.mkdir(exist_ok=True)
    start = functools.partial(MLFlowLogger, group or "contrast", run_name=name, tracking_uri=uri)
    if not is_first_rank():
        return start()
    logger = start(run_id=run)
    try:
        saved = logger.run_id
    except MlflowException:  # the run was deleted, or the store is another one
        logger = start()
        saved = logger.run_id
    rewrite(path, f"{saved}\n{uri}\n")
    if saved != run:
        logger.log_hyperparams(dict(config))
    return logger
