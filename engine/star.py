"""RELION's STAR tables: read into columns of text, and written in RELION's own layout.

STAR files of RELION are read line by line rather than with a CIF grammar, because they are not quite CIF: one row is
one line; the block name may be empty (`data_`, RELION 3.0); and a value may start with `data_` or `_` (micrographs are
called like that), which CIF takes for a new block or label. Splitting lines is also several times faster, and a ragged
row is found on its own line even where the number of values of the whole table happens to fit.
"""
import re
from pathlib import Path

import numpy as np

from vitrea.engine.errors import JobError
from vitrea.engine.files import written_beside
from vitrea.engine.storage import Memory

ROWS_AT_ONCE = 5_000    # rows held as Python strings at a time, before they become compact columns
ROWS_WRITTEN = 5_000    # rows made into text at a time
SMALLEST_FIXED, LARGEST_FIXED = 1e-3, 1e6   # RELION's habit: numbers outside are written with an exponent

_TOKEN = re.compile(r'"[^"]*"(?=\s|$)|\'[^\']*\'(?=\s|$)|\S+')


def read_star(path):
    """Read a STAR file into {block: {label: str array[n]}}; see `read_long_star`."""
    return {name: {label: column[:] for label, column in columns.items()}
            for name, columns in read_long_star(path, Memory()).items()}


def read_long_star(path, space, lines=None):
    """Read a STAR file into {block: {label: TextColumn}}, the words kept in `space` (engine/storage.py).

    lines: those of a file that holds the STAR file among other things; of the file at `path` by default.
    Block names come without `data_` (RELION 3.0's nameless block is `""`), labels without the leading underscore.
    `_label value` pairs become columns of length 1. Raises JobError naming file and line for a file that is missing,
    not text, or not a table; a row of too few or too many values is named too.
    """
    path = Path(path)
    reader = _Reader(path, space)
    for number, line in enumerate(_lines(path) if lines is None else lines, 1):
        reader.take(number, line)
    return reader.finish()


class TextColumn:
    """The words of one column of a table, in the compact pieces that they were read in: read as an array of str, by
    slices, rows int[m] or a mask."""

    def __init__(self, parts):
        self._parts = parts
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    def __len__(self):
        return int(self._starts[-1])

    def __array__(self, dtype=None, copy=None):
        return self[:] if dtype is None else self[:].astype(dtype)

    def astype(self, dtype):
        return self[:].astype(dtype)

    def tolist(self):
        return self[:].tolist()

    def pieces(self):
        """(slice, str array) of each piece."""
        for part, first, last in zip(self._parts, self._starts, self._starts[1:]):
            yield slice(int(first), int(last)), _decoded(part[()])

    def __getitem__(self, rows):
        if isinstance(rows, (int, np.integer)):
            return self[rows:rows + 1 or None][0]
        if isinstance(rows, slice):
            return self._slice(*rows.indices(len(self)))
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        number = np.searchsorted(self._starts, rows, side="right") - 1
        words = np.empty(len(rows), dtype=object)
        for i in np.unique(number):
            here = number == i
            words[here] = _decoded(self._parts[i][()][rows[here] - self._starts[i]])
        return words.astype(str) if len(rows) else np.array([], dtype="U1")

    def _slice(self, first, last, step):
        found = [_decoded(part[()][max(first - start, 0):max(last - start, 0)])
                 for part, start, end in zip(self._parts, self._starts, self._starts[1:])
                 if start < last and end > first]
        return np.concatenate(found)[::step] if found else np.array([], dtype="U1")


def write_star(path, blocks, comment=None, version=30001):
    """Write {block: {label: values}} as RELION does, whole or not at all.

    Columns (text, integer, float or bool arrays of one length) make a `loop_`; a block of scalars makes
    `_label value` lines. A long table may be an iterator of such columns instead, ROWS_WRITTEN rows at a time. Floats
    get six digits, text is quoted where it holds white space or would read as syntax. version: the line by which RELION
    3.1 tells its own files; None for a file of 3.0, which has none.
    Raises ValueError for columns of unequal length or text over several lines, JobError if the disk refuses.
    """
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8") as handle:
        if comment:
            handle.writelines(f"# {line}\n" for line in comment.splitlines())
        for name, columns in blocks.items():
            handle.write((f"\n# version {version}\n" if version else "") + f"\ndata_{name}\n\n")
            if not isinstance(columns, dict):
                _write_loop(handle, columns)
            elif all(np.ndim(values) == 0 for values in columns.values()):
                _write_pairs(handle, columns)
            else:
                _write_loop(handle, _cut(name, columns))
            handle.write("\n")


