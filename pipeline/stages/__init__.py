"""One file per stage, download to shard. A stage imports core and media, never another stage."""
