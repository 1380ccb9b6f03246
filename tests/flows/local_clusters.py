"""Dask clusters that need no process of their own."""

from typing import Any

from flows.cluster import ClusterSettings


def in_threads(wait_seconds: float = 300.0, **arguments: Any) -> ClusterSettings:
    """Settings of a Dask cluster of one worker, a thread of this process; options as `LocalCluster`'s."""
    own = {"processes": False, "n_workers": 1, "dashboard_address": "127.0.0.1:0"}
    return ClusterSettings(None, "distributed.LocalCluster", own | arguments, wait_seconds=wait_seconds)
