"""What can go wrong in training and sampling, by what is done about it.

LongtakeError
├── UsageError   a run, preset, prompt, path or option is wrong: nothing was done, exit code 2
├── NonFinite    a loss or a gradient is NaN or infinite: stop with the samples' keys, exit code 1
├── ShardError   shards are not what their index or the model says: exit code 4
└── Stopped      the world stops the work (no such device, disk full, no such model): exit code 4
"""

from __future__ import annotations


class LongtakeError(Exception):
    """Any error longtake raises on purpose."""


class UsageError(LongtakeError):
    """What was asked for cannot be done as written."""


class NonFinite(LongtakeError):
    """Training cannot go on: a number is not a number."""


class ShardError(LongtakeError):
    """A shard or an index that must not be trained on."""


class Stopped(LongtakeError):
    """The outside world is in the way; fix it and type the same command again."""
