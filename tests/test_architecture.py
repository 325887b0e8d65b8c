"""Who may import whom, and how large a module may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINE = {path.stem: path for path in sorted((ROOT / "pipeline").glob("*.py"))}
TRAINING = {path.stem: path for path in sorted((ROOT / "training").glob("*.py"))}
EVERYTHING = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "training").rglob("*.py")])
STAGES = ("download", "cut", "filter", "extract", "encode", "shard")
MAY_IMPORT = {  # of pipeline
    "errors": set(),
    "canonical": {"errors"},
    "records": {"errors"},
    "store": {"canonical", "records", "errors"},
    "manifest": {"canonical", "records", "errors"},
    "stage": {"canonical", "records", "errors", "manifest", "store"},
    "executors": {"errors", "stage"},
    "ledger": {"records", "stage", "store"},
    "removals": {"canonical", "errors"},
    "lock": {"canonical", "errors", "manifest", "records", "reel", "shard", "store"},
}
OF_TRAINING_MAY_IMPORT = {
    "errors": set(),
    "frames": set(),
    "presets": {"errors", "frames"},
    "ranges": {"errors"},
    "shards": {"errors", "ranges"},
    "stream": {"errors", "frames", "ranges", "shards"},
    "attention": {"errors"},
    "flat": set(),
    "unet": {"errors", "attention", "flat"},
    "diffusion": {"frames", "presets"},
    "codec": {"errors"},
    "media": {"codec", "errors"},
    "quality": {"frames"},
    "checkpoint": {"errors", "presets", "unet"},
}
LIGHT = ("errors", "frames", "presets", "__main__")
DECODERS = {"av", "decord"}
TORCH = {"torch", "diffusers", "open_clip"}
MAY_USE_DECODERS = {"video", "reel"}
MAY_USE_TORCH = {"encoders", "encode"}
MAX_LINES = 350


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function: `pipeline.store`, `av.error`, ..."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in ("pipeline", "training") else {str(node.module)}
            )
    return found


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def of_pipeline(path: Path) -> set[str]:
    """The pipeline's modules a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}


def of_training(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("training.")}


def test_the_rules_see_imports_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import av.error, json\nfrom pipeline import store, video as v\nfrom pipeline.cut import stage\ndef f():\n    import torch\n"
    )
    assert imports(path) == {"av.error", "json", "pipeline.store", "pipeline.video", "pipeline.cut", "torch"}
    assert roots(path) == {"av", "json", "pipeline", "torch"}
    assert of_pipeline(path) == {"store", "video", "cut"}


def test_pipeline_and_training_never_import_each_other() -> None:
    assert {path.name for path in PIPELINE.values() if "training" in roots(path)} == set()
    assert {path.name for path in (ROOT / "training").rglob("*.py") if "pipeline" in roots(path)} == set()


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_core_imports_only_what_lies_beneath_it(name: str) -> None:
    assert of_pipeline(PIPELINE[name]) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", OF_TRAINING_MAY_IMPORT)
def test_what_training_is_made_of_imports_only_what_lies_beneath_it(name: str) -> None:
    assert of_training(TRAINING[name]) <= OF_TRAINING_MAY_IMPORT[name]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_of_training_import_nothing_heavy_at_their_top(name: str) -> None:
    tree = ast.parse(TRAINING[name].read_text("utf-8"))
    top = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {str(node.module).split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top & {"torch", "diffusers", "numpy", "einops", "av", "PIL", "accelerate", "transformers"} == set()


@pytest.mark.parametrize("name", TRAINING)
def test_nothing_of_training_reads_or_writes_pickles_through_torch(name: str) -> None:
    calls_on_torch = {
        node.attr
        for node in ast.walk(ast.parse(TRAINING[name].read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    assert calls_on_torch & {"load", "save"} == set()


@pytest.mark.parametrize("name", [name for name in STAGES if name in PIPELINE])
def test_stages_never_import_each_other(name: str) -> None:
    assert of_pipeline(PIPELINE[name]) & ({*STAGES, "executors", "recipe", "build"} - {name}) == set()


@pytest.mark.parametrize("name", ["video", "reel", "fetch", "encoders"])
def test_what_stages_are_made_of_imports_no_stage(name: str) -> None:
    if name in PIPELINE:
        assert of_pipeline(PIPELINE[name]) & {*STAGES, "stage", "executors", "recipe", "build"} == set()


@pytest.mark.parametrize("name", PIPELINE)
def test_only_video_and_reel_open_videos(name: str) -> None:
    allowed = DECODERS if name in MAY_USE_DECODERS else set()
    assert roots(PIPELINE[name]) & DECODERS <= allowed


@pytest.mark.parametrize("name", PIPELINE)
def test_only_encoders_and_encode_touch_torch(name: str) -> None:
    allowed = TORCH if name in MAY_USE_TORCH else set()
    used = roots(PIPELINE[name]) & TORCH
    if name == "video":  # decord must be imported after torch: see `read_clip`
        used -= {"torch"}
    assert used <= allowed


def test_video_imports_torch_in_read_clip_and_nowhere_else() -> None:
    tree = ast.parse(PIPELINE["video"].read_text("utf-8"))
    reader = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "read_clip")
    everywhere, inside = (
        [node for node in ast.walk(part) if isinstance(node, ast.Import) and node.names[0].name == "torch"] for part in (tree, reader)
    )
    assert len(everywhere) == len(inside) == 1


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    assert roots(path) & {"pickle", "cloudpickle", "dill", "shelve", "joblib"} == set()


@pytest.mark.parametrize("path", [*PIPELINE.values(), *TRAINING.values()], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "base", "helpers", "misc"}
