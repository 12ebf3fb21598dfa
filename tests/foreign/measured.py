"""How much memory a program of a test has taken, as the first lines of that program."""

MEASURED = """
import contextlib, resource

def begin():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    return _memory("VmRSS")

def taken(before):
    # The most bytes since then. What getrusage says counts the process that has started this one, too.
    return 1024 * (_memory("VmHWM") - before)

def _memory(what):
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
