"""Loggers besides `metrics.jsonl`: a W&B run that never waits for an input, and TensorBoard."""

import netrc
import os
import secrets
import shlex
import time
from collections.abc import Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import build_opener

import wandb
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from contrast.atomic import replacing
from contrast.errors import InputError
from contrast.run.folder import is_first_rank

Mode = Literal["online", "offline", "disabled", "shared"]

TIMEOUT = 4.0  # seconds within which W&B's server has to respond


def wandb_logger(
    run_dir: str | os.PathLike[str], name: str, config: Mapping[str, object] | None = None, **settings: Any
) -> WandbLogger:
    """Starts the W&B run of this job on rank 0, prints its mode in one line and returns Lightning's logger for it.

    The run is offline if there is no login or no network; `WANDB_MODE`, if it is set, decides. `<run_dir>/wandb_id`
    holds the run's id, so that a resumed job continues its run. A W&B run that an earlier job of this process left
    open is finished first, or two jobs would share it. `config` is uploaded as it is: plain values. `settings` go to
    wandb.init: project, group, entity, tags and the rest.

    Raises:
        InputError: W&B refuses to start the run.
    """
    run_dir = Path(run_dir).absolute()
    if not is_first_rank():
        return WandbLogger(save_dir=run_dir)
    wandb.finish()
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))  # in place of the home folder
    try:
        mode, reason = wandb_mode(wandb.setup().settings)
        run = wandb.init(
            name=name,
            dir=run_dir,
            id=run_id(run_dir),
            resume="allow",
            mode=mode,
            config=dict(config or {}),
            # The run folder has the console output and the commit; W&B need not capture them again.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            **settings,
        )
    except wandb.Error as error:
        raise InputError(f"W&B cannot start a run: {error} (WANDB_MODE=offline or logger=csv do without)") from error
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    upload = f"; to upload: wandb sync {shlex.quote(str(run_dir))}/wandb/offline-run-*" if mode == "offline" else ""
    print(f"W&B: {mode} ({reason}){upload}{f': {run.url}' if not upload and run.url else ''}")
    return WandbLogger(save_dir=run_dir, experiment=run)


def wandb_mode(settings: wandb.Settings) -> tuple[Mode, str]:
    """The mode of the run, and the reason for it."""
    is_set = bool(os.environ.get("WANDB_MODE"))
    if settings.mode in ("offline", "dryrun", "disabled"):
        return "disabled" if settings.mode == "disabled" else "offline", "WANDB_MODE" if is_set else "W&B settings"
    if not has_login(settings):
        return "offline", "no W&B login; `wandb login` makes one"
    if not is_set and not is_reachable(settings.base_url):
        return "offline", f"{settings.base_url} does not respond"
    return "shared" if settings.mode == "shared" else "online", "WANDB_MODE" if is_set else "logged in"


def has_login(settings: wandb.Settings) -> bool:
    """Whether W&B will find credentials by itself: in the environment, its settings or the netrc file."""
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        machines = netrc.netrc(path if path.exists() else path.with_name("_netrc")).hosts
    except (OSError, netrc.NetrcParseError):  # absent or unreadable: W&B finds nothing in it either
        return False
    hosts = [urlsplit(settings.base_url).netloc]
    if settings.base_url == wandb.Settings().base_url:
        hosts.append("api.wandb.ai")  # the usual name of the public server
    return any(host in machines for host in hosts)


def is_reachable(url: str) -> bool:
    """Whether a server, or the proxy on the way to it, sends any response within `TIMEOUT` seconds."""
    try:
        build_opener().open(url, timeout=TIMEOUT).close()
    except HTTPError:  # a response, too
        return True
    except (OSError, HTTPException):
        return False
    return True


def run_id(run_dir: Path) -> str:
    """The id of the folder's W&B run, in a second in which none of its earlier starts falls.

    W&B names a start's folder by its second: another start within it would overwrite what the folder holds.
    """
    path = run_dir / "wandb_id"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(secrets.token_hex(6) + "\n", encoding="utf-8")
    saved = path.read_text(encoding="utf-8").strip()
    while list(run_dir.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{saved}")):
        time.sleep(0.05)
    return saved


def tensorboard_logger(run_dir: str | os.PathLike[str], **unused: object) -> TensorBoardLogger:
    """Lightning's logger, writing to `<run_dir>/tensorboard`; what other loggers need (name, group) is unused.

    Raises:
        InputError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise InputError("logger=tensorboard needs the package tensorboard: pip install 'contrast[tensorboard]'")
    return TensorBoardLogger(save_dir=str(Path(run_dir).absolute()), name="tensorboard", version="")
