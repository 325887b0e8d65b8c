"""The served page: live while a build runs, and nobody else's to read or write."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.core import picks
from pipeline.core.executors import Inline
from pipeline.core.records import Clip
from pipeline.core.stage import Progress
from pipeline.dataset import build
from pipeline.dataset import recipe as recipes
from pipeline.dataset.chain import read_manifest
from pipeline.publish.page.server import is_ours
from tests.making.browser import Watched, until
from tests.making.command import ROOT
from tests.making.dataset import Dataset

LEVELS = """(() => {
    const canvas = document.querySelector('canvas.difference');
    const { width, height } = canvas;
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
    const levels = data.filter((_, at) => at % 4 < 3);
    const sum = levels.reduce((total, level) => total + level, 0);
    return [sum / levels.length, Math.max(...levels)];
})()"""


@dataclass
class Served:
    """A dataset and the server that shows it."""

    dataset: Dataset
    address: str

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """One request, its path as it is written."""
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in names)
        if body is not None:
            names.setdefault("Content-Length", str(len(body)))
        for name, value in names.items():
            connection.putheader(name, value)
        connection.endheaders()
        if body:
            # it may be refused before all of it was sent
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, dict(answer.headers)

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    @property
    def token(self) -> str:
        return str(self.data["served"]["token"])

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.ask("/data")[1])
        return data

    @property
    def picks(self) -> list[picks.Pick]:
        return picks.read(picks.path_of(self.dataset.recipe))

    def write(self, **changes: Any) -> tuple[int, bytes, dict[str, str]]:
        """Post a pick as the page does, but for the changes."""
        line = {"clip": clips_of(self.dataset)[0].blob.sha256, "pick": "keep"}
        line |= {"time": "2026-11-29T16:40:12Z", "note": ""}
        headers = {"Origin": f"http://{self.host}", "X_Longtake_Token": self.token}
        headers |= {"Content_Type": "application/json", **changes.pop("headers", {})}
        body = changes.pop("body", None) or json.dumps({**line, **changes}).encode()
        return self.ask("/picks", "POST", body, **{k: v for k, v in headers.items() if v})


def clips_of(dataset: Dataset) -> list[Clip]:
    records = read_manifest(dataset.folder, "extract").records
    return [record for record in records if isinstance(record, Clip)]


def start(dataset: Dataset, *options: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "pipeline", "browse", str(dataset.recipe)]
    command += ["--data", str(dataset.data), "--port", "0", "--device", "cpu", *options]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    return server, line.split()[0]


@pytest.fixture(scope="module")
def served(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    dataset = small_dataset.copy(tmp_path_factory.mktemp("served"))
    dataset.build()
    server, address = start(dataset)
    yield Served(dataset, address)
    server.terminate()
    server.wait(20)
    assert server.stdout is not None
    server.stdout.close()


@pytest.fixture(autouse=True)
def _no_picks(served: Served) -> Iterator[None]:
    yield
    picks.path_of(served.dataset.recipe).unlink(missing_ok=True)


def test_it_says_where_it_is(served: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", served.address)


def test_a_video_is_served_in_ranges(served: Served) -> None:
    clip = clips_of(served.dataset)[0]
    path = f"/clips/{clip.blob.sha256}.mp4"
    whole = (served.dataset.folder / "clips" / f"{clip.key}.mp4").read_bytes()
    assert served.ask(path)[:2] == (200, whole)
    status, content, headers = served.ask(path, Range="bytes=10-19")
    assert (status, content) == (206, whole[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
    assert served.ask(path, Range="bytes=999999999-")[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/clips/../../store/rates.json",
        "/clips/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/clips//etc/passwd",
        "/clips/" + "0" * 64 + ".mp4",
        "/pictures/" + "0" * 64 + ".webp",
        "/decoded/" + "0" * 64 + ".mp4",
        "/store/lock",
        "/picks",
        "/clips/",
        "/%00",
    ],
)
def test_no_path_leads_out_of_the_dataset(served: Served, path: str) -> None:
    assert served.ask(path)[0] in (400, 404, 405)


def test_a_blob_of_the_store_that_is_no_clip_is_not_served(served: Served) -> None:
    raw = read_manifest(served.dataset.folder, "download").records[0].blob.sha256  # type: ignore[union-attr]
    for path in (f"/clips/{raw}.mp4", f"/pictures/{raw}.webp", f"/decoded/{raw}.mp4"):
        assert served.ask(path)[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_another_name_is_refused(served: Served, host: str) -> None:
    assert served.ask("/", Host=host)[0] in (400, 421)


def test_which_hosts_are_ours() -> None:
    assert all(is_ours(n, "127.0.0.1") for n in ("127.0.0.1:8765", "localhost:1", "[::1]:8765"))
    assert is_ours("box.local:8765", "box.local")
    assert not any(is_ours(n, "127.0.0.1") for n in ("a.b", "127.0.0.1.a.b:80", "box.local", "x:y"))


def test_a_pick_of_the_page_is_a_line_of_the_file(served: Served) -> None:
    status, _, headers = served.write(note="a <b> \u202e note")
    assert status == 204
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert [line.note for line in served.picks] == ["a <b> \u202e note"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"headers": {"X_Longtake_Token": ""}}, 403),
        ({"headers": {"X_Longtake_Token": "x" * 32}}, 403),
        ({"headers": {"X_Longtake_Token": "\u00e9" * 32}}, 403),
        ({"headers": {"Origin": ""}}, 403),
        ({"headers": {"Origin": "http://evil.example"}}, 403),
        ({"headers": {"Origin": "null"}}, 403),
        ({"headers": {"Content_Type": "text/plain"}}, 415),
        ({"headers": {"Content_Type": "application/x-www-form-urlencoded"}}, 415),
        ({"clip": "0" * 64}, 404),
        ({"clip": "../../etc/passwd"}, 400),
        ({"pick": "delete"}, 400),
        ({"time": "now"}, 400),
        ({"note": "x" * 1001}, 400),
        ({"body": b"[" * 10_000}, 400),
        ({"body": b"no json"}, 400),
        ({"body": b"[]"}, 400),
        ({"body": b" " * 100_000}, 413),
        ({"headers": {"Content_Length": "99999999999"}, "body": b"{}"}, 413),
    ],
)
def test_what_the_page_would_not_write_is_refused(
    served: Served, changes: dict[str, Any], status: int
) -> None:
    assert served.write(**changes)[0] == status
    assert served.picks == []


def test_decoding_needs_the_token_too(served: Served) -> None:
    clip = clips_of(served.dataset)[0].blob.sha256
    assert served.ask(f"/decoded/{clip}.mp4", "POST", b"")[0] == 403


def test_data_are_sent_when_they_are_new(served: Served) -> None:
    version = served.data["served"]["version"]
    assert served.ask(f"/data?after={version}")[:2] == (204, b"")
    assert served.ask("/data?after=older")[0] == 200


def test_keys_write_picks_at_once_and_a_reload_has_them(served: Served, watched: Watched) -> None:
    page, clips = watched.page, clips_of(served.dataset)
    page.goto(served.address)
    page.locator(".tile:visible").first.press("Enter")
    page.locator(".note").fill("shaky")
    page.locator(".clip-view h2").click()
    page.keyboard.press("x")
    page.keyboard.press("n")
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("u")
    wait(lambda: len(served.picks) == 4)
    first, second = clips[0].blob.sha256, clips[1].blob.sha256
    assert [(line.clip, line.pick, line.note) for line in served.picks] == [
        (first, "reject", "shaky"),
        (second, "keep", ""),
        (second, None, ""),
        (second, "keep", ""),
    ]
    wait(lambda: len(served.data["picks"]) == 4)
    page.goto(served.address)
    page.locator(".tile.is-rejected").wait_for()
    assert page.locator(".tile.is-kept:visible .name").all_inner_texts() == [clips[1].key]


def test_latents_are_decoded_on_demand_and_the_difference_is_theirs(
    served: Served, watched: Watched
) -> None:
    page, clip = watched.page, clips_of(served.dataset)[0]
    page.goto(f"{served.address}#clip={clip.key}")
    page.get_by_role("button", name="Decode its latents").click()
    until(page, "document.querySelector('canvas.difference')?.dataset.frame === '0'", 120)
    mean, most = page.evaluate(LEVELS)
    psnr = next(
        sample.round_trip_psnr_db  # type: ignore[union-attr]
        for sample in read_manifest(served.dataset.folder, "encode").records
        if sample.key == clip.key
    )
    assert psnr is not None
    root_mean_square = 255 / 10 ** (psnr / 20)
    assert 0.2 * root_mean_square < mean < 1.5 * root_mean_square
    assert most > mean


def test_a_clip_says_that_it_is_being_decoded_until_it_is_or_cannot_be(
    served: Served, watched: Watched
) -> None:
    page, clip = watched.page, clips_of(served.dataset)[1]
    asked: list[Any] = []
    page.route("**/decoded/*", lambda route: asked.append(route))
    page.goto(f"{served.address}#clip={clip.key}")
    page.get_by_role("button", name="Decode its latents").click()
    page.keyboard.press("n")
    page.keyboard.press("p")
    assert page.get_by_role("button", name="decoding").is_disabled()
    asked[0].fulfill(status=409, body="its latents are gone")
    page.get_by_text("its latents are gone").wait_for()
    assert page.get_by_role("button", name="Decode its latents").is_enabled()
    watched.problems.clear()  # the browser notes the 409


def test_new_clips_appear_while_a_build_runs(served: Served, watched: Watched) -> None:
    page, dataset = watched.page, served.dataset
    page.goto(served.address)
    before = len(clips_of(dataset))
    assert page.locator(".tile:visible").count() == before
    shutil.copyfile(dataset.recipe.parent / "d.mp4", dataset.recipe.parent / "new.mp4")
    with (dataset.recipe.parent / "new.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")  # other bytes, the same film
    text = dataset.recipe.read_text()
    entry = '[[source]]\nid = "new"\nuri = "file:new.mp4"\n'
    dataset.recipe.write_text(text.replace("[[source]]", f"{entry}[[source]]", 1))
    loaded = recipes.load(dataset.recipe)
    list(build.build(loaded, dataset.data, Inline(), "cpu", "extract", Progress()))
    after = len(clips_of(dataset))
    assert after > before
    until(page, f"document.querySelectorAll('.tile:not([hidden])').length === {after}", 40)


def test_a_remote_machine_says_how_to_forward(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 50000 10.0.0.7 22")
    server, address = start(served.dataset)
    assert server.stdout is not None
    port = urlsplit(address).port
    assert f"ssh -L {port}:127.0.0.1:{port} 10.0.0.7" in server.stdout.readline()
    server.terminate()
    server.wait(20)
    server.stdout.close()


def test_a_port_that_is_taken_is_one_line(served: Served) -> None:
    port = str(urlsplit(served.address).port)
    command = [sys.executable, "-m", "pipeline", "browse", str(served.dataset.recipe)]
    command += ["--data", str(served.dataset.data), "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "--port takes another" in done.stderr
    assert done.stderr.count("\n") == 1


def wait(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
