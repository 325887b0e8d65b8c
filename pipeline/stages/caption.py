"""Clip -> Clip with captions of its own: from a table beside the recipe, or from a model that is
shown some of its frames.

An answer is remembered by clip, model, question and what else the model is told; not by the
endpoint's address (the same model elsewhere is the same model) nor by what is done with the answer.
`max_tokens` is no part of the key either: a whole answer is the same under a higher limit, so
raising it asks only for those that were cut. The captions are in manifest and lock: a rebuild asks
nobody.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.core import canonical, caption_table
from pipeline.core.caption_table import LONGEST, CaptionTable, cleaned
from pipeline.core.errors import RecipeError
from pipeline.core.params import Setup, Table
from pipeline.core.reading import Count, Facts, Text, shown
from pipeline.core.records import Clip, source_of
from pipeline.core.stage import Stage
from pipeline.core.store import Store
from pipeline.media import video
from pipeline.media.chat import Endpoint
from pipeline.media.scorers.scorer import spread

VERSION = 1
ANSWER_VERSION = 1
MAKES = Clip
PROMPT = (
    "These pictures are frames of one short video clip, in order of time. Describe in one or two "
    "sentences what is to be seen, and what moves and how. Answer with the description alone."
)
QUALITY = 90  # of JPEG
PATCH = 28  # pixels a side that a picture costs a token for, in models such as Qwen2-VL
LETTERS = 4  # of English a token
# options that say where and how a model is asked, not what
PLACES = {"base_url", "key_variable", "at_once", "attempts", "timeout_s"}


ADDRESS = re.compile(r"https?://[^\s/?#@\x00-\x1f]+(/[^\s?#@\x00-\x1f]*)?")


def is_sound(url: str) -> bool:
    """Whether an address can be taken apart: it has a host, and a port that is one."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class Params(Table):
    """`[caption]`: a caption for each clip, from a model behind an OpenAI-compatible endpoint
    (`base_url` and `model`), from a table (`captions`), or from the table and else the model.
    """

    base_url: str | None = Field(
        default=None,
        max_length=500,
        description='The endpoint, such as "http://localhost:11434/v1" (Ollama).',
    )
    model: str | None = Field(
        default=None, min_length=1, max_length=200, description="The model's name there."
    )
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=100,
        description="Environment variable that holds the endpoint's key; the key itself never "
        "stands in a file.",
    )
    prompt: str = Field(
        default=PROMPT,
        min_length=1,
        max_length=LONGEST,
        description="What the model is asked; {captions} stands for the source's captions, one a "
        "line.",
    )
    frames: int = Field(
        default=4, ge=1, le=64, description="Evenly spread frames that the model is shown."
    )
    size: int = Field(
        default=448,
        ge=64,
        le=2048,
        multiple_of=8,
        description="Side of these frames in pixels; a smaller clip is shown as it is.",
    )
    format: Literal["jpeg", "png"] = Field(default="jpeg", description="How they are encoded.")
    max_tokens: int = Field(
        default=300,
        ge=1,
        le=100_000,
        description="Tokens of an answer at most; the clip of a longer one is rejected.",
    )
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="0: the likeliest words, the same each time."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Sent along if it is written; for temperatures above 0.",
    )
    at_once: int = Field(default=4, ge=1, le=256, description="Clips that are asked about at once.")
    attempts: int = Field(
        default=4,
        ge=1,
        le=20,
        description="Tries per clip, with growing pauses, before it counts as unavailable.",
    )
    timeout_s: float = Field(
        default=300.0, gt=0, le=3600, description="Seconds to wait for an answer."
    )
    captions: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description='A table beside the recipe, JSON lines of {"clip": key or digest, "caption": '
        "text or list}. A clip with a line is not asked about.",
    )
    source_captions: Literal["last", "first", "replace"] = Field(
        default="last",
        description="Where the source's own captions go: behind the clip's, before them, or away.",
    )

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is None or (ADDRESS.fullmatch(url) and is_sound(url)):
            return url
        raise ValueError(
            "an endpoint's address is http://HOST[:PORT]/v1 or https://..., without user, password "
            "and '?': a key goes into an environment variable, see key_variable"
        )

    @field_validator("prompt")
    @classmethod
    def _template(cls, prompt: str) -> str:
        try:
            parts = list(Formatter().parse(prompt))
        except ValueError as error:
            raise ValueError(
                f"{error}: in braces stands captions and nothing else; a brace that is meant as "
                "such is written twice"
            ) from None
        for _, name, form, conversion in parts:
            if name is not None and (name != "captions" or form or conversion):
                raise ValueError(
                    f"got {{{name}}}: in braces stands captions and nothing else; a brace that is "
                    "meant as such is written twice"
                )
        return prompt


