"""Dataset cards: a header that a hub reads, counts that are the lock's, and strangers' words that
stay words.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.core.errors import Damaged
from pipeline.dataset import lock, recipe
from pipeline.dataset.lock import Lock, LockedClip, LockedSample, LockedShard
from pipeline.publish import card
from tests.making.command import ROOT, longtake

DEMO = ROOT / "manifests" / "demo.toml"
AWKWARD = [
    "---\nlicense: mit\n---",
    "](https://evil.example) <script>alert(1)</script> ![x](y) | cell | www.evil.example",
    "`code` *bold* _low_ # head \u202e right to left \x00 \x85 \u2028 :smile: @you &lt;",
    '"quotes" \\ back: {a: [b]} %y & *anchor !tag',
    "1. a list",
    "- a list",
    "x" * 500,
    "émoji 🎬 and 漢字",
]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The demo's recipe and lock, somewhere else."""
    for path in (DEMO, lock.path_of(DEMO)):
        shutil.copy(path, tmp_path)
    return tmp_path / "demo.toml"


@pytest.fixture
def change(demo: Path) -> Callable[..., Path]:
    """`change(license=..., captions=...)`: the demo's lock with these lists dealt out to its
    videos; returns the recipe.
    """

    def write(**fields: list[Any]) -> Path:
        locked = lock.read(demo)
        videos = {
            key: replace(
                video, **{name: values[index % len(values)] for name, values in fields.items()}
            )
            for index, (key, video) in enumerate(sorted(locked.videos.items()))
        }
        lock.write(replace(locked, videos=videos), demo)
        return demo

    return write


def carded(path: Path, with_shards: bool = False) -> str:
    return card.markdown(recipe.load(path), lock.read(path), with_shards)


