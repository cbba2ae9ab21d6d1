"""The files of a session on disk: which paths are allowed, and how they are written.

A workspace is ``<root>/<session id>.<generation>/`` with four folders: ``app`` (the files, where
the dev server runs), ``home`` and ``tmp`` (its HOME and TMPDIR) and ``staging`` (new content,
before it is renamed into place). ``owner`` names the spawner that made it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from gateway.errors import BadFiles
from gateway.settings import PREFIX, Settings

MAX_PATH_BYTES: Final = 1024
MAX_SEGMENT_BYTES: Final = 255
#: A folder being made or removed is named ``tmp.<owner>.<random>``.
TEMPORARY: Final = "tmp."

_DRIVE: Final = re.compile(r"[A-Za-z]:")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def check_path(path: str) -> str:
    """``path`` if it is a relative POSIX path that a session may write; BadFiles if not."""
    problem = _problem(path)
    if problem:
        raise BadFiles(f"the path {path[:120]!r} is refused: {problem}")
    return path


def _problem(path: str) -> str:
    if not path:
        return "it is empty"
    if path.startswith("/") or _DRIVE.match(path):
        return "it is absolute; give it relative to the project"
    if "\\" in path:
        return "it contains a backslash; separate folders with '/'"
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in path):
        return "it contains a control character or half a surrogate pair"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    segments = path.split("/")
    if any(segment in {"", ".", ".."} for segment in segments):
        return "it has an empty, '.' or '..' segment"
    if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        return f"a segment is longer than {MAX_SEGMENT_BYTES} bytes"
    if segments[0] == "node_modules":
        return "node_modules is installed by the gateway; leave it out"
    if any(segment.lower() == ".git" for segment in segments):
        return "a .git folder is not part of a preview; leave it out"
    return ""


def check_files(files: Mapping[str, bytes], settings: Settings) -> None:
    """Raise BadFiles unless all paths are allowed, fit together, and are within the limits."""
    if len(files) > settings.max_files:
        raise BadFiles(
            f"{len(files)} files are more than the {settings.max_files} that "
            f"{PREFIX}MAX_FILES allows"
        )
    total = 0
    for path, content in files.items():
        check_path(path)
        total += len(content)
        if len(content) > settings.max_file_bytes:
            raise BadFiles(
                f"{path!r} has {len(content)} bytes, more than the {settings.max_file_bytes} "
                f"that {PREFIX}MAX_FILE_BYTES allows"
            )
    if total > settings.max_session_bytes:
        raise BadFiles(
            f"the files have {total} bytes together, more than the "
            f"{settings.max_session_bytes} that {PREFIX}MAX_SESSION_BYTES allows"
        )
    for path in files:
        for folder in _folders_above(path):
            if folder in files:
                raise BadFiles(f"{folder!r} is a file and, for {path!r}, also a folder")


def _folders_above(path: str) -> Iterator[str]:
    end = path.find("/")
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)


class Workspace:
    """One workspace. Every method blocks on the disk: call them in a thread, one at a time.

    Folders are held open and walked one segment at a time without following links, so that a
    symbolic link that the running dev server puts into its workspace cannot lead a write outside.
    """

    def __init__(self, root: Path, name: str, *, owner: str) -> None:
        """Nothing is touched before ``make``."""
        self.folder = root / name
        self.app = self.folder / "app"
        self.home = self.folder / "home"
        self.tmp = self.folder / "tmp"
        self._owner = owner
        self._app = -1
        self._staging = -1

    def make(self) -> None:
        """Make the folders of an empty workspace; one of the same name is removed first."""
        root, owner = self.folder.parent, self._owner
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made under a temporary name and renamed: no workspace is ever seen without its owner.
        new = root / f"{TEMPORARY}{owner}.{secrets.token_hex(8)}"
        new.mkdir(mode=0o700)
        try:
            (new / "owner").write_text(owner)
            for part in ("app", "home", "tmp", "staging"):
                (new / part).mkdir()
            self._app = os.open(new / "app", _FOLDER)
            self._staging = os.open(new / "staging", _FOLDER)
            discard(self.folder, owner=owner)
            new.rename(self.folder)
        except BaseException:
            self._release()
            shutil.rmtree(new, ignore_errors=True)
            raise

    def write(self, write: Mapping[str, bytes], delete: Iterable[str] = ()) -> None:
        """Delete, then write. Each file changes at once; deleting an absent one is no error.

        Raises BadFiles for a refused path, a folder in the place of a file or the reverse, and a
        symbolic link on the way.
        """
        for path in (*delete, *write):
            check_path(path)
        for path in delete:
            self._delete(path)
        for path, content in write.items():
            self._put(path, content)

    def read(self, paths: Iterable[str], longest: int) -> dict[str, bytes]:
        """What these files hold now.

        Left out are those that are gone, are longer than ``longest`` bytes or no plain files any
        more: the dev server may have put a link, a pipe or a folder in their place.
        """
        found: dict[str, bytes] = {}
        for path in paths:
            *folders, name = path.split("/")
            with (
                contextlib.suppress(OSError, BadFiles),
                self._open_folder(folders, path, create=False) as folder,
                open(os.open(name, _OLD_FILE, dir_fd=folder), "rb") as file,
            ):
                facts = os.fstat(file.fileno())
                if stat.S_ISREG(facts.st_mode) and facts.st_size <= longest:
                    found[path] = file.read(longest)
        return found

    def remove(self) -> None:
        """Remove everything. Idempotent."""
        self._release()
        discard(self.folder, owner=self._owner)

    def _release(self) -> None:
        held = [fd for fd in (self._app, self._staging) if fd >= 0]
        self._app = self._staging = -1
        for fd in held:
            os.close(fd)

    def _put(self, path: str, content: bytes) -> None:
        *folders, name = path.split("/")
        # Written outside the watched folder and renamed into it: the file watcher sees one change.
        staged = secrets.token_hex(8)
        mode = 0o755 if content.startswith(b"#!") else 0o644
        with self._open_folder(folders, path, create=True) as folder:
            fd = os.open(staged, _NEW_FILE, mode, dir_fd=self._staging)
            try:
                with open(fd, "wb") as file:
                    file.write(content)
                os.rename(staged, name, src_dir_fd=self._staging, dst_dir_fd=folder)
            except BaseException as exc:
                os.unlink(staged, dir_fd=self._staging)
                if isinstance(exc, IsADirectoryError):
                    raise BadFiles(f"{path!r} is a folder in the workspace") from exc
                raise

    def _delete(self, path: str) -> None:
        *folders, name = path.split("/")
        try:
            with self._open_folder(folders, path, create=False) as folder:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError) as exc:
            raise BadFiles(f"{path!r} is no file in the workspace") from exc
        while folders:
            *folders, name = folders
            with self._open_folder(folders, path, create=False) as folder:
                try:
                    os.rmdir(name, dir_fd=folder)
                except OSError:
                    return  # not empty: it stays

    @contextlib.contextmanager
    def _open_folder(self, folders: list[str], path: str, *, create: bool) -> Iterator[int]:
        """A descriptor of a folder below ``app``. Raises FileNotFoundError if it is absent."""
        current = os.dup(self._app)
        try:
            for name in folders:
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=current)
                try:
                    below = os.open(name, _FOLDER, dir_fd=current)
                except NotADirectoryError as exc:  # a file or, with O_NOFOLLOW, a symbolic link
                    raise BadFiles(f"{name!r} in {path!r} is no folder in the workspace") from exc
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)


def discard(folder: Path, *, owner: str) -> None:
    """Remove a folder, wholly or (should removing fail half-way) at least its name."""
    gone = folder.with_name(f"{TEMPORARY}{owner}.{secrets.token_hex(8)}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    remove_tree(gone)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also where the program that ran in it took write permission away."""
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for parent, _, _ in os.walk(folder):  # top down: each is opened before it is entered
            os.chmod(parent, 0o700)
        shutil.rmtree(folder)
