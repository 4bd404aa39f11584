"""The commands of `genaifactory`, one module per subject; `genaifactory_local.cli` registers them."""
