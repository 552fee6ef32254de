"""Removing hostile trees."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.store.trees import remove_tree, usage, walk


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("x")
    (tmp_path / "in").mkdir()
    fd = os.open(tmp_path / "in", os.O_RDONLY | os.O_DIRECTORY)
    gc.collect()  # what an earlier test left to the collector must not go in between
    before = len(os.listdir("/proc/self/fd"))
    yield fd
    assert len(os.listdir("/proc/self/fd")) <= before  # a server of an earlier test may have ended meanwhile
    os.close(fd)
    assert (tmp_path / "outside" / "victim").read_text() == "x"


def few() -> int:
    """Descriptors for what is done now, whatever others of this process hold."""
    return len(os.listdir("/proc/self/fd")) + 100


def test_links_are_not_followed(tmp_path: Path, folder: int) -> None:
    tree = tmp_path / "in" / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "out").symlink_to(tmp_path / "outside")
    (tree / "b").symlink_to("..")
    os.mkfifo(tree / "pipe")
    remove_tree(folder, "tree")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside")
    remove_tree(folder, b"link")
    remove_tree(folder, "never was")
    assert os.listdir(folder) == []


def test_deeper_than_any_path(tmp_path: Path, folder: int) -> None:
    """2500 folders one in another, with a sibling at every level, and few descriptors."""
    fd = os.dup(folder)
    for _ in range(2500):
        os.mkdir("sibling", dir_fd=fd)
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few(), hard))
    try:
        remove_tree(folder, "deep")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(folder) == ["sibling"]


def test_many_full_folders_in_one(tmp_path: Path, folder: int) -> None:
    for number in range(2000):
        (tmp_path / "in" / "tree" / str(number) / "x").mkdir(parents=True)
    remove_tree(folder, "tree")
    assert os.listdir(folder) == []


def test_names_that_are_no_text(tmp_path: Path, folder: int) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/in/tree/\xff\xfe/\n")
    remove_tree(folder, "tree")
    assert os.listdir(folder) == []


def test_usage_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 8192)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "c").write_bytes(b"x" * 4096)
    size, inodes = usage(str(tmp_path))
    assert inodes == 3
    assert 8192 + 4096 <= size <= 8192 + 4096 + 8192


def test_wide_and_deep_trees_are_measured_with_few_descriptors(tmp_path: Path, folder: int) -> None:
    for number in range(400):
        os.mkdir(tmp_path / "in" / str(number))
    deep = os.dup(folder)
    for _ in range(400):  # its path is far longer than a path can be
        os.mkdir("d" * 200, dir_fd=deep)
        below = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("last", os.O_WRONLY | os.O_CREAT, dir_fd=deep))
    os.close(deep)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few(), limits[1]))
    try:
        assert usage(folder)[1] == 801
        places = {place for place, _ in walk(folder)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert max(map(len, places)) == 401
    remove_tree(folder, "d" * 200)
