"""Readers refuse what is not whole; minibatches depend on the step and on nothing else."""

import gzip
import hashlib
import io
import pickle
import struct
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from revgrad import data

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
# SHA-256 of the official files after decompression, the same however they were compressed.
MNIST_CONTENT = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def idx_bytes(array):
    """The idx file of an array, by its specification."""
    array = np.asarray(array)
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    dimensions = struct.pack(f">{array.ndim}I", *array.shape)
    return header + dimensions + array.astype(array.dtype.newbyteorder(">")).tobytes()


def written(folder, content, zipped=False):
    path = folder / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(content, 1, mtime=0) if zipped else content)
    return path


def idx_arrays():
    return st.sampled_from(sorted(CODES)).flatmap(
        lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(min_dims=0, min_side=0))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("idx")


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """An empty cache, no REVGRAD_DATA, no network. Returns the cache's folder."""
    monkeypatch.delenv("REVGRAD_DATA", raising=False)
    monkeypatch.setattr(data, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "pooch", None)
    return tmp_path / "cache"


@given(idx_arrays(), st.booleans())
def test_an_idx_file_is_read_back(folder, array, zipped):
    read = data.read_idx(written(folder, idx_bytes(array), zipped))
    assert read.dtype == array.dtype and read.shape == array.shape and read.flags.writeable
    assert read.tobytes() == array.tobytes()


@given(st.data(), idx_arrays(), st.booleans())
def test_an_idx_file_of_another_length_is_refused(folder, draw, array, zipped):
    content = idx_bytes(array)
    cut = content[: draw.draw(st.integers(0, len(content) - 1))]
    for damaged in (cut, content + b"\0"):
        with pytest.raises(ValueError, match=r"idx|holds|ends after"):
            data.read_idx(written(folder, damaged, zipped))


@given(st.data(), idx_arrays())
def test_a_gzip_file_cut_or_changed_is_refused_or_harmless(folder, draw, array):
    path = written(folder, idx_bytes(array), zipped=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.draw(st.integers(2, len(whole) - 1))])
    with pytest.raises(ValueError):
        data.read_idx(path)
    place = draw.draw(st.integers(2, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    try:
        read = data.read_idx(path)
    except ValueError:
        return
    assert read.tobytes() == array.tobytes()


@given(st.binary(max_size=40))
@example(b"\0\0\x08\xff" + b"\xff" * 36)
@example(b"\0\0\x08\x02" + b"\0" * 4 + b"\xff" * 4)
@example(b"\0\0\x08\x03" + b"\xff" * 12)
@example(b"\x1f\x8b")
def test_arbitrary_bytes_are_an_array_or_a_value_error(folder, content):
    try:
        data.read_idx(written(folder, content))
    except ValueError:
        return
    assert content[:2] == b"\0\0"


def test_headers_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    def header(*shape):
        return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)

    with pytest.raises(ValueError, match="more than 1073741824 bytes"):
        data.read_idx(written(tmp_path, header(2**31, 2**31)))
    with pytest.raises(ValueError, match="more than 1073741824 bytes"):
        data.read_idx(written(tmp_path, header(0, 2**31, 2**31)))
    with pytest.raises(ValueError, match="268435456 bytes, the file holds at most 3;"):
        data.read_idx(written(tmp_path, header(2**28) + b"abc"))
    with pytest.raises(ValueError, match=r"268435456 bytes, the file holds at most [0-9]+;"):
        data.read_idx(written(tmp_path, header(2**28) + b"abc", zipped=True))
    with pytest.raises(ValueError, match="33 dimensions"):
        data.read_idx(written(tmp_path, header(*[1] * 33)))


def test_a_gzip_bomb_is_not_expanded(tmp_path):
    bomb = bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + bytes(50_000_000)
    path = written(tmp_path, bomb, zipped=True)
    assert path.stat().st_size < 300_000
    with pytest.raises(ValueError, match="10 bytes, the file holds more;"):
        data.read_idx(path)
    honest = written(tmp_path, idx_bytes(np.zeros(50_000_000, np.uint8)), zipped=True)
    with pytest.raises(ValueError, match="more than 1000000 bytes"):
        data.read_idx(honest, limit=1_000_000)


def test_no_idx_file_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match="starts with 0x89504e47, an idx file with 0x0000"):
        data.read_idx(written(tmp_path, b"\x89PNG\r\n"))


def test_data_is_found_in_its_folder_then_in_the_cache(no_data, tmp_path, monkeypatch):
    given_folder = tmp_path / "given"
    for place in (no_data, given_folder):
        (place / "mnist").mkdir(parents=True)
        (place / "mnist" / "x").write_text("")
    assert data.find("mnist/x") == no_data / "mnist" / "x"
    monkeypatch.setenv("REVGRAD_DATA", str(given_folder))
    assert data.find("mnist/x") == given_folder / "mnist" / "x"


