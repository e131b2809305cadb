"""A Hugging Face hub on this machine.  Enters: repositories as bytes by name; leaves: the hub's protocol over HTTP.

The listing, `resolve` with ETag, X-Repo-Commit and redirects of large files to another host, HEAD, Range, gated and
private repositories; and connections that break or stall in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096
"""From so many bytes on a file is kept apart (git-lfs): it has a SHA-256 and is served by the other host."""


@dataclass
class Repo:
    """files: content by name, on branch main; token: what a request must bring, if anything; gated: and then files are
    refused; revisions: files of other branches and tags."""

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> Repo | None:
        """The repository as it is at a branch, tag or commit."""
        others = {name: Repo(files) for name, files in self.revisions.items()}
        return next((repo for name, repo in [("main", self), *others.items()] if revision in (name, repo.commit)), None)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((n, self.digest(n)) for n in self.files)).encode()).hexdigest()

    def digest(self, name: str) -> str:
        content = self.files[name]
        if len(content) >= LARGE:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0


@dataclass
class Hub:
    """The server; use it in a `with`.

    breaks      a large file's connection closes after so many bytes, the first `n_breaks` times (None: always)
    stalls      a large file stops for good after so many bytes
    corrupt     large files come with another last byte
    no_ranges   Range is ignored
    requests    all that were made
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    breaks: int | None = None
    n_breaks: int | None = None
    stalls: int | None = None
    corrupt: bool = False
    no_ranges: bool = False
    status: int | None = None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.stopped = threading.Event()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self) -> list[Request]:
        """The requests for the content of large files."""
        return [request for request in self.requests if request.path.startswith("/cdn/")]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve(body=False)

        def do_GET(self) -> None:
            self._serve(body=True)

        def _serve(self, body: bool) -> None:
            self.body = body
            path = urlsplit(self.path).path
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            self.request_seen = Request(self.command, path, self.headers.get("Range"), token)
            hub.requests.append(self.request_seen)
            if path.startswith("/cdn/"):
                self._content(*self._named(path.removeprefix("/cdn/")))
                return
            if path.startswith("/api/models/"):
                self._listing(path.removeprefix("/api/models/"), token)
                return
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self._resolve(repo, *rest.split("/", 1), token)

        def _named(self, path: str) -> tuple[Repo, str]:
            place, name = path.split("//", 1)
            repo, commit = place.rsplit("/", 1)
            found = hub.repos[repo].at(commit)
            assert found is not None
            return found, name

        def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.request_seen.status = status
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.body:
                self.wfile.write(content)

        def _refused(self, repo: Repo | None, token: str | None, files: bool) -> bool:
            if hub.status:
                self._answer(hub.status, {}, b"{}")
            elif repo is None or (repo.token and not repo.gated and token != repo.token):
                self._answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif repo.gated and files and token != repo.token:
                self._answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"})
            else:
                return False
            return True

        def _listing(self, name: str, token: str | None) -> None:
            name, _, revision = name.partition("/revision/")
            repo = hub.repos.get(name)
            if self._refused(repo, token, files=False):
                return
            assert repo is not None
            repo = repo.at(unquote(revision) or "main")
            if repo is None:
                self._answer(404, {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = []
            for file, content in repo.files.items():
                entry: dict[str, Any] = {"rfilename": file, "size": len(content)}
                if len(content) >= LARGE:
                    entry["blobId"] = "0" * 40
                    entry["lfs"] = {"sha256": repo.digest(file), "size": len(content), "pointerSize": 134}
                else:
                    entry["blobId"] = repo.digest(file)
                siblings.append(entry)
            found = {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": repo.commit,
                "private": False,
                "siblings": siblings,
            }
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

        def _resolve(self, name: str, revision: str, file: str, token: str | None) -> None:
            repo = hub.repos.get(name)
            if self._refused(repo, token, files=True):
                return
            assert repo is not None
            repo = repo.at(revision)
            if repo is None or file not in repo.files:
                self._answer(404, {"X-Error-Code": "EntryNotFound"})
                return
            common = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.digest(file)}"', "Accept-Ranges": "bytes"}
            if len(repo.files[file]) < LARGE:
                self._answer(200, common, repo.files[file])
                return
            linked = {"X-Linked-Etag": common["ETag"], "X-Linked-Size": str(len(repo.files[file]))}
            # the same server under another name
            other = f"http://localhost:{hub.port}/cdn/{name}/{repo.commit}//{file}"
            self._answer(302, common | linked | {"Location": other})

        def _content(self, repo: Repo, name: str) -> None:
            content = repo.files[name]
            if hub.corrupt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start, wanted = 0, self.headers.get("Range")
            if wanted and not hub.no_ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            total = len(content)
            headers = {"Content-Length": str(total - start), "ETag": f'"{repo.digest(name)}"'}
            if start:
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            end = self._end(start, total)
            self._answer(206 if start else 200, headers, content[start:end])
            self.wfile.flush()
            if end < total:
                while hub.stalls is not None and not hub.stopped.is_set():
                    time.sleep(0.02)
                self.close_connection = True

        def _end(self, start: int, total: int) -> int:
            if hub.stalls is not None:
                return min(total, start + hub.stalls)
            if hub.breaks is None or hub.n_breaks == 0:
                return total
            if hub.n_breaks is not None:
                hub.n_breaks -= 1
            return min(total, start + hub.breaks)

    return Handler
