"""The state folder of a platform on this machine: its lock, its keys, and the running platform's addresses."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from genaifactory_common import files
from genaifactory_common.damage import damaged
from genaifactory_common.errors import Conflict, FactoryError, InvalidArgument, Unavailable
from genaifactory_common.file_locks import file_lock, is_held
from genaifactory_common.tokens import Signer
from genaifactory_local import invocation

DEFAULT_FOLDER = Path(".genaifactory")

# The kernel accepts 107 bytes for a unix socket's path.
_LONGEST_SOCKET_PATH = 107
_LONGEST_SOCKET_NAME = "orchestrator.sock"
# Something else is in the place of a file or folder of ours, or it is another user's.
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.EACCES, errno.EPERM)
_NOTHING = "nothing: a new one is made"
_LOSS_OF_KEY = "the key that clients use: a new one is made, to be given to them"
_KEY_FORM = re.compile(r"gf-[A-Za-z0-9_-]{32,}")


@dataclass(frozen=True)
class State:
    """Paths below one state folder."""

    folder: Path

    @property
    def lock_file(self) -> Path:
        """Locked by the process that runs a platform on the folder."""
        return self.folder / "lock"

    @property
    def key_file(self) -> Path:
        """The development key."""
        return self.folder / "key"

    @property
    def signing_key_file(self) -> Path:
        """The key with which the gateway signs callers."""
        return self.folder / "signing-key"

    @property
    def factory_file(self) -> Path:
        """The configuration, unless the working folder has one of its own."""
        return self.folder / "factory.yaml"

    @property
    def log_file(self) -> Path:
        """JSON lines of every service."""
        return self.folder / "log" / "genaifactory.jsonl"

    @property
    def endpoints_file(self) -> Path:
        """Addresses of the running platform."""
        return self.folder / "running.json"

    @property
    def spans_file(self) -> Path:
        """The spans of recent requests, where no collector is set."""
        return self.folder / "data" / "traces" / "spans.sqlite"

    @property
    def tracking(self) -> Path:
        """MLflow's folder: its database and the artifacts of runs. No running platform uses it."""
        return self.folder / "mlflow"

    def data(self, service: str) -> Path:
        """The folder that one service owns."""
        return self.folder / "data" / service


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a running platform."""

    pid: int
    http_url: str
    grpc_address: str
    sockets: str
    """Folder of the services' unix sockets."""
    tenant: str
    """Tenant of the development key."""
    factory: str
    """The factory.yaml that it follows."""
    collector: str = ""
    """Address that its spans are sent to; empty: they are in State.spans_file."""

    def socket(self, service: str) -> str:
        """gRPC address of one service."""
        return service_address(Path(self.sockets), service)


def service_address(sockets: Path, service: str) -> str:
    """gRPC address of the service whose socket lies in the folder `sockets`."""
    return f"unix:{sockets / service}.sock"


@contextmanager
def owner_only() -> Iterator[None]:
    """What the process creates inside the block (sockets, databases, the log) is readable by its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def held(folder: Path) -> Iterator[State]:
    """Creates the folder if needed (mode 0700) and locks it inside the block.

    Raises Conflict when another process has locked it, InvalidArgument when it cannot be written.
    """
    state = State(folder.absolute())
    try:
        state.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.folder.chmod(0o700)
        lock = file_lock(state.lock_file, mode=0o600)
        lock.acquire(blocking=False)
    except Timeout:
        raise Conflict(
            f"Another process runs a platform on {state.folder}. Stop it, or give another folder with --state.",
            field="--state",
        ) from None
    except OSError as error:
        raise InvalidArgument(
            f"The state folder {state.folder} cannot be used: {_of(error, state.folder)}. Give another with --state.",
            field="--state",
        ) from None
    try:
        # A killed process leaves its addresses behind.
        try:
            state.endpoints_file.unlink(missing_ok=True)
        except OSError as error:
            raise damaged(state.endpoints_file, str(error.strerror), _NOTHING) from None
        yield state
    finally:
        lock.release()


def development_key(state: State) -> str:
    """The key in .genaifactory/key, created on first use. Raises Damaged when the file holds something else."""
    key = _kept(state.key_file, _LOSS_OF_KEY, lambda: f"gf-{secrets.token_urlsafe(32)}")
    if not _KEY_FORM.fullmatch(key):
        raise damaged(state.key_file, "it holds no key of this platform", _LOSS_OF_KEY)
    return key


def signer(state: State) -> Signer:
    """Signs callers for this folder's platform; its key is created on first use. Raises Damaged."""
    text = _kept(state.signing_key_file, _NOTHING, lambda: base64.b64encode(Signer.generate().private_key).decode())
    try:
        return Signer.parse(text)
    except InvalidArgument:
        raise damaged(state.signing_key_file, "it holds no key to sign with", _NOTHING) from None


@contextmanager
def socket_folder(state: State) -> Iterator[Path]:
    """A private folder for the services' sockets: below the state folder where the path is short enough for one."""
    folder = state.folder / "run"
    if len(os.fsencode(folder / _LONGEST_SOCKET_NAME)) >= _LONGEST_SOCKET_PATH:
        folder = Path(tempfile.mkdtemp(prefix="genaifactory-"))
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.unlink(missing_ok=True)  # what is no folder
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def announced(state: State, endpoints: Endpoints) -> Iterator[None]:
    """Lets other processes of this user find the platform inside the block."""
    announce(state, endpoints)
    try:
        yield
    finally:
        state.endpoints_file.unlink(missing_ok=True)


def announce(state: State, endpoints: Endpoints) -> None:
    """Replaces what other processes find, inside the block of `announced`."""
    files.write(state.endpoints_file, json.dumps(asdict(endpoints)).encode())


def find_running(folder: Path) -> tuple[State, Endpoints]:
    """The platform that runs on the folder. Raises Unavailable when none does."""
    state = State(folder.absolute())
    starting = False
    try:
        if starting := is_held(state.lock_file):
            return state, Endpoints(**json.loads(state.endpoints_file.read_text()))
    except PermissionError as error:
        raise InvalidArgument(f"{error.filename} cannot be read: {error.strerror}.", field="--state") from None
    except (OSError, ValueError, TypeError):
        pass
    if starting:
        raise Unavailable(
            f"The platform on {state.folder} is starting or stopping. Try again when it has printed Ready; "
            "on its first run it reads the documents before that."
        )
    raise Unavailable(
        f"No platform runs on {state.folder}. Start one with: make run   (or: {invocation.command()} run)"
    )


def explained(error: OSError, folder: Path) -> FactoryError:
    """The error to report for one that ended the start of a platform on the state folder."""
    path = Path(os.fsdecode(error.filename)).absolute() if error.filename else folder
    if folder.absolute() in path.parents:
        return _explained(error, path, "what it holds")
    return Conflict(f"{_of(error)}.")


def _explained(error: OSError, path: Path, loss: str) -> FactoryError:
    if error.errno in _IN_THE_WAY:
        return damaged(path, str(error.strerror), loss)
    return InvalidArgument(f"{path} cannot be used: {error.strerror}.", field="--state")


def _of(error: OSError, known: Path | None = None) -> str:
    """The system's error text, with the path unless that is `known`."""
    if error.filename and Path(os.fsdecode(error.filename)) != known:
        return f"{error.filename}: {error.strerror}"
    return str(error.strerror or error)


def _kept(path: Path, loss: str, make: Callable[[], str]) -> str:
    try:
        if not path.exists():
            files.write(path, f"{make()}\n".encode())
        path.chmod(0o600)
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise _explained(error, path, loss) from None