def test_a_file_that_is_nowhere_is_an_error_with_advice(no_data, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"REVGRAD_DATA is not set.*pooch is not installed"):
        data.mnist()
    with pytest.raises(FileNotFoundError, match="knows no address"):
        data.find("mnist/other")
    monkeypatch.setenv("REVGRAD_DATA", "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no file elsewhere.*Set REVGRAD_DATA to the"):
        data.mnist()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\\b"])
def test_names_stay_below_the_folder(no_data, name):
    with pytest.raises(ValueError, match="below the data folder"):
        data.find(name)


def fake_pooch(retrieve):
    module = types.ModuleType("pooch")
    module.retrieve = retrieve
    return module


def test_a_download_names_its_checksum_and_tries_the_next_mirror(no_data, monkeypatch):
    calls = []

    def retrieve(url, known_hash, fname, path):
        calls.append((url, known_hash, path / fname))
        if len(calls) == 1:
            raise ConnectionError
        return str(path / fname)

    monkeypatch.setitem(sys.modules, "pooch", fake_pooch(retrieve))
    name = "mnist/t10k-labels-idx1-ubyte.gz"
    assert data.find(name) == no_data / name
    assert [url.endswith("/" + name) for url, _, _ in calls] == [True, True]
    assert {known[:15] for _, known, _ in calls} == {"sha256:f7ae60f9"}


def test_without_a_network_the_mirror_that_failed_is_named(no_data, monkeypatch):
    def retrieve(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "pooch", fake_pooch(retrieve))
    with pytest.raises(FileNotFoundError, match="not downloaded: ConnectionError at https://"):
        data.find("mnist/t10k-labels-idx1-ubyte.gz")


def test_a_wrong_checksum_leaves_nothing_in_the_cache(no_data, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pooch")
    pytest.importorskip("pooch")
    name = "mnist/t10k-labels-idx1-ubyte.gz"
    (tmp_path / "mnist").mkdir()
    (tmp_path / name).write_bytes(b"not MNIST")

    import pooch

    def copy(url, output_file, _):
        with open(output_file, "wb") as file:
            file.write((tmp_path / name).read_bytes())

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar: copy)
    with pytest.raises(ValueError, match=r"(?i)hash"):
        data.find(name)
    assert not (no_data / name).exists()


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/c", "/c/revgrad"),
        ("linux", "XDG_CACHE_HOME", "", "/home/u/.cache/revgrad"),
        ("darwin", "XDG_CACHE_HOME", "/c", "/home/u/Library/Caches/revgrad"),
        ("win32", "LOCALAPPDATA", "/l", "/l/revgrad"),
    ],
)
def test_the_cache_follows_the_platform(monkeypatch, platform, variable, value, expected):
    monkeypatch.setattr(data.sys, "platform", platform)
    monkeypatch.setattr(data.Path, "home", lambda: data.Path("/home/u"))
    monkeypatch.setenv(variable, value)
    assert data.cache_dir().as_posix() == expected


def test_mnist_is_the_official_one(mnist_dir):
    for name, digest in MNIST_CONTENT.items():
        with gzip.open(mnist_dir / f"{name}.gz") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_mnist_keeps_the_files_order(mnist_dir):
    train, valid, test = data.mnist(train=1000, valid=500, test=200, dtype=np.float64)
    assert [part.x.shape for part in (train, valid, test)] == [(1000, 784), (500, 784), (200, 784)]
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and train.y.dtype == np.int64
    images = data.read_idx(mnist_dir / "train-images-idx3-ubyte.gz")
    assert round(images.mean() / 255, 5) == 0.13066
    np.testing.assert_array_equal(valid.x, images[1000:1500].reshape(500, 784) / 255)
    with pytest.raises(ValueError, match="60001 train examples were asked for"):
        data.mnist(train=60_000, valid=1)


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (np.zeros((3, 28, 27), "u1"), np.zeros(3, "u1"), "the file has uint8"),
        (np.zeros((3, 28, 28), "u1"), np.zeros(2, "u1"), "one for each of 3 images"),
        (np.zeros((3, 28, 28), "u1"), np.full(3, 10, "u1"), "0 to 9"),
    ],
)
def test_files_that_are_not_mnists_are_refused(no_data, images, labels, told):
    (no_data / "mnist").mkdir(parents=True)
    (no_data / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(idx_bytes(images))
    (no_data / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError, match=told):
        data.mnist(1, 1, 1)


def test_digits_are_split_without_overlap():
    pytest.importorskip("sklearn")
    splits = data.digits()
    assert [part.x.shape for part in splits] == [(1000, 64), (400, 64), (397, 64)]
    everything = np.concatenate([part.x for part in splits])
    assert everything.dtype == np.float32 and everything.min() == 0 and everything.max() == 1
    assert len(np.unique(everything, axis=0)) == 1797
    assert splits.train.y[:10].tolist() == data.digits().train.y[:10].tolist()
    assert (data.digits(seed=1).train.x != splits.train.x).any()
    with pytest.raises(ValueError, match="at most 1796 together"):
        data.digits(train=1797, valid=0)


def test_one_hot_rows_have_one_one():
    rows = data.one_hot([[2, 0], [1, 1]], 3)
    assert rows.shape == (2, 2, 3) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows.argmax(-1), [[2, 0], [1, 1]])
    np.testing.assert_array_equal(rows.sum(-1), 1)
    with pytest.raises(ValueError, match="label 3 is outside 0 to 2"):
        data.one_hot(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="label -1"):
        data.one_hot([-1], 3)
    with pytest.raises(TypeError, match="float64"):
        data.one_hot([0.5], 3)


