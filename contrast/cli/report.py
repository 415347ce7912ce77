"""contrast-report: a run, or a sweep, on one page."""

from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from contrast.atomic import check_file
from contrast.cli.data import data_of, splits_of
from contrast.deploy.load import load_images
from contrast.errors import InputError
from contrast.report.run_page import RunReport
from contrast.report.sweep_page import REPORT, is_sweep, write_sweep_page
from contrast.run.environment import write_environment
from contrast.run.folder import read_metrics, run_around
from contrast.training.trainer import bare_trainer


def report(cfg: DictConfig) -> None:
    """Writes the page of the run or the sweep `cfg.checkpoint`."""
    path = Path(cfg.checkpoint).expanduser()
    run = path if is_sweep(path) else run_around(path)
    if run is None and not path.exists() and not str(cfg.checkpoint).startswith("hf:"):
        raise InputError(f"no run, sweep or checkpoint at {cfg.checkpoint}")
    if run is None and cfg.out is None:
        raise InputError(f"{cfg.checkpoint} is in no run folder: give out=report.html")
    out = Path(cfg.out or f"{run}/{REPORT}").expanduser()
    check_file(out)
    if is_sweep(path):
        write_sweep_page(path, out)
    else:
        run_report(cfg, run).write(out)
    write_environment(HydraConfig.get().runtime.output_dir)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def run_report(cfg: DictConfig, run: Path | None) -> RunReport:
    """The report of the run in the folder `run`, or of an encoder without one."""
    encoder = load_images(cfg.checkpoint, cfg.trust)
    node, text, source = data_of(encoder.config, cfg.data, str(cfg.checkpoint), cfg.trust)
    splits = splits_of(node, text, source)
    # the metrics in the folder are of its last weights on its own data
    last = run is not None and Path(cfg.checkpoint).name in (run.name, "checkpoints", "last.ckpt")
    metrics: Mapping[str, float] = read_metrics(run) if run and last and source is not None else {}
    config: dict[str, object] = {**encoder.config, "data": OmegaConf.to_container(node)}
    device = bare_trainer(cfg.trainer).strategy.root_device
    return RunReport(encoder.model, splits, config, metrics, run, device, cfg.images, cfg.workers, cfg.seed)
