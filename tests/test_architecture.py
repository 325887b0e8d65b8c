"""Who may import whom: a rule a folder. The folders are drawn in README's tree."""

import ast
from pathlib import Path

import pytest

from tests.making.imports import imports, modules_of, roots, scripts

ROOT = Path(__file__).parents[1]
PIPELINE = sorted((ROOT / "pipeline").rglob("*.py"))
TRAINING = sorted((ROOT / "training").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAY_IMPORT = {  # a folder of pipeline: the other folders it may import
    "core": set(),
    "media": {"core"},
    "stages": {"core", "media"},
    "dataset": {"core", "media", "stages"},
    "publish": {"core", "media", "stages", "dataset"},
    "plan": {"core", "media", "stages", "dataset"},
    "commands": {"core", "media", "stages", "dataset", "publish", "plan"},
}
FLOORS_OF_CORE = {  # a module of core: the other modules of core it may import
    "errors": set(),
    "files": set(),
    "canonical": {"errors"},
    "reading": {"canonical", "errors"},
    "records": {"errors", "reading"},
    "store": {"canonical", "records", "errors", "reading", "files"},
    "manifest": {"canonical", "records", "errors", "files", "reading"},
    "stage": {"canonical", "records", "errors", "manifest", "store", "reading"},
}
OF_PIPELINE_FOR_TRAINING = {
    "pipeline.media.encoders",
    "pipeline.media.reel",
    "pipeline.media.video",
}
LIGHT = ("errors", "frames", "presets", "console", "__main__")
HEAVY = {"torch", "diffusers", "numpy", "einops", "av", "PIL", "accelerate", "transformers"}
DECODERS = {"av", "decord"}
TORCH = {"torch", "diffusers", "open_clip"}
MAY_USE_DECODERS = {"video", "reel", "train_vae"}
MAY_USE_TORCH = {"encoders", "make_clip", "train_vae"}
PICKLES = {"pickle", "cloudpickle", "dill", "shelve", "joblib"}


def folders(path: Path) -> set[str]:
    """The folders of pipeline a file imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def in_folder(folder: str) -> list[Path]:
    return [path for path in PIPELINE if path.is_relative_to(ROOT / "pipeline" / folder)]


def test_the_rules_see_imports_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import av.error, json\n"
        "from pipeline.core import store\n"
        "from pipeline.media import video as v\n"
        "from pipeline.stages.cut import stage\n"
        "def f():\n    import torch\n"
    )
    ours = {"pipeline.core.store", "pipeline.media.video", "pipeline.stages.cut"}
    assert imports(path) == {"av.error", "json", "torch", *ours}
    assert roots(path) == {"av", "json", "pipeline", "torch"}
    assert folders(path) == {"core", "media", "stages"}


def test_every_folder_has_a_rule() -> None:
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if list(path.glob("*.py"))}
    assert folders == MAY_IMPORT.keys()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder: str) -> None:
    wrong = {
        label(path): folders(path) - MAY_IMPORT[folder] - {folder}
        for path in in_folder(folder)
        if not folders(path) <= MAY_IMPORT[folder] | {folder}
    }
    assert wrong == {}


@pytest.mark.parametrize("name", FLOORS_OF_CORE)
def test_the_core_has_floors(name: str) -> None:
    modules = imports(ROOT / "pipeline" / "core" / f"{name}.py")
    ours = {module.split(".")[2] for module in modules if module.startswith("pipeline.core.")}
    assert ours <= FLOORS_OF_CORE[name]


def test_stages_never_import_each_other() -> None:
    importing = {label(path) for path in in_folder("stages") if "stages" in folders(path)}
    assert importing == set()


def test_pipeline_never_imports_training() -> None:
    assert {label(path) for path in PIPELINE if "training" in roots(path)} == set()


def test_training_imports_of_the_pipeline_the_encoders_and_the_opener_of_videos_alone() -> None:
    modules = {module for path in TRAINING for module in imports(path)}
    ours = {module for module in modules if module.startswith("pipeline")}
    assert ours <= OF_PIPELINE_FOR_TRAINING


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_of_training_import_nothing_heavy_at_their_top(name: str) -> None:
    tree = ast.parse((ROOT / "training" / f"{name}.py").read_text("utf-8"))
    plain = [node for node in tree.body if isinstance(node, ast.Import)]
    top = {alias.name.partition(".")[0] for node in plain for alias in node.names}
    top |= {
        str(node.module).partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    assert top & HEAVY == set()


@pytest.mark.parametrize("path", TRAINING, ids=label)
def test_nothing_of_training_reads_or_writes_pickles_through_torch(path: Path) -> None:
    known_by_digest = {"load"} if path.name == "feature_metrics.py" else set()
    attributes = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    ]
    of_torch = {
        node.attr
        for node in attributes
        if isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    assert of_torch & {"load", "save"} == known_by_digest


@pytest.mark.parametrize("path", [*PIPELINE, *TRAINING], ids=label)
def test_nothing_is_pickled(path: Path) -> None:
    assert roots(path) & PICKLES == set()


@pytest.mark.parametrize("path", PIPELINE, ids=label)
def test_only_video_and_reel_open_videos(path: Path) -> None:
    allowed = DECODERS if path.stem in MAY_USE_DECODERS else set()
    assert roots(path) & DECODERS <= allowed


@pytest.mark.parametrize("path", PIPELINE, ids=label)
def test_only_encoders_touch_torch(path: Path) -> None:
    allowed = TORCH if path.stem in MAY_USE_TORCH else set()
    if path.stem == "video":  # decord must be imported after torch: see `read_clip`
        allowed = {"torch"}
    assert roots(path) & TORCH <= allowed


def test_video_imports_torch_in_read_clip_and_nowhere_else() -> None:
    tree = ast.parse((ROOT / "pipeline" / "media" / "video.py").read_text("utf-8"))
    reader = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "read_clip"
    )
    everywhere, inside = (
        [
            node
            for node in ast.walk(part)
            if isinstance(node, ast.Import) and node.names[0].name == "torch"
        ]
        for part in (tree, reader)
    )
    assert len(everywhere) == len(inside) == 1


@pytest.mark.parametrize("path", [*PIPELINE, *TRAINING], ids=label)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "base", "helpers", "misc"}


def test_no_file_of_tests_imports_from_a_test_file() -> None:
    modules = {
        (label(path), module)
        for path in TESTS
        for tree in [ast.parse(path.read_text("utf-8")), *scripts(path)]
        for module in modules_of(tree)
    }
    assert {(path, module) for path, module in modules if ".test_" in f".{module}"} == set()
