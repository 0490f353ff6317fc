"""Readers of the data files users have, and minibatches that are a pure function of the step.

A reader looks in the folder `REVGRAD_DATA` names, then in the user's cache, then downloads with a
checksum where pooch and a network are there. Readers trust no file: lengths are checked before
anything of that size is allocated.
"""

import gzip
import io
import math
import operator
import os
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import optree

from revgrad._ext import homes

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/",
    "https://storage.googleapis.com/cvdf-datasets/",
)
# SHA-256 of the files as those mirrors serve them; a recompressed copy of one has another.
_DOWNLOADS = {
    "mnist/train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "mnist/train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "mnist/t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_DIMENSIONS = 32
_DEFLATE_RATIO = 1032  # the most bytes that one byte of a deflate stream can stand for
_OMNIGLOT_PARTS = {"small1": "images_background_small1", "small2": "images_background_small2"}
_OMNIGLOT_SIDE = 105  # pixels
_OMNIGLOT_MOST = 100_000  # bytes of one drawing that are believed, and drawings in a file
_WORD = 2**64
_ORDERS = 2**22  # bytes of row orders that minibatches keep, for the way back
_NO_EPOCH = _WORD - 1  # the order of a whole data set, apart from every epoch's


class Split(NamedTuple):
    """Examples and their labels: x (N, features) floats, y (N,) int64. A tree of two leaves."""

    x: np.ndarray
    y: np.ndarray


class Splits(NamedTuple):
    """Three disjoint sets: to train on, to choose hyperparameters with, to report."""

    train: Split
    valid: Split
    test: Split


def digits(train=1000, valid=400, *, seed=0, dtype=np.float32):
    """scikit-learn's 8x8 digits as `Splits`; needs scikit-learn and no network.

    x: (N, 64) pixels / 16 in [0, 1], rows of the image one after the other; y: 0 to 9. The 1,797
    examples are shuffled by `seed`, the same on every machine; test gets what train and valid
    leave.
    Raises: ValueError if they leave nothing, ImportError without scikit-learn.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    count = len(labels)
    if train < 1 or valid < 1 or train + valid >= count:
        raise ValueError(
            f"digits(train={train}, valid={valid}): at least 1 each and at most {count - 1} "
            f"together, so that some of the {count} examples are left for the test; ask for fewer."
        )
    order = _permutation(count, seed, _NO_EPOCH)
    x, y = (images[order] / 16).astype(dtype), labels[order].astype(np.int64)
    ends = (slice(train), slice(train, train + valid), slice(train + valid, None))
    return Splits(*(Split(x[part], y[part]) for part in ends))


def mnist(train=50_000, valid=10_000, test=10_000, *, dtype=np.float32):
    """MNIST as `Splits`, from the four official files in `REVGRAD_DATA`/mnist or the cache.

    x: (N, 784) pixels / 255 in [0, 1]; y: 0 to 9; all in the files' order. The first `train`
    training examples, the next `valid`, and the first `test` of the 10,000 test examples.
    Raises: ValueError for counts the files do not have, or files that are not MNIST's;
    FileNotFoundError from `find`.
    """
    pool = train + valid
    images, labels = _labelled_images("train", pool)
    test_images, test_labels = _labelled_images("t10k", test)
    return Splits(
        _flat_split(images[:train], labels[:train], dtype),
        _flat_split(images[train:pool], labels[train:pool], dtype),
        _flat_split(test_images[:test], test_labels[:test], dtype),
    )


def _labelled_images(part, wanted):
    images = read_idx(find(f"mnist/{part}-images-idx3-ubyte.gz"))
    labels = read_idx(find(f"mnist/{part}-labels-idx1-ubyte.gz"))
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"the {part} images of MNIST are uint8 (N, 28, 28), the file has {images.dtype} "
            f"{images.shape}; replace it by the official one."
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise ValueError(
            f"the {part} labels of MNIST are uint8 0 to 9, one for each of {len(images)} images, "
            f"the file has {labels.dtype} {labels.shape}; replace it by the official one."
        )
    if not 1 <= wanted <= len(images):
        raise ValueError(
            f"mnist: {wanted} {part} examples were asked for, the file has {len(images)}; "
            f"ask for 1 to {len(images)}."
        )
    return images, labels


def _flat_split(images, labels, dtype):
    x = images.reshape(len(images), math.prod(images.shape[1:])).astype(dtype)
    x /= 255
    return Split(x, labels.astype(np.int64))


def omniglot(part="small1", *, side=28, dtype=np.float32):
    """Handwritten characters of five alphabets: {alphabet: (characters, drawers, side, side)}.

    part: "small1" (Balinese, Early Aramaic, Greek, Korean, Latin) or "small2", of the official
    `omniglot/images_background_small1.zip` in `REVGRAD_DATA` or the cache; needs Pillow. Ink is 1,
    paper 0, and the 105 x 105 drawings are averaged down to side x side. All in the files' order;
    20 drawers, not the same ones for every alphabet.
    Raises: ValueError for an unknown part or side, or a file that is not Omniglot's: nothing is
    unpacked to disk, and sizes are checked before anything is expanded; FileNotFoundError from
    `find`; ImportError without Pillow. Source: Lake et al. 2015.
    """
    if part not in _OMNIGLOT_PARTS:
        raise ValueError(f"omniglot({part!r}): pass one of {', '.join(_OMNIGLOT_PARTS)}.")
    if not 1 <= side <= _OMNIGLOT_SIDE:
        raise ValueError(f"omniglot: side={side}; from 1 to {_OMNIGLOT_SIDE} is possible.")
    stem = _OMNIGLOT_PARTS[part]
    path, shrink = find(f"omniglot/{stem}.zip"), _box_average(_OMNIGLOT_SIDE, side)
    try:
        with zipfile.ZipFile(path) as archive:
            drawings = _drawings(archive, path, stem)
            alphabets = {
                name: [[_drawing(archive, entry, path) for entry in row] for row in rows.values()]
                for name, rows in drawings.items()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged zip file ({error}); get it again.") from error
    return {k: (shrink @ np.array(x) @ shrink.T).astype(dtype) for k, x in alphabets.items()}


def _box_average(many, few):
    """The matrix (few, many) that averages over `few` equal stretches of `many` pixels."""
    edges = np.arange(few + 1)[:, None] * many / few
    before = np.clip(edges - np.arange(many), 0, 1)  # how much of each pixel lies before an edge
    return np.diff(before, axis=0) * few / many


def _drawings(archive, path, stem):
    """{alphabet: {character: [zip entries, one per drawer]}}, checked to be as they should be."""
    found = {}
    entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
    if len(entries) > _OMNIGLOT_MOST:
        raise ValueError(f"{path}: {len(entries)} entries; this is not Omniglot's file.")
    for entry in entries:
        if entry.is_dir():
            continue
        parts = entry.filename.split("/")
        if len(parts) != 4 or parts[0] != stem or ".." in parts or not parts[3].endswith(".png"):
            raise ValueError(
                f"{path}: holds {entry.filename!r}, where {stem}/ALPHABET/CHARACTER/NAME.png is "
                "wanted; get the official file."
            )
        found.setdefault(parts[1], {}).setdefault(parts[2], []).append(entry)
    counts = {len(row) for rows in found.values() for row in rows.values()}
    if len(counts) != 1:
        raise ValueError(
            f"{path}: characters were drawn {sorted(counts)} times, the same number of times each "
            "is wanted; drawings are missing, get it again."
        )
    return found


def _drawing(archive, entry, path):
    """One drawing as a float array, 1 where there is ink."""
    from PIL import Image

    if entry.file_size > _OMNIGLOT_MOST:
        raise ValueError(f"{path}: {entry.filename} expands to {entry.file_size} bytes; not read.")
    with archive.open(entry) as file:
        content = io.BytesIO(file.read(_OMNIGLOT_MOST))
    try:
        with Image.open(content, formats=["PNG"]) as image:
            wanted = _OMNIGLOT_SIDE, _OMNIGLOT_SIDE
            if image.size != wanted:  # known from the header, before pixels are expanded
                raise ValueError(f"{path}: {entry.filename} is {image.size}, not {wanted}.")
            return 1.0 - np.asarray(image.convert("L")) / 255
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: {entry.filename} is no whole PNG ({error}).") from error


def one_hot(labels, classes, dtype=np.float32):
    """Labels of any shape, integers in [0, classes), to rows: shape + (classes,) of 0 and 1.

    Raises: ValueError for a label outside the range, TypeError for labels that are no integers.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"one_hot: labels are {labels.dtype}, integers are wanted; convert them.")
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        raise ValueError(
            f"one_hot: label {outside.flat[0]} is outside 0 to {classes - 1}; raise classes."
        )
    return np.eye(classes, dtype=dtype)[labels]


