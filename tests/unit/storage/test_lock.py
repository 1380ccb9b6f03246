"""An OUT has one writer: the second is refused with the first one's name, a dead one's place is taken."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock
from upath import UPath

from wbc.storage import lock
from wbc.storage.layout import Layout
from wbc.storage.lock import Holder, OutInUse, check_free, holding

HOLDER = """
import sys, time
from upath import UPath
from wbc.storage.lock import holding

with holding(UPath(sys.argv[1]), "first"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)


def lease(out: UPath) -> UPath:
    return Layout(out).lease()


def left_behind(out: UPath, **changes: object) -> Holder:
    """The lease of another run, as it stands in OUT."""
    holder = replace(Holder.of_this_process("other"), **changes)  # type: ignore[arg-type]
    lease(out).parent.mkdir(parents=True, exist_ok=True)
    lease(out).write_bytes(json.dumps(asdict(holder)).encode())
    return holder


def test_the_second_writer_is_refused_with_owner_host_and_start_until_the_first_is_done(out: UPath) -> None:
    with holding(out, "first"):
        holder = Holder(**json.loads(lease(out).read_bytes()))
        with pytest.raises(OutInUse, match="is written by") as refused, holding(out, "second"):
            pass
        for word in (str(out), holder.user, "first", str(os.getpid()), holder.host, holder.since):
            assert word in str(refused.value)
    with holding(out, "second"):
        assert json.loads(lease(out).read_bytes())["run_id"] == "second"
    assert not lease(out).exists()


@pytest.mark.parametrize("left", [False, True], ids=["new", "left by a dead run"])
def test_who_is_refused_by_one_that_has_just_come_is_told_its_name(tmp_path: Path, left: bool) -> None:
    """The operating system's lock comes first, the name a moment later."""
    out = UPath(tmp_path / "out")
    if left:
        left_behind(out, pid=2**22 + 1)
    lease(out).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(Layout(out).lock().path, thread_local=False) as first:
        timer = threading.Timer(0.3, left_behind, [out])
        timer.start()
        with pytest.raises(OutInUse, match=f"run other \\(process {os.getpid()} on "), holding(out, "second"):
            pass
        timer.join()
        lease(out).unlink()
        threading.Timer(0.3, first.release).start()
        with holding(out, "third"):
            pass


def test_a_process_that_holds_out_keeps_others_away_and_killed_leaves_it_free(tmp_path: Path) -> None:
    out = UPath(tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutInUse, match=f"run first \\(process {process.pid} on "), holding(out, "second"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lease(out).exists()
    with holding(out, "second") as hold:
        hold.check()


def test_a_holder_whose_process_is_gone_or_whose_number_is_another_process_is_dead(out: UPath) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    for changes in ({"pid": ended.pid}, {"process_started": 1.0}):
        left_behind(out, **changes)
        with holding(out, "next") as hold:
            hold.check()
        assert not lease(out).exists()


def test_a_holder_on_another_host_is_alive_while_its_lease_is_renewed(out: UPath) -> None:
    left_behind(out, host="elsewhere", renewed=time.time() - 30)
    with pytest.raises(OutInUse, match="on elsewhere"), holding(out, "next"):
        pass
    left_behind(out, host="elsewhere", renewed=time.time() - 200)
    with holding(out, "next") as hold:
        hold.check()


def test_whether_out_is_free_is_told_without_holding_it(out: UPath) -> None:
    check_free(out)
    assert not out.exists()
    with holding(out, "first"), pytest.raises(OutInUse, match="run first"):
        check_free(out)
    check_free(out)


def test_a_lease_is_renewed_while_it_is_held(out: UPath) -> None:
    with holding(out, "first"):
        first = json.loads(lease(out).read_bytes())["renewed"]
        deadline = time.monotonic() + 10
        while json.loads(lease(out).read_bytes())["renewed"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_run_that_was_taken_for_dead_learns_it_and_leaves_the_new_lease_alone(out: UPath) -> None:
    with holding(out, "first") as hold:
        left_behind(out, host="elsewhere")
        with pytest.raises(OutInUse, match=r"taken over by .*run other .* on elsewhere"):
            hold.check()
        time.sleep(0.2)
    assert json.loads(lease(out).read_bytes())["run_id"] == "other"


def test_of_many_that_come_at_once_one_holds_out(out: UPath) -> None:
    results: list[str] = []
    together = threading.Barrier(8)

    def come(number: int) -> None:
        together.wait()
        try:
            with holding(out, f"run{number}"):
                results.append("held")
                time.sleep(0.5)
        except OutInUse:
            results.append("refused")

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 7


def test_a_broken_lease_keeps_nobody_away(out: UPath) -> None:
    lease(out).parent.mkdir(parents=True)
    lease(out).write_bytes(b"{")
    with holding(out, "next") as hold:
        hold.check()


def test_an_out_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"results cannot be written here: Not a directory.*/file/out"):  # noqa: SIM117
        with holding(UPath(tmp_path / "file" / "out"), "next"):
            pass
