"""Running the real command line.  Enters: words; leaves: what `halfbyte` printed, and its exit code."""

import os
import re
import select
import signal
import subprocess
import sys
import time

HALFBYTE = [sys.executable, "-m", "halfbyte.cli"]


def halfbyte(*words, stdin="", timeout=120, **kwargs):
    """Run `halfbyte <words>` in a process of its own and return the finished process, its output as text."""
    command = [*HALFBYTE, *map(str, words)]
    kwargs.setdefault("encoding", "utf-8")
    return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False, **kwargs)


def assert_clean_error(done, code, *parts):
    """The process ended with `code` and one line on standard error that holds all `parts`; no traceback, no output."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert str(part) in done.stderr, done.stderr
    assert done.stdout == ""


class Terminal:
    """`halfbyte <words>` in a pseudo-terminal of 100 x 40 characters; use it in a `with`."""

    def __init__(self, *words, env=None):
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(
            [*HALFBYTE, *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm"} | (env or {}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._unread = ""

    def type(self, text):
        """Type `text`; "\r" is the Enter key, "\x03" Ctrl-C, "\x04" Ctrl-D."""
        os.write(self._master, text.encode())

    def expect(self, pattern, timeout=60):
        """Return the match of `pattern` in what the program shows from here on; escape sequences are left out."""
        end = time.monotonic() + timeout
        while True:
            plain = re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", self._unread)
            match = re.search(pattern, plain)
            if match:
                self._unread = plain[match.end() :]
                return match
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            chunk = self._read() if ready else ""
            assert chunk, f"{pattern!r} did not appear; there is: {plain[-2000:]!r}"
            self._unread += chunk

    def _read(self):
        try:
            chunk = os.read(self._master, 65536).decode("utf-8", "replace")
        except OSError:  # the program has ended
            return ""
        if "\x1b[6n" in chunk:  # where is the cursor?  prompt_toolkit waits for the answer
            self.type("\x1b[40;1R")
        return chunk

    def wait(self, timeout=30):
        """Wait for the end of the program and return its exit code."""
        end = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self._master], [], [], 0.1)[0]:
                self._read()
        return self.process.wait(1)

    def interrupt(self):
        """Press Ctrl-C while the program computes: the terminal sends the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
