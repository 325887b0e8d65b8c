"""`browse`: the page, served to browsers of this machine while a build goes on.

Served are the page, its data, and by digest the clips, pictures and decoded clips of this dataset:
no request names a path, so none leads elsewhere. Pictures are made when they are first asked for,
decoded clips when somebody presses the button.

What changes something (a pick, the start of a decoding) is a POST that must carry the page's token,
which other sites cannot read, and come from the page's origin. A name in `Host` that is not this
server's is refused, so a foreign name that was made to point here (DNS rebinding) reads nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from pipeline.core import canonical, picks
from pipeline.core.errors import Damaged, LongtakeError
from pipeline.core.records import Blob, Clip, Sample, Scene
from pipeline.core.store import Store
from pipeline.dataset.recipe import Loaded, load
from pipeline.publish.page import bundle
from pipeline.publish.page.contents import Survey, contents
from pipeline.publish.page.decoding import Decoder
from pipeline.publish.page.likeness import likes_of
from pipeline.publish.page.pictures import strip_of_clip, strip_of_scene
from pipeline.publish.page.report import decoder_of, picks_name, picks_path, survey_of

MOST_BYTES = 16_384  # of a request's body: a pick takes 200, a note up to 4,000
PATIENCE_S = 10.0  # for a body to arrive
WATCH_S = 1.0  # how often the data folder is looked at
REST = 4  # after a survey, rest so many times as long as it took
DECODE_S = 3600.0  # the longest a clip may take
PLACES = {
    "clip": "clips/{digest}.mp4",
    "picture": "pictures/{digest}.webp",
    "decoded": "decoded/{digest}.mp4",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FRESH = {"Cache-Control": "no-store"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class View:
    """What is served at the moment: data as JSON text, and what its digests stand for."""

    version: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    scenes: dict[str, Scene] = field(default_factory=dict)  # rejected, by the name of their picture


class Server:
    """Answers for one dataset. `recipe` is read again when it changes."""

    def __init__(self, recipe: Path, data: Path, device: str, source: str = "") -> None:
        self.recipe, self.data, self.device, self.source = recipe, data, device, source
        self.store = Store(data.absolute() / "store")
        self.token = secrets.token_urlsafe(24)
        self.loaded: Loaded = load(recipe)
        self.view = View()
        self._decoder: Decoder | None = None
        self._decoding = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._stamp: object = None

    def survey(self) -> None:
        """Look at the dataset anew. Raises LongtakeError."""
        self.loaded = load(self.recipe)
        self._decoder = self._decoder or decoder_of(self.loaded, self.device)
        survey = survey_of(self.loaded, self.data, self.device, self.source)
        samples = survey.records("encode", Sample)
        scenes = {_scene_name(d.scene): d.scene for d in survey.dropped if d.scene is not None}
        clips = {clip.blob.sha256: clip for clip in survey.clips}
        page_data = contents(
            survey,
            picks.read(picks_path(self.loaded)),
            self._pictures(survey),
            [s.key for s in samples if self._decoder and self._decoder.remembered(s, self.store)],
            likes_of(samples, self.store),
        )
        page_data |= {"places": PLACES, "picks_file": picks_name(self.loaded)}
        version = canonical.digest({**page_data, "written": ""})[:16]
        page_data["served"] = {"token": self.token, "version": version, "cost": self._cost()}
        by_digest = {sample.clip.blob.sha256: sample for sample in samples}
        self.view = View(version, page_data, clips, by_digest, scenes)

    def _pictures(self, survey: Survey) -> dict[str, str]:
        """Names of pictures by key; whether they can be made is seen when they are asked for."""
        names = {clip.key: clip.blob.sha256 for clip in survey.clips}
        for dropped in survey.dropped:
            if dropped.scene is not None:
                names.setdefault(dropped.rejection.key, _scene_name(dropped.scene))
        return names

    def _cost(self) -> str:
        if self._decoder is None:
            return "Its VAE is not on this machine."
        pace = self._decoder.seconds_a_frame
        return f"About {pace:.2g} s a frame, as measured here." if pace else ""

    def stamp(self) -> object:
        """What changes when a build adds something, or somebody edits recipe or picks."""
        root = self.store.root
        folders = [*(root / "memos").glob("*"), *(root / "failures").glob("*")]
        files = [*(self.data / self.loaded.recipe.name).glob("*.jsonl")]
        files += [self.recipe, picks_path(self.loaded)]
        return [path.stat().st_mtime_ns for path in sorted([*folders, *files]) if path.exists()]

    async def watch(self) -> None:
        """Survey again when something changed, and rest in proportion to what that costs."""
        while True:
            await asyncio.sleep(WATCH_S)
            stamp = await asyncio.to_thread(self.stamp)
            if stamp == self._stamp:
                continue
            start = time.monotonic()
            try:
                await asyncio.to_thread(self.survey)
                self._stamp = stamp
            except (LongtakeError, OSError):
                pass  # half written: the next look sees it whole, and until then the last one stays
            await asyncio.sleep(REST * (time.monotonic() - start))

    def app(self, host: str) -> web.Application:
        """The application, for requests to this host."""
        app = web.Application(middlewares=[_guard(host)], client_max_size=MOST_BYTES)
        app.router.add_get("/", self.page)
        app.router.add_get("/data", self.news)
        app.router.add_get(r"/clips/{digest:[0-9a-f]{64}}.mp4", self.clip)
        app.router.add_get(r"/pictures/{digest:[0-9a-f]{64}}.webp", self.picture)
        app.router.add_get(r"/decoded/{digest:[0-9a-f]{64}}.mp4", self.decoded)
        app.router.add_post(r"/decoded/{digest:[0-9a-f]{64}}.mp4", self.decode)
        app.router.add_post("/picks", self.pick)
        app.on_startup.append(self._begin)
        app.on_cleanup.append(self._end)
        return app

    async def _begin(self, app: web.Application) -> None:
        self._stamp = self.stamp()
        await asyncio.to_thread(self.survey)
        self._watching = asyncio.create_task(self.watch())

    async def _end(self, app: web.Application) -> None:
        self._watching.cancel()
        if self._decoder is not None:
            self._decoder.is_ended = True

    async def page(self, request: web.Request) -> web.Response:
        html = await asyncio.to_thread(bundle.page, self.view.data)
        return web.Response(text=html, content_type="text/html", headers=FRESH)

    async def news(self, request: web.Request) -> web.Response:
        """The page's data, where it is other than what the page has."""
        if request.query.get("after") == self.view.version:
            return web.Response(status=204)
        return web.json_response(self.view.data, headers=FRESH)

    async def clip(self, request: web.Request) -> web.StreamResponse:
        clip = self.view.clips.get(request.match_info["digest"])
        return self._file(clip.blob if clip else None, "video/mp4")

    async def picture(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["digest"]
        clip, scene = self.view.clips.get(name), self.view.scenes.get(name)
        strip: Blob | None = None
        if clip is not None:
            strip = await asyncio.to_thread(strip_of_clip, clip, self.store)
        elif scene is not None:
            params = self.loaded.recipe.extract
            strip = await asyncio.to_thread(strip_of_scene, scene, params, self.store)
        return self._file(strip, "image/webp")

    async def decoded(self, request: web.Request) -> web.StreamResponse:
        sample = self.view.samples.get(request.match_info["digest"])
        blob = self._decoder.remembered(sample, self.store) if sample and self._decoder else None
        return self._file(blob, "video/mp4")

    async def decode(self, request: web.Request) -> web.Response:
        """Decode a clip's latents, one clip at a time."""
        sample = self.view.samples.get(request.match_info["digest"])
        self._check_token(request)
        if sample is None or self._decoder is None:
            raise web.HTTPNotFound(text="there is nothing to decode: no latents, or no VAE here")
        async with self._decoding:
            decode = self._decoder.decoded_of
            blob = await asyncio.to_thread(decode, sample, self.store, DECODE_S)
        if blob is None:
            raise web.HTTPConflict(text="it would take more than an hour, or its latents are gone")
        return web.Response(status=204)

    async def pick(self, request: web.Request) -> web.Response:
        """Add a line to the picks file."""
        self._check_token(request)
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="a pick is JSON")
        if (request.content_length or 0) > MOST_BYTES:
            raise web.HTTPRequestEntityTooLarge(MOST_BYTES, request.content_length or 0)
        async with asyncio.timeout(PATIENCE_S):
            body = await request.text()
        try:
            value = canonical.parse(body)
            pick = picks.pick_of(value if isinstance(value, dict) else {}, "the pick")
        except (Damaged, ValueError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        if pick.clip not in self.view.clips:
            raise web.HTTPNotFound(text="no clip of this dataset has that digest")
        async with self._writing:
            try:
                await asyncio.to_thread(picks.append, picks_path(self.loaded), [pick])
            except LongtakeError as error:
                raise web.HTTPInsufficientStorage(text=str(error)) from None
        return web.Response(status=204)

    def _check_token(self, request: web.Request) -> None:
        """Raises HTTPForbidden for a request that the page did not make."""
        token = request.headers.get("X-Longtake-Token", "").encode("utf-8", "surrogateescape")
        if not secrets.compare_digest(token, self.token.encode()):
            raise web.HTTPForbidden(text="the page's token is missing: load the page again")
        origin = request.headers.get("Origin", "")
        if origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text="this comes from another site")

    def _file(self, blob: Blob | None, kind: str) -> web.StreamResponse:
        """A blob of the store, whole or in ranges."""
        if blob is None or not self.store.has(blob):
            raise web.HTTPNotFound(text="it is not in the store")
        headers = {"Content-Type": kind, "Cache-Control": "private, max-age=3600"}
        return web.FileResponse(self.store.path(blob.sha256), headers=headers)


def _scene_name(scene: Scene) -> str:
    """What the picture of a rejected scene is called."""
    return canonical.digest(["picture of", scene.identity()])


def _guard(host: str) -> Any:
    """Refuses other hosts, and gives every answer the headers that keep other sites out."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_ours(request.host, host):
            raise web.HTTPMisdirectedRequest(text="this server has another name")
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        response.headers.update(HEADERS)
        return response

    return guard


def is_ours(named: str, host: str) -> bool:
    """Whether a `Host` header means this server: the host it was started with, `localhost`, or a
    plain address, which no foreign name can be made to stand for.
    """
    name = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
    name = name.strip("[]").lower()
    if name in (host.lower(), "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def serve(server: Server, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. `ready` is called with the address. Raises OSError for a port that is
    taken.
    """

    async def run() -> None:
        runner = web.AppRunner(server.app(host), access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            bound = runner.addresses[0]
            name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            ready(f"http://{name}:{bound[1]}/")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    asyncio.run(run())
