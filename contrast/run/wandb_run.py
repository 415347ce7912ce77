"""A W&B run for a job: never asks anything, lives in the run folder, and continues when the job is resumed."""

import netrc
import os
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from contrast.atomic import replacing
from contrast.errors import InputError

Mode = Literal["online", "offline", "disabled", "shared"]

_PATIENCE = 2.0  # seconds, for the server to take a connection


def wandb_logger(
    run_dir: str | os.PathLike[str],
    name: str,
    project: str = "contrast",
    group: str | None = None,
    entity: str | None = None,
    tags: tuple[str, ...] | list[str] = (),
    config: Mapping[str, Any] | None = None,
) -> WandbLogger:
    """Starts the W&B run of this job on rank 0, prints its mode in one line and returns Lightning's logger for it.

    Offline without a login or without a network; `WANDB_MODE` decides where it is set. `<run_dir>/wandb_id` holds
    the run's id, so that a resumed job continues its run. A W&B run that an earlier job of this process left open
    is finished first, or two jobs would share it. `config` is uploaded as it is: plain values.

    Raises:
        InputError: W&B refuses to start the run.
    """
    run_dir = Path(run_dir).absolute()
    run = _start(run_dir, name=name, project=project, group=group, entity=entity, tags=list(tags), config=config)
    return WandbLogger(save_dir=run_dir, project=project, experiment=run)


@rank_zero_only
def _start(run_dir: Path, config: Mapping[str, Any] | None, **keywords: Any) -> wandb.Run:
    if wandb.run is not None:
        wandb.finish()
    run_dir.mkdir(parents=True, exist_ok=True)
    # W&B's helper process keeps a log among its caches, by default in the home folder.
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
    try:
        mode, reason = _mode(wandb.setup().settings)
        run_id = _run_id(run_dir)
        _await_new_second(run_dir, run_id)
        run = wandb.init(
            dir=str(run_dir),
            id=run_id,
            resume="allow",
            mode=mode,
            config=dict(config or {}),
            # The run folder has the console output and the commit; W&B need not capture them again.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            **keywords,
        )
    except wandb.Error as error:
        raise InputError(f"W&B cannot start a run: {error} (WANDB_MODE=offline or logger=csv do without)") from error
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if mode == "offline":
        print(f"W&B: offline ({reason}); to upload: wandb sync {shlex.quote(str(run_dir))}/wandb/offline-run-*")
    else:
        print(f"W&B: {mode} ({reason}){f': {run.url}' if run.url else ''}")
    return run


def _mode(settings: wandb.Settings) -> tuple[Mode, str]:
    """The mode of the run, and why."""
    mode = settings.mode
    asked: Mode = "offline" if mode == "dryrun" else "online" if mode == "run" else mode  # the older names
    explicit = bool(os.environ.get("WANDB_MODE"))
    if asked in ("offline", "disabled"):
        return asked, "WANDB_MODE" if explicit else "W&B settings"
    if not _has_login(settings):
        return "offline", "no W&B login; `wandb login` makes one"
    if explicit:
        return asked, "WANDB_MODE"
    address = _address(settings.base_url)
    if not _reachable(*address):
        return "offline", f"{address[0]}:{address[1]} does not answer"
    return asked, "logged in"


def _has_login(settings: wandb.Settings) -> bool:
    """Whether W&B would find credentials without asking: in the environment, its settings or the netrc file."""
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not path.exists():
        path = path.with_name("_netrc")
    hosts = [urlsplit(settings.base_url).netloc]
    if settings.base_url == wandb.Settings().base_url:
        hosts.append("api.wandb.ai")  # the public server under its usual name
    try:
        found = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):  # absent or unreadable: W&B finds nothing there either
        return False
    return any(found.authenticators(host) for host in hosts)


def _address(url: str) -> tuple[str, int]:
    """Host and port to which a request for `url` connects: its own, or those of the configured proxy."""
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or _default_port(target)


def _default_port(url: SplitResult) -> int:
    return 443 if url.scheme == "https" else 80


def _reachable(host: str, port: int) -> bool:
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
        except OSError:  # no route, refused, unknown host, timeout: all mean "not reachable"
            return
        answered.set()

    # In a thread of its own, because the timeout of a socket does not cover a name server that stays silent.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def _run_id(run_dir: Path) -> str:
    path = run_dir / "wandb_id"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(secrets.token_hex(6) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _await_new_second(run_dir: Path, run_id: str) -> None:
    """W&B names a run's folder by the second of its start: one resumed within it would overwrite what lies there."""
    while list(run_dir.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
        time.sleep(0.05)
