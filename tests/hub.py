"""A stand-in for the Hugging Face hub on 127.0.0.1, and a cache of its own; no network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

NAME = "someone/some-bert"


class Hub:
    """Repositories with commits. ``asked``: the paths of all requests."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        """(name, commit) -> its files."""
        self.newest: dict[str, str] = {}
        self.asked: list[str] = []

    def commit(self, folder: Path, name: str = NAME) -> str:
        """Put the files of ``folder`` there, as the newest commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        commit = hashlib.sha1(f"{sorted(files.items())}".encode(), usedforsecurity=False).hexdigest()
        self.files[name, commit], self.newest[name] = files, commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) as the hub's two interfaces have them: about repositories, and their files."""
        words = urlsplit(path).path.strip("/").split("/")
        if words[0] == "api":
            name = "/".join(words[2:4])
            if name not in self.newest:
                return 404, {"X-Error-Code": "RepoNotFound"}, b""
            if words[4:5] == ["tree"]:
                files = self.files.get((name, words[5]))
                if files is None:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                listed = [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in files.items()]
                return 200, {}, json.dumps(listed).encode()
            return 200, {}, json.dumps({"id": name, "sha": self.newest[name], "siblings": []}).encode()
        name, commit, file = "/".join(words[:2]), words[3], "/".join(words[4:])
        content = self.files.get((name, commit), {}).get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit}, content


def etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def standing_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this process is a stand-in, and its cache an empty folder."""
    hub = Hub(cache)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
