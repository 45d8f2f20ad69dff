#!/usr/bin/env python3
"""Drives a control socket with the QMP clients that people use: PyPI qemu.qmp and its qmp-shell.

usage: drive.py SOCKET FOLDER

SOCKET is the control socket of a pitstopd (or of a test's fake) whose container has a volume `golden` and may be
changed; FOLDER is where the socket of an export may be made. Ends the daemon with `quit`. Exit code 0 means that
everything was as spec/control.md says. Needs qemu.qmp 0.0.6 (see tests/setup.sh).
"""

import asyncio
import base64
import json
import os
import subprocess
import sys

try:
    from qemu.qmp import EventListener, ExecuteError, QMPClient
except ImportError as error:
    sys.exit(f"drive.py: {error}: run it with the Python that tests/setup.sh installs qemu.qmp into")

LIMIT_SECONDS = 20
COMMANDS = {
    "qmp_capabilities", "query-version", "query-commands", "query-block-exports", "block-export-add",
    "block-export-del", "quit", "transaction", "x-pitstop-check", "x-pitstop-query-container", "x-pitstop-query-volumes", "x-pitstop-query-layers",
    "x-pitstop-volume-create", "x-pitstop-volume-delete", "x-pitstop-volume-rename", "x-pitstop-volume-set", "x-pitstop-snapshot",
    "x-pitstop-refresh", "x-pitstop-read", "x-pitstop-write", "x-pitstop-map", "x-pitstop-diff", "x-pitstop-volume-hydrate",
    "x-pitstop-volume-seal",
    "x-pitstop-split",
    "x-pitstop-backup", "x-pitstop-cache-create", "x-pitstop-cache-resize", "x-pitstop-cache-delete", "x-pitstop-query-caches",
    "x-pitstop-view-create", "x-pitstop-view-drop", "x-pitstop-view-keep",
    "query-jobs", "job-pause", "job-resume", "job-cancel", "job-dismiss", "x-pitstop-job-set-speed",
}


async def expect_error(client, error_class, text, command, **arguments):
    """The command must fail with that class and a text that contains `text`."""
    try:
        result = await client.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})
    except ExecuteError as error:
        assert error.error_class == error_class, (command, error.error_class, str(error))
        assert text in str(error), (command, str(error))
        return
    raise AssertionError(f"{command} {arguments} did not fail: {result}")


async def next_event(listener, name):
    """The next event must be called `name`; returns its data."""
    event = await asyncio.wait_for(listener.get(), LIMIT_SECONDS)
    assert event["event"] == name, event
    assert event["timestamp"]["seconds"] > 0, event
    return event["data"]


async def volume_names(client):
    return [volume["name"] for volume in await client.execute("x-pitstop-query-volumes")]


async def questions(client):
    """CTL-4, CTL-18, CTL-29, CTL-30, CTL-35."""
    version = await client.execute("query-version")
    assert version["package"].startswith("pitstop "), version
    listed = {entry["name"] for entry in await client.execute("query-commands")}
    assert listed == COMMANDS, listed ^ COMMANDS
    assert "golden" in await volume_names(client)
    assert (await client.execute("x-pitstop-query-container"))["volume-count"] >= 1
    assert (await client.execute("x-pitstop-check"))["corruptions"] == 0
    assert await client.execute("x-pitstop-query-layers")
    await expect_error(client, "CommandNotFound", "The command foo has not been found", "foo")
    await expect_error(client, "GenericError", "Parameter 'x' is unexpected", "query-version", x=1)
    await expect_error(client, "DeviceNotFound", "no-such", "x-pitstop-query-volumes", name="no-such")
    await expect_error(client, "DeviceNotFound", "no-such", "x-pitstop-volume-hydrate", name="no-such")
    await expect_error(client, "DeviceNotFound", "no-such", "x-pitstop-volume-seal", name="no-such")
    await expect_error(client, "GenericError", "does not accept value 'never'", "x-pitstop-volume-set",
                       name="golden", verify="never")
    verified = await client.execute("x-pitstop-check", {"data": True})
    assert verified["corruptions"] == 0 and "data-bytes-verified" in verified, verified
    # What an import is sealed for may go on for a moment.
    assert [job for job in await client.execute("query-jobs") if job["type"] != "seal"] == []
    for order in ["job-pause", "job-resume", "job-cancel", "job-dismiss"]:
        await expect_error(client, "GenericError", "Job not found", order, id="no-such")
    await expect_error(client, "GenericError", "Job not found", "x-pitstop-job-set-speed", id="no-such", speed=1)