def find(name):
    """Path of the data file `name` ("mnist/train-images-idx3-ubyte.gz").

    It is looked for in the folder `REVGRAD_DATA`, then in `cache_dir()`, then downloaded there if
    it is one of the known files, pooch is installed and there is a network.
    Raises: FileNotFoundError saying where it was looked for; ValueError for a name that leaves
    the folder, and from pooch for a download with the wrong checksum.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts:
        raise ValueError(f"find: {name!r} must be a path below the data folder, such as 'mnist/x'.")
    given = os.environ.get("REVGRAD_DATA")
    places = [Path(given)] if given else []
    places.append(cache_dir())
    for place in places:
        if (place / relative).is_file():
            return place / relative
    path, reason = _download(name, cache_dir())
    if path is None:
        looked = ", ".join(str(place / relative) for place in places)
        unset = "" if given else " (REVGRAD_DATA is not set)"
        raise FileNotFoundError(
            f"no file {looked}{unset}; not downloaded: {reason}. Set REVGRAD_DATA to the folder "
            f"that holds {name}, or put the file in {cache_dir()}."
        )
    return path


def cache_dir():
    """The user's cache folder for revgrad's data, by the platform's custom; need not exist."""
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "revgrad"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "revgrad"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "revgrad"


def _download(name, folder):
    """(path, None), or (None, why not); a wrong checksum raises ValueError and leaves no file."""
    if name not in _DOWNLOADS:
        return None, "revgrad knows no address for it"
    try:
        import pooch
    except ImportError:
        return None, "pooch is not installed"
    reason = ""
    for mirror in _MIRRORS:
        try:
            path = pooch.retrieve(
                mirror + name,
                known_hash="sha256:" + _DOWNLOADS[name],
                fname=PurePosixPath(name).name,
                path=(folder / name).parent,
            )
        except OSError as error:
            reason = f"{type(error).__name__} at {mirror}"
        else:
            return Path(path), None
    return None, reason


