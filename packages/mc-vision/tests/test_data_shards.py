"""Tar shards: keys, endings, labels, the cached index, random access, and damaged files; local and over HTTP."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import pickle
import re
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from mc_core import remote
from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.shards import expand_braces
from mc_vision.data import ReadOptions, open_shards, open_source, shards


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MC_CACHE", str(tmp_path / "cache"))


def picture(value, file_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(file, file_format)
    return file.getvalue()


def write_tar(path, members):
    """``members``: name → bytes, text, or anything that becomes JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if not isinstance(content, (bytes, str)):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def numbered(tmp_path, count=3, each=4):
    for shard in range(count):
        members = {}
        for i in range(each):
            value = shard * each + i
            members |= {f"{value:04d}.png": picture(value), f"{value:04d}.cls": str(value % 2)}
        write_tar(tmp_path / f"set-{shard:03d}.tar", members)
    return tmp_path


def reds(source):
    return [source.load(i).getpixel((0, 0))[0] for i in range(len(source))]


@pytest.mark.parametrize("pattern", ["set-{000..002}.tar", "set-*.tar", "set-000.tar::{root}/set-{001,002}.tar", ""])
def test_patterns(tmp_path, pattern):
    numbered(tmp_path)
    source = open_source(f"{tmp_path}/{pattern}".replace("{root}", str(tmp_path)))
    assert reds(source) == list(range(12))
    assert source.labels.tolist() == [0, 1] * 6
    assert source.name(5) == f"{tmp_path}/set-001.tar/0005"
    assert source.load(-1).getpixel((0, 0))[0] == 11


