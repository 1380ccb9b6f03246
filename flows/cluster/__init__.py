"""The Dask cluster that counts: joined or started, checked against this machine's code and models, closed again.

The only place that knows Dask.
"""

from flows.cluster.connect import Cluster, open_cluster
from flows.cluster.errors import ClusterError, reason, worth_retrying
from flows.cluster.settings import ClusterSettings, read_settings, settings_of
from flows.cluster.start import prepare

__all__ = [
    "Cluster",
    "ClusterError",
    "ClusterSettings",
    "open_cluster",
    "prepare",
    "read_settings",
    "reason",
    "settings_of",
    "worth_retrying",
]
