"""One case of the fuzz: a command in this process, with training stopped before its first step, and how it ended."""

import contextlib
import io
import os
import signal
import sys
import traceback

SECONDS, WAITING = 90, 900
"""Of the processor, more than any case takes; and of the clock, on a machine so busy that there is little of the former."""


class Stopped(BaseException):
    """The command came as far as training: all is well."""


class Hangs(BaseException):
    """The command took too long."""


def stop_before_training():
    """Nothing trains, starts processes or speaks to a network from here on."""
    import multiprocessing.process

    import lightning_fabric

    import falseneg.cli.compare
    import falseneg.train.pretrain

    def stop(*_, **__):
        raise Stopped

    launch = lightning_fabric.Fabric.launch
    falseneg.train.pretrain.train = stop
    multiprocessing.process.BaseProcess.start = stop
    falseneg.cli.compare.run_tasks = stop
    lightning_fabric.Fabric.launch = lambda fabric, *rest: stop() if fabric.world_size > 1 else launch(fabric, *rest)


def fault(arguments):
    """What is wrong with how the command ended: its kind, and its particulars. None if nothing is."""
    from falseneg.cli import main

    def ring(*_):
        raise Hangs

    out, err = io.StringIO(), io.StringIO()
    path, folder = list(sys.path), os.getcwd()
    for number, timer, seconds in (
        (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, WAITING),
    ):
        signal.signal(number, ring)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    except Stopped:
        status = 0
    except Hangs as error:
        return f"hangs at {_place(error)}", ""
    except SystemExit as error:
        status = 0 if error.code is None else error.code
    except BaseException as error:
        return f"{type(error).__name__} at {_place(error)}", str(error)[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.path[:] = path
        os.chdir(folder)
    said = err.getvalue()
    if "Traceback" in said:
        return f"prints a traceback: {said.splitlines()[-1][:80]}", said[-300:]
    lines = said.strip().splitlines()
    if status and (len(lines) != 1 or not lines[0].startswith("falseneg: ")):
        return f"status {status} with {len(lines)} lines", said[-400:]
    return None


def _place(error):
    """The innermost line of falseneg, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/falseneg/" in frame.filename] or frames
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in (own[-1], frames[-1])]
    return " < ".join(dict.fromkeys(places))
