"""Starts one program, waits for it, and prints what it cost as a line of JSON.

A process of its own, and a small one: Linux counts the memory of the process that forks into the
peak of the one that is started, so a benchmark that has NumPy loaded cannot measure by itself.
Imports nothing that is not needed. Called as `python -I -S child.py OUTPUT ERRORS PROGRAM ...`.
"""

import os
import sys
from time import perf_counter


def main() -> None:
    """Run the program with its output in files; print wall_s, cpu_s, peak_bytes and exit."""
    output, errors, *command = sys.argv[1:]
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, write, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, errors, write, 0o644),
    ]
    start_s = perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall_s = perf_counter() - start_s
    cpu_s = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    print(
        f'{{"wall_s": {wall_s}, "cpu_s": {cpu_s}, '
        f'"peak_bytes": {usage.ru_maxrss * 1024}, "exit": {code}}}'
    )


main()
