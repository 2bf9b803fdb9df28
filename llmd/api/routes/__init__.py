"""The table of routes, a module for each group of endpoints."""

from __future__ import annotations

from llmd.api import docs
from llmd.api.routes import (
    control,
    health,
    helpers,
    later,
    metrics,
    models,
    requests,
    steering,
    ui,
    worker_state,
)
from llmd.api.routing import Route
from llmd.config import Config


def all_routes(config: Config) -> list[Route]:
    """Return every route besides inference, as far as `config` has them."""
    table = [
        *helpers.routes(),
        *steering.routes(),
        *worker_state.routes(),
        *models.routes(),
        *requests.routes(),
        *control.routes(),
        *metrics.routes(config),
        *health.routes(),
        *ui.routes(config),
    ]
    if config.server.docs:
        table += docs.routes(table)
    return [*table, *later.routes()]
