"""One file per stage, in the order of the chain. A stage imports core and media, never another
stage.
"""

NAMES = ("expand", "download", "cut", "filter", "extract", "encode", "shard")
