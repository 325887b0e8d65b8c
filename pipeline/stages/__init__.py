"""One file per stage, in the order of the chain.

A stage imports core and media, never another stage.
A stage's module holds VERSION, MAKES (the type of record it makes), `stage(setup)` and, if people
may set something, Params: the recipe's table of the stage's name. WITHOUT is what a recipe without
that table means, if not the table's defaults. docs/extending.md shows a stage.
"""

NAMES = (
    "expand",
    "download",
    "cut",
    "filter",
    "extract",
    "score",
    "keep",
    "caption",
    "encode",
    "shard",
)
