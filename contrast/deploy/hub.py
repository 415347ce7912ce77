"""An encoder as a folder for the Hugging Face Hub: `config.json`, `model.safetensors` and a model card."""

import os
from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from typing_extensions import Self

from contrast.atomic import replacing, rewrite
from contrast.config.trust import Config
from contrast.data.store import save_tensors
from contrast.deploy.card import model_card
from contrast.deploy.export import save_config
from contrast.deploy.load import CONFIG, MODEL, ImageEncoder, encoder_of, exported
from contrast.evaluation.encoder import Frozen

DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # options of `from_pretrained`


class HubEncoder(ImageEncoder, PyTorchModelHubMixin, library_name="contrast", tags=["contrastive-learning"]):  # type: ignore[call-arg]
    """An `ImageEncoder` with `save_pretrained`, `push_to_hub` and `from_pretrained` (a folder, or OWNER/NAME).

    run  what the model card contains besides the configuration of the run: `metrics`, `overrides` and `packages`
    """

    def __init__(self, model: Frozen, config: Config, run: Config | None = None) -> None:
        super().__init__(model, config)
        self.run = run or {}

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {key: value.contiguous().clone() for key, value in self.model.state_dict().items()}
        with replacing(save_directory / MODEL) as file:
            save_tensors(state, file)
        save_config(self, save_directory)
        if not (card := save_directory / "README.md").exists():  # the mixin writes it in place
            rewrite(card, str(self.generate_model_card()))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: object) -> Self:
        if not os.path.isdir(model_id):
            chosen = {name: options[name] for name in DOWNLOAD}
            model_id = snapshot_download(model_id, allow_patterns=[CONFIG, MODEL], **chosen)
        encoder = encoder_of(exported(Path(model_id)))
        return cls(encoder.model, encoder.config)

    def generate_model_card(self, *args: object, **kwargs: object) -> ModelCard:
        return ModelCard(model_card(self, self.run))
