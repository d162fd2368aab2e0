"""Stands around every function that the host calls. An error that the plugin doesn't catch is
logged with its type, its message and its place; the host makes it the failure of the call. What
plugins don't have (files, a clock, the network) says so, and what is printed is logged."""

import importlib
import os
import random
import sys
import time

from componentize_py_types import Err
from wit_world.imports import host

_MESSAGE_MAX = 500
_FRAMES_MAX = 3
_MAY_REFUSE = ("configure", "restore")
_ANSWERS = {"filter": int, "redact": list, "enrich": list}
_in_call = False


class Denied(Exception):
    """The plugin asked for something that plugins don't have."""


def _audit(event, args):
    """What Python is about to do, before it asks the system."""
    if not _in_call:
        return
    if event == "open":
        raise Denied(f"tried to open the file {args[0]!r}: plugins have none")
    if event in ("os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir"):
        raise Denied("tried to open a file: plugins have none")
    if event.startswith("socket."):
        raise Denied("tried to use the network: plugins have none")
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        raise Denied("tried to start a program: plugins can't")
    if event == "import" and args[0].partition(".")[0] not in sys.builtin_module_names:
        # An ImportError: what is optional may do without.
        raise ImportError(
            f"tried to import {args[0]} in a call: import it at the top of a file, "
            "which is run while the plugin is built"
        )


def _denied(what, original):
    def function(*args, **kwargs):
        if _in_call:
            raise Denied(what)
        return original(*args, **kwargs)

    return function


for _name in ("time", "monotonic", "perf_counter", "process_time"):
    for _name in (_name, f"{_name}_ns"):
        _what = "tried to read the clock: plugins have none; ask the host with now()"
        setattr(time, _name, _denied(_what, getattr(time, _name)))
time.sleep = _denied("tried to wait: plugins can't", time.sleep)
for _name in random.__all__:
    _original = getattr(random, _name)
    # Those of the module's own generator: others are seeded by the plugin.
    if getattr(_original, "__self__", None) is not None:
        setattr(random, _name, _denied("tried to get random numbers: plugins have none", _original))


class _Output:
    """Standard output and standard error: lines of the host's log."""

    def __init__(self, original):
        self._original = original
        self._begun = ""

    def write(self, text):
        if not _in_call:
            return self._original.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            host.log(host.Level.INFO, line)
        return len(text)

    def flush(self):
        if not _in_call:
            self._original.flush()

    def end(self):
        """Logs a line that has no end."""
        if self._begun:
            self.write("\n")

    def __getattr__(self, name):
        return getattr(self._original, name)


def _said(error):
    """An error with its type, its message and its place."""
    message = str(error)
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    said = said[:_MESSAGE_MAX]
    places = []
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        # The folders of the plugin and of its packages are /0, /1 and so on.
        folder, _, file = code.co_filename.lstrip("/").partition("/")
        if folder.isdigit() and file != "presence_entry.py":
            places.append(f"{file}:{trace.tb_lineno} ({code.co_name})")
        trace = trace.tb_next
    places = places[: -_FRAMES_MAX - 1 : -1]
    return f"{said}, at {', from '.join(places)}" if places else said


def _fits(answer, wanted):
    """Whether an answer can be handed to the host, where a wrong one ends without a word."""
    if wanted is int:
        return type(answer) is int and 0 <= answer < 1 << 32
    return isinstance(answer, wanted)


def _guarded(name, inner):
    def function(self, *args):
        global _in_call
        _in_call = True
        try:
            answer = inner(self, *args)
            if name in _ANSWERS and not _fits(answer, _ANSWERS[name]):
                what = "an audience" if name == "filter" else "a list"
                raise TypeError(f"{name} returned {answer!r:.50}, and has to return {what}")
            return answer
        except Err as error:
            if name in _MAY_REFUSE:
                raise
            host.log(host.Level.ERROR, _said(error))
            os.abort()
        except BaseException as error:
            if name in _MAY_REFUSE:
                raise Err(_said(error)) from None
            host.log(host.Level.ERROR, _said(error))
            # Without the interpreter's own words, for which there is no output.
            os.abort()
        finally:
            sys.stdout.end()
            sys.stderr.end()
            _in_call = False

    return function


_plugin = importlib.import_module("ENTRY")


class WitWorld(_plugin.WitWorld):
    """The plugin, as the host calls it."""


for _name in ("configure", "filter", "redact", "enrich", "save", "restore"):
    if hasattr(WitWorld, _name):
        setattr(WitWorld, _name, _guarded(_name, getattr(WitWorld, _name)))

sys.addaudithook(_audit)
sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
