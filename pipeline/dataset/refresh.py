"""`refresh`: forget which videos a channel or playlist names, so that the next build asks again.

A list from the web is remembered, so that a build is the same today and tomorrow; new videos of a
channel come in only when somebody says so.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pipeline.core.errors import RecipeError
from pipeline.core.records import Source
from pipeline.dataset.build import opened
from pipeline.dataset.chain import stage_of
from pipeline.dataset.recipe import Loaded
from pipeline.media import archives, fetch
from pipeline.media.addresses import ARCHIVES, is_from_web, scheme


def refresh(loaded: Loaded, data: Path, key: str | None = None) -> list[str]:
    """Forget the lists and archives of all sources from the web, or of one; returns the keys of
    those sources whose list was remembered. Raises RecipeError for a source that is none, Stopped.
    """
    sources = _chosen(loaded, key)
    expand = stage_of("expand", loaded.setup("auto", offline=True))
    forgotten = []
    with opened(data) as store:
        for source in sources:
            task_key = expand.task_key(source)
            if store.remembers(task_key):
                forgotten.append(source.key)
            store.forget(task_key)
            if scheme(source.uri) in ARCHIVES:
                for place, _ in archives.places(source.uri, loaded.folder):
                    fetch.forget_bundle(f"{scheme(source.uri)}:{place}", store)
    return forgotten


def _chosen(loaded: Loaded, key: str | None) -> list[Source]:
    """The sources whose lists are meant."""
    from_web = {source.key: source for source in loaded.sources if is_from_web(source.uri)}
    if key is None:
        return list(from_web.values())
    if key in from_web:
        return [from_web[key]]
    others = [source for source in loaded.sources if source.key == key]
    if others:
        raise RecipeError(
            f"the source '{key}' ({others[0].uri}) is no list from the web: "
            "each build looks at it anew"
        )
    keys = [source.key for source in loaded.sources]
    near = difflib.get_close_matches(key, keys, 3, cutoff=0.3) or keys[:3]
    raise RecipeError(f"no source is called '{key}' in {loaded.path}; near it: {', '.join(near)}")
