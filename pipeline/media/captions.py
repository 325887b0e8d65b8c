"""How long captions are to CLIP: it reads 77 tokens, start and end among them, and no more.

open_clip's tokenizer comes with torch, whose import takes seconds. To count, its vocabulary is
enough: this is the same byte-pair encoding (Sennrich et al., arXiv 1508.07909), and a test holds
it to open_clip's.
"""

from __future__ import annotations

import gzip
import html
import itertools
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import regex  # type: ignore[import-untyped]

TOKENS = 77  # of a caption, in every CLIP of Stable Diffusion
ENDS = 2  # tokens that stand for the start and the end of a text
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
NUM_TOKENS = 49_408  # in the vocabulary: bytes, bytes that end a word, merged pairs, start and end
NUM_MERGES = NUM_TOKENS - 2 * 256 - ENDS
END_OF_WORD = "</w>"
Pair = tuple[str, str]


def is_long(caption: str, limit: int = TOKENS) -> bool:
    """Whether a caption has more than `limit` tokens, so that CLIP does not see its end."""
    num_tokens = ENDS
    for word in WORD.findall(_cleaned(caption)):
        # one that must have too many tokens is not taken apart: that takes the square of its size
        num_bytes = len(word.encode())
        least = -(-num_bytes // _longest_token())
        if num_tokens + least <= limit:
            num_tokens += _num_tokens(word)
        else:
            num_tokens += least
        if num_tokens > limit:
            break
    return num_tokens > limit


def num_long(captions: Iterable[str], limit: int = TOKENS) -> int:
    """How many of these captions are longer than that."""
    return sum(is_long(caption, limit) for caption in captions)


def _cleaned(caption: str) -> str:
    """A caption as the tokenizer reads it: damaged characters and entities mended, lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split()).lower()


@lru_cache(maxsize=100_000)
def _num_tokens(word: str) -> int:
    """Into how many tokens a word falls: the pair that was merged first in training is merged
    first, until no neighbours are a pair of the vocabulary.
    """
    ranks, letters = _ranks(), _letters()
    parts = [letters[byte] for byte in word.encode()]
    parts[-1] += END_OF_WORD
    while len(parts) > 1:
        pair = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, NUM_MERGES))
        if pair not in ranks:
            break
        parts = _merged(parts, pair)
    return len(parts)


def _merged(parts: list[str], pair: Pair) -> list[str]:
    """The parts, with every pair of neighbours that is this one put together, from the left."""
    merged: list[str] = []
    is_second = False  # of a pair that was put together already
    for part, following in itertools.pairwise([*parts, ""]):
        if is_second:
            is_second = False
        elif (part, following) == pair:
            merged.append(part + following)
            is_second = True
        else:
            merged.append(part)
    return merged


@lru_cache(maxsize=1)
def _letters() -> list[str]:
    """The character that stands for each byte in the vocabulary's file: itself if it can be seen,
    else one from 256 on.
    """
    hidden = itertools.count(256)
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256)]


@lru_cache(maxsize=1)
def _ranks() -> dict[Pair, int]:
    """The vocabulary's pairs, and when in training each was merged."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    content = gzip.decompress(
        Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    )
    lines = content.decode().split("\n")[1 : 1 + NUM_MERGES]
    pairs = (line.split() for line in lines)
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _longest_token() -> int:
    """Bytes of the vocabulary's longest token."""
    return max(len((first + second).removesuffix(END_OF_WORD)) for first, second in _ranks())
