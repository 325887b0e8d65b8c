"""Archives as sources: WebDataset tars and zips, local and by URL, from a build to a takedown."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.core.errors import RecipeError
from pipeline.core.executors import Inline
from pipeline.core.records import Source, Video
from pipeline.core.stage import Progress
from pipeline.core.store import Store
from pipeline.dataset import build, lock, recipe
from pipeline.dataset.passage import RawVideos
from pipeline.dataset.refresh import refresh
from pipeline.media import fetch
from pipeline.publish import compare, reproduce, sweep, takedown
from tests.making import footage
from tests.making.serving import content, serving

OPTIONS = """
[filter]
min_frames = 10
[extract]
size = 64
[encode]
preset = "tiny"
image_frames = 1
"""
BESIDE = '[columns]\ncaption = "txt"\nlicense = "terms"\n'


@pytest.fixture(scope="module")
def films(film: Callable[..., Path]) -> list[bytes]:
    sizes = ("160x120", "120x160", "128x128")
    return [film(footage.plain, 2, size=size).read_bytes() for size in sizes]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def tar_at(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            add(tar, name, data)
    return path


def sample(key: str, film: bytes, caption: str) -> dict[str, bytes]:
    facts = json.dumps({"key": key, "terms": "CC0-1.0", "status": "success"}).encode()
    return {f"{key}.json": facts, f"{key}.mp4": film, f"{key}.txt": caption.encode()}


def recipe_at(folder: Path, uri: str, more: str = BESIDE, name: str = "tiny") -> Path:
    path = folder / f"{name}.toml"
    source = f'name = "tiny"\n[[source]]\nid = "g"\nuri = "{uri}"\ncaption = "a film"\n'
    path.write_text(source + OPTIONS + more)
    return path


def built(path: Path, last: str = "download", keep_raw: bool = True) -> list[build.Step]:
    raws = None if keep_raw else RawVideos(1)
    loaded = recipe.load(path)
    data = path.parent / "data"
    return list(build.build(loaded, data, Inline(), "cpu", last, Progress(), raws=raws))


def videos_of(steps: list[build.Step]) -> dict[str, Video]:
    """The videos by what is inside the archive's address."""
    videos = [record for record in steps[1].manifest.records if isinstance(record, Video)]
    return {video.source.uri: video for video in videos}


def rejections_of(steps: list[build.Step]) -> list[str]:
    return [
        f"{rejection.reason}: {rejection.detail}"
        for step in steps
        for rejection in step.manifest.rejections
    ]


def test_a_tar_gives_a_video_a_sample_with_its_own_caption_and_licence(
    tmp_path: Path, films: list[bytes]
) -> None:
    tar_at(
        tmp_path / "s/00000.tar",
        sample("0001", films[0], "waves") | sample("0002", films[1], "sea"),
    )
    tar_at(tmp_path / "s/00001.tar", {"0001.mp4": films[2]})
    steps = built(recipe_at(tmp_path, "tar:s/{00000..00001}.tar"))
    videos = videos_of(steps)
    assert {
        uri: (video.source.captions, video.source.license) for uri, video in videos.items()
    } == {
        "tar:s/00000.tar!/0001.mp4": (("waves",), "CC0-1.0"),
        "tar:s/00000.tar!/0002.mp4": (("sea",), "CC0-1.0"),
        "tar:s/00001.tar!/0001.mp4": (("a film",), None),
    }
    assert all(
        re.fullmatch(r"g-0000[01]_000[12]-[0-9a-f]{12}", video.key) for video in videos.values()
    )
    assert not rejections_of(steps)
    # another archive, another member: no key changes
    keys = {video.key for video in videos.values()}
    tar_at(tmp_path / "s/00002.tar", {"0001.mp4": films[0]})
    tar_at(tmp_path / "s/00001.tar", {"0000.mp4": films[2], "0001.mp4": films[2]})
    more = videos_of(built(recipe_at(tmp_path, "tar:s/*.tar")))
    assert len(more) == 5
    assert keys < {video.key for video in more.values()}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_of_any_name_are_found_by_their_bytes(
    tmp_path: Path, films: list[bytes], kind: str
) -> None:
    names = ["a!/b%.MP4", "\u6620\u753b.mp4", "no ending", "x.dat", "x.y.z.mp4", "d/\x1b[2J.mp4"]
    files = dict.fromkeys(names, films[0]) | {"README": b"read me", "x.npy": b"\x93NUMPY"}
    files |= {"__MACOSX/._a.mp4": b"\0\5\x16\7", "d/._b.mp4": b"\0\5\x16\7"}
    if kind == "tar":
        tar_at(tmp_path / "a.tar", files)
    else:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    steps = built(recipe_at(tmp_path, f"{kind}:a.{kind}", ""))
    assert not rejections_of(steps)
    videos = videos_of(steps)
    assert len(videos) == len(names) == len({video.key for video in videos.values()})
    assert len({video.blob for video in videos.values()}) == 1
    assert f"{kind}:a.{kind}!/a%21/b%25.MP4" in videos
    one = recipe_at(tmp_path, f"{kind}:a.{kind}!/a%21/b%25.MP4", name="one")
    [video] = videos_of(built(one)).values()
    assert video.key == "g"


