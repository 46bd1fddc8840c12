"""Files of a node as shell commands: written as a whole, kept before, and put back."""

from __future__ import annotations

import base64
import shlex

from .plan import File

# Where the copies of a rollout lie on the node, until the next one.
BEFORE = "/var/lib/gpuready/before"


def write(file: File) -> str:
    """The command that makes a file what it shall be, all at once; the mode of one that is there stays."""
    path = shlex.quote(file.path)
    if file.content is None:
        return f"rm -f {path}"
    packed = base64.b64encode(file.content.encode()).decode()
    new = shlex.quote(f"{file.path}.gpuready-new")
    # A copy of the old file carries owner, mode and SELinux context over.
    return (
        f'install -d "$(dirname {path})" && if [ -e {path} ]; then cp -a {path} {new}; else '
        f": > {new} && chmod {file.mode} {new}; fi && printf %s {packed} | base64 -d > {new} && mv -f {new} {path}"
    )


def keep(path: str) -> str:
    """The command that keeps a copy of what is at a path, or a mark that nothing is."""
    here, kept, none = (shlex.quote(one) for one in (path, f"{BEFORE}{path}", f"{BEFORE}{path}.absent"))
    return f'install -d "$(dirname {kept})" && if [ -e {here} ]; then cp -a {here} {kept}; else : > {none}; fi'


def restore(path: str) -> str:
    """The command that puts back what was at a path before; it fails where neither copy nor mark is there."""
    here, kept, none = (shlex.quote(one) for one in (path, f"{BEFORE}{path}", f"{BEFORE}{path}.absent"))
    return f"if [ -e {kept} ]; then cp -a {kept} {here}; else test -e {none} && rm -f {here}; fi"
