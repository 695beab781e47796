"""Whether somebody else could have written, or could change, what stands in a folder."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

ROOT = 0
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_ENTRY = struct.Struct("<HHI")
_WRITE = 2


def foreign_hands(
    folder: Path, files: Sequence[Path] = (), trusted: Collection[int] = ()
) -> str | None:
    """Why not only trusted users wrote `folder` (or a file) and `files` in it, in words; None if
    they did.

    Trusted are this process's user, root, and the uids of `trusted`. Looked at are the folder,
    each file, and the folders between them: owner, permission of group and others to write,
    POSIX ACLs. Not what lies above: whoever put another folder in the place of this one would
    own it. OSError where something cannot be looked at.
    """
    known = {os.geteuid(), ROOT, *trusted}
    between = {parent for file in files for parent in file.parents if folder in parent.parents}
    for path in (folder, *sorted(between), *files):
        found = next(_faults(path, known), None)
        if found is not None:
            return found
    return None


def name_of(uid: int) -> str:
    """`alice (uid 1001)`, or the number alone where nobody is called so."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _faults(path: Path, trusted: Collection[int]) -> Iterator[str]:
    seen = path.stat()
    if seen.st_uid not in trusted:
        yield f"{path} belongs to {name_of(seen.st_uid)}"
    if seen.st_mode & stat.S_IWOTH:
        yield f"everybody can write to {path}"
    access, default = (_acl(path, kind) for kind in _ACLS)
    # With an ACL the bits of the group are its mask.
    if seen.st_mode & stat.S_IWGRP and not access and not _is_own_group(seen.st_gid):
        yield f"group {_group_name(seen.st_gid)} can write to {path}"
    for acl in (access, default):
        if any(_opens(entry, acl, trusted, seen.st_gid) for entry in acl):
            yield f"the ACL of {path} lets others write to it"


def _acl(path: Path, kind: str) -> list[tuple[int, int, int]]:
    """(tag, permission, id) of each entry; empty where there is no such list."""
    try:
        raw = os.getxattr(path, kind)
    except OSError:  # none is set, or the file system has none
        return []
    return [_ENTRY.unpack_from(raw, at) for at in range(4, len(raw), _ENTRY.size)]


def _opens(
    entry: tuple[int, int, int],
    acl: Sequence[tuple[int, int, int]],
    trusted: Collection[int],
    group: int,
) -> bool:
    """Whether this entry lets somebody write who is not trusted."""
    tag, permission, who = entry
    mask = next((p for t, p, _ in acl if t == _MASK), 7)
    if not permission & mask & _WRITE:
        return False
    if tag == _USER:
        return who not in trusted
    return (tag == _GROUP and not _is_own_group(who)) or (
        tag == _GROUP_OBJ and not _is_own_group(group)
    )


def _is_own_group(gid: int) -> bool:
    """True for root's group, and for the one of this user alone that carries his name."""
    if gid == ROOT:
        return True
    try:
        me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == me.pw_gid and group.gr_name == me.pw_name and set(group.gr_mem) <= {me.pw_name}


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
