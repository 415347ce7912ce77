"""The index of a tar file with samples, and what tells one version of the file from another.

Files of a tar that follow each other and have the same name up to the first dot are a sample.
"""

import tarfile
from typing import IO, NamedTuple

import torch
from fsspec.core import url_to_fs
from torch import Tensor

from contrast.data.images.decode import suffixes
from contrast.data.store import digest, from_texts
from contrast.errors import InputError, named_errors, one_line
from contrast.network import without_secrets

_CHECKSUMS = {"ETag", "Content-MD5", "Digest"}  # headers of HTTP


class _Sample(NamedTuple):
    key: str
    place: tuple[int, int]  # first byte of the image, bytes; (0, 0) if it has none
    label: str
    caption: str


def version_of(url: str) -> str:
    """A digest of the name, size and time of a tar, or of whatever its server says of it.

    The query of an address is left out where the server gives a checksum: a signed address has another query each time,
    also if the server redirects to it.
    """
    if not url.partition("?")[0].endswith(".tar"):
        raise InputError(f"{url} is no .tar; a compressed one cannot be read from any place on: unpack it first")
    with named_errors((Exception,), f"{url} cannot be had"):  # of the network or of the file system
        system, path = url_to_fs(url)
        facts = {key: str(value) for key, value in system.info(path).items()}
        if _CHECKSUMS.intersection(facts):
            facts = {key: value if key in _CHECKSUMS else without_secrets(value) for key, value in facts.items()}
        return digest(facts)


def index_of(url: str) -> dict[str, Tensor]:
    """Where the images of a tar are, and what its small files say: a row for each sample."""
    samples, problem = list[_Sample](), list[str]()
    with named_errors((Exception,), f"{url} cannot be read"):  # of the network or of the file system
        system, path = url_to_fs(url)
        try:
            with system.open(path, "rb") as file:
                _walk(file, samples)
        except tarfile.TarError as error:
            whole = [each for each in samples[-1:] if sum(each.place) <= system.size(path)]  # or its image is cut
            samples[-1:] = whole
            problem = [f"{one_line(error)}, after {len(samples)} samples"]
    return {
        "places": torch.tensor([each.place for each in samples], dtype=torch.int64).reshape(-1, 2),
        "keys": from_texts([each.key for each in samples]),
        "labels": from_texts([each.label for each in samples]),
        "captions": from_texts([each.caption for each in samples]),
        "problem": from_texts(problem),
    }


def _walk(file: IO[bytes], samples: list[_Sample]) -> None:
    """Appends the samples of a tar; tarfile.TarError where it is damaged."""

    def text(member: tarfile.TarInfo) -> str:
        file.seek(member.offset_data)
        return " ".join(file.read(member.size).decode(errors="replace").split())

    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            # a name is FOLDERS/KEY.SUFFIX, and a key has no dot in it
            folder, _, base = member.name.rpartition("/")
            key, _, suffix = base.partition(".")
            if not member.isreg() or not key or not suffix:
                continue
            key, suffix = f"{folder}/{key}".lstrip("/"), suffix.lower()
            if not samples or samples[-1].key != key:
                samples.append(_Sample(key, (0, 0), "", ""))
            if suffix == "cls":
                label = text(member)
                samples[-1] = samples[-1]._replace(label="" if label == "-1" else label)
            elif suffix == "txt":
                samples[-1] = samples[-1]._replace(caption=text(member))
            elif f".{suffix}" in suffixes() and not samples[-1].place[1]:
                samples[-1] = samples[-1]._replace(place=(member.offset_data, member.size))
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the library takes a damaged header for the end
            raise tarfile.ReadError("it has no end")
        while rest := file.read(tarfile.RECORDSIZE):
            if any(rest):
                raise tarfile.ReadError("it goes on behind its end: is it several tars in one file?")
