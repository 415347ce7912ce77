"""contrast-export: the encoder of a run for other programs."""

from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from contrast.atomic import check_file, made
from contrast.deploy.export import export
from contrast.deploy.load import MODEL, WEIGHTS, ImageEncoder, load_images
from contrast.errors import InputError, need
from contrast.run.environment import write_environment
from contrast.run.folder import record, run_around


def export_encoder(cfg: DictConfig) -> None:
    """Writes the encoder of `cfg.checkpoint` to the folder `cfg.out`, in the form `cfg.format`."""
    out = Path(cfg.out).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"out={cfg.out} is a file, and an encoder is exported to a folder")
    other = {"safetensors": MODEL, "hub": WEIGHTS}.get(cfg.format)
    if other is not None and (out / other).exists():
        raise InputError(f"out={cfg.out} holds the {other} of another export: choose another folder")
    if not out.exists():
        check_file(out)
    instead = "evaluation.files=[vectors.txt] saves word vectors for others"
    encoder = load_images(cfg.checkpoint, cfg.trust, instead)
    lines = (
        to_hub(encoder, out, record(run_around(cfg.checkpoint)))
        if cfg.format == "hub"
        else export(encoder, cfg.format, out)
    )
    write_environment(HydraConfig.get().runtime.output_dir)
    print("\n".join(lines))


def to_hub(encoder: ImageEncoder, folder: Path, run: Mapping[str, object]) -> list[str]:
    """A folder for Hugging Face's hub; a model card that is there already stays as it is."""
    need("huggingface_hub", "export", "format=hub")
    from contrast.deploy.hub import HubEncoder

    kept = (folder / "README.md").exists()
    with made(folder):
        HubEncoder(encoder.model, encoder.config, run).save_pretrained(folder)  # type: ignore[operator]
    card = "README.md was there and stays as it is" if kept else "README.md is the model card, written from the run"
    return [
        f"{folder}: config.json, model.safetensors; {card}",
        f"contrast.load({str(folder)!r}) reads it; `hf upload OWNER/NAME {folder}` publishes it, for 'hf:OWNER/NAME'",
    ]
