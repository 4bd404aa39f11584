"""The state folder: one process at a time, private keys, sockets with short paths."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from genaifactory_common.damage import Damaged
from genaifactory_common.errors import Conflict, InvalidArgument, Unavailable
from genaifactory_local import state
from genaifactory_local.state import Endpoints, State


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _endpoints(sockets: Path) -> Endpoints:
    return Endpoints(
        pid=os.getpid(),
        http_url="http://127.0.0.1:1",
        grpc_address="127.0.0.1:2",
        sockets=str(sockets),
        tenant="dev",
        factory="",
    )


def test_the_folder_and_its_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    with state.held(tmp_path / "state") as held:
        state.development_key(held)
        state.signer(held)
        assert _mode(held.folder) == 0o700
        assert _mode(held.key_file) == 0o600
        assert _mode(held.signing_key_file) == 0o600


def test_a_key_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    with state.held(tmp_path) as held:
        key = state.development_key(held)
        held.key_file.chmod(0o644)
        assert state.development_key(held) == key
        assert _mode(held.key_file) == 0o600


def test_the_keys_stay_the_same_over_restarts(tmp_path: Path) -> None:
    with state.held(tmp_path) as held:
        first = state.development_key(held), state.signer(held).public_key
    with state.held(tmp_path) as held:
        assert (state.development_key(held), state.signer(held).public_key) == first


def test_the_error_for_a_damaged_key_file_names_it(tmp_path: Path) -> None:
    with state.held(tmp_path) as held:
        held.key_file.write_text("")
        held.signing_key_file.write_text("not base64!")
        with pytest.raises(Damaged, match="key cannot be used: it holds no key of this platform"):
            state.development_key(held)
        with pytest.raises(Damaged, match="signing-key cannot be used: it holds no key to sign with"):
            state.signer(held)


def test_a_second_process_is_refused_while_the_first_holds_the_folder(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from genaifactory_local import state\n"
        "with state.held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match="Another process"), state.held(tmp_path):
            pass
        other.kill()
    with state.held(tmp_path):  # the lock of a killed process is free
        pass


def test_the_error_for_a_folder_that_cannot_be_created_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidArgument, match="file/state cannot be used: Not a directory"),
        state.held(tmp_path / "file" / "state"),
    ):
        pass


def test_a_running_platform_is_found_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="make run"):
        state.find_running(tmp_path)
    with state.held(tmp_path) as held:
        with pytest.raises(Unavailable, match="is starting or stopping"):  # it holds the folder, but does not answer
            state.find_running(tmp_path)
        with state.announced(held, _endpoints(tmp_path)):
            assert state.find_running(tmp_path)[1] == _endpoints(tmp_path)
    with pytest.raises(Unavailable, match="make run"):
        state.find_running(tmp_path)


def test_addresses_that_a_killed_platform_left_behind_are_not_those_of_a_running_one(tmp_path: Path) -> None:
    with state.held(tmp_path) as held, state.announced(held, _endpoints(tmp_path)):
        left_behind = held.endpoints_file.read_bytes()
    held.endpoints_file.write_bytes(left_behind)
    with pytest.raises(Unavailable):
        state.find_running(tmp_path)
    with state.held(tmp_path), pytest.raises(Unavailable):
        state.find_running(tmp_path)


def test_sockets_are_in_the_state_folder_where_their_paths_fit_and_elsewhere_where_not(tmp_path: Path) -> None:
    # tmp_path may itself be long, so the short folder is not below it.
    short, long = State(Path(f"/tmp/gf-{os.getpid()}")), State(tmp_path / ("x" * 90))
    for own in (short, long):
        own.folder.mkdir()
    try:
        with state.socket_folder(short) as folder:
            assert folder == short.folder / "run"
            assert _mode(folder) == 0o700
        with state.socket_folder(long) as folder:
            assert long.folder not in folder.parents
            assert len(str(folder / "orchestrator.sock")) < 108
            assert _mode(folder) == 0o700
        assert not folder.exists()
    finally:
        short.folder.rmdir()
