import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import Damaged, Stopped
from pipeline.core.records import Blob
from pipeline.core.store import Store, blobs_in

TASK = "ab" + "0" * 62


def left_over(store: Store) -> list[Path]:
    return list((store.root / "tmp").iterdir())


def test_bytes_come_back_under_their_digest(store: Store) -> None:
    blob = store.put(b"longtake")
    assert blob == Blob("bc361a2a4e05c03fce2da0208922813e785857b36e29cc26791d38abe13ae814", 8)
    assert store.path(blob.sha256).read_bytes() == b"longtake"
    assert store.has(blob)
    assert store.put(b"longtake") == blob
    assert not left_over(store)


def test_a_memo_comes_back_as_plain_json(store: Store) -> None:
    blob = store.put(b"latents")
    store.remember(TASK, [{"suffix": "-0", "facts": {"latents": blob, "scores": (1, 2.5)}}])
    wanted = [
        {
            "suffix": "-0",
            "facts": {"latents": {"sha256": blob.sha256, "num_bytes": 7}, "scores": [1, 2.5]},
        }
    ]
    assert store.recall(TASK) == wanted
    assert store.recall("cd" + TASK[2:]) is None


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b"laten")],
    ids=["deleted", "truncated"],
)
@pytest.mark.parametrize(
    "nest",
    [lambda blob: blob, lambda blob: [{"facts": {"members": [{"x": blob}]}}]],
    ids=["bare", "nested"],
)
def test_a_memo_whose_blob_is_gone_is_gone(store: Store, spoil: Any, nest: Any) -> None:
    blob = store.put(b"latents")
    store.remember(TASK, nest(blob))
    assert store.recall(TASK) is not None
    spoil(store.path(blob.sha256))
    assert store.recall(TASK) is None
    assert store.put(b"latents") == blob
    assert store.recall(TASK) is not None


def test_a_memo_cut_short_by_a_crash_of_the_machine_is_gone(store: Store) -> None:
    store.remember(TASK, {"a": 1})
    memo = store.root / "memos" / TASK[:2] / TASK
    memo.write_bytes(memo.read_bytes()[:3])
    assert store.recall(TASK) is None


def test_blobs_are_found_wherever_they_are_and_nothing_else_is() -> None:
    one, two = ({"sha256": digit * 64, "num_bytes": 1} for digit in "12")
    member = {"name": "a.json", "start": 0, "sha256": "3" * 64, "num_bytes": 1}
    assert list(blobs_in([{"a": one, "b": [two, member, "text", 3, None]}])) == [
        Blob("1" * 64, 1),
        Blob("2" * 64, 1),
    ]


@pytest.mark.parametrize("kind", ["nothing", "file", "folder"])
def test_scratch_is_removed_after_an_exception(store: Store, kind: str) -> None:
    with pytest.raises(KeyError), store.scratch(".mp4") as path:  # noqa: PT012  the block is what is tested
        assert path.suffix == ".mp4"
        if kind == "file":
            path.write_bytes(b"half a clip")
        if kind == "folder":
            path.mkdir()
            (path / "part").write_bytes(b"half a wheel")
        raise KeyError("film")
    assert not left_over(store)


def test_an_adopted_file_moves_in_and_leaves_no_scratch(store: Store) -> None:
    with store.scratch() as path:
        path.write_bytes(b"clip")
        blob = store.adopt(path)
    assert store.path(blob.sha256).read_bytes() == b"clip"
    assert not left_over(store)


def test_a_linked_file_stays_where_it_is(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_bytes(b"footage")
    blob = store.link(mine)
    assert store.path(blob.sha256).read_bytes() == mine.read_bytes() == b"footage"
    assert store.link(mine) == blob
    assert not left_over(store)


def test_a_file_that_cannot_be_linked_is_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    mine = tmp_path / "mine.mp4"
    mine.write_bytes(b"footage")
    monkeypatch.setattr(os, "link", other_disk)
    blob = store.link(mine)
    assert store.path(blob.sha256).stat().st_ino != mine.stat().st_ino
    assert store.path(blob.sha256).read_bytes() == b"footage"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("act", ["put", "link", "remember", "once", "scratch"])
@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_full_disk_stops_the_build_and_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, act: str, where: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    mine = tmp_path / "mine.mp4"
    mine.write_bytes(b"footage")
    if where == "rename":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(Path, "write_bytes", full)
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr("shutil.copyfile", full)

    def scratch() -> None:
        with store.scratch() as path:
            path.write_bytes(b"half")
            store.adopt(path)

    acts = {
        "put": lambda: store.put(b"latents"),
        "link": lambda: store.link(mine),
        "remember": lambda: store.remember(TASK, {}),
        "once": lambda: store.once("task", lambda: 1),
        "scratch": scratch,
    }
    with pytest.raises(
        Stopped, match=r"disk full: .* MB left; free some space and run the same command"
    ):
        acts[act]()
    assert not left_over(store)
    assert store.recall(TASK) is None


def test_another_error_of_the_system_stays_itself(store: Store) -> None:
    with pytest.raises(PermissionError), store.scratch():
        raise PermissionError(errno.EACCES, "no")


def test_once_makes_once_and_gives_the_same_both_times(store: Store) -> None:
    made = []

    def make() -> object:
        made.append(1)
        return {"blob": store.put(b"x"), "pair": (1, 2)}

    first, second = (store.once(["wheel", "a==1"], make) for _ in range(2))
    assert (
        first
        == second
        == {"blob": {"sha256": store.put(b"x").sha256, "num_bytes": 1}, "pair": [1, 2]}
    )
    assert len(made) == 1
    store.once(["wheel", "a==2"], make)
    assert len(made) == 2


def test_once_remembers_nothing_when_making_fails(store: Store) -> None:
    def fail() -> object:
        raise KeyError("wheel")

    with pytest.raises(KeyError):
        store.once("task", fail)
    assert store.once("task", lambda: 7) == 7


def test_preparing_empties_scratch_and_keeps_the_rest(store: Store) -> None:
    blob = store.put(b"x")
    store.remember(TASK, blob)
    (store.partial(TASK) / "video.part").write_bytes(b"half")
    (store.root / "tmp" / "killed").write_bytes(b"half")
    store.prepare()
    assert not left_over(store)
    assert store.recall(TASK) is not None
    assert (store.partial(TASK) / "video.part").read_bytes() == b"half"


def test_a_link_is_taken_in_as_the_file_it_leads_to(store: Store, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "link.mp4").symlink_to("film.mp4")
    found = store.path(store.link(tmp_path / "link.mp4").sha256)
    assert (found.read_bytes(), found.is_symlink()) == (b"film", False)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../outside", "0" * 63, "G" * 64, "A" * 64, ""])
def test_what_is_no_digest_leads_nowhere(store: Store, name: str) -> None:
    with pytest.raises(Damaged, match="is no sha256 digest"):
        store.path(name)
    with pytest.raises(Damaged):
        store.has(Blob(name, 1))


def test_what_a_power_cut_left_beside_a_file_of_the_store_is_gone_at_the_next_build(
    store: Store,
) -> None:
    left_over = store.root / ".rates.json.6c999a74d3cf5b14.tmp"
    left_over.write_bytes(b"")
    store.prepare()
    assert not left_over.exists()