def test_expanded_braces():
    assert expand_braces("a-{9..11}.tar") == ["a-9.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{02..00}") == ["02", "01", "00"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert expand_braces("{one}.tar") == ["{one}.tar"]
    with pytest.raises(DataError, match="more than 1,000,000"):
        expand_braces("{0..99999999}")
    with pytest.raises(DataError, match="more than 1,000,000"):
        expand_braces("{0..9999}{0..9999}")


def test_keys_end_at_the_first_dot(tmp_path):
    members = {
        "./train/a.b/0001.jpg": picture(50, "JPEG"),  # a dot in a folder is no ending
        "./train/a.b/0001.seg.png": picture(60),
        "./train/a.b/0001.JSON": {"label": 3},
        "x.v2.png": picture(70),
        "x.json": {"label": 4},
        "._x.png": b"resource fork",
        "README": "no dot",
        "classes.json": ["c0", "c1", "c2", "c3", "c4"],
    }
    source = open_shards(write_tar(tmp_path / "t.tar", members))
    assert [source.name(i).removeprefix(f"{tmp_path}/t.tar/") for i in range(2)] == ["train/a.b/0001", "x"]
    assert abs(reds(source)[0] - 50) < 3
    assert reds(source)[1] == 70
    assert source.labels.tolist() == [3, 4]
    assert source.classes == ["c0", "c1", "c2", "c3", "c4"]


def test_which_image(tmp_path):
    both = write_tar(
        tmp_path / "t.tar", {"0.left.png": picture(1), "0.right.png": picture(2), "1.left.png": picture(3)}
    )
    with pytest.raises(
        DataError, match=r"t\.tar/0 has several images \(left\.png, right\.png\): say which with image_column"
    ):
        open_shards(both)
    assert reds(open_shards(both, ReadOptions(image_column=".left.png"))) == [1, 3]
    assert reds(open_shards(both, ReadOptions(image_column="right.png"))) == [2]
    two = write_tar(tmp_path / "u.tar", {"0.png": picture(9), "0.jpg": picture(4, "JPEG")})
    assert open_shards(two).load(0).getpixel((0, 0)) != (9, 0, 0)
    assert reds(open_shards(two, ReadOptions(image_column="png"))) == [9]


def test_labels_of_json(tmp_path):
    records = [{"class_name": "toad", "patient": "p1"}, {"class_name": "newt", "patient": "p2"}]
    records.append({"class_name": "toad", "patient": "p1"})
    members = {}
    for i, record in enumerate(records):
        members |= {f"{i}.png": picture(i), f"{i}.json": record}
    path = write_tar(tmp_path / "t.tar", members)
    source = open_shards(path, ReadOptions(id_column="patient"))
    assert source.classes == ["newt", "toad"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.ids.tolist() == [0, 1, 0]
    assert open_shards(path, ReadOptions(labels="none")).labels is None
    assert open_shards(path, ReadOptions(label_column="patient")).classes == [
        "p1",
        "p2",
    ]  # not the cached index of the first
    with pytest.raises(DataError, match="no sample has a JSON field 'species', as label_column asks for"):
        open_shards(path, ReadOptions(label_column="species"))
    with pytest.raises(DataError, match="no sample has a JSON field 'site', as id_column asks for"):
        open_shards(path, ReadOptions(id_column="site"))


def test_numbers_and_names_together(tmp_path):
    members = {}
    for i, (label, name) in enumerate([(2, "c"), (0, "a"), (2, "c")]):
        members |= {f"{i}.png": picture(i), f"{i}.cls": f"{label}\n", f"{i}.json": {"class_name": name}}
    source = open_shards(write_tar(tmp_path / "t.tar", members))
    assert source.labels.tolist() == [2, 0, 2]
    assert source.classes == ["a", "1", "c"]


def test_some_labels_missing(tmp_path):
    members = {"0.png": picture(0), "0.cls": "1", "1.png": picture(1)}
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match=r"t\.tar/1: the label is empty; .*labels='none'"):
        open_shards(path)
    assert len(open_shards(path, ReadOptions(labels="none"))) == 2


def test_index_is_cached_and_renewed(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "t.tar", {"a.png": picture(1)})
    walked = []
    index_shard = shards.index_shard
    monkeypatch.setattr(
        shards, "index_shard", lambda shard, options: walked.append(shard) or index_shard(shard, options)
    )
    assert reds(open_shards(path)) == reds(open_shards(path)) == [1]
    assert len(walked) == 1
    write_tar(path, {"a.png": picture(2), "b.png": picture(3)})
    assert reds(open_shards(path)) == [2, 3]
    assert len(walked) == 2
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert reds(open_shards(path)) == [2, 3]  # a damaged cache is rebuilt
    monkeypatch.setenv("MC_CACHE", str(path))  # a file: no cache can be there
    assert reds(open_shards(path)) == [2, 3]


def test_pickle_and_digest(tmp_path):
    numbered(tmp_path)
    source = open_source(f"{tmp_path}/set-*.tar")
    source.load(0)
    assert reds(pickle.loads(pickle.dumps(source))) == list(range(12))
    (tmp_path / "moved").mkdir()
    for shard in tmp_path.glob("*.tar"):
        shard.rename(tmp_path / "moved" / shard.name)
    assert open_source(f"{tmp_path}/moved/set-*.tar").describe()["digest"] == source.describe()["digest"]
    assert open_source(f"{tmp_path}/moved/set-00[01].tar").describe()["digest"] != source.describe()["digest"]


def test_many_shards_need_few_open_files(tmp_path):
    numbered(tmp_path, count=80, each=1)
    source = open_source(f"{tmp_path}/set-*.tar")
    assert reds(source) == list(range(80))
    assert source._file.cache_info().currsize == 64


def test_missing_shards(tmp_path):
    numbered(tmp_path, count=2)
    with pytest.raises(DataError, match=r"no shard .*set-002\.tar \(one of 3 named by"):
        open_source(f"{tmp_path}/set-{{000..002}}.tar")
    with pytest.raises(DataError, match=r"set-007\.tar does not exist; .* holds set-00"):
        open_source(f"{tmp_path}/set-007.tar")
    with pytest.raises(DataError, match=r"no shard .*x-\*\.tar"):
        open_source(f"{tmp_path}/x-*.tar")


@pytest.mark.parametrize(
    ("cut", "last"), [(100, "none"), (520, "none"), (1100, "k0"), (1600, "k0"), (2100, "k1"), (3600, "k2")]
)
def test_truncated_shard_names_the_last_good_key(tmp_path, cut, last):
    path = write_tar(tmp_path / "t.tar", {f"k{i}.png": picture(i) for i in range(4)})  # 1024 bytes each
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"t\.tar is damaged or cut off .*; the last good key is '{last}'"):
        open_shards(path)


