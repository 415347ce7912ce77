"""Scikit-learn's bundled handwritten digits: real images that need no download."""

from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from contrast.data.images.image_set import Images, Splits
from contrast.data.text.tokenizer import WordTokenizer

_TEST_IMAGES = 360
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "{}",
    "the digit {}",
    "a handwritten {}",
    "the number {}, written by hand",
    "a small picture of a {}",
    "this is a {}.",
)
TEST_TEMPLATE = "a handwritten {}"
LENGTH = 8  # tokens; the longest caption has 7


def digits() -> Splits:
    """1,797 greyscale 8 x 8 digits, in a fixed stratified split of 1,437 to train and 360 to test.

    Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI), which
    stores 0..16 per pixel; here scaled to 0..255.
    """
    values, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
    pixels = torch.from_numpy(np.rint(values * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=_TEST_IMAGES, random_state=0, stratify=labels)
    everything = Images(pixels, targets, tuple("0123456789"))
    return Splits("digits", everything.select(torch.from_numpy(train)), everything.select(torch.from_numpy(test)))


def digits_words() -> Splits:
    """`digits` with a caption each: its English word in one of TEMPLATES, as ids of words, [N, LENGTH].

    Row i of the training set has template i modulo their number; as the rows are shuffled, the template is
    independent of the digit. All test images have TEST_TEMPLATE, so that retrieval is among ten distinct texts.
    """
    splits = digits()
    train = [TEMPLATES[row % len(TEMPLATES)].format(WORDS[i]) for row, i in enumerate(splits.train.labels.tolist())]
    test = [TEST_TEMPLATE.format(word) for word in WORDS]
    tokenizer = WordTokenizer.fit(train)
    assert isinstance(splits.train, Images)
    assert isinstance(splits.test, Images)
    return Splits(
        "digits_words",
        replace(splits.train, text=tokenizer.encode(train, LENGTH)),
        replace(splits.test, text=tokenizer.encode(test, LENGTH)[splits.test.labels]),
        tokenizer=tokenizer,
    )
