"""Words, ids, and the tokenizers of transformers."""

import sys
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from contrast.data.text.split import Splitter, tokens
from contrast.data.text.tokenizer import HFTokenizer, WordTokenizer, splitter, tokenizer_of
from contrast.errors import InputError

TEXTS = ["A dog, a cat.", "a Dog runs", "the cat"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, it's 3.5!", ["a", "dog", ",", "it", "'", "s", "3", ".", "5", "!"]),
        ("  \t\n ", []),
        ("ÇA caf\u00e9 cafe\u0301", ["ça", "caf\u00e9", "caf\u00e9"]),  # one code point or two
        ("हिन्दी में लिखा।", ["हिन्दी", "में", "लिखा", "।"]),  # vowel signs belong to the word
        ("مَرْحَبًا بالعالم", ["مَرْحَبًا", "بالعالم"]),
        ("Привет, мир", ["привет", ",", "мир"]),
        ("你好 world2", ["你", "好", "world2"]),
        ("カタbカ", ["カ", "タ", "b", "カ"]),
        ("ok👍", ["ok", "👍"]),
    ],
)
def test_words_and_punctuation_of_any_script(text: str, expected: list[str]):
    assert tokens(text) == expected
    assert tokens(text + " ж") == [*expected, "ж"]  # plain ASCII has a way of its own


def test_vocabulary_by_falling_count_then_by_letter():
    fitted = WordTokenizer.fit(TEXTS)
    assert fitted.vocabulary == ("a", "cat", "dog", ",", ".", "runs", "the")
    counts = Counter(word for text in TEXTS for word in tokens(text))
    assert list(fitted.vocabulary) == sorted(counts, key=lambda word: (-counts[word], word))
    assert WordTokenizer.fit(TEXTS, min_count=2).vocabulary == ("a", "cat", "dog")
    assert WordTokenizer.fit(TEXTS, max_words=2).vocabulary == ("a", "cat")
    assert WordTokenizer.fit(reversed(TEXTS)).vocabulary == fitted.vocabulary


def test_ids_padding_unknown_and_back():
    fitted = WordTokenizer.fit(TEXTS)
    ids = fitted.encode(["the DOG flies.", ""], 5)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[8, 4, 1, 6, 0], [0, 0, 0, 0, 0]]
    assert fitted.decode(ids) == ["the dog <unk> .", ""]
    assert fitted.size == 9
    every = fitted.encode([" ".join(fitted.vocabulary)], 7)
    assert every.tolist() == [list(range(2, fitted.size))]
    assert fitted.encode([], 5).shape == (0, 5)


def test_it_is_made_again_from_its_vocabulary():
    fitted = WordTokenizer.fit(TEXTS)
    for again in (WordTokenizer(fitted.vocabulary), tokenizer_of(fitted.facts())):
        assert isinstance(again, WordTokenizer)
        assert again.vocabulary == fitted.vocabulary
        assert torch.equal(again.encode(TEXTS, 6), fitted.encode(TEXTS, 6))
    assert isinstance(fitted.facts()["vocabulary"], list)  # as JSON and a checkpoint keep it