def as_text(values):
    """Values of one column as a list of STAR words, formatted and quoted."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return [_float_text(value) for value in values.tolist()]
    if values.dtype.kind in "iu":
        return [str(value) for value in values.tolist()]
    if values.dtype.kind == "b":
        return [str(int(value)) for value in values.tolist()]
    words = values.astype(str).tolist()
    # One look at the whole column: nearly none holds anything to quote.
    together = "\n".join(words)
    plain = together.count("\n") < max(len(words), 1) and not _UNSAFE.search(together)
    return words if plain else [_quoted(word) for word in words]


# ---- reading

def _lines(path):
    try:
        with open(path, encoding="utf-8") as handle:
            yield from handle
    except OSError as error:
        raise JobError(f"{path}: could not be read ({error.strerror or error}); expected a STAR file; "
                       "check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: found bytes that are not text; expected a STAR file, which is plain text; "
                       "check that the path does not name an image stack") from error


class _Reader:
    """A line at a time into blocks; the state is the block, the labels of the open loop, and its rows so far."""

    def __init__(self, path, space):
        self.path, self.space = path, space
        self.blocks = {}
        self.columns = None
        self._close_loop()

    def take(self, number, line):
        tokens = line.split()
        # The one test that nearly every line of a large file meets: a plain row of the open loop.
        if self.n_labels > 1 and len(tokens) == self.n_labels and _is_plain(line, tokens):
            self._row(tokens)
        elif tokens and tokens[0][0] != "#":
            self._special(number, line, tokens)

    def finish(self):
        self._end_loop()
        if not self.blocks:
            raise JobError(f"{self.path}:1: found no data_ block; expected a STAR file of RELION; check the path")
        return self.blocks

    def _special(self, number, line, tokens):
        if tokens[0].startswith("data_") and len(tokens) == 1:
            self._block(number, tokens[0][len("data_"):])
        elif self.columns is None:
            self._fail(number, f"found '{_shortened(line)}' before any data_ block", "'data_'",
                       "check that this is a STAR file")
        elif tokens == ["loop_"]:
            self._end_loop()
            self.labels, self.labels_line = [], number
        elif tokens[0].startswith("_") and not self._is_row(tokens):
            self._label(number, line)
        else:
            self._unusual_row(number, line)

    def _is_row(self, tokens):
        """A row may start with a value like `_7.mrc`; a label is followed by nothing or by its number, `#7`."""
        return self.n_labels > 1 and len(tokens) == self.n_labels and tokens[1][0] != "#"

    def _block(self, number, name):
        self._end_loop()
        if name in self.blocks:
            self._fail(number, f"found a second block data_{name}", "each block once", "remove or rename one of them")
        self.columns = self.blocks.setdefault(name, {})

    def _label(self, number, line):
        words = _words(line)
        label = words[0][1:]
        if self.labels is not None and not self.n_rows:
            if label in self.labels:
                self._fail(number, f"found the label _{label} twice", "each label once", "remove one of the columns")
            self.labels.append(label)
            self.n_labels = len(self.labels)
            return
        self._end_loop()
        if len(words) != 2:
            self._fail(number, f"found _{label} with {len(words) - 1} values outside a loop_", "one value",
                       "put loop_ above the labels of a table")
        self.columns[label] = TextColumn([_encoded(words[1:])])

    def _unusual_row(self, number, line):
        if self.labels is None:
            self._fail(number, f"found '{_shortened(line)}' outside a loop_", "a label or loop_",
                       "check the lines above it")
        words = _words(line)
        if len(words) != self.n_labels:
            self._fail(number, f"found {len(words)} values in the row", f"{self.n_labels}, one for each label",
                       "the file may be cut short or edited; write it again")
        self._row(words)

    def _row(self, words):
        self.n_rows += 1
        self.rows.append(words)
        if len(self.rows) == ROWS_AT_ONCE:
            self._pack()

    def _pack(self):
        """Columns of fixed-width bytes take a fraction of the memory of a Python string for each value."""
        for parts, column in zip(self.parts, zip(*self.rows)):
            parts.append(self.space.keep(_encoded(column)))
        self.rows = []

    @property
    def parts(self):
        if self._parts is None:
            self._parts = [[] for _ in self.labels]
        return self._parts

    def _end_loop(self):
        if self.labels is not None:
            if not self.labels:
                self._fail(self.labels_line, "found loop_ without labels", "labels like _rlnImageName #1",
                           "remove the loop_ or add its labels")
            self._pack()
            self.columns |= {label: TextColumn(parts) for label, parts in zip(self.labels, self.parts)}
        self._close_loop()

    def _close_loop(self):
        self.labels, self.n_labels, self.rows, self.n_rows, self._parts = None, 0, [], 0, None

    def _fail(self, number, found, expected, remedy):
        raise JobError(f"{self.path}:{number}: {found}; expected {expected}; {remedy}")


def _encoded(words):
    """bytes array[n] of some words, which are nearly always ASCII."""
    words = np.array(words)
    try:
        return words.astype("S")
    except UnicodeEncodeError:
        return np.char.encode(words, "utf-8")


def _decoded(words):
    """str array[n] of `_encoded` ones."""
    try:
        return words.astype("U")
    except UnicodeDecodeError:
        return np.char.decode(words, "utf-8")


def _is_plain(line, tokens):
    """Neither a label nor a line with a quote or a comment, which a plain split would get wrong."""
    return tokens[0][0] != "_" and '"' not in line and "'" not in line and "#" not in line


def _words(line):
    """The words of a line, without quotes and without a comment at its end."""
    words = []
    for token in _TOKEN.findall(line):
        if token[0] == "#":
            break
        quoted = len(token) > 1 and token[0] in "'\"" and token[-1] == token[0]
        words.append(token[1:-1] if quoted else token)
    return words


def _shortened(line, width=40):
    line = line.strip()
    return line if len(line) <= width else line[:width - 1] + "…"


# ---- writing

def _write_pairs(handle, columns):
    width = max((len(label) for label in columns), default=0) + 1
    for label, value in columns.items():
        handle.write(f"_{label:<{width}} {as_text([value])[0]:>15}\n")


def _cut(name, columns):
    """Columns of a loop, ROWS_WRITTEN rows at a time; at least once, so that an empty table has its labels."""
    lengths = {label: len(values) for label, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"block {name}: columns of unequal length: {lengths}")
    n_rows = next(iter(lengths.values()))
    for first in range(0, max(n_rows, 1), ROWS_WRITTEN):
        yield {label: values[first:first + ROWS_WRITTEN] for label, values in columns.items()}


def _write_loop(handle, pieces):
    for number, columns in enumerate(pieces):
        if number == 0:
            handle.write("loop_ \n")
            handle.writelines(f"_{label} #{number} \n" for number, label in enumerate(columns, 1))
        handle.writelines(" ".join(row) + " \n" for row in zip(*map(_aligned, columns.values())))


def _aligned(values):
    words = as_text(values)
    width = max(12 if np.asarray(values).dtype.kind in "fiub" else 0, max(map(len, words), default=0))
    return [word.rjust(width) for word in words]


def _float_text(value):
    size = abs(value)
    return f"{value:.6f}" if size == 0 or SMALLEST_FIXED <= size < LARGEST_FIXED else f"{value:.6e}"


_UNSAFE = re.compile(r"""[^\S\n]|^["'#_;]|^data_|^loop_|^$""", re.MULTILINE)


def _quoted(text):
    if "\n" in text or "\r" in text:
        raise ValueError(f"a STAR value must be one line of text, not {text!r}")
    if not _UNSAFE.search(text):
        return text
    mark = "'" if '"' in text else '"'
    if mark in text:
        raise ValueError(f"a STAR value cannot hold white space and both kinds of quotes: {text!r}")
    return f"{mark}{text}{mark}"
