"""Output files appear whole or not at all: they are written beside their place and renamed."""
import os
from contextlib import contextmanager
from pathlib import Path

from vitrea.engine.errors import JobError


@contextmanager
def written_beside(path):
    """Yield a temporary path in the folder of `path`; on a clean exit it is flushed to disk and renamed to `path`.

    On any exception the temporary file is removed and an older `path` stays as it was.
    Raises JobError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
    except OSError as error:
        raise JobError(f"{path}: could not be written ({error.strerror or error}); expected a writable folder with "
                       "free space; free some space, or choose another output folder") from error
    finally:
        beside.unlink(missing_ok=True)


def from_here(path):
    """The name of an absolute path as seen from the working directory, absolute if it lies outside of it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _flush(path):
    """A rename can reach the disk before the bytes do, and a crash would then leave an empty file of the right name."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
