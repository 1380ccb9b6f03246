"""Object stores: what their clients raise where the store does not answer."""

# fsspec translates what a store answers into OSErrors, and lets through what the network does.
_CLIENTS = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google"}


def is_from_a_store(error: BaseException) -> bool:
    """Whether an object store's client raised it: no answer, no credentials; such errors are no OSErrors."""
    return any(base.__module__.partition(".")[0] in _CLIENTS for base in type(error).__mro__)
