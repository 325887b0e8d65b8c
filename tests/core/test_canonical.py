import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import canonical
from pipeline.core.records import Blob

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@dataclass(frozen=True)
class Holder:
    inner: Any


def test_the_encoding_is_sorted_compact_utf_8() -> None:
    assert (
        canonical.encode({"b": [1, 2.5, None], "a": "é", "c": True})
        == '{"a":"é","b":[1,2.5,null],"c":true}'.encode()
    )


def test_a_fraction_is_numerator_slash_denominator() -> None:
    assert canonical.encode(Fraction(60000, 2002)) == b'"30000/1001"'
    assert canonical.encode(Fraction(10)) == b'"10/1"'


def test_a_dataclass_is_its_fields_and_a_tuple_is_a_list() -> None:
    assert canonical.plain(Holder((Blob("ab", 3), Fraction(1, 2)))) == {
        "inner": [{"sha256": "ab", "num_bytes": 3}, "1/2"]
    }


@given(JSON)
def test_plain_json_stays_what_it_is(value: Any) -> None:
    assert canonical.plain(value) == value
    assert canonical.plain(canonical.plain(value)) == canonical.plain(value)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(), min_size=2, max_size=6)
)
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert canonical.digest(value) == canonical.digest(dict(reversed(value.items())))


@pytest.mark.parametrize(
    "value",
    [
        print,
        lambda: None,
        Path("film.mp4"),
        b"bytes",
        math.nan,
        math.inf,
        object(),
        {1, 2},
        {1: "key is no string"},
        Holder,
        1 + 2j,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "wrap",
    [lambda value: value, lambda value: {"deep": [(Holder(value),)]}],
    ids=["bare", "nested"],
)
def test_what_has_no_stable_form_is_refused(
    value: object, wrap: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match="no stable form"):
        canonical.digest(wrap(value))


def test_another_process_with_another_hash_seed_finds_the_same_digest() -> None:
    code = (
        "from pipeline.core import canonical; print(canonical.digest({'x': {'b': 1, 'a': "
        "['é', 0.1]}, 'w': None}))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {canonical.digest({"w": None, "x": {"a": ["é", 0.1], "b": 1}})}


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"longtake" * 300_000)
    assert canonical.file_digest(path) == hashlib.sha256(b"longtake" * 300_000).hexdigest()


def test_a_file_that_stays_as_it_is_is_read_once_and_an_edited_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    whole = canonical.file_digest
    monkeypatch.setattr(canonical, "file_digest", lambda path: read.append(path) or whole(path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    first = [canonical.file_digest_once(path) for _ in range(3)]
    assert read == [path]
    path.write_bytes(b"other weights")
    assert canonical.file_digest_once(path) == whole(path)
    assert first == [hashlib.sha256(b"weights").hexdigest()] * 3
    assert read == [path, path]
