"""Servers that drop, lie, loop, stall and point at local files, each through the real download
stage.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
import tenacity

from pipeline.core.canonical import file_digest
from pipeline.core.manifest import Manifest
from pipeline.core.records import Source
from pipeline.core.store import Store
from pipeline.media import fetch, refusals
from tests.making import footage, serving
from tests.making.downloads import PARAMS, download_all
from tests.making.serving import (
    Answer,
    content,
    dropping,
    endless,
    lying,
    page,
    redirect,
    silent,
    status,
)

Asked = list[tuple[str, str | None]]
YT_DLP = fetch._yt_dlp
LEADS_TO = '<html><head><meta http-equiv="refresh" content="0; url={}"></head></html>'


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses of our own, and of yt-dlp's 1,800 sites only the one that any address is."""
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    monkeypatch.setattr(
        fetch, "_yt_dlp", lambda options: YT_DLP({**options, "allowed_extractors": ["generic"]})
    )


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, none of which is made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def small(film: Callable[..., Path]) -> Path:
    return film(footage.plain, 2, size="160x120")


def got(
    store: Store, answers: dict[str, Answer], path: str = "/film.mp4", sha256: str | None = None
) -> tuple[Manifest, Asked]:
    """What the stage made of an address, and the (path, range) of everything the server was asked
    for.
    """
    with serving.serving(answers) as (address, asked):
        manifest = download_all([Source("a", f"{address}{path}", sha256=sha256)], store, store.root)
    return manifest, asked


def refusal(manifest: Manifest) -> tuple[str, str]:
    """Fate and class of the one source, which gave no video."""
    [rejection] = manifest.rejections
    assert manifest.records == ()
    return rejection.fate, rejection.reason


def left_over(store: Store) -> list[Path]:
    return [path for path in (store.root / "partial").rglob("*") if path.is_file()]


# When to come again


@pytest.mark.parametrize(
    ("code", "said", "pause"), [(429, "7", 7), (503, " 90 ", 90), (429, "600", 600), (429, "0", 0)]
)
def test_a_server_that_says_when_to_come_again_is_asked_no_sooner(
    store: Store, small: Path, pauses: list[float], code: int, said: str, pause: int
) -> None:
    manifest, _ = got(
        store, {"/film.mp4": status(code, then=content(small), headers={"Retry-After": said})}
    )
    assert len(manifest.records) == 1
    assert pauses == [pause]


def test_a_date_to_come_again_counts_by_the_servers_clock(
    store: Store, small: Path, pauses: list[float]
) -> None:
    refused = status(
        429,
        then=content(small),
        headers={"Retry-After": formatdate(time.time() + 100, usegmt=True)},
    )
    assert len(got(store, {"/film.mp4": refused})[0].records) == 1
    assert 98 <= pauses[0] <= 101
    fast = {"Date": "Fri, 31 Dec 1999 23:00:00 GMT", "Retry-After": "Fri, 31 Dec 1999 23:00:09 GMT"}
    assert refusals.pause_s(fast) == 9
    assert refusals.pause_s({**fast, "Retry-After": "Fri, 31 Dec 1999 22:00:00 GMT"}) == 0


@pytest.mark.parametrize(
    "said", ["soon", "", "-3", "Fri, 99 Foo 1999", "Fri, 31 Dec 99999 23:00:00 GMT", "1e3", "²"]
)
def test_a_server_that_says_nonsense_of_when_to_come_again_is_asked_in_our_own_time(
    said: str,
) -> None:
    assert refusals.pause_s({"Retry-After": said}) is None


def test_a_refusal_of_the_download_itself_is_heard_as_well_as_one_of_the_page(
    store: Store, small: Path, pauses: list[float]
) -> None:
    busy = status(503, headers={"Retry-After": "11"})
    order = iter(
        [content(small), busy, content(small), content(small)]
    )  # look, download, look, download
    manifest, _ = got(store, {"/film.mp4": lambda handler: next(order)(handler)})
    assert len(manifest.records) == 1
    assert pauses == [11]


def test_a_server_that_wants_a_long_rest_is_left_to_the_next_run(
    store: Store, pauses: list[float]
) -> None:
    manifest, asked = got(store, {"/film.mp4": status(429, headers={"Retry-After": "3600"})})
    assert refusal(manifest) == ("unavailable", "rate-limited")
    assert "the server asks for a pause of 3600 s" in manifest.rejections[0].detail
    assert (len(asked), pauses) == (1, [])


