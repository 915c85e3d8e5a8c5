"""A panel on every node: memory-mapped where its folder is, from Ray's object store elsewhere.

Either way all processes of a node share one copy. Panels are named by their content, so a worker finds the
right one by the folder's name alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import RunError
from data_pipeline.panel import Panel, open_panel


class _Shelf:
    """Keeps a panel for nodes that do not have its folder; an actor on a node that does."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._kept: Any = None

    def panel(self) -> list[Any]:
        """Returns the reference, in a list so that Ray does not resolve it; the first call puts the panel."""
        import ray  # noqa: PLC0415

        if self._kept is None:
            self._kept = ray.put(open_panel(self._folder))
        return [self._kept]


def share_panel(folder: Path) -> Any:
    """Offers a panel of this node to all others, and returns a handle to keep for as long as they may ask.

    Nothing is copied before a worker without the folder asks.
    """
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = ray.get_runtime_context().get_node_id()
    shelf = ray.remote(_Shelf).options(
        name=_name(folder),
        get_if_exists=True,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    )
    return shelf.remote(str(folder.resolve()))


def panel_at(folder: Path) -> Panel:
    """Returns the panel, its arrays read-only and shared by all processes of the node.

    Raises:
        RunError: The folder is not on this node, and no other offers it.
    """
    if (folder / "panel.json").is_file():
        return open_panel(folder)
    import ray  # noqa: PLC0415

    try:
        shelf = ray.get_actor(_name(folder))
    except ValueError as error:
        raise RunError(
            f"panel {folder}: neither on this node nor offered by another; build it with `swing-data build`"
        ) from error
    panel: Panel = ray.get(ray.get(shelf.panel.remote())[0])
    return panel


def _name(folder: Path) -> str:
    return f"panel-{folder.name}"
