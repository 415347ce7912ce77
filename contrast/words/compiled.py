"""Steps of skip-gram and CBOW for one centre word after another, by a loop that numba compiles.

As in word2vec, a centre word sees the vectors that the words before it have changed, so no limit on the pairs of a row
is needed. All of its pairs, and the noise of its block, are one step: their slopes are those before it. A row that is
there twice, such as two equal draws, is changed twice, one after the other. Several workers share all rows but the few
that most words change: each has copies of these, and adds its changes after every passage. This is the fastest way on a
processor; `closed_form` computes many centre words at once from matrix products, on any device.
"""

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.candidates import as_rows
from contrast.encoders import WordTable
from contrast.errors import InputError, one_line
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words.blocks import Passages

if TYPE_CHECKING:
    from contrast.words.kernel import Copied, RowLists

INSTALL = "pip install 'contrast-learning[words]'"

# Of the loss of a pair along the change of a row, for the other vector of length 1: at most 1 / 4, but vectors have
# many directions. Copies of a row that several workers or ranks train are merged by it (`spans.merged`). Two ranks
# learn what one does with 1 / 256, with 1 / 64 and 1 / 1024 nearly, and less with 1 / 4. Of two workers with copies of
# words, MEN is lower by 0.003 in NCE with 1 / 256 than without copies, by 0.012 with 1 / 64 (two and three seeds).
CURVATURE = 1 / 256


def why_not(encoder: WordTable, negatives: Table | Tree, head: Head) -> str | None:
    """Why these parts cannot be trained in the compiled loop; None if they can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:  # absent, or not made for the version of NumPy
        return f"{error}: {INSTALL}"
    if any(each.device.type != "cpu" for each in encoder.parameters()):
        return f"the vectors are on {encoder.weight.device}, not on the cpu"
    if not negatives.has_class_rows():
        return "the negatives are neither a tree nor independent draws from a table"
    if head.pair_loss(1) is None:
        return f"{type(head).__name__} has cosines, a margin, other options, or a learned or estimated part"
    return None


class Tables(NamedTuple):
    """What a step changes, input and output vectors [rows, D], and which of their rows are those of a word."""

    inputs: np.ndarray
    input_rows: "RowLists"
    outputs: np.ndarray
    output_rows: "RowLists"
    positive: np.ndarray
    log_q: np.ndarray
    copied: "Copied"


class Loop:
    """The compiled loop for an encoder and an output layer, whose parameters it changes in place.

    Raises InputError for parts that do not fit each other: the loop checks no index.
    """

    def __init__(
        self, encoder: WordTable, negatives: Table | Tree, head: Head, method: str, window: int, workers: int = 1
    ) -> None:
        from contrast.words.kernel import Copied, kernel  # which imports numba

        self.encoder, self.negatives, self.cbow = encoder, negatives, method == "cbow"
        of_classes, of_words = negatives.class_rows(), encoder.row_lists()
        outputs, inputs = (each.detach() for each in (negatives.vectors, encoder.weight))
        if len(of_words[0]) != len(of_classes.start) or outputs.shape[1] != inputs.shape[1]:
            sizes = f"{len(of_words[0]) - 1} words of {inputs.shape[1]} dimensions"
            raise InputError(f"{sizes} do not fit {len(of_classes.start) - 1} classes of {outputs.shape[1]}")
        if outputs.dtype != inputs.dtype:
            raise InputError(f"the tables of words are of one type, not {inputs.dtype} and {outputs.dtype}")
        self.dtype = inputs.numpy().dtype
        self.train = kernel(inputs.shape[1], self.dtype)
        self.input_rows = row_lists(*of_words, len(inputs))
        self.output_rows = row_lists(of_classes.start, of_classes.row, len(outputs))
        common = of_classes.common if workers > 1 else range(0)
        self.copied = Copied(common.start, common.stop, workers, CURVATURE)
        self.positive = of_classes.positive.numpy().astype(self.dtype)
        self.no_log_q = np.zeros(len(outputs), self.dtype)
        self.log_q = self.no_log_q if of_classes.log_q is None else of_classes.log_q.numpy().astype(self.dtype)
        ids = torch.zeros(0, dtype=torch.int64)
        nothing = Passages(ids, ids.int(), ids.int(), ids.float(), window, 0, 0)
        drawn = negatives.draw(1, torch.Generator())
        try:
            self.step(nothing, 0, head, drawn, 0.0)  # compiles the loop, before workers are forked
        except Exception as error:  # what numba has kept is damaged, or the disk has no room for it
            warnings.warn(f"numba cannot keep its code ({one_line(error)}): it is compiled in every run", stacklevel=2)
            self.train = kernel(inputs.shape[1], self.dtype, keeps=False)
            self.step(nothing, 0, head, drawn, 0.0)

    @torch.no_grad()
    def step(
        self,
        text: Passages,
        number: int,
        head: Head,
        drawn: Tensor | None,
        lr: float,
        with_loss: bool = False,
        tables: Tables | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Trains on the passage of that number; if requested, the sum of the losses of its pairs and their number.

        drawn   [N, M], noise of its N blocks, checked rows of the output layer (`draw` of the negatives)
        lr      learning rate of the sum over pairs
        tables  whose rows the ids of the text and the draws are; None: the whole ones

        The loss of a pair is that before the step of its centre word.
        """
        from contrast.words.kernel import Noise, Scores, Words

        real = self.dtype.type
        noise = np.empty((1, 0), np.int64) if drawn is None else drawn.numpy()
        first = 2 * text.window + number * text.size
        loss = head.pair_loss(noise.shape[1])
        assert loss is not None
        assert text.size % len(noise) == 0
        total, pairs = self.train(
            first,
            first + text.size,
            Words(text.ids.numpy(), text.line.numpy(), text.reach.numpy(), text.window),
            self.cbow,
            *(self.tables(loss.corrected) if tables is None else tables),
            Noise(noise, text.size // len(noise), first),
            Scores(loss.softmax, real(loss.scale), real(loss.shift), real(loss.noise_weight)),
            real(lr),
            with_loss,
        )
        return (torch.tensor(total, dtype=torch.float64), torch.tensor(pairs)) if with_loss else None

    def tables(self, corrected: bool) -> Tables:
        """The whole tables, with log_q of the draws where scores are corrected by it."""
        return Tables(
            self.encoder.weight.detach().numpy(),
            self.input_rows,
            self.negatives.vectors.detach().numpy(),
            self.output_rows,
            self.positive,
            self.log_q if corrected else self.no_log_q,
            self.copied,
        )


def row_lists(start: Tensor, row: Tensor, size: int) -> "RowLists":
    """Of `start` [V + 1] and `row` [m]. Raises InputError for a row that a table of so many rows does not have."""
    from contrast.words.kernel import RowLists

    return RowLists(start.numpy(), as_rows(row, size).int().numpy(), int(start.diff().max()))
