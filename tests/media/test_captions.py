"""How long captions are: counted without torch as open_clip counts."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.media import captions, encoders

WORDS = "a man walks along the river while colourful fish swim it's naïve 日本 1984 don't <b> 🐟🐟"


def tokens_of(caption: str) -> int:
    """What open_clip counts, start and end included."""
    return len(encoders.tokenizer(captions.TOKENS).encode(caption)) + captions.ENDS


def assert_counted(caption: str) -> None:
    num_tokens = tokens_of(caption)
    assert not captions.is_long(caption, num_tokens)
    assert captions.is_long(caption, num_tokens - 1)


@settings(deadline=None, max_examples=300)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(WORDS.split()), max_size=40).map(" ".join)
    | st.text("aeinrst' -&;.0é", max_size=80)
)
def test_tokens_are_counted_as_open_clip_counts_them(caption: str) -> None:
    assert_counted(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "   ",
        "<end_of_text> and <|endoftext|>",
        "&amp;lt;b&gt;",
        "schÃ¶n",
        "A\u00a0B\u3000C",
        "İstanbul",
        "ﬁsh…",
        "don\u2019t WE'LL",
        "x" * 300,
        "!?" * 100,
        "\U0001f41f" * 50,
    ],
)
def test_odd_captions_are_counted_as_open_clip_counts_them(caption: str) -> None:
    assert_counted(caption)


def test_seventy_five_words_are_read_and_one_more_is_not() -> None:
    assert not captions.is_long("fish " * 75)
    assert captions.is_long("fish " * 76)
    assert captions.num_long(["fish " * 75, "fish " * 76, "fish", "fish " * 900]) == 2


def test_a_word_of_a_million_letters_takes_no_time() -> None:
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)
    captions.is_long("warm up")
    start = time.process_time()
    assert captions.is_long("".join(letters))
    assert time.process_time() - start < 5


def test_nothing_is_imported_that_takes_long() -> None:
    code = (
        "import sys; from pipeline.media import captions; captions.is_long('a fish');"
        "assert not {'torch', 'open_clip'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
