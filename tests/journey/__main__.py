"""Runs the first hour from a fresh clone in a bare container: Python, make, and an account without rights.

`make test-journey` calls it. It needs docker, podman or buildah, whichever runs here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = "docker.io/library/python:3.11-slim-bookworm"
NEEDED = "make curl"
# As root: what the README asks for, and an account; then everything else as that account.
PLAY = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends {NEEDED} >/dev/null
useradd --create-home newcomer
cp -r /clone /home/newcomer/genaifactory && chown -R newcomer /home/newcomer
cd /home/newcomer/genaifactory
exec setpriv --reuid newcomer --regid newcomer --clear-groups env HOME=/home/newcomer USER=newcomer \
  python3 -u -m tests.journey.first_hour
"""


def main() -> int:
    """Exit code of the journey; 1 when there is nothing to run a container with."""
    with tempfile.TemporaryDirectory(prefix="journey-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        for engine in ("docker", "podman"):
            if _works(engine):
                run = [engine, "run", "--rm", "--volume", f"{clone}:/clone:ro", IMAGE, "bash", "-c", PLAY]
                return subprocess.run(run, check=False).returncode
        if _works("buildah"):
            return _buildah(clone)
    print("The journey needs docker, podman or buildah; none of them is installed and running.", file=sys.stderr)
    return 1


def _works(engine: str) -> bool:
    if shutil.which(engine) is None:
        return False
    return subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0


def _buildah(clone: Path) -> int:
    made = subprocess.run(["buildah", "from", IMAGE], capture_output=True, text=True, check=True).stdout.strip()
    try:
        # With this machine's network, for package registries; in a process namespace, whose processes end with it.
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        run = ["buildah", "run", "--isolation", "chroot", "--network", "host", "--volume", f"{clone}:/clone:ro", made]
        return subprocess.run([*alone, *run, "--", "bash", "-c", PLAY], check=False).returncode
    finally:
        subprocess.run(["buildah", "rm", made], capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