sizes = st.integers(1, 40).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))
seeds = st.integers(0, 2**64 - 1)


@given(sizes, seeds, st.integers(0, 2**40))
@example((7, 7), 0, 0)
@example((7, 4), 2**64 - 1, 3)
def test_an_epoch_meets_each_example_at_most_once(size, seed, epoch):
    count, size = size
    batches = data.minibatches(np.arange(count), size, seed)
    assert batches.steps_per_epoch == count // size and batches.size == size
    first = epoch * batches.steps_per_epoch
    met = np.concatenate([batches(first + k) for k in range(batches.steps_per_epoch)])
    assert len(met) == count - count % size
    assert len(np.unique(met)) == len(met) and set(met.tolist()) <= set(range(count))


@given(sizes, seeds, st.integers(0, 3))
def test_with_short_batches_an_epoch_meets_every_example(size, seed, epoch):
    count, size = size
    batches = data.minibatches(np.arange(count), size, seed, short=True)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    met = [batches(k) for k in steps]
    assert {len(x) for x in met[:-1]} <= {size} and 1 <= len(met[-1]) <= size
    assert sorted(np.concatenate(met).tolist()) == list(range(count))


@given(sizes, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_batch_depends_on_the_step_alone(size, seed, steps):
    count, size = size
    asked = data.minibatches(np.arange(count), size, seed)
    for step in steps:
        fresh = data.minibatches(np.arange(count), size, seed)
        np.testing.assert_array_equal(asked.indices(step), fresh.indices(step))


def test_the_order_is_fixed_for_good():
    batches = data.minibatches(np.arange(10), 5, 42)
    assert [batches.indices(step).tolist() for step in range(4)] == [
        [7, 1, 6, 4, 3],
        [5, 9, 0, 2, 8],
        [4, 9, 5, 3, 0],
        [2, 7, 1, 6, 8],
    ]


def test_orders_differ_between_epochs_and_seeds():
    batches = data.minibatches(np.arange(100), 100, 0)
    others = [batches.indices(1), data.minibatches(np.arange(100), 100, 1).indices(0)]
    for other in others:
        assert (batches.indices(0) != other).mean() > 0.9


def test_each_example_comes_first_about_equally_often():
    batches = data.minibatches(np.arange(5), 1, 0)
    firsts = np.bincount([batches.indices(5 * epoch)[0] for epoch in range(2000)], minlength=5)
    assert abs(firsts - 400).max() < 90  # five standard deviations


def test_threads_see_the_same_batches():
    batches = data.minibatches(np.arange(1000), 100, 7)
    expected = [data.minibatches(np.arange(1000), 100, 7)(step).tolist() for step in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            got = list(pool.map(lambda step: batches(step % 60).tolist(), range(180)))
            assert got == expected * 3


def test_a_tree_of_arrays_keeps_its_shape():
    tree = {
        "images": data.Split(np.arange(12).reshape(6, 2), np.arange(6)),
        "weight": np.arange(6.0),
    }
    batches = data.minibatches(tree, 4, 0)
    batch, rows = batches(3), batches.indices(3)
    assert isinstance(batch["images"], data.Split) and batch["images"].x.shape == (4, 2)
    np.testing.assert_array_equal(batch["images"].x, tree["images"].x[rows])
    np.testing.assert_array_equal(batch["weight"], rows)
    assert not rows.flags.writeable and "1 steps per epoch" in repr(batches)


def test_minibatches_travel_to_another_process():
    batches = data.minibatches(np.arange(10), 3, 0)
    assert pickle.loads(pickle.dumps(batches))(5).tolist() == batches(5).tolist()


@pytest.mark.parametrize(
    ("tree", "size", "told"),
    [
        (np.zeros(10), 11, "size is 11, the data has 10 examples"),
        (np.zeros(10), 0, "size is 0"),
        (np.zeros((0, 3)), 1, "the data has 0 examples"),
        ((np.zeros(10), {"y": np.zeros(9)}), 1, r"data\[0\] has 10, data\[1\]\['y'\] has 9"),
        ({"x": np.zeros(3), "n": 3}, 1, r"data\['n'\] is a int without a leading axis"),
        ([], 1, "no arrays"),
    ],
)
def test_minibatches_refuse(tree, size, told):
    with pytest.raises(ValueError, match=told):
        data.minibatches(tree, size, 0)


def test_steps_and_seeds_are_checked():
    batches = data.minibatches(np.zeros(3), 1, 0)
    with pytest.raises(ValueError, match="step is -1"):
        batches(-1)
    with pytest.raises(TypeError):
        batches(1.0)
    with pytest.raises(ValueError, match="seed is -1"):
        data.minibatches(np.zeros(3), 1, -1)


# Omniglot.


def drawing(ink=(), size=(105, 105)):
    """A PNG with black pixels on white."""
    image = pytest.importorskip("PIL.Image").new("1", size, 1)
    for place in ink:
        image.putpixel(place, 0)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def omniglot_zip(tmp_path, monkeypatch):
    """A function that writes entries, (name, content) pairs, as Omniglot's small set 1."""
    monkeypatch.setenv("REVGRAD_DATA", str(tmp_path))
    (tmp_path / "omniglot").mkdir()

    def write(entries):
        path = tmp_path / "omniglot/images_background_small1.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return path

    return write


def entry(character, drawer, content, alphabet="Greek", stem="images_background_small1"):
    return f"{stem}/{alphabet}/character{character:02}/{drawer:04}.png", content


def test_omniglot_averages_ink_over_boxes(omniglot_zip):
    omniglot_zip([entry(1, 2, drawing()), entry(1, 1, drawing([(0, 0), (104, 3)]))])
    found = data.omniglot()["Greek"]
    assert found.shape == (1, 2, 28, 28)
    assert found.dtype == np.float32
    whole = (28 / 105) ** 2
    assert found[0, 0, 0, 0] == pytest.approx(whole)
    assert found[0, 0, 0, 27] == pytest.approx(0.75 * whole)  # 3/4 of the pixel's height
    assert found[0, 0, 1, 27] == pytest.approx(0.25 * whole)
    assert np.count_nonzero(found) == 3
    assert data.omniglot(side=105, dtype=np.float64)["Greek"].sum() == pytest.approx(2)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        (lambda: [("../evil.png", drawing())], "evil.png"),
        (lambda: [entry(1, 1, drawing(), alphabet="..")], "ALPHABET"),
        (lambda: [entry(1, 1, drawing(), stem="other")], "other"),
        (lambda: [entry(1, 1, drawing(size=(104, 105)))], "104"),
        (lambda: [entry(1, 1, bytes(200_000))], "expands to 200000"),
        (lambda: [entry(1, 1, b"GIF89a no picture")], "no whole PNG"),
        (lambda: [entry(1, 1, drawing()[:-30])], "no whole PNG"),
        (lambda: [entry(1, k, drawing()) for k in (1, 2)] + [entry(2, 1, drawing())], "1, 2"),
        (list, "drawn"),
    ],
)
def test_what_is_not_omniglot_is_refused(omniglot_zip, entries, what):
    omniglot_zip(entries())
    with pytest.raises(ValueError, match=what):
        data.omniglot()


def test_a_cut_zip_is_refused(omniglot_zip):
    path = omniglot_zip([entry(1, 1, drawing())])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged zip"):
        data.omniglot()


def test_omniglot_refuses_other_parts_and_sides():
    with pytest.raises(ValueError, match="small1, small2"):
        data.omniglot("large")
    for side in (0, 106):
        with pytest.raises(ValueError, match="1 to 105"):
            data.omniglot(side=side)


def test_a_missing_omniglot_says_where_it_was_looked_for(no_data):
    with pytest.raises(FileNotFoundError, match=r"images_background_small2\.zip"):
        data.omniglot("small2")


def test_the_official_omniglot():
    try:
        data.find("omniglot/images_background_small1.zip")
    except FileNotFoundError as error:
        pytest.skip(f"Omniglot is absent: {error}")
    found = data.omniglot("small1")
    counts = {"Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26}
    assert {k: len(x) for k, x in found.items()} == counts
    assert all(x.shape[1:] == (20, 28, 28) for x in found.values())
    assert all(x.min() >= 0 and x.max() <= 1.000001 for x in found.values())
    assert (
        0.06 < np.mean([x.mean() for x in found.values()]) < 0.1
    )  # ink on paper, not paper on ink
