"""A text that several ranks read together: each has files of its own, and the counts of their words are added."""

import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from contrast.data.store import digest
from contrast.distributed import check_equal, rank, world_size
from contrast.errors import InputError, named_errors

LOST = "another rank has ended, and its message says why"
_PATIENCE = timedelta(days=1)  # the longest that one rank reads after another has finished


def files_of_rank(files: Sequence[Path]) -> list[Path]:
    """Every R-th of the files, from that with the number of the rank on; it joins the other ranks first.

    Raises InputError outside torchrun, which starts all ranks before they read, if there are more ranks than files, and
    if the ranks have lists of other files, of which some would be read by none.
    """
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            raise InputError(
                "data.over_ranks=true is for ranks that torchrun starts: data.over_ranks=false trainer.devices=1 reads "
                "all text in one process"
            )
        kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(kinds, timeout=_PATIENCE)  # Lightning takes one that exists
    sizes = [(file.name, file.stat().st_size) for file in files]
    with named_errors((RuntimeError,), LOST):
        check_equal("all ranks must list the same files", f"{len(files):,} files (digest {digest(sizes)[:8]})")
    if len(files) < world_size():
        raise InputError(f"{world_size()} ranks read {len(files)} files: split the text, a file is read by one rank")
    return list(files[rank() :: world_size()])


def of_all_ranks(number: int) -> list[int]:
    """A number of each rank."""
    numbers: list[int] = [0] * world_size()
    with named_errors((RuntimeError,), LOST):
        dist.all_gather_object(numbers, number)
    return numbers


def added_over_ranks(counts: dict[str, int], min_count: int) -> dict[str, int]:
    """The sums of the ranks' counts: those that are at least `min_count`, or all if none is.

    The first rank needs memory for the different words of all ranks.
    """
    parts: list[dict[str, int]] | None = [{}] * world_size() if rank() == 0 else None
    with named_errors((RuntimeError,), LOST):
        dist.gather_object(counts, parts)
    added: list[dict[str, int]] = [{}]
    if parts is not None:
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part)
        added = [{word: count for word, count in total.items() if count >= min_count} or dict(total)]
    with named_errors((RuntimeError,), LOST):
        dist.broadcast_object_list(added)
    return added[0]
