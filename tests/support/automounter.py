"""What systemd does for x-systemd.automount: mounts a place when somebody first looks into it. A program:

    automounter.py DIR COMMAND...

Puts a trigger (autofs, protocol 5) on DIR and says `ready`; runs COMMAND, in its own process group, when DIR is first
looked into; who looks waits for as long. Ends, and takes the trigger away, when its standard input does.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys

IOC_READY, IOC_FAIL = 0x9360, 0x9361
# struct autofs_v5_packet: protocol, type, token, device, inode, uid, gid, pid, tgid, length of the name; the name.
PACKET = struct.Struct("=iiIIQIIIII256sxxxx")
MISSING_DIRECT = 5


def main(directory: str, command: list[str]) -> None:
    os.setpgrp()
    requests, kernel_end = os.pipe()
    options = f"fd={kernel_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    subprocess.run(
        ["mount", "-t", "autofs", "-o", options, "automounter", directory], pass_fds=[kernel_end], check=True
    )
    os.close(kernel_end)
    trigger = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        while True:
            readable, _, _ = select.select([requests, 0], [], [])
            if 0 in readable:
                return
            _, kind, token, *_ = PACKET.unpack(os.read(requests, PACKET.size))
            is_mounted = kind == MISSING_DIRECT and subprocess.run(command, check=False).returncode == 0
            fcntl.ioctl(trigger, IOC_READY if is_mounted else IOC_FAIL, token)
    finally:
        os.close(trigger)
        subprocess.run(["umount", directory], check=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
