"""What the installation is made of."""

from __future__ import annotations

from tests.cluster.release import CHART
from tests.full import FULL

# Long enough for kubelets to show the pods a changed Secret; fewer where the test makes them (Namespace.refreshed).
PROPAGATION_SECONDS = 100 if FULL else 25
# The least; rotating the key of callers' tokens takes as long.
TOKEN_SECONDS = 300
VALUES = (
    "--values",
    str(CHART / "profiles" / "laptop.yaml"),
    "--set",
    f"certificates.propagationSeconds={PROPAGATION_SECONDS},global.callerTokenSeconds={TOKEN_SECONDS}",
)
