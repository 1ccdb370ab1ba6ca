"""git in a run: each step has the outcome that it has on a local disk, and the master has the same commits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.tools import TOOL_SECONDS_MAX, run_shell, run_tool
from support.tree_snapshot import AtMaster, contents, place_in

# With these a commit's id depends on nothing but what is in it.
IDENTITY = """
export GIT_AUTHOR_NAME=user-123 GIT_AUTHOR_EMAIL=user-123@example.org GIT_AUTHOR_DATE='2026-01-01T00:00:00Z'
export GIT_COMMITTER_NAME=user-123 GIT_COMMITTER_EMAIL=user-123@example.org
export GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
"""

HISTORY = f"""
{IDENTITY}
cd repository; git init -q -b main
git add .; git commit -qm first
echo '# more' >> __init__.py; git commit -qam second
git mv _pickle.py moved.py; git rm -qr _examples; git commit -qm third
git worktree add -q -b side ../worktree HEAD~1
(cd ../worktree; echo '# aside' >> mtrand.pyi; git commit -qam aside)
git merge -q --no-edit side
git tag -a -m release v1; git stash list
git gc -q --prune=now
git worktree add -q ../passing HEAD~1; git worktree remove ../passing
git fsck --full --strict --no-progress
# Of its own machine it makes hard links.
git clone -q . ../clone
git clone -q --bare --no-local . ../bare.git
test -z "$(git status --porcelain)"; test -z "$(git -C ../worktree status --porcelain)"
"""

# Looks, and writes nothing: not even the index that `git status` would refresh.
SIGHT = """
export GIT_OPTIONAL_LOCKS=0
for place in repository clone bare.git; do
    git -C $place fsck --full --strict --no-progress
    git -C $place log --format='%H %s' main
    git -C $place rev-parse v1
done
git -C repository rev-parse side
git -C repository status --porcelain; git -C clone status --porcelain
"""


@pytest.fixture
def local_history(small_source: Path, tmp_path: Path) -> Path:
    """The same history on a local disk: what git makes of it there."""
    place = tmp_path / "local"
    shutil.copytree(small_source, place / "repository")
    run_shell(HISTORY, cwd=place)
    return place


def test_git_repository_has_the_history_that_it_has_on_a_local_disk(
    run: Path, small_source: Path, local_history: Path, at_master: AtMaster
) -> None:
    shutil.copytree(small_source, run / "repository")

    run_shell(HISTORY, cwd=run)

    elsewhere = at_master()
    assert run_shell(SIGHT, cwd=elsewhere) == run_shell(SIGHT, cwd=local_history)
    assert len(run_shell("git -C repository log --format=%s", cwd=elsewhere).splitlines()) == 5
    for tree in ("repository", "clone", "worktree"):
        assert contents(elsewhere / tree, but=".git") == contents(local_history / tree, but=".git")


def test_git_goes_on_in_a_repository_that_is_published(
    run: Path, shared_mount: MountProcess, tmp_path: Path, at_master: AtMaster
) -> None:
    """Objects, refs and the index are replaced by renaming over what the master has."""
    (run / "repository").mkdir()
    begin = f"{IDENTITY} git init -q -b main; echo 1 > file; git add .; git commit -qm 1; git gc -q"
    proceed = f"""
    {IDENTITY}
    for number in 2 3 4; do echo $number >> file; git commit -qam $number; done
    git checkout -qb side HEAD~2; echo side > other; git add .; git commit -qm side
    git rebase -q main; git checkout -q main; git merge -q --ff-only side; git branch -qd side
    git reset -q --hard HEAD~1; git gc -q --prune=now; git reflog expire --expire=now --all; git repack -adq
    """
    run_shell(begin, cwd=run / "repository")
    shared_mount.wait_durable(run)
    (tmp_path / "repository").mkdir()

    for place in (run, tmp_path):
        run_shell(proceed if place == run else begin + proceed, cwd=place / "repository")

    sight = "git fsck --full --strict --no-progress; git log --format='%H %s'; cat file; ls"
    assert run_shell(sight, cwd=at_master() / "repository") == run_shell(sight, cwd=tmp_path / "repository")


def test_git_has_every_commit_that_it_made_before_the_mount_was_killed(
    shared_master: MasterProcess, mount_of: MakeMount, second_mount: MountProcess, tmp_path: Path
) -> None:
    """D2. After `close()` the file, with its name, size and times, survives the death of the mount daemon."""
    doomed = mount_of(shared_master, "doomed")
    repository = doomed.make_run(RUN, task="repository-of-a-killed-mount") / "repository"
    repository.mkdir()
    run_shell(f"{IDENTITY} git init -q -b main; git config gc.auto 0", cwd=repository)
    # What git says of a commit is written on a local disk.
    commits = """
    for number in $(seq 1000); do
        echo $number > file-$((number % 5)); git add .; git commit -qm $number; git rev-parse HEAD
    done
    """
    said = tmp_path / "commits"
    with (
        said.open("wb") as output,
        subprocess.Popen(
            ["bash", "-euc", IDENTITY + commits],
            cwd=repository,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_until(
                lambda: len(said.read_text().splitlines()) >= 5, "five commits", seconds_max=TOOL_SECONDS_MAX
            )
            doomed.kill()
        finally:
            # It would not always end by itself: git 2.39 reads a directory that it cannot read again and again.
            os.killpg(process.pid, signal.SIGKILL)

    doomed.start()

    made = said.read_text().splitlines()
    run_tool("git", "fsck", "--full", "--no-progress", cwd=repository)
    found = run_tool("git", "log", "--reverse", "--format=%H", cwd=repository)
    assert found.splitlines()[: len(made)] == made
    doomed.wait_durable()
    elsewhere = place_in(doomed, repository, second_mount)
    wait_until(lambda: (elsewhere / ".git" / "HEAD").exists(), "the repository in the other mount")
    run_tool("git", "fsck", "--full", "--no-progress", cwd=elsewhere)
    assert run_tool("git", "log", "--reverse", "--format=%H", cwd=elsewhere) == found
    doomed.umount()


def test_git_does_not_notice_that_the_master_is_restarted(
    master: MasterProcess, make_mount: MakeMount, small_source: Path, tmp_path: Path
) -> None:
    """What needs the master waits for it, for at most `timeo`: each object is linked to its name there."""
    mount = make_mount()
    run = mount.make_run(RUN)
    for place in (run, tmp_path / "local"):
        shutil.copytree(small_source, place / "repository")
    steps = f"""
    {IDENTITY}
    cd repository; git init -q -b main; git add .; git commit -qm first; git gc -q; git clone -q . ../clone
    """
    with subprocess.Popen(["bash", "-euc", steps], cwd=run) as process:
        for sign in ("repository/.git/objects", "clone/.git"):
            wait_until((run / sign).exists, sign, seconds_max=TOOL_SECONDS_MAX)
            master.restart()
        assert process.wait(TOOL_SECONDS_MAX) == 0

    run_shell(steps, cwd=tmp_path / "local")
    sight = "git -C repository rev-parse main; cd clone; git fsck --full --strict --no-progress; git rev-parse main"
    expected = run_shell(sight, cwd=tmp_path / "local")
    assert run_shell(sight, cwd=run) == expected
    mount.wait_durable()
    assert run_shell(sight, cwd=place_in(mount, run, make_mount("elsewhere"))) == expected
