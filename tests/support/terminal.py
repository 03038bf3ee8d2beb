"""Runs a command on a real pseudo terminal, and tells what a person would see there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios


class Screen:
    """A terminal of some columns: the text, cursor movements and erasures that rich writes."""

    def __init__(self, columns):
        self.columns, self.rows, self.row, self.column, self.wrapped = columns, [""], 0, 0, []

    def feed(self, text):
        for number, code, word in re.findall(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])|([^\x1b])", text):
            if code == "A":
                self.row = max(0, self.row - int(number or 1))
            elif code == "K":
                self.rows[self.row] = ""
            elif word == "\r":
                self.column = 0
            elif word == "\n":
                self._down()
            elif word:
                self._write(word)

    def _down(self):
        self.row, self.column = self.row + 1, 0  # the terminal's driver makes \r\n of \n
        if self.row == len(self.rows):
            self.rows.append("")

    def _write(self, letter):
        if self.column == self.columns:
            self.wrapped.append(self.rows[self.row])
            self._down()
        line = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = line[: self.column] + letter + line[self.column + 1 :]
        self.column += 1


def run_on_terminal(command, columns, environment):
    """Everything that a command wrote to a terminal of 24 lines, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | {"TERM": "xterm"})
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        written += part
    os.close(ours)
    return written.decode(), process.wait()
