"""Workflows of the improvement loop on a cluster: what Argo runs, a pod for each task."""
