"""Events that deployments wait for, sent to Prefect's server where one is at hand."""

import logging
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.settings import get_current_settings

from wbc.datasets.annotation_store import Added

ANNOTATIONS_ADDED, ANNOTATIONS_DUE = "wbc.annotations.added", "wbc.annotations.due"
CHAMPION_DRIFTED = "wbc.champion.drifted"
logger = logging.getLogger(__name__)


def annotations_added(store: str, added: Added, by: str, waiting: int, due: int) -> str | None:
    """Tell that annotations were added to the store at an address: the event `wbc.annotations.added`.

    Its payload has the numbers of annotations and pictures, the shard, who added them, and how many annotations wait
    now for a training. Where they are at least `due`, the event `wbc.annotations.due` says so too, with the same
    payload: it is what starts one. Returns why nobody was told: None where the server has it.
    """
    payload = {"annotations": added.annotations, "pictures": added.pictures, "shard": added.shard, "by": by}
    payload |= {"waiting": waiting, "due": due}
    reason = _emit(ANNOTATIONS_ADDED, store, payload)
    return _emit(ANNOTATIONS_DUE, store, payload) if reason is None and waiting >= due else reason


def champion_drifted(reference: str, figures: dict[str, list[float]]) -> str | None:
    """Tell that a champion has drifted: the event `wbc.champion.drifted`, with the figures kept and those of now.

    Returns why nobody was told: None where the server has it.
    """
    name = reference.removeprefix("models:/").partition("/")[0]
    return _send(CHAMPION_DRIFTED, f"wbc.model.{name}", {"version": reference, "figures": figures})


def _emit(name: str, store: str, payload: dict[str, Any]) -> str | None:
    return _send(name, resource_id(store), payload)


def _send(name: str, resource: str, payload: dict[str, Any]) -> str | None:
    """Send an event, and wait until the server has it. Returns why it has not, None where it has."""
    if get_current_settings().api.url is None:
        return "no Prefect server is set (PREFECT_API_URL)"
    event = Event(event=name, resource=Resource({"prefect.resource.id": resource}), payload=payload)
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except (httpx.HTTPError, OSError) as error:
        return f"the Prefect server at {get_current_settings().api.url} does not answer ({error})"
    return None


def resource_id(store: str) -> str:
    """The resource that events about the store at an address are about: what a trigger matches on."""
    return f"wbc.annotation-store.{store}"
