"""What makes the processes of the tests faster. No test can see a difference."""

import gc
from functools import cache
from typing import Any

from botocore.loaders import JSONFileLoader, Loader

load_file = JSONFileLoader.load_file
list_services = Loader.list_available_services
# The default is 700: a test creates millions of objects, and deletes almost all of them without the collector.
OBJECTS_PER_COLLECTION = 20_000


def share_botocores_files() -> None:
    """Let all boto3 sessions share the files of botocore and the list of its services.

    Without this, each new client looks into 400 folders, and the tests create thousands of clients.
    """
    JSONFileLoader.load_file = lambda _, path: _content(path)  # type: ignore[method-assign,assignment]
    Loader.list_available_services = list_services_once  # type: ignore[method-assign,assignment]


def list_services_once(loader: Loader, type_name: str) -> Any:
    """Return the services of which a loader finds a description of a type, like `Loader.list_available_services`."""
    return _services(tuple(loader.search_paths), type_name)


@cache
def _content(path: str) -> Any:
    return load_file(JSONFileLoader(), path)


@cache
def _services(folders: tuple[str, ...], type_name: str) -> Any:
    return list_services(Loader(extra_search_paths=list(folders), include_default_search_paths=False), type_name)


def collect_garbage_rarely() -> None:
    """Do not search the imported modules for garbage. They stay until the end, and are millions of objects."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION, 20, 20)