def header(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of three dashes, as a hub reads it."""
    fields: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert DatasetCard(text).data.to_dict() == fields
    return fields


def parsed(text: str) -> list[Token]:
    """The body as Markdown."""
    return MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2])


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("|")
    ]
    return cells[2:]


def test_the_header_holds_what_a_hub_knows(demo: Path) -> None:
    fields = header(carded(demo))
    assert fields == {
        "license": "other",
        "license_name": "mixed",
        "license_details": "CC-BY-3.0: 1 source; none stated: 4 sources",
        "pretty_name": "demo",
        "task_categories": ["text-to-video"],
        "tags": ["video", "latents", "webdataset", "longtake"],
        "size_categories": ["n<1K"],
    }
    assert DatasetCardData(**fields).to_dict() == fields


def test_with_shards_the_header_says_which_files_are_which_split(demo: Path) -> None:
    fields = header(carded(demo, with_shards=True))
    [config] = fields["configs"]
    patterns = {file["split"]: file["path"] for file in config["data_files"]}
    names = {
        shard.split: Path("shards") / f"{key}.tar" for key, shard in lock.read(demo).shards.items()
    }
    assert patterns.keys() == names.keys() == {"train", "validation"}
    assert all(
        names[split].match(patterns[other]) == (split == other)
        for split in names
        for other in names
    )


def test_the_counts_are_those_of_the_demo_s_lock(demo: Path) -> None:
    text, locked = carded(demo), lock.read(demo)
    assert "- 3 samples (2 train, 1 validation) in 2 shards\n" in text
    assert (
        f"- {sum(clip.num_frames for clip in locked.clips.values())} frames, 0.02 "
        "hours, 256 x 256 at 10 fps" in text
    )
    assert "- from 3 of 5 videos\n" in text
    assert rows(text, "Sources by licence") == [
        ["`CC-BY-3.0`", "1", "0.00", "0"],
        ["`none stated`", "4", "0.02", "3"],
    ]
    assert rows(text, "What became of every record") == [
        ["`expand`", "5", "5", "0", ""],
        ["`download`", "5", "5", "0", ""],
        ["`cut`", "5", "10", "0", ""],
        ["`filter`", "10", "3", "7", "7 `too-few-frames`"],
        ["`extract`", "3", "3", "0", ""],
        ["`score`", "3", "3", "0", ""],
        ["`keep`", "3", "3", "0", ""],
        ["`caption`", "3", "3", "0", ""],
        ["`encode`", "3", "3", "0", ""],
        ["`shard`", "2", "2", "0", ""],
    ]
    assert [row[0] for row in rows(text, "What a sample holds")] == [
        f"`KEY.{name}`" for name in ("json", "latents.npy", "text.npy", "image.npy")
    ]


def test_scores_of_the_clips_in_the_shards_are_a_table(demo: Path) -> None:
    locked = lock.read(demo)
    bare = {key: replace(clip, scores=()) for key, clip in locked.clips.items()}
    assert "Scores" not in card.markdown(recipe.load(demo), replace(locked, clips=bare))
    rest = {"strange|name": 1.0, "camera": None, "luma": None}
    scores = dict(zip(sorted(locked.samples), (0.5, 0.25, 0.123456), strict=True))
    clips = {
        key: replace(
            clip, scores=(("motion", scores[key]), *{**rest, "luma": 1000 * scores[key]}.items())
        )
        for key, clip in locked.clips.items()
    }
    other = replace(clips[min(clips)], key="zz", scores=(("motion", 100.0),))  # it is in no shard
    text = card.markdown(recipe.load(demo), replace(locked, clips={**clips, "zz": other}))
    table = rows(text, "Scores of the clips")
    assert [row[:5] for row in table] == [
        ["`motion`", "0.1235", "0.25", "0.5", "0"],
        ["`strange\u00a6name`", "1", "1", "1", "0"],
        ["`camera`", "", "", "", "3"],
        ["`luma`", "123.5", "250", "500", "0"],
    ]
    assert table[0][5].startswith("how far pixels move")
    assert "table_open" in [token.type for token in parsed(text)]


def test_heads_and_picks_that_the_recipe_names_go_along(demo: Path) -> None:
    heads = '[score]\nscorers = ["head"]\n[score.head]\nliked = "my.safetensors"\n'
    plain = re.sub(r"\[score\].*\n", "", demo.read_text())
    demo.write_text(f'{plain}\n{heads}[keep]\npicks = "my.picks.jsonl"\n')
    text = carded(demo)
    assert "`demo.lock.jsonl`, `my.picks.jsonl` and `my.safetensors` to `manifests/`" in text


def test_it_says_how_to_build_it_again_and_what_it_was_built_with(demo: Path) -> None:
    text, locked = carded(demo), lock.read(demo)
    assert "Copy `demo.toml` and `demo.lock.jsonl` to `manifests/`" in text
    assert "\nmake reproduce DATASET=demo\n" in text
    for path in (demo, lock.path_of(demo)):
        path.rename(path.with_name(f"my {path.name}"))
    assert "\nmake reproduce DATASET='my demo'\n" in carded(demo.with_name("my demo.toml"))
    assert f"`{locked.root_digest}`" in text
    assert locked.params("encode")["vae"] in text
    assert f"torch `{locked.header['environment']['versions']['torch']}`" in text
    assert "No footage is in here" in text


def test_local_files_are_a_loud_line_and_their_folders_are_not_told(demo: Path) -> None:
    text, locked = carded(demo), lock.read(demo)
    assert "local file" not in text
    videos = {
        key: replace(video, uri="file:a.mp4" if key == "world" else video.uri)
        for key, video in locked.videos.items()
    }
    loaded = recipe.load(demo)
    models = loaded.recipe.encode.model_copy(
        update={"vae": "/home/somebody/my-vae/", "clip": "owner/clip"}
    )
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"encode": models}))
    text = card.markdown(loaded, replace(locked, videos=videos))
    assert "> **1 of the videos is a local file:**" in text
    assert ", `my-vae` |" in text
    assert ", `owner/clip` |" in text


def test_captions_beyond_what_clip_reads_are_counted(change: Callable[..., Path]) -> None:
    text = carded(change(captions=[("fish " * 80,), ("fish " * 75,), ("a dish", "fish " * 76)]))
    assert "- 4 different captions, 2 of them longer than the 77 tokens that CLIP reads; in" in text


def test_interlaced_videos_are_counted(change: Callable[..., Path], demo: Path) -> None:
    facts = next(iter(lock.read(demo).videos.values())).container
    text = carded(change(container=[replace(facts, scan="top")]))
    assert re.search(r"- from (\d) of \d videos, \1 of them deinterlaced\n", text)
    assert "deinterlaced" not in carded(change(container=[facts]))


def test_clips_are_called_shots_only_where_cuts_were_looked_for(demo: Path) -> None:
    locked = lock.read(demo)
    assert "each clip is of one shot" in card.markdown(recipe.load(demo), locked)
    locked.header["stages"]["cut"]["params"] = {"detector": "none"}
    assert "cuts were not looked for" in card.markdown(recipe.load(demo), locked)


def test_sources_without_a_licence_are_a_loud_line_and_with_one_there_is_none(
    change: Callable[..., Path],
) -> None:
    assert "> **WARNING: without a licence: 5 of 5 sources.**" in carded(
        change(license=[None, "  "])
    )
    assert "WARNING" not in carded(change(license=["MIT"]))


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["CC-BY-4.0"], {"license": "cc-by-4.0"}),
        (["CC0-1.0", "cc0-1.0"], {"license": "cc0-1.0"}),
        (["ODbL-1.0"], {"license": "odbl"}),
        ([None], {"license": "unknown"}),
        (
            ["My Own: v1"],
            {
                "license": "other",
                "license_name": "my-own-v1",
                "license_details": "My Own: v1: 5 sources",
            },
        ),
        (
            ["!!"],
            {"license": "other", "license_name": "custom", "license_details": "!!: 5 sources"},
        ),
        (
            ["MIT", "CC0-1.0"],
            {
                "license": "other",
                "license_name": "mixed",
                "license_details": "CC0-1.0: 2 sources; MIT: 3 sources",
            },
        ),
    ],
)
def test_one_licence_is_spelt_as_the_hub_spells_it_and_several_are_named(
    change: Callable[..., Path], licenses: list[str | None], expected: dict[str, str]
) -> None:
    fields = header(carded(change(license=licenses)))
    assert {name: value for name, value in fields.items() if name.startswith("license")} == expected


@pytest.mark.parametrize("words", AWKWARD)
def test_strangers_words_change_neither_header_nor_tables_nor_links(
    change: Callable[..., Path], words: str
) -> None:
    plain = parsed(carded(change(captions=[("x",)], license=["y", "MIT"])))
    text = carded(change(captions=[(words,)], license=[words, "MIT"]))
    assert header(text)["license"] == "other"
    tokens = parsed(text)
    assert [token.type for token in tokens] == [token.type for token in plain]
    inline = {child.type for token in tokens for child in token.children or ()}
    assert inline <= {
        "text",
        "text_special",
        "code_inline",
        "strong_open",
        "strong_close",
        "softbreak",
    }
    [example] = [token for token in tokens if token.type == "inline" and token.level == 5]
    shown = "".join(child.content for child in example.children or ())
    assert shown == " ".join(shown.split())
    assert (
        shown[:20] == " ".join("".join(c if c.isprintable() else " " for c in words).split())[:20]
    )
    body = text.split("---\n", 2)[2].split("## Sources")[0]
    assert not re.search(r"(?<!\\):(//|smile)|www\.|(?<!\\)@", body)


@pytest.mark.parametrize(
    "words", [*AWKWARD, "\ud800", "\ufeff", "\u2029", "yes", "1e3", "null", "", " x "]
)
def test_a_quoted_scalar_is_read_back_as_it_was(words: str) -> None:
    text = card.yaml_of({"pretty_name": words})
    assert yaml.safe_load(text) == {"pretty_name": words}
    assert text.count("\n") == 1


def test_the_description_is_text(demo: Path) -> None:
    content = demo.read_text().replace('description = "Five', 'description = "# <b>Five</b> [x](y)')
    demo.write_text(content)
    assert "\n\\# \\<b\\>Five\\</b\\> \\[x\\]\\(y\\) short public videos" in carded(demo)


def test_sources_taken_down_are_counted_and_their_file_goes_along(demo: Path) -> None:
    from pipeline.dataset import removals

    assert "0 sources were taken down." in carded(demo)
    removals.note(demo, "bikes", removals.Removal("2024-01-01T00:00:00Z", "asked"), {})
    text = carded(demo)
    assert "1 source was taken down (`demo.removed.jsonl`)" in text
    assert "Copy `demo.toml`, `demo.lock.jsonl` and `demo.removed.jsonl`" in text


@pytest.mark.parametrize(
    ("count", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (100_000, "100K<n<1M")]
)
def test_the_size_category_is_that_of_the_number_of_samples(
    demo: Path, count: int, category: str
) -> None:
    locked = lock.read(demo)
    clip: LockedClip = locked.clips["world-0000"]
    sample: LockedSample = locked.samples["world-0000"]
    keys = [f"world-{index:06d}" for index in range(count)]
    many = Lock(
        locked.header,
        locked.videos,
        dict.fromkeys(keys, clip),
        dict.fromkeys(keys, sample),
        {"00000": LockedShard("00000", "train", "0" * 64, 1, tuple(keys))},
    )
    text = card.markdown(recipe.load(demo), many)
    assert header(text)["size_categories"] == [category]
    assert f"- {count} samples ({count} train) in 1 shard\n" in text


def test_the_command_writes_beside_the_recipe_or_where_it_is_told_the_same_bytes(
    demo: Path, tmp_path: Path
) -> None:
    done = longtake("card", demo)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/demo.card.md\n", "")
    first = (tmp_path / "demo.card.md").read_bytes()
    assert longtake("card", demo, "--out", tmp_path / "README.md").returncode == 0
    assert (tmp_path / "README.md").read_bytes() == first == carded(demo).encode()


def test_without_a_lock_it_says_where_one_comes_from(demo: Path) -> None:
    lock.path_of(demo).unlink()
    done = longtake("card", demo)
    assert done.returncode == 2
    assert "a finished build writes it" in done.stderr


def test_a_lock_without_the_facts_of_a_build_is_damaged(demo: Path) -> None:
    locked = lock.read(demo)
    bare = replace(
        locked,
        header={name: value for name, value in locked.header.items() if name != "environment"},
    )
    with pytest.raises(Damaged, match="environment"):
        card.markdown(recipe.load(demo), bare)
