"""The machines' registry: to whatever is asked for, it answers with one image that does nothing.

So the pods that land on a machine start without a network: a DaemonSet's own program is not in there, but a
static busybox, which also serves as the sandbox of pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import socket
import tarfile
from pathlib import Path
from typing import Any

_APPLETS = ("sh", "sleep", "cat", "echo", "ls", "wget", "nc", "ip", "ping", "hostname", "true", "false", "env", "id")
# The first process of a sandbox must end when it is asked to.
_IDLE = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ANSWER_SECONDS = 60.0


class Image:
    """The image: its blobs by digest, and which of them is the manifest."""

    def __init__(self, busybox: bytes, arch: str) -> None:
        self.blobs: dict[str, bytes] = {}
        layer = _layer(busybox)
        config: dict[str, Any] = {
            "architecture": arch,
            "os": "linux",
            "config": {"Entrypoint": ["/bin/sh", "-c", _IDLE], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._add(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self._add(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
        self.manifest: str = self._add(json.dumps(manifest).encode(), _MANIFEST)["digest"]

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The media type and the content that a path of the registry's API stands for; None where there is none."""
        if path in ("/v2", "/v2/"):
            return "application/json", b"{}"
        folder, _, reference = path.rpartition("/")
        if folder.endswith("/manifests") and not (reference.startswith("sha256:") and reference != self.manifest):
            return _MANIFEST, self.blobs[self.manifest]
        if folder.endswith("/blobs") and reference in self.blobs:
            return "application/octet-stream", self.blobs[reference]
        return None

    def _add(self, blob: bytes, kind: str) -> dict[str, Any]:
        self.blobs[_digest(blob)] = blob
        return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


async def serve(listener: socket.socket, busybox: Path, arch: str) -> asyncio.Server:
    """Answer on that socket."""
    image = Image(busybox.read_bytes(), arch)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target, _ = head.partition("\r\n")[0].split(" ")
                writer.write(_response(image, method, target.partition("?")[0]))
                await writer.drain()
        writer.close()

    return await asyncio.start_server(one, sock=listener)


def _response(image: Image, method: str, path: str) -> bytes:
    found = image.answer(path) if method in ("GET", "HEAD") else None
    kind, body = found or ("application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
    head = [
        f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        f"Docker-Content-Digest: {_digest(body)}",
        "Connection: close",
    ]
    return "\r\n".join((*head, "", "")).encode() + (b"" if method == "HEAD" else body)


def _layer(busybox: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in {"bin/busybox": busybox, "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n"}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
