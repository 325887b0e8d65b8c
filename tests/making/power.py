"""What a disk may hold after a power cut, from a record of what a program did: see faults.c.

The model is the one that POSIX leaves to file systems. A file's content is on disk from its `fsync`
on; before, the file may be empty, or zeros. A name that was made, changed or deleted is on disk
from the `fsync` of its folder on; before, each such change may have come to disk or not, whatever
came before or after it. A rename is never half done.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODES = ("lost", "names", "deletions", "random")
CHANGES = ("create", "rename", "link", "unlink", "mkdir", "rmdir")


@dataclass(eq=False)
class Node:
    """A file, or a folder: copies of its content on disk and in memory, if there is any."""

    is_folder: bool = False
    on_disk: Path | None = None
    in_memory: Path | None = None

    @property
    def is_synced(self) -> bool:
        if self.on_disk is None or self.in_memory is None:
            return self.is_folder
        return self.on_disk.read_bytes() == self.in_memory.read_bytes()


@dataclass(frozen=True)
class Change:
    """A change of a folder's names that is not on disk yet: `path` is the name that is made or
    goes, `origin` the one it had before (rename) or has too (link).
    """

    kind: str
    path: str
    node: Node
    origin: str = ""

    def apply(self, names: dict[str, Node]) -> None:
        if self.kind in ("unlink", "rmdir"):
            names.pop(self.path, None)
            return
        if self.kind == "rename" and names.get(self.origin) is self.node:
            names.pop(self.origin)
        names[self.path] = self.node


@dataclass
class Disk:
    """Names and content, as they are on disk and as the program sees them."""

    names: dict[str, Node]
    seen: dict[str, Node]
    inodes: dict[int, Node]
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        change.apply(self.seen)
        self.pending.append(change)

    def sync_folder(self, folder: str) -> None:
        left = []
        for change in self.pending:
            if os.path.dirname(change.path) == folder:
                change.apply(self.names)
                if change.kind == "rename":  # its old name does not come back
                    left = [earlier for earlier in left if earlier.path != change.origin]
            else:
                left.append(change)
        self.pending = left


def disk_of(folders: list[Path], copy: Path) -> Disk:
    """The disk before a command: everything is on it. `copy` gets the content of every file."""
    copy.mkdir()
    names: dict[str, Node] = {}
    inodes: dict[int, Node] = {}
    for folder in folders:
        for path in [folder, *sorted(folder.rglob("*"))]:
            inode = path.stat().st_ino
            if path.is_dir():
                names[str(path)] = Node(is_folder=True)
                continue
            if inode not in inodes:
                content = copy / str(inode)
                shutil.copy2(path, content)
                inodes[inode] = Node(on_disk=content, in_memory=content)
            names[str(path)] = inodes[inode]
    return Disk(names, dict(names), inodes)


def replay(disk: Disk, record: Path) -> Iterator[int]:
    """Do what is in a record, one line after the other; yields the number of each line done."""
    for number, line in enumerate((record / "log").read_text("utf-8").splitlines(), 1):
        kind, *words = line.split("\t")
        _do(disk, kind, words, record)
        yield number


def _do(disk: Disk, kind: str, words: list[str], record: Path) -> None:
    if kind == "create":
        node = Node()
        disk.inodes[int(words[1])] = node
        disk.change(Change(kind, words[0], node))
    elif kind == "bytes":
        disk.inodes[int(words[0])].in_memory = record / words[1]
    elif kind == "sync":
        node = disk.inodes[int(words[1])]
        node.in_memory = node.on_disk = record / words[2]
    elif kind == "syncdir":
        disk.sync_folder(words[0])
    elif kind == "mkdir":
        disk.change(Change(kind, words[0], Node(is_folder=True)))
    elif kind in ("unlink", "rmdir"):
        disk.change(Change(kind, words[0], disk.seen[words[0]]))
    elif kind in ("rename", "link"):
        origin, path = words
        disk.change(Change(kind, path, disk.seen[origin], origin))
    else:
        raise ValueError(f"a record has no '{kind}'")


def cut(disk: Disk, mode: str, drawn: random.Random, kept: Mapping[str, Path]) -> None:
    """Make the folders what a power cut at this moment may leave. `kept` are files that are linked
    in again, not copied, because their inode is a part of what they are.
    """
    names = dict(disk.names)
    for change in disk.pending:
        is_deletion = change.kind in ("unlink", "rmdir")
        survives = {"lost": False, "names": True, "deletions": is_deletion}
        if survives.get(mode, drawn.random() < 0.5):
            change.apply(names)
    written: dict[Node, str] = {}
    for path, node in sorted(names.items(), key=lambda item: item[0]):
        if not os.path.isdir(os.path.dirname(path)):
            continue  # its folder is lost
        if node.is_folder:
            os.makedirs(path, exist_ok=True)
        elif path in kept:
            os.link(kept[path], path)
            written[node] = path
        elif node in written:
            os.link(written[node], path)
        else:
            _write(node, path, mode, drawn)
            written[node] = path


def _write(node: Node, path: str, mode: str, drawn: random.Random) -> None:
    if node.is_synced and node.on_disk is not None:
        shutil.copy2(node.on_disk, path)
        return
    size = node.in_memory.stat().st_size if node.in_memory else 0
    choice = {"lost": "empty", "names": "zeros", "deletions": "zeros"}.get(mode)
    choice = choice or drawn.choice(["empty", "zeros", "memory"])
    if choice == "memory" and node.in_memory is not None:
        shutil.copy2(node.in_memory, path)
    else:
        Path(path).write_bytes(bytes(size if choice == "zeros" else 0))
