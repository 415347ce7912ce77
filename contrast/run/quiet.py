"""Silences messages of libraries that would hide what a run prints."""

import logging
import warnings

import lightning_fabric
import pytorch_lightning

from contrast.run.folder import is_first_rank


def quiet() -> None:
    """Drops the info messages of Lightning and others and some of their warnings. Only rank 0 gives info of its own.

    A log that cannot be written, because the disk is full, prints no traceback.
    """
    logging.raiseExceptions = False
    logging.getLogger("contrast").setLevel(logging.NOTSET if is_first_rank() else logging.WARNING)
    for module in (pytorch_lightning, lightning_fabric):  # imported first: they set the levels of their own loggers
        logging.getLogger(module.__name__).setLevel(logging.WARNING)
    for name in ("faiss", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # written to by nothing
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # no other option stops it
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Total length of `Missing` .* is zero.*")  # all vectors are written
    warnings.filterwarnings("ignore", message="predict returned None.*")  # vectors are written, not returned