async def volumes(client, watcher):
    """CTL-36 to CTL-42, CTL-46, CTL-70 to CTL-72, CTL-150 to CTL-152."""
    snapshot = await client.execute("x-pitstop-snapshot", {"source": "golden", "name": "qmp-ci"})
    assert snapshot["volume"]["name"] == "qmp-ci" and snapshot["elapsed-us"] >= 0, snapshot
    assert await next_event(watcher, "X_PITSTOP_VOLUME_CREATED") == {"name": "qmp-ci", "source": "golden"}
    await expect_error(client, "GenericError", "exists already", "x-pitstop-snapshot", source="golden", name="qmp-ci")
    refresh = await client.execute("x-pitstop-refresh", {"source": "golden", "name": "qmp-ci"})
    assert refresh["volume"]["origin"]["name"] == "golden" and refresh["elapsed-us"] >= 0, refresh
    assert await next_event(watcher, "X_PITSTOP_VOLUME_REFRESHED") == {"name": "qmp-ci", "source": "golden"}
    split = await client.execute("x-pitstop-split", {"name": "qmp-ci"})
    assert split["volume"]["relation"]["state"] == "split", split
    assert await next_event(watcher, "X_PITSTOP_VOLUME_SPLIT") == {"name": "qmp-ci"}
    await expect_error(client, "GenericError", "no relation", "x-pitstop-split", name="qmp-ci")
    step = await client.execute("x-pitstop-map", {"name": "qmp-ci"})
    assert sum(range["length"] for range in step["ranges"]) == (step["next"] or step["size-bytes"]), step
    piece = await client.execute("x-pitstop-read", {"name": "qmp-ci", "start": 0, "length": 3 * 512})
    assert len(base64.b64decode(piece["data"], validate=True)) == 3 * 512, piece
    step = await client.execute("x-pitstop-diff", {"a": "golden", "b": "qmp-ci"})
    assert step["ranges"] == [] and step["counts"]["bytes"] == 0, step
    assert await client.execute("x-pitstop-write", {"name": "qmp-ci", "start": 0, "data": piece["data"]}) == {}
    assert await client.execute("x-pitstop-read", {"name": "qmp-ci", "start": 0, "length": 3 * 512}) == piece
    for end, event in [("drop", "X_PITSTOP_VIEW_DROPPED"), ("keep", "X_PITSTOP_VIEW_KEPT")]:
        view = await client.execute("x-pitstop-view-create", {"source": "qmp-ci", "name": "qmp-view"})
        assert view["volume"]["view-of"] == "qmp-ci", view
        assert await next_event(watcher, "X_PITSTOP_VOLUME_CREATED") == {"name": "qmp-view", "source": "qmp-ci"}
        await expect_error(client, "GenericError", "view drop", "x-pitstop-snapshot", source="qmp-ci", name="qmp-0")
        ended = await client.execute("x-pitstop-view-" + end, {"name": "qmp-view"})
        assert ended["volume"]["view-of"] is None, ended
        assert await next_event(watcher, event) == {"name": "qmp-view"}
        await client.execute("x-pitstop-volume-delete", {"name": "qmp-view"})
        assert await next_event(watcher, "X_PITSTOP_VOLUME_DELETED") == {"name": "qmp-view"}
    created = await client.execute("x-pitstop-volume-create", {"name": "qmp-1", "size": 1 << 20})
    assert created["volume"]["size-bytes"] == 1 << 20, created
    assert await next_event(watcher, "X_PITSTOP_VOLUME_CREATED") == {"name": "qmp-1"}
    for verify in ["copy", "always"]:
        changed = await client.execute("x-pitstop-volume-set", {"name": "qmp-1", "verify": verify})
        assert changed["volume"]["verify"] == verify, changed
    text = "'qmp-\u00e9' is not a volume name"
    await expect_error(client, "GenericError", text, "x-pitstop-volume-create", name="qmp-\u00e9", size=1 << 20)
    changed = await client.execute("x-pitstop-volume-set", {"name": "qmp-1", "durability": "none"})
    assert (changed["volume"]["durability"], changed["volume"]["undefined"]) == ("none", False), changed
    await client.execute("x-pitstop-volume-rename", {"name": "qmp-1", "new-name": "qmp-2"})
    assert (await next_event(watcher, "X_PITSTOP_VOLUME_RENAMED"))["new-name"] == "qmp-2"
    await client.execute("x-pitstop-volume-delete", {"name": "qmp-2"})
    assert await next_event(watcher, "X_PITSTOP_VOLUME_DELETED") == {"name": "qmp-2"}
    names = await volume_names(client)
    assert "qmp-ci" in names and "qmp-2" not in names, names


