"""From a model and a scene to a map: tiles, rows of tiles, rasters, polygons."""

__all__: list[str] = []
