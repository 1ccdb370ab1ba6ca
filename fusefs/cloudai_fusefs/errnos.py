"""The one table from errors to errno: the kernel's edge asks it and nobody else chooses an errno."""

from __future__ import annotations

import errno
from typing import Final

from cloudai_fusefs.extended_attributes import NoXattr, XattrsTooLarge
from cloudai_fusefs.open_files import LostName
from cloudai_fusefs.rearrangements import CrossRun
from cloudai_model import errors

_ERRNO_BY_ERROR: Final[dict[type[errors.CloudAIError], int]] = {
    errors.InvalidRequest: errno.EINVAL,
    errors.InvalidName: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.InvalidRunName: errno.EINVAL,
    errors.SizeMismatch: errno.EIO,
    errors.DigestMismatch: errno.EIO,
    errors.FileTooLarge: errno.EFBIG,
    errors.NotFound: errno.ENOENT,
    errors.AlreadyExists: errno.EEXIST,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.OutsideRun: errno.EPERM,
    errors.RunSealed: errno.EROFS,
    errors.ReadOnlyMount: errno.EROFS,
    errors.MissingChunks: errno.EIO,
    errors.GenerationChanged: errno.ESTALE,
    errors.ChunkDamaged: errno.EIO,
    errors.NoSpace: errno.ENOSPC,
    errors.QuotaExceeded: errno.EDQUOT,
    errors.Unauthenticated: errno.EACCES,
    errors.PermissionRefused: errno.EPERM,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.MasterUnavailable: errno.EIO,
    errors.InternalError: errno.EIO,
    CrossRun: errno.EXDEV,
    LostName: errno.ESTALE,  # the kernel then looks its path up anew, and opens what has the name by now
    NoXattr: errno.ENODATA,
    XattrsTooLarge: errno.ENOSPC,  # as ext4, where a node's attributes share a block
}


def errno_of(error: errors.CloudAIError) -> int:
    """The errno that a program gets: of the nearest class in the table, EIO when there is none."""
    for ancestor in type(error).__mro__:
        if ancestor in _ERRNO_BY_ERROR:
            return _ERRNO_BY_ERROR[ancestor]
    return errno.EIO
