"""A stand-in on this machine for the hubs of Hugging Face and ModelScope: their routes that list and hand out files."""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LIBRARIES = "huggingface_hub", "modelscope_hub"


class Hub:
    """Repositories by name and revision, "" the default one: {file: its bytes, or a size that is claimed of none}.

    `claimed`: sizes of files that are listed in the place of the right ones.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], dict[str, bytes | int]] = {}
        self.claimed: dict[str, int] = {}
        self.handed_out: list[str] = []
        self._server, self.port = None, 0

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (Handler,), {"hub": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()


def commit_of(files: dict[str, bytes | int]) -> str:
    return hashlib.sha1(repr(files).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        match [unquote(part) for part in url.path.strip("/").split("/")]:
            case ["api", "models", owner, name, *revision]:
                self.list_as_hugging_face(f"{owner}/{name}", revision[1] if revision else "")
            case ["api", "v1", "models", owner, name, "repo", "files"]:
                self.list_as_modelscope(f"{owner}/{name}", asked["Revision"].removesuffix("master"))
            case ["api", "v1", "models", owner, name, "repo"]:
                self.hand_out(f"{owner}/{name}", asked["Revision"].removesuffix("master"), asked["FilePath"])
            case [owner, name, "resolve", commit, *parts]:
                self.hand_out(f"{owner}/{name}", commit, "/".join(parts))
            case _:
                self.send(404)

    def list_as_hugging_face(self, name: str, revision: str):
        files = self.hub.repositories.get((name, revision))
        if files is None:
            there = any(name == other for other, _ in self.hub.repositories)
            return self.send(404, headers={"X-Error-Code": "RevisionNotFound" if there else "RepoNotFound"})
        siblings = [{"rfilename": file, "size": self.size_of(file, content)} for file, content in files.items()]
        self.send(200, json.dumps({"id": name, "sha": commit_of(files), "siblings": siblings}).encode())

    def list_as_modelscope(self, name: str, revision: str):
        files = self.hub.repositories.get((name, revision))
        if files is None:
            return self.send(404, b'{"Code": 10010205001, "Message": "no such thing", "Success": false}')
        told = [
            {
                "Path": file,
                "Type": "blob",
                "Size": self.size_of(file, content),
                "Sha256": hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else None,
            }
            for file, content in files.items()
        ]
        self.send(200, json.dumps({"Code": 200, "Data": {"Files": [{"Path": "a", "Type": "tree"}, *told]}}).encode())

    def hand_out(self, name: str, revision: str, file: str):
        known = {of: files for (other, of), files in self.hub.repositories.items() if other == name}
        content = (known | {commit_of(files): files for files in known.values()})[revision][file]
        assert isinstance(content, bytes), f"{file} is too large to be asked for"
        if self.command == "GET":
            self.hub.handed_out.append(file)
        etag = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": revision})

    def size_of(self, file: str, content: bytes | int) -> int:
        return self.hub.claimed.get(file, content if isinstance(content, int) else len(content))

    def send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for field, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(field, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Says nothing."""


@contextlib.contextmanager
def serving(home) -> Iterator[Hub]:
    """Runs the stand-in; the hubs' libraries, loaded anew, look for it and keep their caches below `home`."""
    hub = Hub()
    hub.start()
    here = f"http://127.0.0.1:{hub.port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] in LIBRARIES]:
            patch.delitem(sys.modules, name)
        for name, value in {
            "HF_ENDPOINT": here, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "MODELSCOPE_ENDPOINT": here, "MODELSCOPE_CACHE": str(home / "ms"), "MODELSCOPE_HOME": str(home / "ms_home"),
            "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0",
            "NO_PROXY": "127.0.0.1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN"):
            patch.delenv(name, raising=False)
        yield hub
        for name in [name for name in sys.modules if name.split(".")[0] in LIBRARIES]:
            del sys.modules[name]
    hub.stop()
