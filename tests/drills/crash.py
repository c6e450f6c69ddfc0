"""Killing a command at one event of the file system, as a power cut or `kill -9` would.

The command runs in a fork, so that its imports are not repeated, and ends in `os._exit`, so that
nothing is cleaned up.
"""

import os
import sys
import traceback
from pathlib import Path

KILLED = 77
FAILED = 78
WRITES = os.O_WRONLY | os.O_RDWR


class Events:
    """Counts what a process does to files below a folder, and ends it at one of these events.

    Args:
        root: the folder.
        kill_at: the number of the event, from 0; None for none.
    """

    def __init__(self, root, kill_at):
        self.root = str(root)
        self.kill_at = kill_at
        self.names = []

    def __call__(self, event, args):
        """The audit hook."""
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
            self.happened(event, str(args[0]))
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self.opened(os.fsdecode(args[0]), args[2])

    def opened(self, path, flags):
        if not isinstance(flags, int) or not flags & WRITES or not path.startswith(self.root):
            return
        last = len(self.names) == self.kill_at
        if last and flags & os.O_CREAT:
            # Opened, but nothing is written yet.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT), "rb"):
                pass
        self.happened("open", path)

    def saves(self, tensors, path, metadata=None):
        """`save_file` of safetensors, which writes without events: half of the file is there."""
        self.save_file(tensors, path, metadata)
        if len(self.names) == self.kill_at:
            size = os.path.getsize(path)
            os.truncate(path, size // 2)
        self.happened("save", str(path))

    def happened(self, event, path):
        if not path.startswith(self.root):
            return
        if len(self.names) == self.kill_at:
            os._exit(KILLED)
        self.names.append(f"{event} {path.removeprefix(self.root)}")


def run(command, root, kill_at=None):
    """Run `command()` in a fork; its exit status, and the events that happened if it ended.

    Args:
        command: what is run.
        root: the folder whose events count.
        kill_at: the number of the event at which the fork is killed.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os._exit(_child(command, root, kill_at, write_end))

    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        names = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), names


def _child(command, root, kill_at, write_end):
    """What the fork does; its exit status."""
    from rnr_gym import storage

    events = Events(root, kill_at)
    events.save_file = storage.save_file
    storage.save_file = events.saves
    # Nothing but the end of the process takes a hook away again.
    sys.addaudithook(events)
    try:
        command()
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return FAILED
    os.write(write_end, "\n".join(events.names).encode())
    return 0


def files_below(root):
    """Every file below a folder, hidden ones included, with its content."""
    root = Path(root)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }
