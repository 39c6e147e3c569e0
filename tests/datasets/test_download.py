"""Fetching from a server on the loopback interface: whole files, and everything that can come instead."""

import hashlib
import http.server
import io
import re
import tarfile
import threading

import pytest

from domainbed.datasets.download import RemoteFile, fetch, unpack
from domainbed.errors import UserError

CONTENT = bytes(range(256)) * 40


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        status, promised, content = self.server.answers.get(self.path, (404, 0, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server of this test, on 127.0.0.1: `answers` by path, (status, promised length, content); `asked`, in order."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as one:
        one.answers, one.asked = {"/file": (200, len(CONTENT), CONTENT)}, []
        one.url = f"http://127.0.0.1:{one.server_port}"
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def remote(*urls, content=CONTENT, algorithm="sha256"):
    return RemoteFile("data.bin", urls, f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")


def message(*arguments):
    with pytest.raises(UserError) as error:
        fetch(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_is_fetched_once_into_a_folder_that_is_made(server, tmp_path, algorithm):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        path = fetch(remote(f"{server.url}/file", algorithm=algorithm), folder)
        assert path == folder / "data.bin" and path.read_bytes() == CONTENT
    assert server.asked == ["/file"]
    assert [path.name for path in folder.iterdir()] == ["data.bin"]


def test_the_next_mirror_is_tried_after_any_failure(server, tmp_path):
    server.answers["/cut"] = (200, len(CONTENT), CONTENT[:5000])
    server.answers["/other"] = (200, 4, b"spam")
    paths = ("/gone", "/cut", "/other", "/file")
    assert fetch(remote(*(server.url + path for path in paths)), tmp_path).read_bytes() == CONTENT
    assert server.asked == list(paths)


def test_every_failure_is_named_and_nothing_is_left(server, tmp_path):
    server.answers["/cut"] = (200, len(CONTENT), CONTENT[:5000])
    server.answers["/other"] = (200, 4, b"spam")
    text = message(remote(*(server.url + path for path in ("/gone", "/cut", "/other"))), tmp_path)
    assert text.startswith(f"can't fetch data.bin ({server.url}/gone: the server answers 404 Not Found; ")
    assert f"{server.url}/cut: the connection broke {len(CONTENT) - 5000} bytes before the end; " in text
    spam = hashlib.sha256(b"spam").hexdigest()
    assert f"{server.url}/other: what came has the checksum sha256:{spam}, not sha256:" in text
    assert text.endswith(f"Fetch it on a machine with access and put it into {tmp_path}")
    assert not list(tmp_path.iterdir())


def test_no_connection(server, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as other:
        closed = f"http://127.0.0.1:{other.server_port}/file"
    assert re.search(rf"{closed}: Connection refused\)\. Fetch it", message(remote(closed), tmp_path))


def test_another_file_of_that_name_is_not_overwritten(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    assert "is not the published file: its checksum is sha256:" in message(remote(f"{server.url}/file"), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"mine" and not server.asked


def test_a_folder_that_can_not_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    assert "can't write" in message(remote(f"{server.url}/file"), tmp_path / "file" / "below")


def archive(path, **members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"inside/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_unpacking_takes_what_is_wanted(tmp_path):
    tar = archive(tmp_path / "x.tar.gz", a=b"1", b=b"22", html=b"no")
    unpack(tar, ["a.bin", "b.bin"], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"a.bin": b"1", "b.bin": b"22"}


def test_unpacking_never_leaves_its_folder(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name in ("../../a.bin", "/b.bin"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        link = tarfile.TarInfo("inside/c.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="holds no c.bin"):
        unpack(tmp_path / "x.tar.gz", ["a.bin", "b.bin", "c.bin"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*.bin")) == []
    unpack(tmp_path / "x.tar.gz", ["a.bin", "b.bin"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("keep", [0, 1, 60])
def test_a_damaged_archive_unpacks_nothing(tmp_path, keep):
    tar = archive(tmp_path / "x.tar.gz", a=CONTENT)
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(UserError, match="is damaged|can't unpack"):
        unpack(tar, ["a.bin"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]
