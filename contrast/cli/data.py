"""The data set of a command: the one that is chosen, or that of the run whose encoder is used, wherever it is now."""

from collections.abc import Mapping
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.config.trust import Config, Trust, from_file
from contrast.data.images.image_set import Splits
from contrast.data.text.tokenizer import tokenizer_of
from contrast.errors import InputError
from contrast.run.errors import task_error
from contrast.run.schema import check_targets


def data_of(
    config: Config, data: Mapping[str, object], source: str, trust: Trust = False
) -> tuple[DictConfig, Config | None, str | None]:
    """The three arguments of `splits_of`: the data set to read, and what the run knows of captions.

    config         of the run
    data           a data set; or, without a `_target_`, what differs from that of the run: {"root": FOLDER}
    source, trust  where the configuration is from, and what it may call: `contrast.config.trust.from_file`
    """
    other = "_target_" in data
    # `root: null` is the default of the commands, which a data set that takes no root must not be given
    given = {name: value for name, value in data.items() if value is not None or (other and name != "root")}
    parts = ("text",) if other else ("text", "data")
    checked = from_file({name: config.get(name) for name in parts}, source, trust) if config else {}
    if other:
        return OmegaConf.create(given), checked.get("text"), None
    node = DictConfig(checked["data"])
    node.merge_with(given)
    return node, checked.get("text"), source


def splits_of(data: DictConfig, text: Config | None, source: str | None) -> Splits:
    """The images that `data` describes; their captions become token ids of the run's vocabulary.

    source  the run that they are of, for an error that says how to name those that have moved; None: of no run

    Raises InputError for a text.
    """
    captions = {}
    if text and "tokenizer" in data:
        captions = {"tokenizer": tokenizer_of(text["tokenizer"]), "length": text["length"]}
    check_targets({"data": OmegaConf.to_container(data, resolve=True)})  # those of a run were not checked at the door
    try:
        splits = instantiate(data, **captions)
    except Exception as error:
        line, cure = task_error(error), moved(data)
        if line is None or cure is None or source is None:
            raise
        raise InputError(f"{line}; {cure} says where the images of {source} are now") from error
    if not isinstance(splits, Splits):
        raise InputError(f"{splits.name} is text, and this command takes images: contrast-words trains on text")
    return splits


def moved(data: DictConfig) -> str | None:
    """The word of the command line that names the folder, the table or the tars of the data anew; None: all are there.

    `++` also sets a key that the configuration of a command does not have.
    """
    for key, kind in {"root": "FOLDER", "file": "FILE", "urls": "TARS"}.items():
        value = data.get(key)
        if isinstance(value, str) and "://" not in value:
            path = Path(value).expanduser()
            if not (path.parent if key == "urls" else path).exists():
                return f"{'' if key == 'root' else '++'}data.{key}={kind}"
    return None