def test_texts_that_are_cut_are_counted():
    fitted = WordTokenizer.fit(TEXTS)
    with pytest.warns(UserWarning, match="2 of 3 texts have more than 2 tokens"):
        ids = fitted.encode(TEXTS, 2)
    assert ids.tolist() == [[2, 4], [2, 4], [8, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.encode(TEXTS, 6)


def test_what_no_tokenizer_can_be():
    with pytest.raises(InputError, match="a vocabulary of 3 words holds 'a' more than once"):
        WordTokenizer(["a", "b", "a"])
    with pytest.raises(InputError, match="none of 2 words occurs 3 times"):
        WordTokenizer.fit(["a b", "a"], min_count=3)
    with pytest.raises(InputError, match="none of 0 words"):
        WordTokenizer.fit([" "])
    with pytest.raises(InputError, match=r"min_count \(0\)"):
        WordTokenizer.fit(TEXTS, min_count=0)
    with pytest.raises(InputError, match=r"max_words \(0\)"):
        WordTokenizer.fit(TEXTS, max_words=0)
    with pytest.raises(InputError, match="not 0"):
        WordTokenizer.fit(TEXTS).encode(TEXTS, 0)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers: pip install 'contrast-learning\[transformers\]'"):
        HFTokenizer("some-model")


# --- transformers


def saved_tokenizer(folder: Path, pad: str | None) -> Path:
    """A tokenizer of words with [CLS] and [SEP] around each text, on disk."""
    transformers = pytest.importorskip("transformers", reason="pip install 'contrast-learning[transformers]'")
    import tokenizers

    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "dog", "cat", "runs"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | ({"pad_token": pad} if pad else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", [None, "[PAD]", "[SEP]"])
def test_ids_of_transformers_are_shifted_so_that_0_is_padding_alone(tmp_path: Path, pad: str | None):
    tokenizer = HFTokenizer(str(saved_tokenizer(tmp_path, pad)))
    with pytest.warns(UserWarning, match="1 of 4 texts have more than 5 tokens"):
        ids = tokenizer.encode(["a dog", "wolf", "a dog runs", "a a a cat"], 5)
    assert ids.tolist() == [[2, 5, 6, 3, 0], [2, 1, 3, 0, 0], [2, 5, 6, 8, 3], [2, 5, 5, 5, 3]]
    assert tokenizer.size == 9
    assert tokenizer.decode(ids)[:2] in (["a dog", "[UNK]"], ["a dog", ""])
    assert torch.equal(tokenizer_of(tokenizer.facts()).encode(["a dog"], 5), ids[:1])
    assert tokenizer.encode([], 5).shape == (0, 5)


def test_a_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers", reason="pip install 'contrast-learning[transformers]'")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"transformers has no tokenizer '.*empty'") as caught:
        HFTokenizer(str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)


def naive(text: str) -> list[str]:
    """Characters one by one: letters, digits and marks are a word, Han and kana and all others that show one each."""
    words, begun = [], False
    for character in unicodedata.normalize("NFC", text.lower()):
        kind, name = unicodedata.category(character), unicodedata.name(character, "")
        alone = name.startswith(("CJK UNIFIED", "CJK COMPAT", "HIRAGANA LETTER", "KATAKANA LETTER"))
        part = (character.isalnum() or character == "_" or kind[0] == "M") and not alone
        if part and begun:
            words[-1] += character
        elif not character.isspace():
            words.append(character)
        begun = part
    return words


@pytest.mark.parametrize(
    "text",
    [
        *("plain words 12 a_b", "Capital", "a.b", "a\tb \r", "é a", "", "a\x0bb", "a\x00b", "a\x7fb", "2 km², x₂"),
        *("日本語のテキスト", "संस्कृतम् पठ", "ΟΔΟΣ ὁδός", "\u0300 a\u0300", "𐐷𐐲 a𐐷", "𠀀𠀁a", "ﷺ ½ Ⅷ"),
        "ñ-ñ \U0001d518\U0001d52bi👍",
    ],
)
def test_words_are_their_definition(text: str):
    assert tokens(text) == naive(text)
    assert tokens(f"{text} 👍 𐐷") == [*naive(text), "👍", "𐐷"]  # beyond U+FFFF there is a way of its own


def test_characters_without_width_are_no_words():
    text = "co\u00adope\u00adrate \u200b a\u200bb \u2060 \ufeff ❤\ufe0f मी\u200cटर \u200d"
    assert tokens(text) == ["cooperate", "a", "b", "❤", "मी\u200cटर"]


def test_capitals_and_apostrophes():
    def words(text: str, **options: bool) -> list[str]:
        kind = Splitter(**options)
        return [kind.finish(word) for word in kind.split(text)]

    text = "Don\u2019t say 'Tis O'Neill's"
    assert words(text, apostrophes=True) == ["don't", "say", "'", "tis", "o'neill's"]
    assert words(text, keep_case=True)[:2] == ["Don", "\u2019"]
    assert words("L'Été", keep_case=True, apostrophes=True) == ["L'Été"]
    with pytest.raises(InputError, match="options of tokenizer=null, not of spaces"):
        splitter("spaces", keep_case=True)