@dataclass(frozen=True)
class Captioner:
    """Where the captions of clips come from."""

    params: Params
    table: CaptionTable
    endpoint: Endpoint | None

    def question(self, clip: Clip) -> str:
        """The prompt as it is asked about this clip."""
        texts = [cleaned(text) for text in source_of(clip).captions]
        return self.params.prompt.format(captions="\n".join(text for text in texts if text))

    def task(self, clip: Clip) -> list[object]:
        """What an answer depends on."""
        params = self.params
        return [
            "caption",
            ANSWER_VERSION,
            clip.identity(),
            params.model,
            canonical.digest(self.question(clip)),
            [params.frames, params.size, params.format],
            [params.temperature, params.seed],
        ]

    def united(self, clip: Clip, texts: Sequence[str]) -> Clip:
        """The clip with these captions and, by choice, those of its source."""
        of_source = source_of(clip).captions
        order = {
            "first": (*of_source, *texts),
            "last": (*texts, *of_source),
            "replace": tuple(texts),
        }[self.params.source_captions]
        captions = tuple(dict.fromkeys(text for text in order if text))
        return with_changes(clip, captions=captions)


class _Answer(Facts):
    """What is remembered of an answer, and the limit under which it was whole."""

    text: Text
    max_tokens: Count


def stage(setup: Setup) -> Stage:
    """Raises RecipeError with the line of the table that is wrong."""
    captioner = captioner_of(setup)
    return Stage(
        name="caption",
        version=VERSION,
        params=facts(captioner),
        makes=MAKES,
        process=partial(process, captioner=captioner),
        identity=partial(identity, captioner=captioner),
        pure=partial(asks_nobody, captioner=captioner),
        group=partial(question_key, captioner=captioner),
        light=partial(is_remembered, captioner=captioner),
        local=captioner.endpoint is None,
        waits_on_world=True,
        cost=seconds,
        num_threads=captioner.params.at_once if captioner.endpoint else 0,
        effort=partial(effort, captioner=captioner),
    )


def captioner_of(setup: Setup) -> Captioner:
    params = setup.table(Params)
    path = table_path(setup)
    table = caption_table.NONE if path is None else caption_table.read(path)
    endpoint = None
    if params.base_url is not None and params.model is not None:
        endpoint = Endpoint(params.base_url, params.key_variable, params.attempts, params.timeout_s)
    return Captioner(params, table, endpoint)


def facts(captioner: Captioner) -> dict[str, Any]:
    """What the captions depend on; nothing for a recipe without [caption]. Not the address."""
    params, result = captioner.params, dict[str, Any]()
    if captioner.endpoint is not None:
        names = ("model", "prompt", "frames", "size", "format", "max_tokens", "temperature", "seed")
        result |= {name: getattr(params, name) for name in names}
    if params.captions is not None:
        result["captions"] = captioner.table.digest
    return {**result, "source_captions": params.source_captions} if result else {}


def problem(setup: Setup) -> str:
    """Why a table [caption] that is written gives no captions; "" if it does."""
    params = setup.table(Params)
    if (params.base_url is None) != (params.model is None):
        missing = "base_url" if params.base_url is None else "model"
        return f"to ask a model, base_url and model are needed: {missing} is missing"
    if params.model is None and params.captions is None:
        return "captions come from somewhere: name base_url and model, or a table (captions = ...)"
    return ""


def table_path(setup: Setup) -> Path | None:
    """The table of captions that the recipe names."""
    name = setup.table(Params).captions
    return None if name is None else setup.folder / name


def digest_of_table(setup: Setup) -> str | None:
    """Of what the table says; None if the recipe names none."""
    path = table_path(setup)
    return None if path is None else caption_table.read(path).digest


def check_table(setup: Setup) -> None:
    """Raises RecipeError for a table that is not there. (A rebuild needs none: the captions are in
    the lock.)
    """
    path = table_path(setup)
    if path is not None and not path.exists():
        raise RecipeError(
            f"caption.captions: there is no file {path}; its lines are "
            f"{caption_table.EXAMPLE}, or take the line out of the recipe"
        )


def unmatched(setup: Setup, clips: Sequence[Clip]) -> list[str]:
    """Lines of the table that name none of these clips, in words."""
    table = captioner_of(setup).table
    return [
        f"{table.name}: line {line} names no clip: '{shown(name)}'"
        for line, name in table.unmatched(clips)
    ]


def origin(setup: Setup) -> str:
    """Where captions of clips come from, in words; "" for a recipe without [caption]. Raises
    RecipeError with the line of the table that is wrong.
    """
    captioner, words = captioner_of(setup), []
    if captioner.params.captions is not None:
        count = len(captioner.table.lines)
        words.append(f"{count} {'line' if count == 1 else 'lines'} of {captioner.params.captions}")
    if captioner.endpoint is not None:
        words.append(f"{captioner.params.model} at {captioner.endpoint.host}")
    return ", else ".join(words)


