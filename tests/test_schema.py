"""Names that nothing reads are refused with the nearest one: arguments of constructors, and keys of commands."""

from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from contrast.cli.settings import Embed, Pretrain
from contrast.data.images.folder import folder
from contrast.errors import InputError
from contrast.losses import SigLIPLoss
from contrast.run.schema import check_call, check_keys


def test_names_of_typed_options_are_arguments() -> None:
    check_call("data", folder, {"root": "a", "image_size": 8, "channels": None, "banana": None})  # null leaves one out
    check_call("loss", SigLIPLoss, {"temperature": 0.1, "gather": True})


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (folder, {"root": "a", "image_sze": 8}, "x: folder got .* 'image_sze'; did you mean 'image_size'\\?$"),
        (folder, {"root": "a", "options": {}}, "x: folder got .* argument 'options'"),
        (folder, {"root": "a", "image_size": "b"}, "x.image_size=b: should be a valid integer"),
        (SigLIPLoss, {"gathr": True}, "x: SigLIPLoss got .* 'gathr'; did you mean 'gather'\\?$"),
    ],
)
def test_other_names_are_refused(target: Callable[..., object], arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_call("x", target, arguments)


def test_keys_of_a_command() -> None:
    known = {"checkpoint": "run", "trust": False, "hydra": {"mode": "RUN"}}
    check_keys(OmegaConf.create(known), Embed)
    for width in ("${width}", "${.width}", "a ${oc.env:WIDTH,${width}}"):  # a value may be computed from another
        check_keys(OmegaConf.create({**known, "width": 8, "out": width}), Embed)
    for other in ("${widths}", "${data.width}", "width"):
        with pytest.raises(InputError, match="no key or group 'width'; known are batch_size, checkpoint, data, name"):
            check_keys(OmegaConf.create({**known, "width": 8, "out": other}), Embed)
    with pytest.raises(InputError, match="no key or group 'splt'; did you mean 'split'\\?; known are "):
        check_keys(OmegaConf.create({**known, "splt": "train"}), Embed)
    with pytest.raises(InputError, match="'batchsize'; did you mean 'batch_size'"):
        check_keys(OmegaConf.create({"batchsize": 8}), Pretrain)
    check_keys(OmegaConf.create({"batchsize": 8, "resume": "run"}), Pretrain)  # an older run may have others
