"""Files of a node as shell commands: written as a whole, kept before, and put back."""

from __future__ import annotations

import base64
import shlex

from .plan import File

# Where the copies of a change lie on the node while it is under way: whoever finds them there takes it up again.
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
        f": > {new} && chmod {file.mode} {new}; fi && printf %s {packed} | base64 -d > {new} && mv -f {new} {path} || "
        f"{{ rm -f {new}; false; }}"
    )


def begin(*, again: bool) -> str:
    """The command that makes room for copies; ``again`` leaves those that an interrupted run has made."""
    made = f"install -d -m 0700 {BEFORE}"
    return made if again else f"rm -rf {BEFORE} && {made}"


def finish() -> str:
    """The command that puts the copies aside, since the change is over; they stay until the next one is."""
    return f"rm -rf {BEFORE}.last && mv {BEFORE} {BEFORE}.last"


def keep(path: str) -> str:
    """The command that keeps a copy of what is at a path, or a mark that nothing is; an earlier copy stays."""
    here, kept, none = (shlex.quote(one) for one in (path, f"{BEFORE}{path}", f"{BEFORE}{path}.absent"))
    # Under another name first: a copy that was interrupted, or found no room, is none.
    return (
        f'install -d "$(dirname {kept})" && if [ -e {kept} ] || [ -e {none} ]; then :; elif [ -e {here} ]; then '
        f"cp -a -L {here} {kept}.gpuready-new && mv {kept}.gpuready-new {kept}; else : > {none}; fi"
    )


def restore(path: str) -> str:
    """The command that puts back what was at a path before; it fails where neither copy nor mark is there."""
    here, kept, none = (shlex.quote(one) for one in (path, f"{BEFORE}{path}", f"{BEFORE}{path}.absent"))
    # What is as it was is left alone, so that a full disk cannot spoil it.
    return (
        f"if [ -e {kept} ]; then cmp -s {kept} {here} || cp -a {kept} {here}; else test -e {none} && rm -f {here}; fi"
    )


def restore_all() -> str:
    """The command that puts back everything there is a copy or a mark of, also of an earlier run."""
    return (
        f'cd {BEFORE} && find . -type f ! -name "*.gpuready-new" | while read -r one; do case "$one" in '
        '*.absent) rm -f "/${one%.absent}" || exit 1 ;; '
        '*) cmp -s "$one" "/$one" || cp -a "$one" "/$one" || exit 1 ;; esac; done'
    )