async def exports(client, watcher, folder):
    """CTL-32 to CTL-34, CTL-46."""
    address = {"type": "unix", "path": os.path.join(folder, "qmp-export.sock")}
    arguments = {"type": "vhost-user-blk", "id": "e1", "node-name": "qmp-ci", "writable": True, "addr": address}
    assert await client.execute("block-export-add", arguments) == {}
    assert await next_event(watcher, "X_PITSTOP_BLOCK_EXPORT_ADDED") == {"id": "e1"}
    [export] = [export for export in await client.execute("query-block-exports") if export["id"] == "e1"]
    assert (export["node-name"], export["type"], export["shutting-down"]) == ("qmp-ci", "vhost-user-blk", False)
    assert export["x-pitstop-writable"] and not export["x-pitstop-connected"], export
    await expect_error(client, "GenericError", "exported", "x-pitstop-volume-delete", name="qmp-ci")
    assert await client.execute("block-export-del", {"id": "e1"}) == {}
    assert await next_event(watcher, "BLOCK_EXPORT_DELETED") == {"id": "e1"}
    await expect_error(client, "GenericError", "e1", "block-export-del", id="e1")


def qmp_shell(socket):
    """CTL-29: what a person types."""
    shell = os.path.join(os.path.dirname(sys.executable), "qmp-shell")
    typed = "\n".join([
        "query-version",
        "x-pitstop-snapshot source=golden name=qmp-typed",
        "x-pitstop-refresh name=qmp-typed source=golden force=true",
        "x-pitstop-query-volumes name=qmp-typed",
        "x-pitstop-volume-delete name=qmp-typed",
        "x-pitstop-volume-delete name=qmp-typed",
    ]) + "\n"
    done = subprocess.run(
        [shell, socket], input=typed, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        env={**os.environ, "HOME": "/nonexistent"},
    )
    replies = []
    for line in done.stdout.splitlines():
        start = line.find("{")
        if start >= 0 and '"event"' not in line:
            replies.append(json.loads(line[start:]))
    assert len(replies) == 6, (done.stdout, done.stderr)
    assert all("return" in reply for reply in replies[:5]), replies
    assert replies[1]["return"]["volume"]["name"] == "qmp-typed", replies
    assert replies[5]["error"]["class"] == "DeviceNotFound", replies


async def main(socket, folder):
    client, other = QMPClient("driver"), QMPClient("watcher")
    await asyncio.wait_for(client.connect(socket), LIMIT_SECONDS)
    await asyncio.wait_for(other.connect(socket), LIMIT_SECONDS)
    assert client.greeting.QMP.capabilities == [], client.greeting
    watcher = EventListener()
    with other.listen(watcher):
        await questions(client)
        await volumes(client, watcher)
        await exports(client, watcher, folder)
        await asyncio.to_thread(qmp_shell, socket)
        while not watcher.empty():
            await watcher.get()
        await client.execute("x-pitstop-volume-delete", {"name": "qmp-ci"})
        await next_event(watcher, "X_PITSTOP_VOLUME_DELETED")
        assert await client.execute("quit") == {}
        data = await next_event(watcher, "SHUTDOWN")
        assert data == {"guest": False, "reason": "host-qmp-quit"}, data
    for connection in (client, other):
        try:
            await connection.disconnect()
        except EOFError:
            pass  # the daemon was faster
    print("drive.py: everything as specified")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 3 * LIMIT_SECONDS))