def test_an_error_says_how_often_it_was_tried(
    store: Store, tmp_path: Path, pauses: list[float]
) -> None:
    def tries(code: int, **headers: str) -> int:
        with (
            serving.serving({"/film.mp4": status(code, headers=headers)}) as (address, _),
            pytest.raises(fetch.Unavailable) as caught,
        ):
            fetch.from_web(
                f"{address}/film.mp4", store, store.partial(f"{code}{len(headers)}"), "b", 1, 3
            )
        return caught.value.tries

    assert (tries(503), tries(404), tries(429, **{"Retry-After": "601"})) == (3, 1, 1)


# Connections


def test_a_video_arrives_whole_though_every_second_connection_breaks(
    store: Store, small: Path
) -> None:
    manifest, asked = got(store, {"/film.mp4": dropping(small, small.stat().st_size * 2 // 5)})
    assert [video.blob.sha256 for video in manifest.records] == [file_digest(small)]
    starts = [
        int(byte_range.removeprefix("bytes=").removesuffix("-"))
        for _, byte_range in asked
        if byte_range
    ]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]


def test_a_server_that_accepts_and_says_nothing_is_a_time_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SILENCE_S", 0.3)
    manifest, asked = got(store, {"/timeless/film.mp4": silent}, "/timeless/film.mp4")
    assert refusal(manifest) == ("unavailable", "timeout")
    assert len(asked) == PARAMS.attempts


def test_an_address_is_not_taken_for_what_is_said_of_it(store: Store) -> None:
    path = "/private%20video/timeout/not%20a%20bot.mp4"
    manifest, _ = got(store, {path: lambda handler: None}, path)
    assert refusal(manifest) == ("unavailable", "network")


# Lengths


def test_a_server_that_always_claims_more_than_it_sends_gives_no_video(
    store: Store, small: Path
) -> None:
    for extra in (1, small.stat().st_size):
        manifest, asked = got(
            store, {"*": lying(small, small.stat().st_size + extra)}, f"/{extra}.mp4"
        )
        assert refusal(manifest) == ("unavailable", "network")
        assert len(asked) == 2 * PARAMS.attempts


def test_a_server_that_claims_less_than_it_sends_gives_half_a_video_which_is_rejected(
    store: Store, small: Path
) -> None:
    answers = {"*": lying(small, small.stat().st_size // 2)}
    assert refusal(got(store, answers)[0]) == ("bad", "unreadable")
    assert refusal(got(store, answers, "/other.mp4", sha256=file_digest(small))[0]) == (
        "unavailable",
        "checksum",
    )


@pytest.mark.parametrize(
    ("path", "kind"), [("/film.mp4", "video/mp4"), ("/film", "application/octet-stream")]
)
def test_a_stream_without_end_is_too_large_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 300_000)
    manifest, _ = got(store, {path: endless(b"\0asd", kind)}, path)
    assert refusal(manifest) == ("bad", "too-large")
    assert left_over(store) == []


def test_what_is_said_to_be_too_large_is_not_fetched(store: Store, small: Path) -> None:
    manifest, _ = got(store, {"/film.mp4": lying(small, fetch.MAX_BYTES + 1)})
    assert refusal(manifest) == ("bad", "too-large")


@pytest.mark.parametrize(
    ("begin", "kind"), [(b"<html><body>", "text/html"), (b"#EXTM3U\n", "application/x-mpegurl")]
)
def test_a_page_or_playlist_without_end_is_refused_before_it_fills_the_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, begin: bytes, kind: str
) -> None:
    monkeypatch.setattr(fetch, "MAX_PAGE_BYTES", 300_000)
    manifest, _ = got(store, {"/page": endless(begin, kind)}, "/page")
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert "a page of more than" in manifest.rejections[0].detail


def test_a_live_stream_is_refused_because_it_does_not_end(store: Store) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:10,\n/part.ts\n"
    manifest, asked = got(
        store, {"/live.m3u8": page(playlist, "application/x-mpegurl")}, "/live.m3u8"
    )
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert "/part.ts" not in dict(asked)


def test_an_object_without_end_is_too_large_and_leaves_nothing(
    store: Store, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", small.stat().st_size - 1)
    assert refusal(download_all([Source("a", f"local://{small}")], store, store.root)) == (
        "bad",
        "too-large",
    )
    assert left_over(store) == []


# Ways


@pytest.mark.parametrize("to", ["/film.mp4", lambda path: f"{path}1"])
def test_redirects_without_end_are_given_up(store: Store, to: str | Callable[[str], str]) -> None:
    manifest, asked = got(store, {"*": redirect(to)})
    assert refusal(manifest) == ("unavailable", "http-status")
    assert "redirect loop" in manifest.rejections[0].detail
    assert len(asked) < 50


def test_pages_that_lead_to_each_other_are_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_DEPTH", 5)
    manifest, asked = got(
        store, {"/a": page(LEADS_TO.format("/b")), "/b": page(LEADS_TO.format("/a"))}, "/a"
    )
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert len(asked) == 5


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n{}#EXTINF:2,\nfile://SECRET\n#EXT-X-ENDLIST\n"
TO_A_LOCAL_FILE = {
    "a redirect": redirect("file://SECRET"),
    "a redirect of one slash": redirect("file:SECRET"),
    "a page that leads on": page(LEADS_TO.format("file://SECRET")),
    "a video in a page": page('<html><body><video src="file://SECRET"></video></body></html>'),
    "a playlist": page(PLAYLIST.format(""), "application/x-mpegurl"),
    "a playlist that yt-dlp leaves to ffmpeg": page(
        PLAYLIST.format("#EXT-X-KEY:METHOD=PLAIN\n"), "application/x-mpegurl"
    ),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # yt-dlp leaves a playlist's file open when it fails
@pytest.mark.parametrize("way", TO_A_LOCAL_FILE)
def test_no_server_gets_a_local_file_read(
    store: Store, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    secret = film(footage.mpegts, suffix=".ts")
    send, write = serving.Handler.send, serving.Handler.send_header
    monkeypatch.setattr(
        serving.Handler,
        "send",
        lambda self, text, *rest: send(self, text.replace(b"SECRET", str(secret).encode()), *rest),
    )
    monkeypatch.setattr(
        serving.Handler,
        "send_header",
        lambda self, name, to: write(self, name, to.replace("SECRET", str(secret))),
    )
    manifest, _ = got(store, {"/film.m3u8": TO_A_LOCAL_FILE[way]}, "/film.m3u8")
    cause = "network" if "ffmpeg" in way else "unsupported"
    assert refusal(manifest) == ("unavailable", cause)
    assert all(path.stat().st_size < 1000 for path in left_over(store))
    gc.collect()


def test_a_list_with_a_local_file_in_it_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listing:
        def __enter__(self) -> Listing:
            return self

        def __exit__(self, *_: object) -> None: ...

        def extract_info(self, uri: str, download: bool) -> dict[str, object]:
            return {
                "_type": "playlist",
                "entries": [
                    {"id": "a", "url": "https://example.org/a"},
                    {"id": "b", "url": "/etc/passwd"},
                ],
            }

    monkeypatch.setattr(fetch, "_yt_dlp", lambda options: Listing())
    with pytest.raises(
        fetch.Unavailable,
        match=r"unsupported: .* lists '/etc/passwd', which is no address on the web",
    ):
        fetch.entries("https://www.youtube.com/playlist?list=PL0000000000000000", store, 1, 1)


# Content


def test_a_page_served_as_a_film_is_a_counted_rejection(store: Store) -> None:
    manifest, _ = got(
        store, {"/film.mp4": page("<html><body>Please log in</body></html>", "video/mp4")}
    )
    assert refusal(manifest) == ("bad", "unreadable")


def test_a_page_that_confuses_the_downloader_costs_one_source_and_not_the_build(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_yt_dlp", YT_DLP)
    manifest, _ = got(
        store,
        {"/page": page('<html><body><video src="http://[::bad"></video></body></html>')},
        "/page",
    )
    assert refusal(manifest) == ("unavailable", "unsupported")
    assert "ValueError: Invalid IPv6 URL" in manifest.rejections[0].detail


@pytest.mark.parametrize("name", ["100%(id)s", "50% off", 'it\'s "mine" ü'])
def test_a_video_arrives_in_a_data_folder_of_any_name(
    tmp_path: Path, small: Path, name: str
) -> None:
    store = Store(tmp_path / name)
    store.prepare()
    assert len(got(store, {"/film.mp4": content(small)})[0].records) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
