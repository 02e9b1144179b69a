"""A small Hub on loopback that speaks the protocol of the released client, can fail on purpose, and counts bytes.

    python tests/loopback_hub.py PORT [--lfs] [--xet]

With `--lfs` large files lie in a storage of their own; with `--xet` it names a storage that it does not have, and
commits have names of 64 digits. For PORT, `fd:N` takes a socket that listens already.
`POST /_fault` with `{"on": "GET .*safetensors", "do": 500, "times": 2, "after": 1000}` makes the next requests
that match fail: by a status, with `"drop"` after so many bytes, or with `"lost"`, where only
the answer is dropped, or with `"whole"`, which ignores ranges. `GET /_log` gives requests and bytes sent,
`POST /_reset` forgets both. `POST /_save` with `{"name": "x"}` keeps all repositories as they are;
`POST /_begin` with `{"storage": "lfs", "saved": "x"}` goes back to them, or to none without that name.
Everything is in memory; standard library and PyYAML only.
"""

import base64
import copy
import hashlib
import json
import re
import socket
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STORAGES = {name for name in ("lfs", "xet") if f"--{name}" in sys.argv}
REPOS, OBJECTS, FAULTS, LOG, SAVED = {}, {}, [], [], {}
LOCK = threading.RLock()


def blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        out = b""
        while n := int(self.rfile.readline().strip() or b"0", 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def send(self, code, value=None, headers=None, raw=None):
        data = raw if raw is not None else b"" if value is None else json.dumps(value).encode()
        self.send_response(code)
        kind = "application/octet-stream" if raw is not None else "application/json"
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}
        for key, text in headers.items():
            self.send_header(key, text)
        self.end_headers()
        sent = b"" if self.command == "HEAD" else data
        if self.cut is not None and len(sent) > self.cut:
            sent, self.close_connection = sent[: self.cut], True
        self.wfile.write(sent)
        LOG.append(
            {"request": f"{self.command} {self.path}", "status": code, "sent": len(sent),
             "range": self.headers.get("Range"), "auth": bool(self.headers.get("Authorization"))}
        )  # fmt: skip

    def error(self, code, kind="", message=""):
        self.send(code, {"error": message}, {"X-Error-Code": kind, "X-Error-Message": message})

    def handle_any(self):
        with LOCK:
            self.cut, self.whole = None, False
            data = self.body()
            try:
                if not self.fault():
                    self.route(data)
            except (BrokenPipeError, ConnectionResetError):
                pass

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def fault(self):
        for fault in FAULTS:
            if fault["times"] > 0 and re.search(fault["on"], f"{self.command} {self.path}"):
                fault["times"] -= 1
                if fault["do"] == "drop" and self.command != "GET":
                    self.close_connection = True
                    return True
                if fault["do"] in ("drop", "lost"):
                    self.cut = fault.get("after", 0)
                    return False
                if fault["do"] == "whole":
                    self.whole = True
                    return False
                self.error(fault["do"], "", "on purpose")
                return True
        return False

    def commit_of(self, repo, revision):
        revision = urllib.parse.unquote(revision or "main")
        oid = repo["refs"].get(revision, revision)
        found = repo["commits"].get(oid)
        if found is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def new_commit(self, repo, branch, files, title):
        digest = hashlib.sha256 if "xet" in STORAGES else hashlib.sha1  # git knows both
        oid = digest(f"{time.time_ns()}{title}".encode()).hexdigest()
        repo["commits"][oid] = {"oid": oid, "files": files, "title": title, "parent": repo["refs"].get(branch)}
        repo["refs"][branch] = oid
        return oid

    def route(self, body):
        path, host = urllib.parse.urlsplit(self.path).path, f"http://{self.headers['Host']}"
        if path == "/_fault":
            FAULTS.append({"times": 1, **json.loads(body)})
            return self.send(200, {})
        if path == "/_log":
            return self.send(200, LOG)
        if path == "/_reset":
            LOG.clear(), FAULTS.clear()
            return self.send(200, {})
        if path == "/_save":
            SAVED[json.loads(body)["name"]] = copy.deepcopy(REPOS), dict(OBJECTS)
            return self.send(200, {})
        if path == "/_begin":
            wanted = json.loads(body)
            repos, objects = SAVED.get(wanted.get("saved"), ({}, {}))
            for now, then in ((REPOS, copy.deepcopy(repos)), (OBJECTS, objects)):
                now.clear(), now.update(then)
            STORAGES.clear(), STORAGES.add(wanted["storage"])
            LOG.clear(), FAULTS.clear()
            return self.send(200, {})
        if path == "/api/whoami-v2":
            return self.send(
                200, {"type": "user", "name": "acme", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
            )
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'acme'}/{wanted['name']}"
            kind = "spaces/" if wanted.get("type") == "space" else ""
            answer = {"url": f"{host}/{kind}{repo_id}", "name": repo_id, "id": repo_id}
            repo_id = kind + repo_id
            if repo_id in REPOS:
                return self.send(409, {"error": "exists", **answer})
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            repo = REPOS[repo_id] = {"private": private, "commits": {}, "refs": {}}
            self.new_commit(repo, "main", {".gitattributes": (b"*.safetensors filter=lfs\n", None)}, "initial commit")
            return self.send(200, answer)
        if path == "/api/models":
            asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            found = []
            for repo_id, repo in REPOS.items():
                card = self.commit_of(repo, "main")["files"].get("README.md", (b"",))[0].decode()
                tagged = all(f"- {tag}" in card for tag in asked.get("filter", []))
                visible = not repo["private"] or self.headers.get("Authorization")
                if tagged and visible and asked.get("search", [""])[0] in repo_id:
                    found.append({"id": repo_id, "downloads": 0, "likes": 0, "private": repo["private"]})
            return self.send(200, found)
        if found := re.match(r"^/api/(?:models/|(spaces/))([^/]+/[^/]+)(?:/(.*))?$", path):
            name = (found[1] or "") + found[2]
            repo = REPOS.get(name)
            return self.api(repo, name, found[3] or "", body) if repo else self.error(404, "RepoNotFound", "none")
        if found := re.match(r"^/((?:spaces/)?[^/]+/[^/]+?)(?:\.git)?/info/lfs/objects/batch$", path):
            out = []
            for wanted in json.loads(body)["objects"]:
                entry = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in OBJECTS:
                    entry["actions"] = {"upload": {"href": f"{host}/_lfs/{wanted['oid']}", "header": {}}}
                out.append(entry)
            return self.send(
                200, {"transfer": "basic", "objects": out}, {"Content-Type": "application/vnd.git-lfs+json"}
            )
        if path.startswith("/_lfs/"):
            if self.command == "PUT":
                if hashlib.sha256(body).hexdigest() != path[6:]:
                    return self.error(400, "BadOid", "sha mismatch")
                OBJECTS[path[6:]] = body
                return self.send(200)
            return self.file(OBJECTS[path[6:]], {"ETag": f'"{path[6:]}"'})
        if found := re.match(r"^/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)$", path):
            repo = REPOS.get(found[1])
            if repo is None:
                return self.error(404, "RepoNotFound", "none")
            if repo["private"] and not self.headers.get("Authorization"):
                return self.error(401, "RepoNotFound", "none")
            commit = self.commit_of(repo, found[2])
            if commit is None:
                return None
            name = urllib.parse.unquote(found[3])
            headers = {"X-Repo-Commit": commit["oid"]}
            if name not in commit["files"]:
                return self.send(
                    404, {}, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
                )
            data, sha = commit["files"][name]
            headers["ETag"] = f'"{sha or blob(data)}"'
            if "xet" in STORAGES and name.endswith("safetensors"):
                headers |= {
                    "X-Xet-Hash": "a" * 64,
                    "X-Xet-Refresh-Route": f"{host}/api/models/acme/net/xet-read-token/main",
                }
            if sha:  # large files lie elsewhere, as on the Hub
                store = host.replace("127.0.0.1", "localhost")
                linked = {
                    "X-Linked-Etag": f'"{sha}"',
                    "X-Linked-Size": str(len(data)),
                    "Location": f"{store}/_lfs/{sha}",
                }
                return self.send(302, None, headers | linked)
            return self.file(data, headers)
        return self.error(404, "NotFound", "no such route")

    def file(self, data, headers):
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not self.whole and self.command == "GET":
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            part = data[first : last + 1]
            content = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
            return self.send(206, raw=part, headers=headers | content)
        return self.send(200, raw=data, headers=headers)

    def api(self, repo, repo_id, rest, body):
        verb, _, argument = rest.partition("/")
        if verb in ("", "revision"):
            commit = self.commit_of(repo, argument)
            if commit is None:
                return None
            files, card = commit["files"], {}
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": blob(data)} for name, (data, _) in files.items()
            ]
            if "README.md" in files and (front := re.match(rb"---\n(.*?)\n---", files["README.md"][0], re.DOTALL)):
                import yaml

                card = yaml.safe_load(front[1]) or {}
            return self.send(
                200,
                {"id": repo_id, "modelId": repo_id, "sha": commit["oid"], "private": repo["private"],
                 "siblings": siblings, "tags": card.get("tags", []), "cardData": card,
                 "library_name": card.get("library_name"),
                 "pipeline_tag": card.get("pipeline_tag"), "downloads": 0, "likes": 0, "gated": False,
                 "disabled": False},
            )  # fmt: skip
        if verb == "preupload":
            commit, out = self.commit_of(repo, argument), []
            for wanted in json.loads(body)["files"]:
                old = commit["files"].get(wanted["path"])
                mode = "lfs" if "lfs" in STORAGES and wanted["path"].endswith((".safetensors", ".png")) else "regular"
                oid = None if old is None else old[1] or blob(old[0])
                out.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self.send(200, {"files": out, "commitOid": commit["oid"]})
        if verb == "commit":
            return self.commit(repo, repo_id, urllib.parse.unquote(argument), body)
        if verb in ("tree", "commits", "refs"):
            revision = argument.split("/")[0]
            commit = self.commit_of(repo, revision)
            if verb == "commits":
                chain = []
                while commit:
                    chain.append(
                        {"id": commit["oid"], "title": commit["title"], "message": "", "authors": [{"user": "acme"}],
                         "date": "2026-01-01T00:00:00.000Z"}
                    )  # fmt: skip
                    commit = repo["commits"].get(commit["parent"])
                return self.send(200, chain)
            if verb == "refs":
                branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": o} for n, o in repo["refs"].items()]
                return self.send(200, {"branches": branches, "converts": [], "tags": []})
            out = []
            for name, (data, sha) in sorted(commit["files"].items()):
                entry = {"type": "file", "oid": blob(data), "size": len(data), "path": name}
                out.append(entry | ({"lfs": {"oid": sha, "size": len(data), "pointerSize": 130}} if sha else {}))
            return self.send(200, out)
        if verb == "branch":
            name = urllib.parse.unquote(argument)
            if name in repo["refs"]:
                return self.error(409, "", "exists")
            repo["refs"][name] = repo["refs"]["main"]
            return self.send(200, {})
        return self.error(404, "NotFound", "no such route")

    def commit(self, repo, repo_id, branch, body):
        commit, title = self.commit_of(repo, branch), ""
        if commit is None:
            return None
        files = dict(commit["files"])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, commit["oid"]):
                    return self.error(412, "PreconditionFailed", "A commit has happened since.")
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"]), None
            elif entry["key"] == "lfsFile":
                files[value["path"]] = OBJECTS[value["oid"]], value["oid"]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        request = "create_pr=1" in self.path
        branch = f"refs/pr/{len(repo['refs'])}" if request else branch
        oid = self.new_commit(repo, branch, files, title)
        url = f"http://{self.headers['Host']}/{repo_id}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
        return self.send(200, answer | ({"pullRequestUrl": f"{url}/discussions/1"} if request else {}))


class Server(ThreadingHTTPServer):
    def __init__(self, place):
        kind, _, number = place.rpartition(":")
        super().__init__(("127.0.0.1", 0 if kind else int(number)), Handler, bind_and_activate=not kind)
        if kind:
            self.socket.close()
            self.socket = socket.socket(fileno=int(number))

    def handle_error(self, request, client_address):
        pass


if __name__ == "__main__":
    server = Server(sys.argv[1])
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