def test_shard_that_ends_without_the_closing_blocks_is_whole(tmp_path):
    path = write_tar(tmp_path / "t.tar", {f"k{i}.png": picture(i) for i in range(4)})
    path.write_bytes(path.read_bytes()[: 4 * 1024])
    assert reds(open_shards(path)) == [0, 1, 2, 3]


def test_damaged_header_in_the_middle(tmp_path):
    path = write_tar(tmp_path / "t.tar", {f"k{i}.png": picture(i) for i in range(4)})
    data = bytearray(path.read_bytes())
    data[2048:2100] = b"#" * 52
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a header is damaged.*the last good key is 'k1'"):
        open_shards(path)


def test_other_files(tmp_path):
    plain = write_tar(tmp_path / "t.tar", {"a.png": picture(1)}).read_bytes()
    (tmp_path / "c.tar").write_bytes(gzip.compress(plain))
    with pytest.raises(DataError, match=r"c\.tar is compressed with gzip: decompress"):
        open_shards(tmp_path / "c.tar")
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(plain))
    with pytest.raises(DataError, match=r"c\.tar\.gz is a compressed archive"):
        open_source(tmp_path / "c.tar.gz")
    (tmp_path / "n.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(DataError, match=r"n\.tar is damaged or cut off"):
        open_shards(tmp_path / "n.tar")
    (tmp_path / "n.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"n\.tar is damaged or cut off"):
        open_shards(tmp_path / "n.tar")
    with pytest.raises(DataError, match=r"no sample has an image file .* the first shard holds 2 files \.npy"):
        open_shards(write_tar(tmp_path / "n.tar", {"a.npy": b"1", "b.npy": b"2"}))
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=r"sample 'a' has two files \.png"):
        open_shards(tmp_path / "d.tar")
    with pytest.raises(DataError, match=r"a\.json is not JSON"):
        open_shards(write_tar(tmp_path / "j.tar", {"a.png": picture(1), "a.json": "{"}))


def test_bad_image_in_a_good_shard(tmp_path):
    source = open_shards(write_tar(tmp_path / "t.tar", {"a.png": picture(1)[:45], "b.png": picture(2)}))
    with pytest.raises(BadSampleError, match=r"t\.tar/a: "):
        source.load(0)
    assert source.load(1).getpixel((0, 0))[0] == 2


def test_long_names(tmp_path):
    key = "deep/" * 40 + "x" * 120
    source = open_shards(write_tar(tmp_path / "t.tar", {f"{key}.png": picture(5)}))
    assert reds(source) == [5]
    assert source.name(0).endswith(key)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.log, self.cut, self.version, self.failures = files, [], None, '"v1"', 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves bytes with ranges, and cuts the connection off after ``server.cut`` bytes, once."""

    def do_GET(self):
        data, wanted = self.server.files.get(self.path), self.headers.get("Range")
        self.server.log.append((self.path, wanted))
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        if data is None:
            self.send_error(404)
            return
        start = 0
        if wanted and self.headers.get("If-Range") == self.server.version:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.version)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.server.cut is not None:
            body, self.server.cut = body[: self.server.cut], None
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    numbered(tmp_path, count=2)
    with Server({f"/a/{path.name}": path.read_bytes() for path in tmp_path.glob("*.tar")}) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}/a"
        yield running
        running.shutdown()
        thread.join()


def test_shards_over_http(server, tmp_path, caplog):
    caplog.set_level("INFO", "mc_core.listing")
    source = open_source(f"{server.url}/set-{{000..001}}.tar")
    assert reds(source) == list(range(8))
    assert len(server.log) == 2
    assert f"fetching {server.url}/set-000.tar (10.2 kB) into {tmp_path}/cache/remote" in caplog.text
    server.files.clear()
    again = open_source(f"{server.url}/set-{{000..001}}.tar")  # from the cache
    assert len(server.log) == 2
    assert again.describe() == source.describe()
    assert sorted(p.suffix for p in (tmp_path / "cache/remote").iterdir()) == [".lock", ".lock", ".tar", ".tar"]


def test_interrupted_fetch_goes_on_where_it_stopped(server):
    server.cut = 5000
    assert reds(open_source(f"{server.url}/set-000.tar")) == [0, 1, 2, 3]
    assert [wanted for _, wanted in server.log] == [None, "bytes=5000-"]


def test_interrupted_in_an_earlier_run(server, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_TRIES", 1)
    server.cut = 5000
    with pytest.raises(DataError, match=r"ended after 5,000 of 10,240 bytes; 5\.0 kB is kept, run again to go on"):
        open_source(f"{server.url}/set-000.tar")
    assert not list(tmp_path.glob("cache/remote/*.tar"))
    assert reds(open_source(f"{server.url}/set-000.tar")) == [0, 1, 2, 3]
    assert server.log[-1][1] == "bytes=5000-"


def test_a_file_that_changed_meanwhile_is_fetched_whole(server, monkeypatch):
    monkeypatch.setattr(remote, "_TRIES", 1)
    server.cut = 5000
    with pytest.raises(DataError, match="run again"):
        open_source(f"{server.url}/set-000.tar")
    server.version, server.files["/a/set-000.tar"] = '"v2"', server.files["/a/set-001.tar"]
    assert reds(open_source(f"{server.url}/set-000.tar")) == [4, 5, 6, 7]


def test_servers_that_refuse(server):
    with pytest.raises(DataError, match=r"set-009\.tar: HTTP 404 Not Found; check the address"):
        open_source(f"{server.url}/set-009.tar")
    server.failures = 2
    assert len(open_source(f"{server.url}/set-000.tar")) == 4
    server.failures = 99
    with pytest.raises(DataError, match=r"set-001\.tar: HTTP 503 .*; nothing is kept, run again"):
        open_source(f"{server.url}/set-001.tar")
    with pytest.raises(DataError, match="a URL cannot be globbed"):
        open_source(f"{server.url}/set-*.tar")
    with pytest.raises(DataError, match=r"only \.tar shards are read from URLs"):
        open_source(f"{server.url}/set.parquet")


def test_no_server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as unused:
        port = unused.server_address[1]
    with pytest.raises(DataError, match=rf"127\.0\.0\.1:{port}/t\.tar: no connection"):
        open_source(f"http://127.0.0.1:{port}/t.tar")


def test_several_threads_fetch_once(server):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(remote.fetch(f"{server.url}/set-000.tar").read_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [server.files["/a/set-000.tar"]] * 6
    assert len(server.log) == 1


def test_other_schemes_go_through_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    numbered(tmp_path, count=1)
    with fsspec.open("memory://bucket/t.tar", "wb") as file:
        file.write((tmp_path / "set-000.tar").read_bytes())
    assert reds(open_source("memory://bucket/t.tar")) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"memory://bucket/none\.tar: no such file"):
        open_source("memory://bucket/none.tar")
    with pytest.raises(DataError, match="nonsense://"):
        open_source("nonsense://bucket/t.tar")


def test_threads_share_a_source(tmp_path):
    numbered(tmp_path, count=2, each=20)
    source = open_source(f"{tmp_path}/set-*.tar")
    order = np.random.default_rng(0).permutation(40)
    results: list[list[int]] = []

    def work():
        results.append([source.load(int(i)).getpixel((0, 0))[0] for i in order])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [order.tolist()] * 4
