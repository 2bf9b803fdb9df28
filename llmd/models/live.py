"""The catalog of a running daemon: which one holds now, in one place."""

from __future__ import annotations

from typing import Protocol

from llmd.models.catalog import Catalog, CatalogFault, CatalogModel


class Models(Protocol):
    """What those need who only look models up."""

    @property
    def models(self) -> tuple[CatalogModel, ...]:
        """All of them, sorted by name."""

    def resolve(self, name: str) -> CatalogModel | None:
        """Return the model with this name, alias or file name."""


class LiveCatalog:
    """The one catalog that holds, replaced as a whole when a model comes to it.

    Owned by the daemon; everybody else asks it each time and keeps nothing of it.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    @property
    def models(self) -> tuple[CatalogModel, ...]:
        """All models, sorted by name."""
        return self._catalog.models

    @property
    def faults(self) -> tuple[CatalogFault, ...]:
        """What is wrong with `[[models]]` and `models_dir`."""
        return self._catalog.faults

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with files below `models_dir`."""
        return self._catalog.warnings

    def resolve(self, name: str) -> CatalogModel | None:
        """Return the model with this name, alias or file name, letter by letter."""
        return self._catalog.resolve(name)

    def repository(self, reference: str) -> CatalogModel:
        """Return the model that `add_repository` would take in; nothing is changed.

        Args:
            reference: `REPO:QUANT`, which is no name here.
        """
        return self._catalog.with_repository(reference)[1]

    def add_repository(self, reference: str) -> CatalogModel:
        """Take in a model that its worker fetches from a repository, and return it.

        Args:
            reference: `REPO:QUANT`; one that is here already stays as it is.
        """
        known = self._catalog.resolve(reference)
        if known is not None:
            return known
        self._catalog, added = self._catalog.with_repository(reference)
        return added