def read_idx(path, *, limit=2**30):
    """The array in an idx file, gzipped or not, in the machine's byte order.

    The header (two zero bytes, type, number of dimensions, the dimensions as big-endian uint32)
    is checked against the file's length before memory is allocated; a gzipped file is never
    expanded beyond what its header announces, nor beyond `limit` bytes.
    Raises: ValueError for anything but a whole idx file of exactly that length.
    """
    with open(path, "rb") as file:
        most = os.fstat(file.fileno()).st_size
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            if not zipped:
                return _read_array(file, path, most, limit)
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_array(stream, path, most * _DEFLATE_RATIO, limit)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); get it again.") from error


def _read_array(stream, path, most, limit):
    """The array of a stream that can hold `most` bytes, header included."""
    dtype, shape = _read_header(stream, path)
    size, room = _checked_size(dtype, shape, path, limit), most - 4 - 4 * len(shape)
    found = f"at most {room}"
    if size <= room:
        content = stream.read(size)
        found = "more" if stream.read(1) else len(content)
    if found != size:
        raise ValueError(
            f"{path}: the header announces {dtype.name} {shape}, {size} bytes, the file holds "
            f"{found}; it is cut or damaged, get it again."
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_header(stream, path):
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
        raise ValueError(
            f"{path}: starts with 0x{magic.hex()}, an idx file with 0x0000, a type 0x08, 0x09 or "
            "0x0b to 0x0e, and the number of dimensions; this is no idx file."
        )
    if magic[3] > _IDX_DIMENSIONS:
        raise ValueError(f"{path}: {magic[3]} dimensions, at most {_IDX_DIMENSIONS} are read.")
    raw = stream.read(4 * magic[3])
    if len(raw) < 4 * magic[3]:
        raise ValueError(
            f"{path}: the header announces {magic[3]} dimensions and ends after {len(raw)} of "
            f"{4 * magic[3]} bytes; the file is cut, get it again."
        )
    return np.dtype(_IDX_DTYPES[magic[2]]), tuple(np.frombuffer(raw, ">u4").tolist())


def _checked_size(dtype, shape, path, limit):
    """Bytes of the array; dimensions are bounded by `limit` even beside one that is zero."""
    if math.prod(max(extent, 1) for extent in shape) * dtype.itemsize > limit:
        raise ValueError(
            f"{path}: the header announces {dtype.name} {shape}, more than {limit} bytes; "
            "if that is meant, pass a larger limit."
        )
    return math.prod(shape) * dtype.itemsize


def minibatches(data, size, seed, *, short=False):
    """Batches of `size` examples as a pure function of the step, for `train`.

    data: a tree of arrays with one leading axis N in common, kept by reference.
    seed: an integer in [0, 2**64). Each epoch takes a fresh order of the N examples, without
    replacement; the last N mod size of them are left out of that epoch, or with short=True make a
    last batch of fewer.
    Result: a `Minibatches`; the batch of a step depends on (N, size, seed, step) alone, whatever
    was asked before and in whatever thread.
    Raises: ValueError for size outside [1, N], unequal leading axes, or no arrays at all.
    """
    return Minibatches(data, size, seed, short)


class Minibatches:
    """What `minibatches` returns: call it with a step for the batch, a tree like the data.

    size, seed: as given; steps_per_epoch: N / size, rounded down, or up if short.
    """

    def __init__(self, data, size, seed, short=False):
        self.size, self.seed = operator.index(size), operator.index(seed)
        if not 0 <= self.seed < _WORD:
            raise ValueError(f"minibatches: seed is {seed}, an integer in [0, 2**64) is wanted.")
        self.data, self._count = data, _leading_axis(data)
        if not 1 <= self.size <= self._count:
            raise ValueError(
                f"minibatches: size is {size}, the data has {self._count} examples; "
                f"pass a size from 1 to {self._count}."
            )
        self.steps_per_epoch = -(-self._count // self.size) if short else self._count // self.size
        self._orders = {}  # of the latest epochs; replaced whole, so that threads may share it

    def __call__(self, step):
        """The batch of `step`, a non-negative integer: copies of `size` rows of every leaf."""
        rows, there = self.indices(step), {}

        def taken(leaf):
            home = homes.module_of(leaf)
            if home not in there:
                there[home] = homes.beside(rows, leaf)
            return leaf[there[home]]

        return optree.tree_map(taken, self.data)

    def indices(self, step):
        """Row numbers (size,) int64 of the batch of `step`; read-only."""
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"minibatches: step is {step}, steps count from 0.")
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[place * self.size : (place + 1) * self.size]

    def _order(self, epoch):
        orders = self._orders
        if epoch not in orders:
            order = _permutation(self._count, self.seed, epoch)
            order.flags.writeable = False
            room = max(1, _ORDERS // order.nbytes) - 1
            self._orders = orders = dict([*orders.items()][-room:] if room else ()) | {epoch: order}
        return orders[epoch]

    def __repr__(self):
        return (
            f"minibatches({self._count} examples, size={self.size}, seed={self.seed}: "
            f"{self.steps_per_epoch} steps per epoch)"
        )


def _permutation(count, seed, epoch):
    """A random order of range(count), int64, from (seed, epoch) alone.

    Philox's raw words are sorted, because NumPy keeps a bit generator's stream over its releases
    and `Generator.permutation`'s not.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def _leading_axis(data):
    leaves, tree = optree.tree_flatten(data)
    names = [accessor.codify("data") for accessor in optree.treespec_accessors(tree)]
    extents = {}
    for name, leaf in zip(names, leaves, strict=True):
        shape = getattr(leaf, "shape", ())
        if not shape:
            raise ValueError(
                f"minibatches: {name} is a {type(leaf).__name__} without a leading axis; "
                "pass a tree of arrays with one row for each example."
            )
        extents[name] = shape[0]
    if not extents:
        raise ValueError("minibatches: the data is a tree with no arrays; pass at least one.")
    if len(set(extents.values())) > 1:
        listed = ", ".join(f"{name} has {extent}" for name, extent in extents.items())
        raise ValueError(
            f"minibatches: leading axes differ: {listed}; pass the same examples in every leaf."
        )
    return next(iter(extents.values()))