def hostile_tar(path: Path, film: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for name in (
            "../up.mp4",
            "/etc/a.mp4",
            "a/../../b.mp4",
            "twice.mp4",
            "twice.mp4",
            "ok.mp4",
        ):
            add(tar, name, film)
        for name, kind in (
            ("l.mp4", tarfile.SYMTYPE),
            ("h.mp4", tarfile.LNKTYPE),
            ("f.mp4", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)


def test_tricks_in_a_tar_are_counted_and_the_rest_is_taken(
    tmp_path: Path, films: list[bytes]
) -> None:
    hostile_tar(tmp_path / "a.tar", films[0])
    steps = built(recipe_at(tmp_path, "tar:a.tar", ""))
    assert list(videos_of(steps)) == ["tar:a.tar!/ok.mp4"]
    said = sorted(rejections_of(steps))
    assert [line.partition(" the member ")[2] for line in said] == [
        "'../up.mp4' leads out of the archive",
        "'/etc/a.mp4' leads out of the archive",
        "'a/../../b.mp4' leads out of the archive",
        "'f.mp4' is a link or a device",
        "'h.mp4' is a link or a device",
        "'l.mp4' is a link or a device",
        "'twice.mp4' stands there twice",
    ]


def cut_off(path: Path, film: bytes) -> None:
    tar_at(path, {"a.mp4": film, "b.mp4": film})
    path.write_bytes(path.read_bytes()[: len(film) + 2048])


def test_of_an_archive_that_is_cut_off_the_members_before_are_taken(
    tmp_path: Path, films: list[bytes]
) -> None:
    cut_off(tmp_path / "a.tar", films[0])
    steps = built(recipe_at(tmp_path, "tar:a.tar", ""))
    assert list(videos_of(steps)) == ["tar:a.tar!/a.mp4"]
    assert len(rejections_of(steps)) == 2


def long_header(path: Path, film: bytes) -> None:
    """A header that claims a name of 8 GB."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 0o77777777777
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)


def sparse(path: Path, film: bytes) -> None:
    """A sparse file of 8 GB in a tar of 2 kB."""
    entry = tarfile.TarInfo("a.mp4")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(bytes(header) + b"\0" * 1024)


def packed(path: Path, film: bytes) -> None:
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "a.mp4", film)


def zip_bomb(path: Path, film: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", b"\0" * 30_000_000)


def locked_zip(path: Path, film: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mp4", film)
    whole = path.read_bytes()
    at = whole.index(b"PK\1\2") + 8
    path.write_bytes(whole[:at] + struct.pack("<H", 1) + whole[at + 2 :])


def damaged_zip(path: Path, film: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", film)
    whole = bytearray(path.read_bytes())
    whole[100:160] = b"\xa5" * 60
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (cut_off, "unreadable: .*'b.mp4' is cut off: the archive ends before it"),
        (long_header, "unreadable: .*no tar"),
        (sparse, "unreadable: .*('a.mp4' is a sparse file|no tar)"),
        (packed, "unreadable: .*a tar that is packed: unpack it"),
        (zip_bomb, "unreadable: .*'a.mp4' unpacks to 30000000 bytes from"),
        (locked_zip, "unreadable: .*'a.mp4' is encrypted"),
        (damaged_zip, "unreadable: .*'a.mp4' is damaged"),
        (lambda path, film: path.write_bytes(film), "unreadable: .*no tar"),
        (
            lambda path, film: tar_at(path, {"a.txt": b"x"}),
            "no-video-stream: tar:.* holds no video",
        ),
    ],
)
def test_a_bad_archive_is_a_rejection_with_its_reason(
    tmp_path: Path, films: list[bytes], make: Callable[[Path, bytes], object], expected: str
) -> None:
    kind = "zip" if "zip" in getattr(make, "__name__", "") else "tar"
    make(tmp_path / f"a.{kind}", films[0])
    steps = built(recipe_at(tmp_path, f"{kind}:a.{kind}"))
    assert any(re.match(expected, line) for line in rejections_of(steps)), rejections_of(steps)


def test_an_archive_that_is_not_there_is_named_by_check_and_by_the_build(
    tmp_path: Path, films: list[bytes]
) -> None:
    tar_at(tmp_path / "0.tar", {"a.mp4": films[0]})
    path = recipe_at(tmp_path, "tar:{0..2}.tar")
    with pytest.raises(RecipeError, match=r"uri: there is no file tar:\{0\.\.2\}\.tar"):
        recipe.check_files(path, ())
    assert rejections_of(built(path)) == ["not-found: there is no archive file:1.tar, file:2.tar"]
    path = recipe_at(tmp_path, "tar:{0..99999999}.tar")
    assert "names more than 100000 archives" in rejections_of(built(path))[0]


@pytest.mark.parametrize(
    ("uri", "more"),
    [
        ("tar:", ""),
        ("zip:tar:a.tar", ""),
        ("tar:a.tar!/", ""),
        ("tar:a.tar", f'sha256 = "{"a" * 64}"'),
    ],
)
def test_an_address_of_no_archive_is_an_error_of_the_recipe(
    tmp_path: Path, uri: str, more: str
) -> None:
    (tmp_path / "tiny.toml").write_text(f'[[source]]\nuri = "{uri}"\n{more}\n')
    with pytest.raises(RecipeError, match=r"source\[0\]"):
        recipe.load(tmp_path / "tiny.toml")


def test_a_text_that_is_half_a_list_costs_its_sample_and_no_other(
    tmp_path: Path, films: list[bytes]
) -> None:
    files = sample("1", films[0], "['a man', 'a d") | sample("2", films[1], "['a', 'b']")
    tar_at(tmp_path / "a.tar", files)
    steps = built(recipe_at(tmp_path, "tar:a.tar"))
    assert [video.source.captions for video in videos_of(steps).values()] == [("a", "b")]
    assert "which is no list" in rejections_of(steps)[0]


@pytest.mark.parametrize(
    ("name", "data", "column", "expected"),
    [
        ("txt", "caf\xe9".encode("latin-1"), "txt", "'2.txt' is no text in UTF-8"),
        ("txt", b"x" * (1 << 20) + b"x", "txt", "'2.txt' has 1048577 bytes, 1048576 at most"),
        ("json", b'{"caption": "sea"', "caption", "'2.json' is no JSON: "),
        ("json", b'{"caption": "\xff"}', "caption", "'2.json' is no text in UTF-8"),
        ("json", b'{"caption": "\\ud800"}', "caption", "'2.json' is no text in UTF-8"),
        ("json", b"[" * 5000, "{caption} of {place}", "'2.json' is no JSON: "),
    ],
)
def test_a_text_that_is_needed_and_cannot_be_read_costs_its_sample_and_no_other(
    tmp_path: Path, films: list[bytes], name: str, data: bytes, column: str, expected: str
) -> None:
    facts = json.dumps({"caption": "waves", "place": "Sylt"}).encode()
    files = {"1.mp4": films[0], "1.txt": b"waves", "1.json": facts}
    tar_at(tmp_path / "a.tar", {**files, "2.mp4": films[1], f"2.{name}": data})
    more = f'[columns]\ncaption = "{column}"\n'
    steps = built(recipe_at(tmp_path, "tar:a.tar", more))
    assert list(videos_of(steps)) == ["tar:a.tar!/1.mp4"]
    [said] = rejections_of(steps)
    assert said.startswith(f"unreadable: tar:a.tar!/2.mp4: [columns] caption = '{column}': ")
    assert expected in said
    # what nobody asked for may be anything
    steps = built(recipe_at(tmp_path, "tar:a.tar", ""))
    assert (len(videos_of(steps)), rejections_of(steps)) == (2, [])


def test_a_field_that_no_sample_has_is_counted_once_a_source(
    tmp_path: Path, films: list[bytes]
) -> None:
    tar_at(tmp_path / "0.tar", sample("1", films[0], "waves"))
    tar_at(tmp_path / "1.tar", sample("2", films[1], "sea"))
    more = '[columns]\ncaption = "captoin"\nlicense = "terms"\n'
    steps = built(recipe_at(tmp_path, "tar:{0,1}.tar", more))
    assert [video.source.captions for video in videos_of(steps).values()] == [("a film",)] * 2
    assert rejections_of(steps) == [
        "missing-field: tar:{0,1}.tar: no sample has what [columns] caption = 'captoin' names; "
        "beside its videos stand 'key', 'status', 'terms', 'txt'"
    ]
    tar_at(tmp_path / "2.tar", {"1.mp4": films[0]})
    steps = built(recipe_at(tmp_path, "tar:2.tar", '[columns]\ncaption = "txt"\n'))
    assert "stand no fields" in rejections_of(steps)[0]


def test_a_sample_without_a_video_is_counted(tmp_path: Path, films: list[bytes]) -> None:
    files = sample("1", films[0], "waves") | sample("2", films[1], "sea") | {"LICENSE": b"CC0"}
    del files["2.mp4"]
    tar_at(tmp_path / "a.tar", {**files, "3.txt": b"gone", "x.npy": b"\x93NUMPY"})
    steps = built(recipe_at(tmp_path, "tar:a.tar"))
    assert list(videos_of(steps)) == ["tar:a.tar!/1.mp4"]
    assert [line.partition(": tar:a.tar: ")[2] for line in rejections_of(steps)] == [
        "a sample without a video: '2.json', '2.txt'",
        "a sample without a video: '3.txt'",
    ]


# From the web, and through everything that is done with a dataset


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_in_an_object_store_is_read_as_one_from_the_web(
    tmp_path: Path, films: list[bytes], kind: str
) -> None:
    bucket = fsspec.filesystem("memory")
    for number, film in enumerate(films[:2]):
        path = tmp_path / f"{number}.{kind}"
        if kind == "tar":
            tar_at(path, sample("0001", film, "waves"))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in sample("0001", film, "waves").items():
                    archive.writestr(name, data)
        bucket.pipe(f"/archives/{number}.{kind}", path.read_bytes())
    steps = built(recipe_at(tmp_path, f"{kind}:memory://archives/{{0..1}}.{kind}"), "extract")
    assert not rejections_of(steps)
    assert {uri: video.source.captions for uri, video in videos_of(steps).items()} == {
        f"{kind}:memory://archives/{number}.{kind}!/0001.mp4": ("waves",) for number in (0, 1)
    }
    assert len(steps[-1].manifest.records) == 2


def test_what_an_object_store_does_not_have_is_one_line(tmp_path: Path) -> None:
    for uri, said in (
        ("tar:memory://archives/no.tar", "not-found: there is no memory://archives/no.tar"),
        (
            "tar:memory://archives/*.tar",
            "not-found: there is no memory://archives/*.tar; '*' stands for itself there: name "
            "each object",
        ),
        ("tar:no-such-store://a.tar", "unsupported: fsspec cannot open no-such-store://a.tar: "),
    ):
        [line] = rejections_of(built(recipe_at(tmp_path, uri)))
        assert line.startswith(said)
        assert "\n" not in line


def store_of(path: Path) -> Store:
    return Store(path.parent / "data" / "store")


@pytest.mark.parametrize("keep_raw", [True, False])
def test_an_archive_from_the_web_is_fetched_once_and_goes_with_gc(
    tmp_path: Path, films: list[bytes], keep_raw: bool
) -> None:
    files = sample("1", films[0], "waves") | sample("2", films[1], "sea")
    answers = {"/0.tar?x=1": content(tar_at(tmp_path / "web/0.tar", files), "application/x-tar")}
    with serving(answers) as (address, asked):
        path = recipe_at(tmp_path, f"tar:{address}/{{0..0}}.tar?x=1")
        steps = built(path, "extract", keep_raw)
        assert [video.source.captions for video in videos_of(steps).values()] == [
            ("waves",),
            ("sea",),
        ]
        whole = f"tar:{address}/0.tar?x=1"
        assert (store_of(path).recall(fetch.bundle_key(whole) or "") is not None) == keep_raw
        num_asked = len(asked)
        assert built(path, "extract", keep_raw)[1].num_run == 0
        sweep.gc(path.parent / "data", dry=False)
        assert store_of(path).recall(fetch.bundle_key(whole) or "") is None
        assert built(path, "extract", keep_raw)[1].num_run == 0
        assert len(asked) == num_asked  # nothing was asked again
        # another size needs the pictures again: without raw videos, the archive
        path.write_text(path.read_text().replace("size = 64", "size = 72"))
        again = built(path, "extract", keep_raw)
        assert len(again[-1].manifest.records) == len(steps[-1].manifest.records) == 2
        assert (len(asked) > num_asked) != keep_raw
        assert refresh(recipe.load(path), path.parent / "data") == ["g"]


def test_a_dataset_of_an_archive_is_reproduced_and_taken_down(
    tmp_path: Path, films: list[bytes]
) -> None:
    files = sample("1", films[0], "waves") | sample("2", films[1], "sea")
    tar_at(tmp_path / "s/0.tar", files)
    tar_at(tmp_path / "s/1.tar", sample("1", films[2], "foam"))
    (tmp_path / "r").mkdir()
    path = recipe_at(tmp_path / "r", f"tar:{tmp_path}/s/{{0,1}}.tar")
    built(path, "shard")
    locked = lock.read(path)
    assert {video.uri for video in locked.videos.values()} == {
        "tar:0.tar!/1.mp4",
        "tar:0.tar!/2.mp4",
        "tar:1.tar!/1.mp4",
    }
    loaded = recipe.load(path)
    assert reproduce.edits(loaded, locked) == []
    steps = list(
        reproduce.reproduce(loaded, locked, tmp_path / "again", Inline(), "cpu", Progress())
    )
    report = compare.judge(locked, steps, [], Store(tmp_path / "again/store"))
    assert report["verdict"] == "identical"
    again = {record.key for record in steps[-2].manifest.records}
    assert again == locked.samples.keys()
    key = next(key for key, video in locked.videos.items() if video.captions == ("sea",))
    takedown.remove(loaded, path.parent / "data", key, "asked", "cpu")
    # the same film in another archive, under another name
    tar_at(tmp_path / "s/1.tar", sample("1", films[2], "foam") | sample("9", films[1], "sea"))
    after = built(path, "shard")
    assert sorted(
        record.source.captions for record in after[1].manifest.records if isinstance(record, Video)
    ) == [("foam",), ("waves",)]
    assert sum("taken down on" in line for line in rejections_of(after)) == 1
    takedown.remove(recipe.load(path), path.parent / "data", "g", "all", "cpu")
    assert not [r for r in built(path)[1].manifest.records if isinstance(r, Source | Video)]