def identity(clip: Clip, captioner: Captioner) -> object:
    """A clip's pixels, and where a model is asked, the question and the captions that its answer is
    put beside.
    """
    if captioner.endpoint is None:
        return clip.identity()
    asked = canonical.digest(captioner.question(clip))
    in_table = captioner.table.of(clip)
    return [clip.identity(), source_of(clip).captions, asked, in_table]


def asks_nobody(clip: Clip, captioner: Captioner) -> bool:
    """Whether nobody has to be asked: then no memo is needed."""
    return captioner.endpoint is None or captioner.table.of(clip) is not None


def question_key(clip: Clip, captioner: Captioner) -> str:
    """What is asked: clips of equal bytes that differ in their sources' captions alone go to one
    thread, and the second finds the answer of the first.
    """
    return canonical.digest(captioner.task(clip))


def seconds(clip: Clip) -> float:
    return float(clip.duration_s)


def is_remembered(clip: Clip, store: Store, captioner: Captioner) -> bool:
    """Whether there is an answer already that is whole under today's limit."""
    return _answer(clip, store, captioner) is not None


def _answer(clip: Clip, store: Store, captioner: Captioner) -> str | None:
    value = store.recall(question_key(clip, captioner))
    try:
        answer = _Answer.model_validate(value)
    except ValueError:
        return None
    return answer.text if answer.max_tokens <= captioner.params.max_tokens else None


def process(clip: Clip, store: Store, captioner: Captioner) -> Iterator[Clip]:
    """Caption one clip. Raises BadData: caption-refused, caption-cut or caption-empty, and as
    `video.some_frames` does; Unavailable; Stopped.
    """
    texts = captioner.table.of(clip)
    if texts is not None:
        yield captioner.united(clip, texts)
    elif captioner.endpoint is None:
        yield clip
    else:
        yield captioner.united(clip, [_asked(clip, store, captioner, captioner.endpoint)])


def _asked(clip: Clip, store: Store, captioner: Captioner, endpoint: Endpoint) -> str:
    answer = _answer(clip, store, captioner)
    if answer is None:
        answer = endpoint.caption(body(clip, store, captioner))
        task, limit = captioner.task(clip), captioner.params.max_tokens
        store.remember(question_key(clip, captioner), {"text": answer, "max_tokens": limit}, task)
    return answer


def body(clip: Clip, store: Store, captioner: Captioner) -> dict[str, Any]:
    """The question, as `chat/completions` takes it: a text, then pictures as data URLs."""
    params = captioner.params
    content: list[dict[str, Any]] = [{"type": "text", "text": captioner.question(clip)}]
    for url in pictures(clip, store, params):
        content.append({"type": "image_url", "image_url": {"url": url}})
    question: dict[str, Any] = {
        "model": params.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
    }
    return question if params.seed is None else {**question, "seed": params.seed}


def pictures(clip: Clip, store: Store, params: Params) -> Iterator[str]:
    """Evenly spread frames of a clip as data URLs."""
    from PIL import Image

    path = store.path(clip.blob.sha256)
    for _, planes in video.some_frames(path, spread(clip, params.frames), params.size):
        content = io.BytesIO()
        Image.fromarray(video.rgb_of(planes)).save(content, params.format.upper(), quality=QUALITY)
        encoded = base64.b64encode(content.getvalue()).decode()
        yield f"data:image/{params.format};base64,{encoded}"


def effort(clips: Sequence[Clip], captioner: Captioner) -> str:
    """What asking about so many clips takes, in a line."""
    params, endpoint = captioner.params, captioner.endpoint
    if endpoint is None or not clips:
        return ""
    side = min(params.size, max(clip.size for clip in clips))
    of_pictures = params.frames * (side / PATCH) ** 2
    of_text = sum(len(captioner.question(clip)) for clip in clips) / LETTERS
    tokens_in = len(clips) * of_pictures + of_text
    count = "1 clip" if len(clips) == 1 else f"{len(clips)} clips"
    return (
        f"caption: asks {params.model} at {endpoint.host} about {count}, {params.frames} frames of "
        f"{side} pixels each, {params.at_once} at once: about {_rounded(tokens_in)} tokens in, at "
        f"most {_rounded(len(clips) * params.max_tokens)} out"
    )


def _rounded(tokens: float) -> str:
    """A number of which two digits are known."""
    return f"{int(float(f'{tokens:.2g}')):,}"


def check_key(setup: Setup) -> None:
    """Raises Stopped where the recipe names a variable for the key that is not set."""
    endpoint = captioner_of(setup).endpoint
    if endpoint is not None:
        endpoint.key()
